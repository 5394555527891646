import logging
import random
import zipfile

import pytest
import torch
from toy_training import STEPS, Killed, assert_same_bits, recipe, run

from benchmarks.errors import UserError
from benchmarks.train import _UNREADABLE, _read

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_checkpoint_of_another_cell_is_refused(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, recipe(), dies_at=6)
    with pytest.raises(UserError, match="another cell, it differs in lr;"):
        run(tmp_path, recipe(), lr=2)


def test_repaired_data_of_a_scored_domain_keeps_finished_training(tmp_path):
    whole = run(tmp_path / "whole", recipe())
    with pytest.raises(Killed):
        run(tmp_path, recipe(), dies_scoring=STEPS)
    state, history, calls = run(tmp_path, recipe(), digest="repaired", dies_at=STEPS - 1)
    assert calls == [STEPS]
    assert_same_bits(whole, (state, history, calls))


def test_scores_of_data_that_changed_since_are_refused(tmp_path):
    ours = recipe(evaluate_at=(2,))
    with pytest.raises(Killed):
        run(tmp_path, ours, dies_at=6)
    with pytest.raises(UserError, match="scores of iteration 2 on domains that have changed since"):
        run(tmp_path, ours, digest="changed")


@pytest.mark.parametrize("place", [0.2, 0.4, 0.6, 0.8, 0.95])
def test_a_flipped_bit_is_seen_and_the_checkpoint_before_it_taken(place, tmp_path, caplog):
    whole = run(tmp_path / "whole", recipe())
    with pytest.raises(Killed):
        run(tmp_path, recipe(), dies_at=10)
    path = tmp_path / "seed0.checkpoint"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        tensor = max(file.infolist(), key=lambda item: item.file_size)
    data = tensor.header_offset + 30 + len(tensor.filename)
    content[-(-data // 64) * 64 + int(place * tensor.file_size)] ^= 16
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert_same_bits(whole, run(tmp_path, recipe()))
    assert "goes on from iteration 4" in caplog.text


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


def test_no_bit_of_a_checkpoint_changes_what_is_read(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, recipe(), dies_at=10)
    path = tmp_path / "seed0.checkpoint"
    whole, expected = path.read_bytes(), _plain(_read(path))
    draw, refused = random.Random(1), 0
    for _ in range(400):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            assert _plain(_read(path)) == expected  # padding, or a date in the archive
        except _UNREADABLE:
            refused += 1
    assert refused > 100


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


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
