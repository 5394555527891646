"""What the clients of other services and people themselves fetch, and the script."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from paths import ROOT
from toy_download import LABELS, PLACED, files, run_here, write_card

from benchmarks.__main__ import main
from benchmarks.data import cards

SCRIPT = ROOT / "scripts" / "download_datasets.sh"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty data root beside a folder of cards."""
    monkeypatch.setattr(cards, "FOLDER", tmp_path / "cards")
    (tmp_path / "cards").mkdir()
    (tmp_path / "data").mkdir()
    cards.load_card.cache_clear()
    yield tmp_path / "data"
    cards.load_card.cache_clear()


@pytest.fixture
def download(root: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the command on the toy card: exit code, stdout, stderr."""

    def call(*more: str) -> tuple[int, str, str]:
        code = main(["download", "--dataset", "toy", "--root", str(root), *more])
        output = capfd.readouterr()
        return code, output.out, output.err

    return call


def test_files_behind_a_login_are_named_with_page_and_place(root: Path, download: Command) -> None:
    write_card(root, "kind: login, url: 'https://toy.example/get', files: [{name: 1_labels.zip}]")
    code, _, err = download()
    assert code == 2
    assert "fetch 1_labels.zip from https://toy.example/get with an account" in err
    assert str(root / "toy") in err
    (root / "toy").mkdir()
    (root / "toy/1_labels.zip").write_bytes(LABELS)
    assert download()[0] == 0
    assert (root / "toy/labels/1").read_text() == "label"


CSDOWNLOAD = f"""#!{sys.executable}
import getpass, os, pathlib, sys
folder, names = pathlib.Path(sys.argv[sys.argv.index("-d") + 1]), sys.argv[4:]
pathlib.Path(os.environ["SEEN"]).write_text(" ".join(sys.argv))
input("Cityscapes username or email address: ")
sys.exit("Bad credentials.") if getpass.getpass() != "hunter2" else None
for name in names:
    (folder / name).write_bytes(bytes.fromhex("{LABELS.hex()}"))
"""


@pytest.mark.parametrize(("password", "code"), [("hunter2", 0), ("hunter3", 2)])
def test_csdownload_asks_for_the_password_and_nobody_else_sees_it(
    root: Path, tmp_path: Path, password: str, code: int
) -> None:
    write_card(root, "kind: cityscapes, url: 'https://c.example/', files: [{name: 1_labels.zip}]")
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin/csDownload"
    fake.write_text(CSDOWNLOAD)
    fake.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SEEN": str(tmp_path / "seen"),
        "CITYSCAPES_PASSWORD": password,
    }
    done = subprocess.run(
        run_here(root),
        cwd=ROOT,
        env=environment,
        input=f"me\n{password}\n",
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # no terminal: the password comes from stdin
    )
    assert done.returncode == code, done.stderr
    assert ("toy/labels/1" in files(root)) == (code == 0)
    assert password not in done.stdout + done.stderr + (tmp_path / "seen").read_text()
    for path in root.rglob("*"):
        assert not path.is_file() or password.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("kind", "url", "word"),
    [
        ("cityscapes", "https://c.example/", "pip install cityscapesscripts"),
        ("drive", "https://drive.example/", "pip install gdown"),
    ],
)
def test_a_missing_client_is_named_with_what_installs_it(
    root: Path, download: Command, monkeypatch: pytest.MonkeyPatch, kind: str, url: str, word: str
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    write_card(root, f"kind: {kind}, url: '{url}', files: [{{name: 1_labels.zip}}]")
    code, _, err = download()
    assert code == 2
    assert word in err
    assert not (root / "toy").exists()


def test_the_hub_brings_loose_files_and_archives(
    root: Path, download: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def snapshot(repository: str, *, local_dir: Path, **more: object) -> None:
        asked.update(more, repository=repository)
        for name, content in {
            "images/1": b"image" * 1000,
            "archives/labels.zip": LABELS,
            ".cache/huggingface/x.zip": b"no zip",
        }.items():
            (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
            (local_dir / name).write_bytes(content)

    sizes = {"images/1": 5000, "archives/labels.zip": 200, "depth/1": 10**15}
    siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
    info = SimpleNamespace(siblings=siblings)
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda *_, **__: info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    url = "https://huggingface.co/datasets/me/toy"
    write_card(root, f"kind: hub, url: '{url}', files: [{{name: 'images/*'}}, {{name: '*.zip'}}]")
    assert "needs 0.000 GB, free" in download("--dry-run")[1]
    assert download()[0] == 0
    assert files(root) == PLACED
    assert asked == {
        "repository": "me/toy",
        "repo_type": "dataset",
        "allow_patterns": ["images/*", "*.zip"],
    }
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    assert download()[0] == 0


def test_a_refusing_hub_is_one_line_without_secrets(
    root: Path, download: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("403 Client Error for url: https://cdn.example/?signature=SECRET")

    monkeypatch.setattr("huggingface_hub.dataset_info", refuse)
    url = "https://huggingface.co/datasets/me/toy"
    write_card(root, f"kind: hub, url: '{url}', files: [{{name: '*'}}]")
    code, _, err = download()
    assert code == 2
    assert f"{url}: OSError: 403 Client Error; run" in err
    assert "SECRET" not in err


def test_the_other_way_can_be_chosen_and_a_drive_is_unpacked(
    root: Path, download: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root.parent / "gdown.py").write_text(
        "import pathlib, shutil\n"
        "def download_folder(url, output, quiet, resume):\n"
        f"    pathlib.Path(output, 'labels.zip').write_bytes({LABELS!r})\n"
        "    return [url]\n"
    )
    monkeypatch.syspath_prepend(root.parent)
    monkeypatch.delitem(sys.modules, "gdown", raising=False)
    write_card(
        root,
        "kind: login, url: 'https://toy.example/', files: [{name: 1_labels.zip}]",
        "kind: drive, url: 'https://drive.example/folder'",
    )
    assert download("--via", "drive")[0] == 0
    assert files(root) == {"toy/labels/1": "label"}
    code, _, err = download("--via", "hub")
    assert code == 2
    assert "--via hub: toy cannot be had so; known: drive, login" in err
    monkeypatch.delitem(sys.modules, "gdown")


def test_the_script_forwards_to_the_command(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [SCRIPT, "--list"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == cards.names()
    assert "gtav                 direct        GTAV" in done.stdout


def test_the_script_without_an_environment_says_how_to_make_one(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = tmp_path / "scripts" / "download_datasets.sh"
    done = subprocess.run([script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the suite's environment is missing; run: make")
