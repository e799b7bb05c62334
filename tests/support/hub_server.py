"""A local server that speaks the protocol of the Hugging Face Hub: repositories, redirects to another path, tokens.

Large files are redirected to another place, with their SHA-256 in a header. Small ones are redirected within the hub,
and sent with git's checksum as their ETag.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"
LARGE = (".bin", ".onnx")


@dataclass
class Repository:
    """commits: commit -> path -> content. gate: "" for a public one, else "gated" or "private"."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gate: str = ""

    def push(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Make a commit of these files; return its name."""
        before = self.commits.get(self.branches.get(branch, ""), {})
        after = {**before, **files}
        digest = hashlib.sha1(repr((len(self.commits), sorted(after.items()))).encode()).hexdigest()
        self.commits[digest] = after
        self.branches[branch] = digest
        return digest


@dataclass
class HubServer:
    """The server. asked: method, path, Range and whether a token came, of each request so far.

    cuts: bytes after which the next answers of large files break off. statuses: of the next answers.
    corrupt: whether contents are sent as zeros. page_entries: of a page of a listing. replies: what the API answers, as
    JSON, in place of a listing or a commit. is_absolute: whether redirects within the hub name its host.
    """

    root: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None, bool]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    corrupt: bool = False
    page_entries: int = 1000
    replies: dict[str, Any] = field(default_factory=dict)
    is_absolute: bool = False

    def repository(self, name: str, gate: str = "") -> Repository:
        """Return a new repository."""
        self.repositories[name] = Repository(gate=gate)
        return self.repositories[name]

    def clear(self) -> None:
        """Forget all repositories and requests."""
        for kept in (self.repositories, self.renamed, self.asked, self.cuts, self.statuses, self.replies):
            kept.clear()
        self.corrupt, self.page_entries, self.is_absolute = False, 1000, False

    def downloads(self) -> list[tuple[str, str | None]]:
        """Return path and Range of the requests for content."""
        return [(path, part) for method, path, part, _ in self.asked if method == "GET" and "/api/" not in path]


@contextmanager
def serve() -> Iterator[HubServer]:
    """Serve on a free local port until the end of the `with`."""
    hub = HubServer("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            hub.asked.append((self.command, self.path, self.headers.get("Range"), bool(token)))
            if hub.statuses:
                return self._refuse(hub.statuses.pop(0))
            path = unquote(urlsplit(self.path).path)
            if match := re.fullmatch(r"/cdn/(\w+)/(.*)", path):
                assert not token, "the token went to another host"
                return self._content(match[2], self._find(match[1], match[2]))
            if match := re.fullmatch(r"/api/resolve-cache/models/([^/]+/[^/]+)/(\w+)/(.*)", path):
                content = hub.repositories[match[1]].commits[match[2]][match[3]]
                if hub.repositories[match[1]].gate and token != TOKEN:
                    return self._refuse(401)
                sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                return self._content(match[3], content, {"ETag": f'"{sha1}"'})
            for old, new in hub.renamed.items():
                if path.startswith((f"/{old}/", f"/api/models/{old}/")):
                    place = self.path.replace(old, new, 1)
                    return self._send(307, {"Location": f"{hub.root}{place}" if hub.is_absolute else place})
            match = re.fullmatch(
                r"/(?:api/models/)?([^/]+/[^/]+)/(resolve|revision|tree)/((?:refs/pr/)?[^/]+)/?(.*)", path
            )
            repository = hub.repositories.get(match[1]) if match else None
            if match is None or repository is None or (repository.gate == "private" and token != TOKEN):
                return self._refuse(404 if token else 401, "RepoNotFound")
            commit = repository.branches.get(match[3], match[3])
            if commit not in repository.commits:
                return self._refuse(404, "RevisionNotFound")
            files = repository.commits[commit]
            if match[2] in hub.replies:
                return self._json(hub.replies[match[2]])
            if match[2] == "revision":
                return self._json({"sha": commit, "siblings": [{"rfilename": name} for name in files]})
            if match[2] == "tree":
                return self._tree(files, match[4])
            if repository.gate == "gated" and token != TOKEN:
                return self._refuse(403 if token else 401, "GatedRepo")
            if match[4] not in files:
                return self._refuse(404, "EntryNotFound")
            return self._resolve(match[1], match[4], files[match[4]], commit)

        def _find(self, digest: str, name: str) -> bytes:
            contents = [files.get(name, b"") for r in hub.repositories.values() for files in r.commits.values()]
            return next(content for content in contents if hashlib.sha256(content).hexdigest() == digest)

        def _resolve(self, repository: str, name: str, content: bytes, commit: str) -> None:
            headers = {"X-Repo-Commit": commit}
            if name.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest}"', "ETag": '"pointer"'}
                return self._send(302, {**headers, "Location": f"{hub.root}/cdn/{digest}/{name}"})
            return self._send(307, {**headers, "Location": f"/api/resolve-cache/models/{repository}/{commit}/{name}"})

        def _content(self, name: str, content: bytes, headers: dict[str, str] | None = None) -> None:
            start, total = 0, len(content)
            if wanted := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
                start = int(wanted[1])
            status = 206 if start else 200
            extra = {"Content-Range": f"bytes {start}-{total - 1}/{total}"} if start else {}
            body = content[start:]
            sent = bytes(len(body)) if hub.corrupt else body
            cut = hub.cuts.pop(0) if hub.cuts and self.command == "GET" and name.endswith(LARGE) else None
            self._send(status, {"ETag": '"cdn"', **(headers or {}), **extra}, sent[:cut], len(body))
            self.close_connection = self.close_connection or cut is not None

        def _tree(self, files: dict[str, bytes], folder: str) -> None:
            start = f"{folder.strip('/')}/" if folder.strip("/") else ""
            below = {name: content for name, content in files.items() if name.startswith(start)}
            if not below:
                return self._refuse(404, "EntryNotFound")
            folders = sorted({start + name[len(start) :].split("/")[0] for name in below if "/" in name[len(start) :]})
            recursive = "recursive=true" in self.path
            entries: list[dict[str, Any]] = [{"type": "directory", "path": path} for path in folders]
            entries += [
                {"type": "file", "path": name, "size": len(content)}
                for name, content in sorted(below.items())
                if recursive or "/" not in name[len(start) :]
            ]
            page = int((re.findall(r"cursor=(\d+)", self.path) or ["0"])[-1])
            rest = entries[page + hub.page_entries :]
            mark = "&" if "?" in self.path else "?"
            link = (
                {"Link": f'<{hub.root}{self.path}{mark}cursor={page + hub.page_entries}>; rel="next"'} if rest else {}
            )
            return self._json(entries[page : page + hub.page_entries], link)

        def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
            body = json.dumps(value).encode()
            self._send(200, {"Content-Type": "application/json", **(headers or {})}, body)

        def _refuse(self, status: int, code: str = "") -> None:
            self._send(status, {"X-Error-Code": code, "X-Error-Message": f"{code} of the test"} if code else {})

        def _send(self, status: int, headers: dict[str, str], body: bytes = b"", length: int | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/octet-stream", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            if self.command == "GET":
                with suppress(ConnectionError):
                    self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.root = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
