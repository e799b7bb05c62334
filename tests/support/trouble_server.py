"""A web server on 127.0.0.1 with every kind of trouble that a list of URLs meets.

Knows HTTP and sockets. Knows nothing of segray. The first part of a path names the trouble:

    /ok/NAME            the content that was put there        /status/NNN/...   an error page of that status
    /silent/...         no byte of an answer                  /stops/...        the head, half of the body, then silence
    /endless/...        a body that never ends                /slow/...         a byte every 0.2 s, without an end
    /cut/...            half of the body, then the end        /reset/...        a reset in place of an answer
    /loop/...           a redirect to itself                  /away/...         a redirect to /ok/
    /encoding/...       a body that is not the gzip it says   /html/...         a page that says that nothing is there
    /whole/NAME         the content, whatever range is asked  /garbage/...      bytes that are no answer
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import urlsplit

PAGE = b"<!doctype html><html><body>There is nothing here.</body></html>"


@dataclass
class TroubleServer:
    """The server.

    requests: path, Range and User-Agent of every request so far. sent_bytes: of endless bodies. everywhere: the trouble
    that every request meets from now on, such as "status/403" or "reset"; "" for that of its path.
    """

    root: str
    contents: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str | None, str]] = field(default_factory=list)
    sent_bytes: int = 0
    everywhere: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    def put(self, name: str, content: bytes) -> str:
        """Serve a content; return its URL."""
        self.contents[name] = content
        return f"{self.root}/ok/{name}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    trouble: TroubleServer

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.trouble.requests.append((self.path, asked, self.headers.get("User-Agent", "")))
        if everywhere := self.trouble.everywhere:
            self.path = f"/{everywhere}{self.path}"
        kind, name = self.path.split("/")[1], PurePosixPath(urlsplit(self.path).path).name
        with suppress(OSError):
            getattr(self, f"_{kind}")(name)

    def log_message(self, *_: object) -> None: ...

    def _ok(self, name: str) -> None:
        content = self.trouble.contents.get(name)
        if content is None:
            return self.send_error(404)
        if told := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(told[1]), int(told[2] or len(content)) + 1
            if start >= len(content):
                return self.send_error(416)
            return self._answer(206, content[start:stop])
        return self._answer(200, content)

    def _whole(self, name: str) -> None:
        self._answer(200, self.trouble.contents[name])

    def _html(self, _: str) -> None:
        self._answer(200, PAGE, {"Content-Type": "text/html"})

    def _status(self, _: str) -> None:
        status = int(self.path.split("/")[2])
        self._answer(status, b"" if status in (204, 304) else b"trouble")

    def _encoding(self, _: str) -> None:
        self._answer(200, b"not gzip at all", {"Content-Encoding": "gzip"})

    def _loop(self, _: str) -> None:
        self._answer(302, b"", {"Location": self.path})

    def _away(self, name: str) -> None:
        self._answer(302, b"", {"Location": f"/ok/{name}"})

    def _silent(self, _: str) -> None:
        self.trouble.ended.wait(120)

    def _stops(self, _: str) -> None:
        self._answer(200, b"x" * 500, {"Content-Length": "1000"})
        self.trouble.ended.wait(120)

    def _cut(self, _: str) -> None:
        self._answer(200, b"x" * 500, {"Content-Length": "1000"})
        self.close_connection = True

    def _reset(self, _: str) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _garbage(self, _: str) -> None:
        self.wfile.write(b"\x00\x01garbage\r\n\r\n" * 8)
        self.close_connection = True

    def _endless(self, _: str) -> None:
        self._drip(b"x" * 65_536, 0.0)

    def _slow(self, _: str) -> None:
        self._drip(b"x", 0.2)

    def _drip(self, chunk: bytes, pause_s: float) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while not self.trouble.ended.is_set():
            self.wfile.write(chunk)
            self.trouble.sent_bytes += len(chunk)
            time.sleep(pause_s)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        told = {"Content-Length": str(len(body)), "ETag": f'"{len(body)}"', **(headers or {})}
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None: ...


@contextmanager
def serve() -> Iterator[TroubleServer]:
    """Serve on a free port of 127.0.0.1 until the end of the block."""
    server = _Server(("127.0.0.1", 0), _Handler)
    trouble = TroubleServer(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = type("Handler", (_Handler,), {"trouble": trouble})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield trouble
    finally:
        trouble.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
