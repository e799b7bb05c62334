"""A web server with every habit a mirror can have: ranges or none, cuts, refusals, moving files."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Page:
    """What is served under one path.

    ranges: whether parts can be asked for. cuts: after how many bytes of each of the next answers the connection
    breaks. statuses: of the next answers, in place of the content. tag: the ETag; an If-Range with another one gets
    the whole, if heeds_tag. length: whether Content-Length is told. shift: what to add to the start of a range that is
    asked for. later: content and tag after the next answer. moved: address to which the answer redirects.
    """

    content: bytes
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    tag: str = '"one"'
    content_type: str = "application/octet-stream"
    length: bool = True
    shift: int = 0
    heeds_tag: bool = True
    later: tuple[bytes, str] | None = None
    moved: str = ""


@dataclass
class Web:
    """The server. asked: path and Range of every request so far. headers: of the last request."""

    root: str
    pages: dict[str, Page]
    asked: list[tuple[str, str | None]]
    headers: dict[str, str] = field(default_factory=dict)

    def put(self, path: str, content: bytes, **habits: Any) -> str:
        """Serve `content` under `path`; its address."""
        self.pages[path] = Page(content, **habits)
        return f"{self.root}{path}"


@contextmanager
def serve() -> Iterator[Web]:
    """A server on a free local port, until the end of the `with`."""
    web = Web("", {}, [])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            web.asked.append((self.path, wanted))
            web.headers = dict(self.headers.items())
            page = web.pages.get(self.path)
            if page is None or page.statuses:
                return self.send_error(404 if page is None else page.statuses.pop(0))
            if page.moved:
                self.send_response(302)
                self.send_header("Location", page.moved)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            is_other = page.heeds_tag and self.headers.get("If-Range", page.tag) != page.tag
            if is_other or not page.ranges:
                wanted = None
            self._send(page, int(re.findall(r"\d+", wanted)[0]) if wanted else None)
            if page.later is not None:
                (page.content, page.tag), page.later = page.later, None
            return None

        def _send(self, page: Page, start: int | None) -> None:
            total = len(page.content)
            if start is not None and start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            body = page.content[start or 0 :]
            self.send_response(200 if start is None else 206)
            if start is not None:
                self.send_header("Content-Range", f"bytes {start + page.shift}-{total - 1}/{total}")
            self.send_header("Content-Type", page.content_type)
            self.send_header("ETag", page.tag)
            if page.length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(ConnectionError):  # a client may have read enough
                self.wfile.write(body[: page.cuts.pop(0)] if page.cuts else body)
            return None

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.root = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
