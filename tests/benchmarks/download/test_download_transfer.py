"""A file over HTTP against a local server: parts, resuming, cut connections, changed files."""

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from local_server import Server, local_server
from paths import ROOT

from benchmarks.download import remote, transfer
from benchmarks.errors import UserError

BODY = random.Random(3).randbytes(400_001)  # no part looks like another


@pytest.fixture
def server() -> Iterator[Server]:
    with local_server(files={"a.zip": BODY}) as served:
        yield served


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(remote, "PAUSES", (0.01,) * 4)
    monkeypatch.setattr(transfer, "SMALLEST_PART", 100_000)
    monkeypatch.setattr(transfer, "PROGRESS", 10_000)


def get(url: str, target: Path) -> int:
    """Fetch a file; the number of bytes that were reported."""
    counts: list[int] = []
    with remote.client() as http:
        transfer.fetch(http, remote.probe(http, url), target, counts.append)
    return sum(counts)


def test_a_file_comes_in_parts_and_leaves_nothing_else(server: Server, tmp_path: Path) -> None:
    assert get(server.url + "a.zip", tmp_path / "a.zip") == len(BODY)
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
    starts = sorted(int(wanted[6:].split("-")[0]) for wanted in server.ranges_asked)
    assert starts == [0, 100_000, 200_000, 300_000]


def test_a_killed_download_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.pause = 0.05
    code = (
        "import sys; sys.path[:0] = ['tests/support', 'tests/benchmarks/download'];"
        "import test_download_transfer as t;"
        "t.transfer.SMALLEST_PART, t.transfer.SAVE_EVERY = 100_000, 0.05;"
        f"t.get({server.url + 'a.zip'!r}, t.Path({str(tmp_path / 'a.zip')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    journal, arrived = tmp_path / "a.zip.json", 0
    deadline = time.monotonic() + 30
    while arrived < 100_000 and time.monotonic() < deadline:
        time.sleep(0.01)
        arrived = sum(json.loads(journal.read_text())["done"]) if journal.exists() else 0
    process.kill()
    process.wait()
    assert 100_000 <= arrived < len(BODY)
    assert not (tmp_path / "a.zip").exists()
    server.pause, server.requests = 0, []
    get(server.url + "a.zip", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    spans = [wanted[6:].split("-") for wanted in server.ranges_asked]
    assert sum(int(last) + 1 - int(first) for first, last in spans) <= len(BODY) - arrived


def test_a_server_without_ranges_sends_the_whole(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    assert get(server.url + "a.zip", tmp_path / "a.zip") == len(BODY)
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert server.ranges_asked == [""]


def test_without_a_version_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    server.etag = ""
    get(server.url + "a.zip", tmp_path / "a.zip")
    assert server.ranges_asked == [""]


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connections_are_tried_again(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.ranges, server.cuts = ranges, 3
    # The first byte's answer is too short to be cut, the whole file instead of it is not.
    assert get(server.url + "a.zip", tmp_path / "a.zip") == len(BODY)
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert server.cuts == 0


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.busy = 3
    get(server.url + "a.zip", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY


def test_attempts_end_and_what_arrived_is_kept(server: Server, tmp_path: Path) -> None:
    server.files["a.zip"] = BODY[:1000]  # too little per answer to count as progress
    server.cuts = 1000
    with pytest.raises(UserError, match=r"a\.zip: the connection fails .* run the same command"):
        get(server.url + "a.zip", tmp_path / "a.zip")
    assert len(server.ranges_asked) == 1 + len(remote.PAUSES)
    assert json.loads((tmp_path / "a.zip.json").read_text())["done"] > [900]
    server.cuts = 0
    get(server.url + "a.zip", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY[:1000]


def test_no_server_at_all_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the connection fails"):
        get("http://127.0.0.1:1/a.zip", tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("status", "words"), [(404, "no such file"), (403, "refuses access"), (418, "unexpected")]
)
def test_refusals_are_one_line_and_not_repeated(
    server: Server, tmp_path: Path, status: int, words: str
) -> None:
    server.status["a.zip"] = status
    with pytest.raises(UserError, match=rf"a\.zip: .*{words}.*\(status {status}\)"):
        get(server.url + "a.zip", tmp_path / "a.zip")
    assert len(server.requests) == 1
    assert not list(tmp_path.iterdir())


def test_redirects_are_followed(server: Server, tmp_path: Path) -> None:
    server.redirect["old"] = server.url + "a.zip?signature=SECRET"
    get(server.url + "old", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY


def test_a_signed_address_is_not_repeated_in_the_error(server: Server, tmp_path: Path) -> None:
    server.redirect["old"] = server.url + "gone.zip?signature=SECRET"
    with pytest.raises(UserError, match="old: no such file") as caught:
        get(server.url + "old", tmp_path / "a.zip")
    assert "SECRET" not in str(caught.value)


def test_redirects_in_a_circle_end(server: Server, tmp_path: Path) -> None:
    server.redirect["old"] = server.url + "old"
    with pytest.raises(UserError, match="leads nowhere"):
        get(server.url + "old", tmp_path / "a.zip")


def test_a_redirect_away_from_tls_is_refused() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.scheme == "https":
            return httpx2.Response(302, headers={"Location": "http://a.example/a.zip"})
        return httpx2.Response(200, content=b"1")

    http = httpx2.Client(transport=httpx2.MockTransport(answer), follow_redirects=True)
    with pytest.raises(UserError, match="without TLS"):
        remote.probe(http, "https://a.example/a.zip")


@pytest.mark.parametrize("length", [len(BODY), 300_000])
def test_a_file_that_changed_between_attempts_is_fetched_anew(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    server.cuts = 1000
    monkeypatch.setattr(remote, "PAUSES", ())
    with pytest.raises(UserError):
        get(server.url + "a.zip", tmp_path / "a.zip")
    assert any(json.loads((tmp_path / "a.zip.json").read_text())["done"])
    server.cuts, server.etag = 0, '"2"'
    server.files["a.zip"] = new = bytes(reversed(BODY[:length]))
    assert get(server.url + "a.zip", tmp_path / "a.zip") == length
    assert (tmp_path / "a.zip").read_bytes() == new


def test_a_file_that_changes_while_it_is_fetched_is_fetched_anew(
    server: Server, tmp_path: Path
) -> None:
    new, counts = bytes(reversed(BODY)), []
    with remote.client() as http:
        before = remote.probe(http, server.url + "a.zip")
        server.files["a.zip"], server.etag = new, '"2"'
        transfer.fetch(http, before, tmp_path / "a.zip", counts.append)
    assert (tmp_path / "a.zip").read_bytes() == new
    assert sum(counts) == len(BODY)


def test_a_file_that_never_rests_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = remote.Remote(server.url + "a.zip", len(BODY), '"0"', True)
    monkeypatch.setattr(transfer, "probe", lambda *_: stale)
    with remote.client() as http, pytest.raises(UserError, match="changes while it is fetched"):
        transfer.fetch(http, stale, tmp_path / "a.zip", lambda _: None)
    assert not (tmp_path / "a.zip").exists()


def test_a_full_disk_is_one_line_and_keeps_what_arrived(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, write = 150_000, os.pwrite

    def pwrite(file: int, piece: bytes, at: int) -> int:
        nonlocal room
        if len(piece) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        room -= len(piece)
        return write(file, piece, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(UserError, match=r"a\.zip\.part: No space left.* is kept, make room"):
        get(server.url + "a.zip", tmp_path / "a.zip")
    kept = sum(json.loads((tmp_path / "a.zip.json").read_text())["done"])
    assert kept > 0
    room, server.requests = 10**9, []
    get(server.url + "a.zip", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    spans = [wanted[6:].split("-") for wanted in server.ranges_asked]
    assert sum(int(last) + 1 - int(first) for first, last in spans) == len(BODY) - kept


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting needs root")
@pytest.mark.parametrize("ranges", [True, False])
def test_a_disk_that_really_is_full(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.ranges = ranges
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let tests mount a small disk")
    try:
        with pytest.raises(UserError, match="No space left"):
            get(server.url + "a.zip", tmp_path / "a.zip")
        assert not (tmp_path / "a.zip").exists()
        assert (tmp_path / "a.zip.part").exists() == ranges
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_damaged_journal_begins_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.json").write_text("{")
    (tmp_path / "a.zip.part").write_bytes(b"rubbish" * 100_000)
    get(server.url + "a.zip", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
