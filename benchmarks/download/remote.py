"""What a web server says about a file, and what becomes of its refusals."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2

from benchmarks.errors import UserError

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
BUSY_STATUS = {408, 429, 500, 502, 503, 504}


class Busy(Exception):
    """The server answers, but not now."""


class Changed(Exception):
    """The file is no longer the one that was asked for first."""


PASSING = (Busy, httpx2.TransportError)  # errors that may pass


@dataclass(frozen=True)
class Remote:
    """A file on a server.

    Attributes:
        size: bytes, None if the server does not say.
        version: its strong ETag or else its date of change, "" if the server names neither.
        ranges: whether the server sends parts of it.
    """

    url: str
    size: int | None
    version: str
    ranges: bool

    @property
    def resumable(self) -> bool:
        """Whether parts can be told to belong together."""
        return bool(self.ranges and self.size and self.version)


class Patience:
    """Pauses between attempts; it ends when `len(PAUSES)` attempts in a row brought nothing."""

    def __init__(self, url: str, pauses: tuple[float, ...] | None = None) -> None:
        self.url, self.pauses = url, PAUSES if pauses is None else pauses
        self.failures = 0

    def wait(self, error: Exception, progress: bool = False) -> None:
        """Sleep before the next attempt.

        Raises:
            UserError: there were enough attempts.
        """
        self.failures = 1 if progress else self.failures + 1
        if self.failures > len(self.pauses):
            raise UserError(
                f"{self.url}: the connection fails ({str(error) or type(error).__name__}); "
                "run the same command again"
            ) from None
        time.sleep(self.pauses[self.failures - 1])


def client() -> httpx2.Client:
    """A client that follows redirects and asks for bytes as they are, which ranges count."""
    return httpx2.Client(follow_redirects=True, timeout=30, headers={"Accept-Encoding": "identity"})


def probe(http: httpx2.Client, url: str, pauses: tuple[float, ...] | None = None) -> Remote:
    """Size and version of a file, from a request for its first byte.

    Raises:
        UserError: the server refuses, has no such file, or is not reached.
    """
    patience = Patience(url, pauses)
    while True:
        try:
            with answer(http, url, "bytes=0-0") as reply:
                return remote_of(url, reply)
        except PASSING as error:
            patience.wait(error)
        except Changed:
            raise UserError(f"{url}: is empty on the server; correct the card's address") from None


@contextmanager
def answer(http: httpx2.Client, url: str, wanted: str = "") -> Iterator[httpx2.Response]:
    """The answer to a request for a file, or the part `wanted` of it; its body is not yet read.

    Raises:
        UserError: the server refuses for good.
        Busy, httpx2.TransportError: another attempt may do.
    """
    headers = {"Range": wanted} if wanted else {}
    try:
        with http.stream("GET", url, headers=headers) as reply:
            _check(url, reply)
            yield reply
    except (httpx2.TooManyRedirects, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
        raise UserError(
            f"{url}: leads nowhere ({type(error).__name__}); correct the card"
        ) from None


def remote_of(url: str, reply: httpx2.Response) -> Remote:
    """The file that an answer is about, be it whole or a part."""
    etag = reply.headers.get("ETag", "")
    version = etag if etag.startswith('"') else reply.headers.get("Last-Modified", "")
    ranges = reply.status_code == 206
    if ranges:
        total = re.fullmatch(r"bytes \d+-\d+/(\d+)", reply.headers.get("Content-Range", ""))
        return Remote(url, int(total[1]) if total else None, version, bool(total))
    length = reply.headers.get("Content-Length", "")
    return Remote(url, int(length) if length.isdigit() else None, version, False)


def _check(url: str, reply: httpx2.Response) -> None:
    status = reply.status_code
    if url.startswith("https:") and reply.url.scheme != "https":
        raise UserError(f"{url}: redirects to a connection without TLS; fetch the file by hand")
    if status == 416:
        raise Changed
    if status in BUSY_STATUS:
        raise Busy(f"status {status}")
    if status in (404, 410):
        raise UserError(f"{url}: no such file (status {status}); correct the card's address")
    if status in (401, 403):
        raise UserError(
            f"{url}: the server refuses access (status {status}); fetch the file by hand, put it "
            "into the data set's folder and run the same command again"
        )
    if status not in (200, 206):
        raise UserError(f"{url}: unexpected answer (status {status}); try again later")
