"""Verified downloads, and safe unpacking of archives.

Knows HTTP, ranges, objects of a store, checksums and tar. Knows nothing of models. A download grows in NAME.part. The
file is renamed to NAME only when its size and checksum are right. An archive is unpacked beside its folder, and the
folder gets its name when the content is complete. After any interruption, the same call resumes.

Links in archives are refused, wherever they point: links made tarfile's own filter fail in the past
(CVE-2025-4517, CVE-2025-4330).
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import http.client
import os
import random
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from time import sleep
from typing import IO, TYPE_CHECKING, BinaryIO, cast

import segray
from segray.errors import InfrastructureError, ModelError
from segray.storage.uris import redact

if TYPE_CHECKING:
    from segray.storage.store import Store

_NO_HEADERS: Mapping[str, str] = {}

# Arguments: bytes so far, and total bytes, None if unknown.
Progress = Callable[[int, int | None], None]

_CHUNK_BYTES = 1 << 20
_OBJECT_BYTES = 8 << 20  # of each request to a store
_LINE_S = 5.0
_TEMPORARY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_PAUSE_S = 30.0
# The longest header that tarfile may read into memory at once. Real headers are below 1 MB.
_MAX_HEADER_BYTES = 16 << 20
_SLACK_BYTES = 64 << 20


@dataclass(frozen=True)
class RetryPolicy:
    """How long to keep trying one address.

    retries: further attempts in a row that bring no new bytes. pause_s: pause before the first retry; each further
    pause is twice as long. timeout_s: longest silence on a connection.
    """

    retries: int = 5
    pause_s: float = 1.0
    timeout_s: float = 60.0


DEFAULT_RETRY_POLICY = RetryPolicy()


@dataclass(frozen=True)
class _Expected:
    """The size and checksums that a file must have, None if unknown; checksums are hex digits."""

    size_bytes: int | None
    sha256: str | None
    sha384: str | None

    @property
    def has_checksum(self) -> bool:
        return bool(self.sha256 or self.sha384)


@dataclass(frozen=True)
class _Link:
    """An address, and the headers that its server alone gets."""

    url: str
    headers: Mapping[str, str]


class _UnavailableError(Exception):
    """The address does not have the file; a retry would not help."""


class _WrongFileError(_UnavailableError):
    """The address gave a complete file with another size or checksum."""


class _BrokenTransferError(Exception):
    """The transfer broke off, or the server asks to wait; a retry may help."""


# ---- downloads ------------------------------------------------------------------------------------


def download_file(
    urls: Sequence[str],
    target: Path,
    *,
    sha256: str | None = None,
    sha384: str | None = None,
    size_bytes: int | None = None,
    headers: Mapping[str, str] = _NO_HEADERS,
    progress: Progress | None = None,
    retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY,
) -> str:
    """Download `target` from the first address that gives the right file; return its SHA-256.

    An existing file is checked and kept. Without a known checksum, the SHA-256 of the first download is written to
    NAME.sha256 and holds from then on.

    Args:
        urls: Mirrors, in the order of the attempts.
        target: Path of the file.
        sha256: Expected SHA-256 in hex digits, None if unknown.
        sha384: Expected SHA-384 in hex digits, None if unknown.
        size_bytes: Expected size, None if unknown.
        headers: Headers for the addresses themselves. A server to which an address redirects does not get them.
        progress: Called with the bytes so far, and the total if known.
        retry_policy: How long to keep trying each address.

    Returns:
        The SHA-256 of the file, 64 hex digits.

    Raises:
        ModelError: The file has another size or checksum. A download is removed, an existing file stays.
        InfrastructureError: No address gives the file, the disk cannot store it, or another process is fetching it.
    """
    expected = _Expected(size_bytes, sha256 or _read_record(target), sha384)
    if target.is_file():
        return _check_existing(target, expected)
    with _part_of(target) as part:
        links = [_Link(url, headers) for url in urls]
        digest = _download_from_any(links, part, expected, progress or _no_progress, retry_policy)
        if not expected.has_checksum:
            _write_record(target, digest)
    return digest


@contextmanager
def _part_of(target: Path) -> Iterator[_PartialFile]:
    """Yield the part of `target`, locked; give the part its name after a block without an error."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked_part(target.with_name(f"{target.name}.part")) as part:
            yield part
            part.path.replace(target)
    except FileNotFoundError:
        raise
    except OSError as error:
        hint = "Free some space or choose another folder, then run the same command again."
        raise InfrastructureError(
            "The download cannot be written.", where=str(target), found=str(error), hint=hint
        ) from error


@dataclass(frozen=True)
class _PartialFile:
    """A growing download: its path, and the stream that appends and holds the lock."""

    path: Path
    stream: BinaryIO

    @property
    def length(self) -> int:
        self.stream.flush()
        return os.fstat(self.stream.fileno()).st_size

    @property
    def origin(self) -> Path:
        """Return the path of the note on the bytes' origin: the address, and the server's tag of that version."""
        return self.path.with_name(f"{self.path.name}.from")

    def clear(self) -> None:
        self.stream.truncate(0)
        self.origin.unlink(missing_ok=True)


@contextmanager
def _locked_part(path: Path) -> Iterator[_PartialFile]:
    """Open and lock the part at `path`, created if needed; remove an empty part at the end."""
    with path.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            hint = "Wait for the other process, or stop that process."
            raise InfrastructureError(
                "Another process downloads this file.", where=str(path), found="a locked file", hint=hint
            ) from error
        part = _PartialFile(path, stream)
        try:
            yield part
        finally:
            if not part.length:
                path.unlink(missing_ok=True)
            if not path.exists():
                part.origin.unlink(missing_ok=True)


def _download_from_any(
    links: Sequence[_Link], part: _PartialFile, expected: _Expected, progress: Progress, retry_policy: RetryPolicy
) -> str:
    """Fill `part` from the first address that works; return the SHA-256."""
    failures, got_wrong_file = [], False
    for link in links:
        try:
            return _download_from(link, part, expected, progress, retry_policy)
        except (_UnavailableError, _BrokenTransferError) as error:
            failures.append(f"{redact(link.url)}: {error}")
            got_wrong_file |= isinstance(error, _WrongFileError)
    target, reasons = part.path.with_suffix(""), "; ".join(failures) or "no address"
    if got_wrong_file:
        hint = f"Get the file elsewhere and save the file as {target}{_hint_on_record(target)}."
        raise ModelError(
            "The download is another file than expected and was removed.", where=str(target), found=reasons, hint=hint
        )
    hint = "Check the network and its proxy settings. The same command resumes the download."
    raise InfrastructureError("No address gives the file.", where=str(target), found=reasons, hint=hint)


def _download_from(
    link: _Link, part: _PartialFile, expected: _Expected, progress: Progress, retry_policy: RetryPolicy
) -> str:
    """Fill `part` from this address; return the SHA-256.

    If bytes of an earlier attempt give a wrong file, the download is repeated from the start.
    """
    if not link.url.startswith(("https://", "http://")):
        raise _UnavailableError("not an http address")
    has_earlier_bytes = part.length > 0
    _receive_with_retries(link, part, expected, progress, retry_policy)
    try:
        return _verify_part(part, expected)
    except _WrongFileError:
        if not has_earlier_bytes:
            raise
    _receive_with_retries(link, part, expected, progress, retry_policy)
    return _verify_part(part, expected)


def _receive_with_retries(
    link: _Link, part: _PartialFile, expected: _Expected, progress: Progress, retry_policy: RetryPolicy
) -> None:
    vain_attempts, most_bytes = 0, part.length
    while True:
        try:
            return _receive(link, part, expected, progress, retry_policy.timeout_s)
        except _BrokenTransferError as error:
            vain_attempts = 0 if part.length > most_bytes else vain_attempts + 1
            most_bytes = max(most_bytes, part.length)
            if vain_attempts > retry_policy.retries:
                raise _BrokenTransferError(f"{error} ({part.length} bytes are kept)") from error
            sleep(random.uniform(0.5, 1) * min(_MAX_PAUSE_S, retry_policy.pause_s * 2**vain_attempts))


def _receive(link: _Link, part: _PartialFile, expected: _Expected, progress: Progress, timeout_s: float) -> None:
    """Request the missing bytes of `part` once; raise _BrokenTransferError if bytes are still missing afterwards."""
    tag = _prepare_resumption(link.url, part, expected)
    if part.length and part.length == expected.size_bytes:
        return
    with _open_response(link, part, tag, timeout_s) as response:
        if response is None:
            return
        if response.status == 206 and tag and response.headers.get("ETag", tag) != tag:
            part.clear()
            raise _BrokenTransferError("the server's file changed")  # Some servers ignore If-Range.
        total = _total_bytes(response, part)
        if None not in (total, expected.size_bytes) and total != expected.size_bytes:
            raise _UnavailableError(f"the server's file has {total} bytes, not {expected.size_bytes}")
        if response.status != 206:
            _start_over(response, part, link.url)
        progress(part.length, total)
        while chunk := _read(response):
            part.stream.write(chunk)
            progress(part.length, total)
    if total is not None and part.length != total:
        raise _BrokenTransferError(f"the connection ended after {part.length} of {total} bytes")


def _prepare_resumption(url: str, part: _PartialFile, expected: _Expected) -> str:
    """Return the tag that the missing bytes must have, "" for any tag; clear a part that cannot be resumed."""
    origin, _, tag = part.origin.read_text("utf-8").partition("\n") if part.origin.is_file() else ("", "", "")
    is_same_url = origin == url
    is_too_long = expected.size_bytes is not None and part.length > expected.size_bytes
    if is_too_long or not (expected.has_checksum or (is_same_url and tag)):
        part.clear()
    return tag if is_same_url else ""


@contextmanager
def _open_response(
    link: _Link, part: _PartialFile, tag: str, timeout_s: float
) -> Iterator[http.client.HTTPResponse | None]:
    """Yield the response to a request for the missing bytes; None if the server says that none are missing."""
    headers = {"User-Agent": f"segray/{segray.__version__}", "Accept-Encoding": "identity"}
    if part.length:
        headers |= {"Range": f"bytes={part.length}-"} | ({"If-Range": tag} if tag else {})
    request = urllib.request.Request(link.url, headers=headers)
    for name, value in link.headers.items():
        request.add_unredirected_header(name.capitalize(), value)
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            _check_http_error(error, part)
        response = None
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenTransferError(str(getattr(error, "reason", None) or error or type(error).__name__)) from error
    if response is None:
        yield None
        return
    with response:
        yield response


def _check_http_error(error: urllib.error.HTTPError, part: _PartialFile) -> None:
    """Return if the error means that no bytes are missing; raise a matching exception otherwise."""
    if error.code == 416:
        if error.headers.get("Content-Range") == f"bytes */{part.length}":
            return
        part.clear()
        raise _BrokenTransferError("the server has no such range")
    status = f"HTTP {error.code} {error.reason}"
    raise _BrokenTransferError(status) if error.code in _TEMPORARY_STATUS else _UnavailableError(status)


def _total_bytes(response: http.client.HTTPResponse, part: _PartialFile) -> int | None:
    """Return the size of the whole file in bytes, None if not stated; check that a range continues the part."""
    if response.status != 206:
        length = response.headers.get("Content-Length")
        return None if length is None else int(length)
    stated = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", stated)
    if match is None or int(match[1]) != part.length:
        part.clear()
        raise _BrokenTransferError(f"the server sent another range: {stated or 'none stated'}")
    return None if match[2] == "*" else int(match[2])


def _start_over(response: http.client.HTTPResponse, part: _PartialFile, url: str) -> None:
    """Empty the part for a response with the whole file, and note the origin."""
    if response.headers.get_content_type() == "text/html":
        raise _UnavailableError("a web page, not a file")
    part.clear()
    tag = response.headers.get("ETag", "")
    part.origin.write_text(f"{url}\n{'' if tag.startswith('W/') else tag}", "utf-8")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenTransferError(f"the connection broke: {error or type(error).__name__}") from error


class ProgressLines:
    """Progress of a download, as a line every five seconds.

    show: receives the line.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._shown_s = show, time.monotonic()

    def __call__(self, done_bytes: int, total_bytes: int | None) -> None:
        """Show the bytes so far if the last line is five seconds old."""
        if time.monotonic() - self._shown_s >= _LINE_S:
            self._shown_s = time.monotonic()
            total = "?" if total_bytes is None else f"{total_bytes / 1e6:.0f}"
            self._show(f"  {done_bytes / 1e6:.0f} of {total} MB")


def _no_progress(done_bytes: int, total_bytes: int | None) -> None:
    return None


# ---- objects of a store ----------------------------------------------------------------------------


def download_object(
    store: Store, uri: str, target: Path, *, size_bytes: int, version: str, progress: Progress | None = None
) -> str:
    """Copy an object of a store to `target` by ranges; return its SHA-256. A part of the same version is resumed.

    Args:
        store: The store.
        uri: Address of the object.
        target: Path of the file. An existing file is kept.
        size_bytes: Size of the object; -1 if unknown.
        version: Version of the object, as ListedObject has it.
        progress: Called with the bytes so far, and the total if known.

    Raises:
        FileNotFoundError: The object is missing.
        AccessError: The store refuses the request.
        InfrastructureError: The store fails, the object changed meanwhile, or the disk cannot store the file.
    """
    if target.is_file():
        return _digests(target)[0]
    report = progress or _no_progress
    with _part_of(target) as part:
        origin = f"{uri}\n{version}"
        if not (version and part.origin.is_file() and part.origin.read_text("utf-8") == origin):
            part.clear()
            part.origin.write_text(origin, "utf-8")
        for chunk in _chunks_of_object(store, uri, part.length, size_bytes):
            part.stream.write(chunk)
            report(part.length, size_bytes if size_bytes >= 0 else None)
        if store.stat(uri).version != version or (size_bytes >= 0 and part.length != size_bytes):
            part.clear()
            raise InfrastructureError(
                "The object changed while it was fetched.",
                where=redact(uri),
                found="another version or size",
                hint="Run the same command again.",
            )
        return _verify_part(part, _Expected(None, None, None))


def _chunks_of_object(store: Store, uri: str, start: int, size_bytes: int) -> Iterator[bytes]:
    """Yield the bytes of the object from `start` on, or all bytes at once if the size is unknown."""
    if size_bytes < 0:
        yield store.read(uri)[start:]
        return
    for offset in range(start, size_bytes, _OBJECT_BYTES):
        yield store.read_range(uri, offset, min(_OBJECT_BYTES, size_bytes - offset))


# ---- checksums ------------------------------------------------------------------------------------


def _check_existing(target: Path, expected: _Expected) -> str:
    """Return the SHA-256 of an existing file; raise ModelError if the file is another one."""
    try:
        digest = _compare_digests(target, expected)
    except _WrongFileError as error:
        hint = f"Remove the file and run the same command again{_hint_on_record(target)}."
        raise ModelError(
            "The file differs from the expected file.", where=str(target), found=str(error), hint=hint
        ) from error
    if not expected.has_checksum:
        _write_record(target, digest)
    return digest


def _hint_on_record(target: Path) -> str:
    """Return the end of a hint on the recorded checksum; empty if there is no record."""
    record = _record_path(target)
    return f", or remove {record.name} to accept another file" if record.is_file() else ""


def _verify_part(part: _PartialFile, expected: _Expected) -> str:
    """Return the SHA-256 of the complete part after writing it to disk; clear the part if it is another file."""
    try:
        part.stream.flush()
        os.fsync(part.stream.fileno())
        return _compare_digests(part.path, expected)
    except _WrongFileError:
        part.clear()
        raise


def _compare_digests(path: Path, expected: _Expected) -> str:
    """Return the file's SHA-256; raise _WrongFileError if its size or a checksum differs."""
    size_bytes, (sha256, sha384) = path.stat().st_size, _digests(path)
    if expected.size_bytes is not None and size_bytes != expected.size_bytes:
        raise _WrongFileError(f"{size_bytes} bytes, expected {expected.size_bytes}")
    for kind, digest, expected_digest in (("sha256", sha256, expected.sha256), ("sha384", sha384, expected.sha384)):
        if expected_digest and digest != expected_digest.lower():
            raise _WrongFileError(f"{kind} {digest}, expected {expected_digest}")
    return sha256


def _digests(path: Path) -> tuple[str, str]:
    """Return SHA-256 and SHA-384, computed in one pass."""
    hashes = hashlib.sha256(), hashlib.sha384()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            for digest in hashes:
                digest.update(chunk)
    return hashes[0].hexdigest(), hashes[1].hexdigest()


def _record_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _write_record(target: Path, digest: str) -> None:
    """Write the SHA-256 in the format of `sha256sum`."""
    _record_path(target).write_text(f"{digest}  {target.name}\n", "utf-8")


def _read_record(target: Path) -> str | None:
    record = _record_path(target)
    if not record.is_file():
        return None
    digest = record.read_text("utf-8").split(" ")[0].strip()
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        hint = f"Remove {record.name} to accept the file as it is."
        raise ModelError(
            "The record does not contain a SHA-256.", where=str(record), found=repr(digest[:80]), hint=hint
        )
    return digest


# ---- archives -------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path, *, max_members: int = 10_000, max_bytes: int = 8 << 30) -> None:
    """Unpack a .tar.gz into `folder`, which appears when complete; an existing folder is kept.

    Args:
        archive: The .tar.gz.
        folder: The folder of the content.
        max_members: Largest number of files and folders.
        max_bytes: Largest size of the content.

    Raises:
        ModelError: The archive is damaged, exceeds a limit, or has a link, a device, ".." or an absolute path.
        InfrastructureError: The disk cannot store the content.
    """
    if folder.is_dir():
        return
    staging = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        with gzip.open(archive) as stream:
            _extract(_BoundedStream(stream, max_bytes), staging, max_members, max_bytes)
        staging.replace(folder)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        hint = "Remove the archive and download it again, from a source that you trust."
        raise ModelError("The archive cannot be unpacked.", where=str(archive), found=str(error), hint=hint) from error
    except OSError as error:
        hint = "Free some space or choose another folder, then run the same command again."
        raise InfrastructureError(
            "The archive cannot be unpacked into the folder.", where=str(folder), found=str(error), hint=hint
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class _BoundedStream:
    """A stream with limits for tarfile: at most max_bytes of content, and no giant header.

    last: the bytes read last. Headers and padding may take _SLACK_BYTES beside the content.
    """

    def __init__(self, stream: gzip.GzipFile, max_bytes: int) -> None:
        self._stream, self._max_bytes = stream, max_bytes + _SLACK_BYTES
        self.last = b""

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER_BYTES:
            raise tarfile.TarError(f"a header of {size} bytes")
        self.last = self._stream.read(size)
        self._check(self.tell())
        return self.last

    def seek(self, offset: int) -> int:
        self._check(offset)
        return self._stream.seek(offset)

    def _check(self, offset: int) -> None:
        if offset > self._max_bytes:
            raise tarfile.TarError(f"more than {self._max_bytes} bytes")


def _extract(stream: _BoundedStream, into: Path, max_members: int, max_bytes: int) -> None:
    remaining_bytes = max_bytes
    # tarfile's type asks for more methods than tarfile calls.
    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as tar:
        for count, member in enumerate(tar, 1):
            remaining_bytes -= member.size
            if count > max_members:
                raise tarfile.TarError(f"more than {max_members} members")
            if remaining_bytes < 0:
                raise tarfile.TarError(f"more than {max_bytes} bytes")
            _check_safe(member)
            path = into / member.name
            (path if member.isdir() else path.parent).mkdir(parents=True, exist_ok=True)
            # The filter of tar.extract needs Python 3.11.4.
            if (content := tar.extractfile(member)) is not None:
                with content, path.open("wb") as file:
                    shutil.copyfileobj(content, file)
    if stream.last.strip(b"\0"):
        raise tarfile.TarError("damaged in the middle")  # tarfile stops at a damaged header without an error.
    while stream.read(_CHUNK_BYTES):
        pass  # gzip checks its checksum at the end.


def _check_safe(member: tarfile.TarInfo) -> None:
    """Raise TarError unless the member is a plain file or folder below the root."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise tarfile.TarError(f"{member.name!r} lies outside the folder")
    if not (member.isreg() or member.isdir()):
        raise tarfile.TarError(f"{member.name!r} is neither a file nor a folder")
