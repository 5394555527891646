"""The command `download` from a card to files in place, against a local server."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from hashlib import md5
from pathlib import Path

import pytest
from local_server import Server, local_server
from paths import ROOT
from toy_download import IMAGES, LABELS, PLACED, files, run_here, write_card, zipped

from benchmarks.__main__ import main
from benchmarks.data import cards
from benchmarks.download import transfer, unpack

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server() -> Iterator[Server]:
    files = {"1_images.zip": IMAGES, "1_labels.zip": LABELS}
    with local_server(files=files) as served:
        yield served


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty data root beside a folder of cards."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "PAUSES", (0.01,))
    monkeypatch.setattr(cards, "FOLDER", tmp_path / "cards")
    (tmp_path / "cards").mkdir()
    (tmp_path / "data").mkdir()
    cards.load_card.cache_clear()
    yield tmp_path / "data"
    cards.load_card.cache_clear()


def direct(root: Path, server: Server, labels: str = "") -> None:
    files = f"[{{name: '{{part}}_images.zip', parts: ['1']}}, {{name: 1_labels.zip{labels}}}]"
    write_card(root, f"kind: direct, url: '{server.url}', files: {files}")


@pytest.fixture
def download(root: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the command on the toy card: exit code, stdout, stderr."""

    def call(*more: str) -> tuple[int, str, str]:
        code = main(["download", "--dataset", "toy", "--root", str(root), *more])
        output = capfd.readouterr()
        return code, output.out, output.err

    return call


def test_archives_are_fetched_unpacked_and_removed(
    root: Path, server: Server, download: Command
) -> None:
    direct(root, server)
    assert download()[:2] == (0, f"toy: complete in {root / 'toy'}\n")
    assert files(root) == PLACED
    left = {path.name for path in (root / "toy/.download").iterdir()}
    assert left == {"lock", "1_images.zip.done.json", "1_labels.zip.done.json"}


def test_a_second_run_fetches_nothing(root: Path, server: Server, download: Command) -> None:
    direct(root, server)
    download()
    server.requests = []
    assert download()[0] == 0
    assert server.requests == []


def test_a_file_that_was_lost_is_fetched_again(
    root: Path, server: Server, download: Command
) -> None:
    direct(root, server)
    download()
    (root / "toy/labels/1").unlink()
    server.requests = []
    assert download()[0] == 0
    assert files(root) == PLACED
    assert {name for name, _ in server.requests} == {"1_labels.zip"}


def test_an_archive_put_there_by_hand_is_used_and_stays(
    root: Path, server: Server, download: Command
) -> None:
    direct(root, server)
    del server.files["1_labels.zip"]
    (root / "toy").mkdir()
    (root / "toy/1_labels.zip").write_bytes(LABELS)
    assert download()[0] == 0
    assert (root / "toy/1_labels.zip").read_bytes() == LABELS
    assert (root / "toy/labels/1").read_text() == "label"


def test_a_dry_run_says_what_where_and_how_much_and_writes_nothing(
    root: Path, server: Server, download: Command
) -> None:
    server.files["1_images.zip"] = bytes(25_000_000)
    direct(root, server)
    code, out, _ = download("--dry-run")
    assert code == 0
    assert f"toy: direct {server.url} -> {root / 'toy'}" in out
    assert any("1_images.zip" in line and "0.025 GB  fetch" in line for line in out.splitlines())
    assert "needs 0.050 GB, free " in out
    assert not list(root.iterdir())
    assert server.ranges_asked == []


def test_a_dry_run_goes_on_without_the_server(
    root: Path, server: Server, download: Command
) -> None:
    direct(root, server)
    server.status["1_images.zip"] = 403
    code, out, _ = download("--dry-run")
    assert code == 0
    assert "refuses access" in out
    assert "1_labels.zip" in out


@pytest.mark.parametrize("status", [404, 403])
def test_a_refusal_ends_before_anything_is_fetched(
    root: Path, server: Server, download: Command, status: int
) -> None:
    direct(root, server)
    server.status["1_labels.zip"] = status
    code, out, err = download()
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {server.url}1_labels.zip: ")
    assert err.count("\n") == 1
    assert not list(root.iterdir())


def test_a_right_checksum_passes(root: Path, server: Server, download: Command) -> None:
    direct(root, server, f", md5: {md5(LABELS).hexdigest()}, bytes: {len(LABELS)}")
    assert download()[0] == 0
    assert files(root) == PLACED


def test_a_wrong_checksum_is_not_unpacked(root: Path, server: Server, download: Command) -> None:
    direct(root, server, f", sha256: {'f' * 64}")
    code, _, err = download()
    assert code == 2
    assert "1_labels.zip: sha256 is" in err
    assert "published is fff" in err
    assert "toy/labels/1" not in files(root)
    assert not (root / "toy/.download/1_labels.zip").exists()


def test_another_size_than_published_is_not_fetched(
    root: Path, server: Server, download: Command
) -> None:
    direct(root, server, ", bytes: 7")
    code, _, err = download()
    assert code == 2
    assert f"has {len(LABELS)} bytes, the card says 7" in err
    assert server.ranges_asked == []


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    root: Path, server: Server, download: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct(root, server)
    needed = 2 * len(IMAGES) + len(LABELS)
    usage = shutil.disk_usage(root)._replace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    code, _, err = download()
    assert code == 2
    assert "make room or choose another --root" in err
    assert server.ranges_asked == []
    usage = usage._replace(free=needed)
    assert download()[0] == 0


def test_a_hostile_archive_leaves_no_trace(root: Path, server: Server, download: Command) -> None:
    server.files["1_labels.zip"] = zipped(labels__1="label", **{"..__..__evil": "evil"})
    direct(root, server)
    code, _, err = download()
    assert code == 2
    assert "'../../evil' would be written outside the folder" in err
    assert files(root) == {"toy/images/1": "image" * 1000}
    assert not list(root.parent.rglob("evil"))


@pytest.mark.parametrize(
    "arrived",
    [b"<html>Please log in</html>", LABELS[:60], b"Rar!\x1a\x07"],
    ids=["a login page", "a cut archive", "another kind of archive"],
)
def test_what_is_no_archive_is_removed_and_fetched_again(
    arrived: bytes, root: Path, server: Server, download: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No digest is published, and the server states no other length."""
    monkeypatch.setattr(unpack, "RAR_TOOLS", {"false": (["false"], ["false"])})
    server.files["1_labels.zip"] = arrived
    direct(root, server)
    code, _, err = download()
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "it is removed: run the same command again to fetch it" in line
    server.files["1_labels.zip"] = LABELS
    assert download()[0] == 0
    assert files(root) == PLACED


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (".download__1_labels.zip.done.json", "a note of the download"),
        (".Download__1_labels.zip.done.json", "a note of the download"),
        ("1_labels.zip", "which would pass for an archive that was put there by hand"),
    ],
)
def test_no_archive_passes_another_one_off_as_done(
    name: str, words: str, root: Path, server: Server, download: Command
) -> None:
    server.files["1_images.zip"] = zipped(images__1="image", **{name: '{"files": {}}'})
    direct(root, server)
    for _ in range(2):
        code, _, err = download()
        assert code == 2
        assert words in err
        assert not (root / "toy/1_labels.zip").exists()
        assert "1_labels.zip" in dict(server.requests)


def test_a_dry_run_in_a_folder_that_is_not_there_says_what_is_known_offline(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = "{name: a.zip, bytes: 25000000}, {name: '{part}.zip', parts: ['1'], gigabytes: 2}"
    write_card(root, f"kind: direct, url: 'http://127.0.0.1:9/', files: [{known}]")
    where = str(root / "not/yet")
    assert main(["download", "--dataset", "toy", "--root", where, "--dry-run"]) == 1
    out = capsys.readouterr().out
    assert "a.zip: the connection fails" in out
    assert [line.split()[1:] for line in out.splitlines() if ".zip  " in line] == [
        ["0.025", "GB", "fetch"],
        ["2.000", "GB", "fetch"],
    ]
    assert "needs 4.025 GB, free " in out
    assert not (root / "not").exists()


def test_what_is_there_is_never_overwritten(root: Path, server: Server, download: Command) -> None:
    direct(root, server)
    (root / "toy/labels").mkdir(parents=True)
    (root / "toy/labels/1").write_text("mine")
    code, _, err = download()
    assert code == 2
    assert "labels/1: is there with other content" in err
    assert (root / "toy/labels/1").read_text() == "mine"


def test_of_two_downloads_at_once_one_says_who_the_other_is(
    root: Path, server: Server, download: Command
) -> None:
    direct(root, server)
    server.files["1_images.zip"] = zipped(images__1="image" * 20_000)
    server.pause = 0.5
    first = subprocess.Popen(run_here(root), cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (root / "toy/.download/holder").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    code, _, err = download()
    assert code == 2
    assert f"process {first.pid} on " in err
    assert first.wait(60) == 0
    assert files(root) == {"toy/images/1": "image" * 20_000, "toy/labels/1": "label"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "give --dataset NAMES --root DIR, or --list"),
        (["--dataset", "toi", "--root", "."], "unknown data set 'toi'; did you mean 'toy'?"),
        (["--dataset", "toy", "--root", "/nowhere"], "/nowhere: no such folder"),
        (["--dataset", "toy", "--root", "/dev/null", "--dry-run"], "/dev/null: no such folder"),
        (["--dataset", "toy", "--root", "x" * 300, "--dry-run"], "x: no such folder"),
    ],
)
def test_wrong_arguments_are_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    write_card(root, "kind: drive, url: 'https://drive.example/folder'")
    assert main(["download", *argv]) == 2
    assert words in capsys.readouterr().err
