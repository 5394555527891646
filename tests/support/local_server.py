"""A web server on this machine that can misbehave in the ways that servers do."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """What it serves and how. Each request's path and range are kept in `requests`."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)  # name -> refusal
    redirect: dict[str, str] = field(default_factory=dict)  # name -> where it is now
    etag: str = '"1"'
    changed: str = ""  # Last-Modified
    if_range: bool = True  # whether If-Range is heeded
    endless: bool = False  # bodies of no stated length that go on until the client leaves
    ranges: bool = True
    cuts: int = 0  # so many answers end after half of their bytes
    busy: int = 0  # so many answers are "503"
    pause: float = 0.0  # seconds between pieces of 10,000 bytes
    requests: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ranges_asked(self) -> list[str]:
        """Ranges of the requests for more than the first byte."""
        return [wanted for _, wanted in self.requests if wanted != "bytes=0-0"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Server

    def do_GET(self) -> None:
        name, served = self.path.partition("?")[0].lstrip("/"), self.served
        wanted = self.headers.get("Range", "")
        served.requests.append((name, wanted))
        if served.busy > 0:
            served.busy -= 1
            return self._refuse(503)
        if name in served.redirect:
            self.send_response(302)
            self.send_header("Location", served.redirect[name])
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if name in served.status or name not in served.files:
            return self._refuse(served.status.get(name, 404))
        body = served.files[name]
        first, end = self._range(body, wanted)
        if first >= len(body):
            return self._refuse(416, f"bytes */{len(body)}")
        part = body[first:end]
        self.send_response(200 if len(part) == len(body) else 206)
        if served.etag:
            self.send_header("ETag", served.etag)
        if served.changed:
            self.send_header("Last-Modified", served.changed)
        if len(part) != len(body):
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(body)}")
        return self._send(part)

    def _range(self, body: bytes, wanted: str) -> tuple[int, int]:
        served, condition = self.served, self.headers.get("If-Range")
        stale = served.if_range and condition not in (None, served.etag, served.changed)
        if not wanted or not served.ranges or stale:
            return 0, len(body)
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
        return int(first), min(int(last or len(body)) + 1, len(body))

    def _send(self, part: bytes) -> None:
        served = self.served
        if served.endless:
            self.close_connection = True
            self.end_headers()
            while True:
                self.wfile.write(part)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if served.cuts > 0 and len(part) > 1:
            served.cuts -= 1
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return
        for start in range(0, len(part), 10_000):
            time.sleep(served.pause)
            self.wfile.write(part[start : start + 10_000])

    def _refuse(self, status: int, span: str = "") -> None:
        self.send_response(status)
        if span:
            self.send_header("Content-Range", span)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client went away
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def local_server(**settings: object) -> Iterator[Server]:
    """A running server with these settings."""
    served = Server(**settings)
    handler = type("Handler", (_Handler,), {"served": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        served.url = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield served
        server.shutdown()
        thread.join()
