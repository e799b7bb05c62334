"""A small S3 server without conditional writes, as some stores are: it ignores If-None-Match.

Knows objects in memory: PUT, GET by ranges, HEAD, DELETE and listings by prefix. Signatures are not checked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class PlainS3:
    """A running server. requests: method and path of each request."""

    endpoint_url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def serve() -> Iterator[PlainS3]:
    """Run the server in this process until the block ends."""
    store = PlainS3()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None: ...

        def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _key(self) -> str:
            path = unquote(urlsplit(self.path).path)
            store.requests.append((self.command, path))
            return path.lstrip("/")

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            store.objects[self._key()] = body
            self._reply(200, ETag=f'"{md5(body).hexdigest()}"')

        def do_DELETE(self) -> None:
            store.objects.pop(self._key(), None)
            self._reply(204)

        def do_GET(self) -> None:
            key, query = self._key(), parse_qs(urlsplit(self.path).query, keep_blank_values=True)
            if "list-type" in query:
                self._list(key.rstrip("/"), query.get("prefix", [""])[0], query.get("delimiter", [""])[0])
                return
            data = store.objects.get(key)
            if data is None:
                self._reply(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
                return
            etag = f'"{md5(data).hexdigest()}"'
            if "Range" in self.headers:
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                start = len(data) - int(last) if not first else int(first)
                part = data[start : int(last) + 1 if first and last else None]
                span = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
                self._reply(206, part, ETag=etag, Content_Range=span, Last_Modified="Sun, 29 Nov 2026 00:00:00 GMT")
            else:
                self._reply(200, data, ETag=etag, Last_Modified="Sun, 29 Nov 2026 00:00:00 GMT")

        def do_HEAD(self) -> None:
            self.do_GET()

        def _list(self, bucket: str, prefix: str, delimiter: str) -> None:
            keys = sorted(key[len(bucket) + 1 :] for key in store.objects if key.startswith(f"{bucket}/{prefix}"))
            folders = sorted({_folder(key, prefix, delimiter) for key in keys} - {""})
            entries = "".join(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>{md5(data).hexdigest()}</ETag>"
                "<LastModified>2026-11-29T00:00:00.000Z</LastModified></Contents>"
                for key in keys
                if not _folder(key, prefix, delimiter) and (data := store.objects[f"{bucket}/{key}"]) is not None
            )
            entries += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
            body = f"<ListBucketResult><IsTruncated>false</IsTruncated><Name>{quote(bucket)}</Name>{entries}"
            self._reply(200, (body + "</ListBucketResult>").encode(), Content_Type="application/xml")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    store.endpoint_url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _folder(key: str, prefix: str, delimiter: str) -> str:
    """The common prefix that stands for the key in a listing by folders, "" for none."""
    below = key[len(prefix) :]
    return prefix + below.partition(delimiter)[0] + delimiter if delimiter and delimiter in below else ""
