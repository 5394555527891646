"""A file over HTTP against a local server: resuming, cut connections, changed files."""

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

from benchmarks.download import transfer
from benchmarks.errors import UserError

BODY = random.Random(3).randbytes(400_001)  # no part looks like another


@pytest.fixture
def server() -> Iterator[Server]:
    with local_server(files={"a.zip": BODY}) as served:
        yield served


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "PAUSES", (0.01,) * 4)
    monkeypatch.setattr(transfer, "PROGRESS", 10_000)


def get(url: str, target: Path) -> int:
    """Fetch a file; the number of bytes that were reported."""
    counts: list[int] = []
    with transfer.client() as http:
        transfer.fetch(http, url, target, counts.append)
    return sum(counts)


def resumed_at(server: Server) -> list[int]:
    """First bytes that were asked for; 0 for the whole file."""
    return [int(wanted[6:-1]) if wanted else 0 for wanted in server.ranges_asked]


def test_a_file_comes_in_one_stream_and_leaves_nothing_else(server: Server, tmp_path: Path) -> None:
    assert get(server.url + "a.zip", tmp_path / "a.zip") == len(BODY)
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
    assert resumed_at(server) == [0]


def test_a_killed_download_goes_on_from_the_exact_byte(server: Server, tmp_path: Path) -> None:
    server.pause = 0.05
    code = (
        "import sys; sys.path[:0] = ['tests/support', 'tests/benchmarks/download'];"
        "import test_download_transfer as t;"
        f"t.get({server.url + 'a.zip'!r}, t.Path({str(tmp_path / 'a.zip')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    part, deadline = tmp_path / "a.zip.part", time.monotonic() + 60
    while time.monotonic() < deadline and not (part.exists() and part.stat().st_size > 100_000):
        time.sleep(0.01)
    process.kill()
    process.wait()
    arrived = part.stat().st_size
    assert 100_000 < arrived < len(BODY)
    assert not (tmp_path / "a.zip").exists()
    server.pause, server.requests = 0, []
    get(server.url + "a.zip", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert resumed_at(server) == [arrived]


def test_a_server_without_ranges_sends_the_whole(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    assert get(server.url + "a.zip", tmp_path / "a.zip") == len(BODY)
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert resumed_at(server) == [0]


def test_without_a_version_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    server.etag = ""
    get(server.url + "a.zip", tmp_path / "a.zip")
    assert resumed_at(server) == [0]


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connections_are_tried_again(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.ranges, server.cuts = ranges, 3
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
    assert resumed_at(server) == [0, 500, 750, 875, 937]
    arrived = (tmp_path / "a.zip.part").stat().st_size
    server.cuts, server.requests = 0, []
    assert get(server.url + "a.zip", tmp_path / "a.zip") == 1000
    assert (tmp_path / "a.zip").read_bytes() == BODY[:1000]
    assert resumed_at(server) == [arrived]


def test_a_download_killed_before_the_new_name_asks_for_no_byte_again(
    server: Server, tmp_path: Path
) -> None:
    partly(server, tmp_path, BODY)
    assert get(server.url + "a.zip", tmp_path / "a.zip") == len(BODY)
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert resumed_at(server) == [len(BODY)]


def test_of_a_part_that_is_longer_than_the_file_nothing_is_kept(
    server: Server, tmp_path: Path
) -> None:
    partly(server, tmp_path, BODY + b"more")
    assert get(server.url + "a.zip", tmp_path / "a.zip") == len(BODY)
    assert (tmp_path / "a.zip").read_bytes() == BODY


@pytest.mark.parametrize("length", [None, 50_000])
def test_a_body_beyond_the_limit_ends_and_leaves_nothing(
    server: Server, tmp_path: Path, length: int | None
) -> None:
    server.endless = length is None
    with transfer.client() as http, pytest.raises(UserError, match=r"a\.zip: is longer than"):
        transfer.fetch(http, server.url + "a.zip", tmp_path / "a.zip", print, limit=50_000)
    assert not list(tmp_path.iterdir())


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
        transfer.size_of(http, "https://a.example/a.zip")


def partly(server: Server, folder: Path, arrived: bytes, version: str = '"1"') -> None:
    """What a killed download leaves."""
    (folder / "a.zip.part").write_bytes(arrived)
    (folder / "a.zip.version").write_text(f"{server.url}a.zip\n{version}")


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("length", [len(BODY), 300_000, 100])
def test_a_file_that_changed_between_attempts_is_fetched_anew(
    server: Server, tmp_path: Path, length: int, if_range: bool
) -> None:
    partly(server, tmp_path, BODY[:1000])
    server.etag, server.if_range = '"2"', if_range  # some servers ignore If-Range
    server.files["a.zip"] = new = bytes(reversed(BODY[:length]))
    assert get(server.url + "a.zip", tmp_path / "a.zip") == length
    assert (tmp_path / "a.zip").read_bytes() == new


def test_the_date_of_change_is_a_version_too(server: Server, tmp_path: Path) -> None:
    server.etag, server.changed = 'W/"1"', "Tue, 15 Nov 1994 12:45:26 GMT"
    partly(server, tmp_path, BODY[:1000], server.changed)
    get(server.url + "a.zip", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert resumed_at(server) == [1000]


@pytest.mark.parametrize("note", ["", "{", 'https://other.example/a.zip\n"1"'])
def test_a_part_of_unknown_version_or_address_is_not_resumed(
    server: Server, tmp_path: Path, note: str
) -> None:
    partly(server, tmp_path, b"rubbish")
    (tmp_path / "a.zip.version").write_text(note)
    get(server.url + "a.zip", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert resumed_at(server) == [0]


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changes_while_it_is_fetched_is_fetched_anew(
    server: Server, tmp_path: Path, if_range: bool
) -> None:
    server.cuts, server.if_range, new, counts = 1, if_range, bytes(reversed(BODY)), []

    def report(count: int) -> None:
        counts.append(count)
        server.files["a.zip"], server.etag = new, '"2"'

    with transfer.client() as http:
        transfer.fetch(http, server.url + "a.zip", tmp_path / "a.zip", report)
    assert (tmp_path / "a.zip").read_bytes() == new
    assert sum(counts) == len(BODY)


def test_a_file_that_never_rests_is_given_up(server: Server, tmp_path: Path) -> None:
    server.cuts = 1000

    def report(_: int) -> None:
        server.etag = f'"{len(server.requests)}"'

    with transfer.client() as http, pytest.raises(UserError, match="the connection fails"):
        transfer.fetch(http, server.url + "a.zip", tmp_path / "a.zip", report)
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting needs root")
@pytest.mark.parametrize("etag", ['"1"', ""])
def test_a_full_disk_is_one_line_and_keeps_what_can_be_resumed(
    server: Server, tmp_path: Path, etag: str
) -> None:
    server.etag = etag
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let tests mount a small disk")
    try:
        with pytest.raises(UserError, match=r"a\.zip\.part: No space left.*make room"):
            get(server.url + "a.zip", tmp_path / "a.zip")
        assert not (tmp_path / "a.zip").exists()
        assert (tmp_path / "a.zip.part").exists() == bool(etag)
        if etag:
            subprocess.run([*mount[:4], "remount,size=2m", *mount[5:]], check=True)
            get(server.url + "a.zip", tmp_path / "a.zip")
            assert (tmp_path / "a.zip").read_bytes() == BODY
            assert resumed_at(server)[-1] > 100_000
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
