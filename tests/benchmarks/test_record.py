"""Records: written whole or not at all, read strictly; the environment names no machine."""

import errno
import json
import os
import platform
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_records import FINGERPRINTS, toy_protocol, toy_record, write_toy_records

from benchmarks import environment as surroundings
from benchmarks import record as records
from benchmarks.cell import make_cell
from benchmarks.environment import environment
from benchmarks.errors import UserError
from benchmarks.record import Record, write_atomically
from benchmarks.report.records import load_records
from benchmarks.segmentation.metrics import summary
from benchmarks.yaml_files import digest_of


def test_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = toy_record("lora", 1)
    record.write(tmp_path / "a" / "seed1.json")
    assert Record.load(tmp_path / "a" / "seed1.json") == record
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["seed1.json"]


def test_full_disk_leaves_nothing_and_keeps_the_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "seed0.json"
    toy_record("lora", 0).write(path)
    before = path.read_bytes()

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(records.os, "fsync", no_space)
    with pytest.raises(UserError, match=r"^no space left while writing .*seed0.json"):
        toy_record("soma", 0).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_device_is_reported(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(UserError, match="no space left"):
        write_atomically(tmp_path / "x", fill)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def stop(file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "x.json", stop)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match=r"while writing .*seed0.json"):
        toy_record("lora", 0).write(tmp_path / "runs" / "seed0.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not a record"),
        ('{"schema_version": 1', "not a record"),
        ('{"schema_version": 2}', "schema_version: input should be 1"),
        ("[]", "not a record"),
    ],
)
def test_unreadable_record_is_one_line_with_its_path(
    text: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "toy" / "all" / "lora" / "seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_records(tmp_path, "toy", "controlled")
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_records_of_another_mode_are_left_out(tmp_path: Path) -> None:
    toy_record("lora", 0).write(tmp_path / "toy/all/lora/seed0.json")
    other = toy_record("lora", 0, recipe="as-published")
    other.write(tmp_path / "toy/all+as-published/lora/seed0.json")
    assert [r.recipe for r in load_records(tmp_path, "toy", "as-published")] == ["as-published"]


def test_environment_names_versions_but_neither_host_nor_paths() -> None:
    found = environment()
    assert found.python == platform.python_version()
    assert "pydantic" in found.packages
    text = found.model_dump_json()
    assert str(Path.home()) not in text
    assert str(surroundings.REPOSITORY) not in text
    assert f'"{socket.gethostname()}"' not in text


def test_a_package_from_a_repository_is_named_with_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "detectron2-0.6.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: detectron2\nVersion: 0.6\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert environment().packages["detectron2"] == "0.6"
    origin = {"url": "https://example.org/d2.git", "vcs_info": {"vcs": "git", "commit_id": "f00d"}}
    (info / "direct_url.json").write_text(json.dumps(origin))
    assert environment().packages["detectron2"] == "0.6 (f00d)"
    url = surroundings.REPOSITORY.as_uri()
    (info / "direct_url.json").write_text(json.dumps({"url": url, "dir_info": {"editable": True}}))
    assert environment().packages["detectron2"] == f"0.6 ({environment().commit})"


def test_environment_outside_git_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "REPOSITORY", Path("/"))
    assert (environment().commit, environment().dirty) == (None, None)


def test_only_changes_outside_results_make_a_tree_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    git("init", "-q")
    (tmp_path / "code.py").write_text("")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(surroundings, "REPOSITORY", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table1.md").write_text("made by a run")
    assert environment().dirty is False
    (tmp_path / "code.py").write_text("changed = True")
    assert environment().dirty is True


def edited(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def set_score(value: float) -> Callable[[dict], None]:
    def change(record: dict) -> None:
        record["evaluations"][-1]["domains"]["bdd100k"]["metrics"]["mIoU"] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(set_score(value) for value in (float("nan"), float("inf"), 250.0, -5.0)),
        lambda r: r.update(digest="0" * 64),
        lambda r: r.update(seed=1),
        lambda r: r["cell"].update(seed=1),
        lambda r: r.update(placement="last-two-thirds"),
        lambda r: r.update(recipe="as-published"),
        lambda r: r.update(protocol_version=4),
        lambda r: r["cell"]["recipe"].update(lr=1.0),
        *(lambda r, part=part: r["cell"].pop(part) for part in ("protocol", "recipe", "method")),
        lambda r: r["cell"].update(protocol=[]),
        lambda r: r["data"].update(gtav="0"),
        lambda r: r.update(label="lo\nra"),
        lambda r: r.update(label="\x1b[31mlora"),
        lambda r: r.update(status="failed", reason="loss not finite"),
        lambda r: r.update(status="failed"),
        lambda r: r.update(reason="it was well"),
        lambda r: r.update(evaluations=r["evaluations"][:1]),
        lambda r: r["evaluations"][-1]["domains"]["bdd100k"].update(images=0),
        lambda r: r["evaluations"][-1]["domains"].pop("bdd100k"),
        lambda r: r["evaluations"][-1]["domains"]["bdd100k"].update(role="extra"),
        lambda r: r["evaluations"][0].update(iteration=-1),
        lambda r: r["evaluations"].append(r["evaluations"][-1]),
        lambda r: r["evaluations"].append(r["evaluations"][-1] | {"iteration": 10**9}),
        lambda r: r["parameters"].update(backbone_trainable=-1),
        lambda r: r["cost"].update(seconds_per_step=-1.0),
        lambda r: r["cost"].update(devices=0),
        lambda r: r.update(method="dora"),
        lambda r: r.update(classes=["road"]),  # of two scores per class
        lambda r: r.update(label="dora"),
        lambda r: r["evaluations"][-1]["domains"]["bdd100k"].update(role="best"),
    ],
)
def test_an_edited_record_is_refused_by_name(
    change: Callable[[dict], None], tmp_path: Path
) -> None:
    write_toy_records(tmp_path, [toy_record("lora", 0)])
    path = tmp_path / "toy/all/lora/seed0.json"
    assert len(load_records(tmp_path, "toy", "controlled")) == 1
    edited(change)(path)
    with pytest.raises(UserError, match=str(path)):
        load_records(tmp_path, "toy", "controlled")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_score(31.0), "bdd100k: mIoU is not that of the matrices in seed0.npz"),
        (
            lambda r: r["evaluations"][-1]["domains"]["bdd100k"].update(images=3),
            "bdd100k: 3 images, seed0.npz has 2",
        ),
        (lambda r: None, ""),
    ],
)
def test_scores_are_those_of_the_matrices_beside_the_record(
    change: Callable[[dict], None], words: str, tmp_path: Path
) -> None:
    write_toy_records(tmp_path, [toy_record("lora", 0)])
    path = tmp_path / "toy/all/lora/seed0.json"
    matrices = np.random.default_rng(0).integers(1, 99, (2, 19, 19))

    def true(record: dict) -> None:
        record["evaluations"][-1]["domains"]["bdd100k"].update(
            images=2, metrics=summary(matrices.sum(0))
        )

    edited(true)(path)
    np.savez_compressed(path.with_suffix(".npz"), bdd100k=matrices)
    assert len(load_records(tmp_path, "toy", "controlled")) == 1
    if words:
        edited(change)(path)
    else:
        path.with_suffix(".npz").write_bytes(path.with_suffix(".npz").read_bytes()[:-100])
        words = "seed0.npz beside it cannot be read"
    with pytest.raises(UserError, match=f"{path}: not as its run left it: {words}"):
        load_records(tmp_path, "toy", "controlled")


@pytest.mark.parametrize(
    "part", [{"task": "none"}, {"task": []}, {"targets": 1}, {"targets": [{}]}]
)
def test_a_cell_that_does_not_say_what_is_scored_is_refused(part: dict, tmp_path: Path) -> None:
    record = toy_record("lora", 0)
    cell = record.cell | {"protocol": record.cell["protocol"] | part}
    changed = record.model_copy(update={"cell": cell, "digest": digest_of(cell)})
    write_toy_records(tmp_path, [changed])
    with pytest.raises(UserError, match="its cell does not say what is scored"):
        load_records(tmp_path, "toy", "controlled")


@pytest.mark.parametrize("copy", ["lora_old/seed0.json", "lora/seed0 (copy).json"])
def test_a_copy_of_a_record_is_refused_naming_both_files(copy: str, tmp_path: Path) -> None:
    write_toy_records(tmp_path, [toy_record("lora", 0)])
    folder = tmp_path / "toy/all"
    (folder / copy).parent.mkdir(exist_ok=True)
    (folder / copy).write_bytes((folder / "lora/seed0.json").read_bytes())
    with pytest.raises(UserError) as error:
        load_records(tmp_path, "toy", "controlled")
    assert str(folder / copy) in str(error.value)
    assert str(folder / "lora/seed0.json") in str(error.value)


def test_a_mean_that_rounds_above_100_is_no_edit(tmp_path: Path) -> None:
    record = toy_record("lora", 0)
    record.evaluations[-1].domains["bdd100k"].metrics["mIoU"] = 100.00000000000001
    write_toy_records(tmp_path, [record])
    assert len(load_records(tmp_path, "toy", "controlled")) == 1


def test_the_reason_of_a_failure_holds_no_escape_codes() -> None:
    cell = make_cell(toy_protocol(), "lora", seed=0, data=FINGERPRINTS)
    record = cell.record("failed", "Error: \x1b[31mred\x1b[0m\nand \x00 more")
    assert record.reason == "Error: [31mred[0m and  more"
    record.check()
