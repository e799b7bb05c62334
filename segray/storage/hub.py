"""The HTTP protocol of the Hugging Face Hub: the files of a repository, their checksums and their links.

Knows addresses, HF_ENDPOINT, HF_TOKEN, redirects and the hub's errors. Downloads nothing; see download.py. An address
is hf://ORG/NAME[@REVISION][/PATH], with `datasets/` or `spaces/` before ORG for repositories of these kinds. The link
of a file, as a browser shows it, is taken too.

The hub redirects the link of a large file to another host. Headers of the redirecting reply state the file's checksum.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from time import sleep
from typing import Any, NoReturn
from urllib.parse import quote, unquote, urljoin, urlsplit

import segray
from segray.errors import AccessError, ConfigError, InfrastructureError
from segray.storage.options import StorageOptions

_PUBLIC = "https://huggingface.co"
_KINDS = ("models", "datasets", "spaces")
_COMMIT_HEADER, _CHECKSUM_HEADER = "X-Repo-Commit", "X-Linked-ETag"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TEMPORARY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_RETRIES, _PAUSE_S, _MAX_REDIRECTS = 3, 0.5, 5
_MAX_REPLY_BYTES = 64 << 20
_MAX_PAGES = 100
_CHECK_ENDPOINT = "Check HF_ENDPOINT and its proxy."


@dataclass(frozen=True)
class HubAddress:
    """A place on the hub. kind: one of _KINDS. repository: ORG/NAME. path: "" for the repository's root."""

    kind: str
    repository: str
    revision: str
    path: str

    @property
    def is_pinned(self) -> bool:
        """Return whether the revision is a commit, whose files never change."""
        return _COMMIT.fullmatch(self.revision) is not None

    def at(self, revision: str, path: str) -> HubAddress:
        """Return the address of another path and revision of the repository."""
        return HubAddress(self.kind, self.repository, revision, path)

    def __str__(self) -> str:
        kind = "" if self.kind == "models" else f"{self.kind}/"
        revision = "" if self.revision == "main" else f"@{quote(self.revision, safe='')}"
        return f"hf://{kind}{self.repository}{revision}" + (f"/{self.path}" if self.path else "")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository.

    url: link of the file at the commit. commit: 40 hex digits; "" if the server does not tell. sha256: of a large file,
    blob_sha1: git's checksum of a small file; None if the server does not tell.
    """

    url: str
    commit: str
    size_bytes: int | None
    sha256: str | None
    blob_sha1: str | None


def endpoint() -> str:
    """Return the address of the hub, without a slash at the end."""
    return (os.environ.get("HF_ENDPOINT") or _PUBLIC).rstrip("/")


def is_offline() -> bool:
    """Return whether the environment forbids requests to the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def parse(uri: str) -> HubAddress | None:
    """Return the place on the hub that an address names; None for an address of another kind.

    Raises:
        ConfigError: The address begins with hf:// and names no repository.
    """
    if uri.lower().startswith("hf://"):
        return _parse_address(uri)
    return _parse_link(uri)


def _parse_address(uri: str) -> HubAddress:
    parts = uri[len("hf://") :].strip("/").split("/")
    kind = parts.pop(0) if parts[0] in _KINDS and len(parts) > 2 else "models"
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([^/]+)(?:/(.*))?|/(.*))?", "/".join(parts), re.DOTALL)
    if match is None:
        raise ConfigError(
            "The address names no repository of the hub.",
            where=uri,
            found="no ORG/NAME behind hf://",
            hint="Write hf://ORG/NAME/FILE, or hf://ORG/NAME@REVISION/FOLDER.",
        )
    repository, revision, path = match[1], unquote(match[2] or "main"), match[3] or match[4] or ""
    names = path.split("/")
    if revision == "refs" and len(names) > 1:  # Branches of pull requests have slashes: refs/pr/1.
        revision, path = "/".join(("refs", *names[:2])), "/".join(names[2:])
    return HubAddress(kind, repository, revision, path.strip("/"))


def _parse_link(uri: str) -> HubAddress | None:
    """Return the place of a file's link on the hub, such as HUB/ORG/NAME/blob/main/model.onnx."""
    if not uri.startswith(f"{endpoint()}/"):
        return None
    path = uri[len(endpoint()) + 1 :].partition("?")[0]
    match = re.fullmatch(r"(?:(datasets|spaces)/)?([\w.-]+/[\w.-]+)/(?:blob|resolve|tree)/([^/]+)(?:/(.*))?", path)
    if match is None:
        return None
    return HubAddress(match[1] or "models", match[2], unquote(match[3]), unquote(match[4] or "").strip("/"))


class Hub:
    """A client of the hub. options: `anonymous` sends no token, `timeout_s` limits the silence of a connection."""

    def __init__(self, options: StorageOptions) -> None:
        self._token = None if options.anonymous else _token()
        self._timeout_s = options.timeout_s

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the headers that the hub alone must get."""
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def stat(self, address: HubAddress) -> HubFile:
        """Return the facts of the file at an address.

        Raises:
            FileNotFoundError: The repository has no such file.
            AccessError: The hub refuses the request, or has no such repository or revision.
            InfrastructureError: The hub cannot be reached or fails.
        """
        prefix = "" if address.kind == "models" else f"{address.kind}/"
        path, revision = quote(address.path), quote(address.revision, safe="")
        url, headers = self._request(
            "HEAD", f"{endpoint()}/{prefix}{address.repository}/resolve/{revision}/{path}", address
        )
        commit = headers.get(_COMMIT_HEADER) or (address.revision if address.is_pinned else "")
        tag = (headers.get(_CHECKSUM_HEADER) or headers.get("ETag") or "").removeprefix("W/").strip('"')
        size = headers.get("X-Linked-Size") or (None if headers.get("Location") else headers.get("Content-Length"))
        return HubFile(
            # At the commit, so that no later commit changes what the link gives.
            url.replace(f"/resolve/{revision}/", f"/resolve/{commit}/", 1) if commit else url,
            commit,
            int(size) if size and size.isdigit() else None,
            tag if re.fullmatch(r"[0-9a-f]{64}", tag) else None,
            tag if re.fullmatch(r"[0-9a-f]{40}", tag) else None,
        )

    def commit(self, address: HubAddress) -> str:
        """Return the commit that the address's revision names now; raises as `stat` does."""
        if address.is_pinned:
            return address.revision
        url = f"{endpoint()}/api/{address.kind}/{address.repository}/revision/{quote(address.revision, safe='')}"
        facts, _ = self._json(url, address)
        commit = facts.get("sha") if isinstance(facts, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise _other_reply(url, facts)
        return commit

    def paths(self, address: HubAddress, *, recursive: bool) -> list[str]:
        """Return the paths of the files in the folder at an address, sorted; raises as `stat` does."""
        revision, path = quote(address.revision, safe=""), f"/{quote(address.path)}" if address.path else ""
        url = f"{endpoint()}/api/{address.kind}/{address.repository}/tree/{revision}{path}"
        entries = self._entries(url + ("?recursive=true" if recursive else ""), address)
        return sorted(entry["path"] for entry in entries if entry["type"] == "file")

    def _entries(self, url: str, address: HubAddress) -> Iterator[Mapping[str, Any]]:
        """Yield the entries of a listing, page after page."""
        for _ in range(_MAX_PAGES):
            entries, headers = self._json(url, address)
            if not isinstance(entries, list) or not all(map(_is_entry, entries)):
                raise _other_reply(url, entries)
            yield from entries
            following = re.search(r'<([^>]+)>;\s*rel="next"', headers.get("Link") or "")
            if following is None:
                return
            url = urljoin(url, following[1])
            if not _is_of_hub(url):  # Another host must not get the token.
                raise _other_reply(url, following[1])

    def _json(self, url: str, address: HubAddress) -> tuple[Any, Message]:
        body = bytearray()
        url, headers = self._request("GET", url, address, body)
        try:
            return json.loads(bytes(body)), headers
        except (ValueError, RecursionError) as error:
            raise InfrastructureError(
                "The hub's reply is no JSON.", where=url, found=str(error), hint=_CHECK_ENDPOINT
            ) from error

    def _request(
        self, method: str, url: str, address: HubAddress, body: bytearray | None = None
    ) -> tuple[str, Message]:
        """Return the URL that has answered, and the headers of the reply. body: receives the content.

        Redirects inside the hub are followed, as those of a renamed repository and of small files. Others are the
        answer. The commit of any of the replies is in the headers.
        """
        commit = ""
        for _ in range(_MAX_REDIRECTS):
            status, headers, content = self._attempts(method, url)
            commit = headers.get(_COMMIT_HEADER) or commit
            location = headers.get("Location")
            is_answer = not 300 <= status < 400 or location is None or _CHECKSUM_HEADER in headers
            if is_answer or not _is_of_hub(urljoin(url, location)):
                break
            url = urljoin(url, location)
        if status >= 400:
            self._raise(status, headers, address)
        if body is not None:
            body += content
        if _COMMIT_HEADER not in headers:
            headers[_COMMIT_HEADER] = commit
        return url, headers

    def _attempts(self, method: str, url: str) -> tuple[int, Message, bytes]:
        """Return status, headers and content of the reply, after retries of failures that may pass."""
        for attempt in range(_RETRIES + 1):
            try:
                status, headers, content = self._send(method, url)
            except (OSError, http.client.HTTPException) as error:
                found = str(getattr(error, "reason", None) or error or type(error).__name__)
            else:
                if status not in _TEMPORARY_STATUS:
                    return status, headers, content
                found = f"HTTP {status}"
            if attempt < _RETRIES:
                sleep(_PAUSE_S * 2**attempt)
        hint = "Check the network, its proxy settings and HF_ENDPOINT, then run the same command again."
        raise InfrastructureError("The hub cannot be reached.", where=url, found=found, hint=hint)

    def _send(self, method: str, url: str) -> tuple[int, Message, bytes]:
        headers = {"User-Agent": f"segray/{segray.__version__}", "Accept-Encoding": "identity", **self.headers}
        request = urllib.request.Request(url, headers=headers, method=method)
        try:
            with _OPENER.open(request, timeout=self._timeout_s) as response:
                return response.status, response.headers, response.read(_MAX_REPLY_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, b""

    def _raise(self, status: int, headers: Message, address: HubAddress) -> NoReturn:
        """Raise the error that a reply of the hub means."""
        code, found = headers.get("X-Error-Code") or "", f"HTTP {status}"
        if message := headers.get("X-Error-Message"):
            found += f": {message}"
        page = f"{endpoint()}/{'' if address.kind == 'models' else f'{address.kind}/'}{address.repository}"
        if status == 404 and code != "RepoNotFound" and code != "RevisionNotFound":
            raise FileNotFoundError(errno.ENOENT, found, str(address))
        if code == "RevisionNotFound":
            what, hint = "The repository has no such revision.", f"Write a branch, tag or commit of {page}."
        elif code == "GatedRepo" or status == 403:
            what = "The repository is gated: its owner asks for an agreement."
            hint = f"Accept the licence on {page}, then set HF_TOKEN to a token of that account."
            if self._token:
                hint = f"Accept the licence on {page} with the account of HF_TOKEN, or set HF_TOKEN of another account."
        elif status in (401, 404):
            what = "The repository does not exist, or is private."
            hint = f"Check the name on {page}. For a private or gated repository set HF_TOKEN."
            if self._token:
                hint = f"Check the name on {page}, and that HF_TOKEN is valid and may read the repository."
        else:
            what, hint = "The hub refuses the request.", f"Check {page}, HF_ENDPOINT and HF_TOKEN."
        raise AccessError(what, where=str(address), found=found, hint=hint)


def _is_entry(entry: Any) -> bool:
    """Return whether an entry of a listing has a kind and a path."""
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("type", "path"))


def _is_of_hub(url: str) -> bool:
    """Return whether the hub's own host serves a link."""
    return urlsplit(url)[:2] == urlsplit(endpoint())[:2]


def _other_reply(url: str, content: Any) -> InfrastructureError:
    what = "The hub's reply is not the one of its protocol."
    return InfrastructureError(what, where=url, found=repr(content)[:200], hint=_CHECK_ENDPOINT)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A handler that gives redirects to the caller, as HTTPError."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _token() -> str | None:
    """Return the user's token: HF_TOKEN, else the file that `hf auth login` writes; None without one."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    home = os.environ.get("HF_HOME") or str(Path("~/.cache/huggingface").expanduser())
    file = Path(os.environ.get("HF_TOKEN_PATH") or f"{home}/token")
    try:
        return file.read_text("utf-8").strip() or None
    except OSError:
        return None
