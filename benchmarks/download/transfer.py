"""One file over HTTP in one stream, resumable; two versions of a file are never glued together."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import httpx2

from benchmarks.errors import UserError
from benchmarks.record import write_atomically

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
PROGRESS = 1 << 18  # bytes further than any attempt before: the pauses start again
LIMIT = 100 * 10**9  # bytes of a file whose card states no size: a body may be endless
REDIRECTS = 10
BUSY_STATUS = {408, 429, 500, 502, 503, 504}
BY_HAND = (
    "the server refuses access (status {}); fetch the file by hand, put it into the data set's "
    "folder and run the same command again"
)
GONE = "no such file (status {}); correct the card's address"
REFUSALS = {401: BY_HAND, 403: BY_HAND, 404: GONE, 410: GONE}
Report = Callable[[int], object]  # gets the number of further bytes; negative: so many are void
Value = TypeVar("Value")


class Unreachable(UserError):
    """The server was not reached, or was busy, at every attempt."""


def client() -> httpx2.Client:
    """A client that asks for bytes as they are, which ranges count."""
    return httpx2.Client(timeout=30, headers={"Accept-Encoding": "identity"})


def size_of(http: httpx2.Client, url: str, pauses: tuple[float, ...] | None = None) -> int | None:
    """Bytes of a file, from a request for its first one; None if the server does not say.

    Raises:
        Unreachable: the server is not reached, or busy.
        UserError: it refuses, or has no such file.
    """

    def ask() -> int | None:
        with _answer(http, url, {"Range": "bytes=0-0"}) as reply:
            if reply.status_code == 416:
                raise UserError(f"{url}: is empty on the server; correct the card's address")
            return _span(reply)[1]

    return _patiently(url, ask, lambda: 0, pauses)


def fetch(http: httpx2.Client, url: str, target: Path, report: Report, limit: int = LIMIT) -> None:
    """Put the file at `target`, which appears only when it is whole.

    Until then `target`.part holds what has arrived and `target`.version the address and the version
    of these bytes. A later call asks for the rest with If-Range (RFC 9110, 13.1.5), so that the
    server says whether the rest belongs to what is here.

    Raises:
        Unreachable: the server is not reached, busy, or cut off too often.
        UserError: it refuses, or sends more than `limit` bytes; the disk is full.
    """
    part, note = _beside(target)
    try:
        _patiently(
            url,
            lambda: _fetch_rest(http, url, target, report, limit),
            lambda: part.stat().st_size if part.exists() else 0,
        )
        part.replace(target)
        note.unlink(missing_ok=True)
    except OSError as error:
        kept = "what has arrived is kept, " if note.exists() else ""
        if not kept:
            part.unlink(missing_ok=True)
        raise UserError(
            f"{part}: {error.strerror or error}; {kept}make room and run the same command again"
        ) from None


def _fetch_rest(http: httpx2.Client, url: str, target: Path, report: Report, limit: int) -> None:
    """Ask once for what is missing and append it; from the first byte if the file is another."""
    part, note = _beside(target)
    have, version = _arrived(url, part, note)
    headers = {"Range": f"bytes={have}-", "If-Range": version} if have else {}
    with _answer(http, url, headers) as reply:
        start, total = _span(reply)
        # Some servers ignore If-Range, so that the version is compared here as well.
        same = _version(reply) in ("", version)
        if reply.status_code == 416 and same and total == have:
            report(have)  # killed between the last byte and the new name
            return
        if reply.status_code != 200 and not (same and start == have):
            note.unlink(missing_ok=True)
            raise httpx2.RemoteProtocolError("the file on the server changed")
        most = limit if total is None else total
        if most > limit:
            raise _too_long(url, limit)
        with part.open("ab" if start else "wb") as file:
            # The old bytes are gone before the note of the new version is there: killed between
            # the two, nothing is resumed.
            if not start:
                _write_note(note, url, _version(reply))
            report(start)
            try:
                for chunk in reply.iter_raw():
                    start += len(chunk)
                    if start > most:
                        part.unlink()
                        note.unlink(missing_ok=True)
                        raise _too_long(url, most)
                    file.write(chunk)
                    report(len(chunk))
            except httpx2.TransportError:
                report(-start)
                raise
    if total not in (None, start):
        report(-start)
        raise httpx2.RemoteProtocolError("the answer ended early")


def _beside(target: Path) -> tuple[Path, Path]:
    return target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.version")


def _arrived(url: str, part: Path, note: Path) -> tuple[int, str]:
    """Bytes that a former call left and their version; 0 where it is not known."""
    if not (part.exists() and note.exists()):
        return 0, ""
    address, _, version = note.read_text(errors="replace").partition("\n")
    have = part.stat().st_size if address == url and version else 0
    return have, version if have else ""


def _write_note(note: Path, url: str, version: str) -> None:
    if version:
        write_atomically(note, lambda file: file.write(f"{url}\n{version}".encode()))
    else:
        note.unlink(missing_ok=True)


def _version(reply: httpx2.Response) -> str:
    """The strong ETag, or else the date of change, as If-Range wants it; "" if there is neither."""
    etag = reply.headers.get("ETag", "")
    return etag if etag.startswith('"') else reply.headers.get("Last-Modified", "")


def _span(reply: httpx2.Response) -> tuple[int, int | None]:
    """Where the bytes of an answer begin, and how many the whole file has, if the server says."""
    if reply.status_code == 200:
        length = reply.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    words = reply.headers.get("Content-Range", "")
    span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", words)
    if not span:
        # No place: bytes of which the server does not say where they belong are never appended.
        return -1, None
    return int(span[1] or -1), None if span[2] == "*" else int(span[2])


def _too_long(url: str, most: int) -> UserError:
    return UserError(
        f"{url}: is longer than {most / 1e9:,.3f} GB, the limit from the card's size or, without "
        f"one, {LIMIT / 1e9:.0f} GB; correct the card, or fetch the file by hand"
    )


def _patiently(
    url: str,
    attempt: Callable[[], Value],
    arrived: Callable[[], int],
    pauses: tuple[float, ...] | None = None,
) -> Value:
    """Attempt until it works; `len(PAUSES)` attempts in a row that bring nothing end it."""
    pauses = PAUSES if pauses is None else pauses
    failures, furthest = 0, arrived()
    while True:
        try:
            return attempt()
        except httpx2.TransportError as error:
            # Bytes that came before and are fetched again do not count, or this might never end.
            progress = arrived() - furthest
            furthest += max(progress, 0)
            failures = 1 if progress >= PROGRESS else failures + 1
            if failures > len(pauses):
                raise Unreachable(
                    f"{url}: the connection fails ({str(error) or type(error).__name__}); "
                    "run the same command again"
                ) from None
            time.sleep(pauses[failures - 1])


@contextmanager
def _answer(http: httpx2.Client, url: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
    """The answer to a request for a file, after redirects; its body is not yet read.

    Raises:
        UserError: the server refuses for good.
        httpx2.TransportError: another attempt may do.
    """
    request = http.build_request("GET", url, headers=headers)
    for _ in range(REDIRECTS):
        # By hand: httpx2 would read the body of a redirect, however long, and would leave TLS.
        reply = http.send(request, stream=True, follow_redirects=False)
        with closing(reply):
            if reply.next_request is None:
                _check(url, reply)
                yield reply
                return
        schemes = request.url.scheme, reply.next_request.url.scheme
        if schemes == ("https", "http"):
            raise UserError(f"{url}: redirects to a connection without TLS; fetch the file by hand")
        request = reply.next_request
    raise UserError(f"{url}: leads nowhere ({REDIRECTS} redirects); correct the card")


def _check(url: str, reply: httpx2.Response) -> None:
    status = reply.status_code
    if status in BUSY_STATUS:
        raise httpx2.RemoteProtocolError(f"status {status}")
    if status not in (200, 206, 416):
        words = REFUSALS.get(status, "unexpected answer (status {})")
        raise UserError(f"{url}: {words.format(status)}")
