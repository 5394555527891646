import logging

import pytest
import torch
from toy_training import Killed, assert_same_bits, recipe, run

from benchmarks.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_checkpoint_of_another_cell_is_refused(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, recipe(), dies_at=6)
    with pytest.raises(UserError, match="is the checkpoint of another cell"):
        run(tmp_path, recipe(), digest="b")


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_checkpoint_that_cannot_be_read_is_said_and_ignored(damage, tmp_path, caplog):
    whole = run(tmp_path / "whole", recipe())
    with pytest.raises(Killed):
        run(tmp_path, recipe(), dies_at=6)
    path = tmp_path / "seed0.checkpoint"
    path.write_bytes(path.read_bytes()[:-500] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert_same_bits(whole, run(tmp_path, recipe()))
    assert "cannot be read" in caplog.text


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        run(tmp_path, recipe(), dies_at=6)
    path = tmp_path / "seed0.checkpoint"
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half")
        raise RuntimeError("unexpected pos 704 vs 598")  # what torch says on a full disk

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError) as error:
        run(tmp_path, recipe())
    assert str(path) in str(error.value)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
