"""Listing order, whole writes, retries and what errors mean; then the same against a real S3 server."""

from __future__ import annotations

import errno
import os
import pickle
import re
import threading
import time
import tracemalloc
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import botocore.exceptions
import deltalake
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from swift_server import Swift, serve

from segray import config
from segray.errors import AccessError, InfrastructureError
from segray.storage import local, retry
from segray.storage import store as storage
from segray.storage.store import ListedObject, StorageOptions, Store
from segray.storage.uris import join

ODD_NAMES = ("a b.jpg", "a%20b.jpg", "naïve+é&=;'(#?.jpg", "日本語.jpg", "line\nbreak.jpg", "trailing ", "[x]*.jpg")


@pytest.fixture
def store() -> Store:
    return Store(StorageOptions(retries=0))


@pytest.fixture
def memory() -> Iterator[str]:
    """A root in fsspec's memory file system, empty before and after."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield "memory://root"
    files.store.clear()


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("memory")


def keys(store: Store, uri: str, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(uri, prefix=prefix)]


def no_sleep(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    naps: list[float] = []
    monkeypatch.setattr(retry, "sleep", naps.append)
    return naps


# Objects


def test_objects_are_written_read_and_removed(store: Store, root: str) -> None:
    for each in ODD_NAMES:
        uri = join(root, "folder", each)
        assert not store.exists(uri)
        store.put(uri, b"old")
        store.put(uri, each.encode())
        assert store.exists(uri)
        assert store.read(uri) == each.encode()
        assert store.read(uri, max_bytes=2) == each.encode()[:2]
        assert store.stat(uri).size_bytes == len(each.encode())
    assert store.names(join(root, "folder")) == sorted(ODD_NAMES)
    assert keys(store, root) == sorted("folder/" + each for each in ODD_NAMES)
    assert all(store.read(entry.uri) == entry.key[len("folder/") :].encode() for entry in store.list(root))
    for entry in list(store.list(root)):
        store.delete(entry.uri)
        store.delete(entry.uri)
        assert not store.exists(entry.uri)


def test_a_small_file_takes_memory_of_its_own_size_whatever_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "small.jpg"
    file.write_bytes(bytes(range(200)))
    store = Store()
    store.read(str(file), 1)
    tracemalloc.start()
    try:
        assert store.read(str(file), 256 * 2**20) == bytes(range(200))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("start", "size"), [(0, 199), (0, 200), (0, 201), (150, 50), (150, 51), (199, 5), (200, 5), (300, 5)]
)
def test_a_part_of_a_file_ends_where_the_file_ends(tmp_path: Path, start: int, size: int) -> None:
    content = bytes(range(200))
    (tmp_path / "file").write_bytes(content)
    assert Store().read_range(str(tmp_path / "file"), start, size) == content[start : start + size]


def test_only_the_first_create_writes(store: Store, root: str) -> None:
    uri = join(root, "deep", "er", "fence.json")
    store.create(uri, b"first")
    store.create(uri, b"second")
    assert store.read(uri) == b"first"


def test_of_many_local_creators_one_wins_and_readers_see_all_of_it(store: Store, tmp_path: Path) -> None:
    uri, contents = str(tmp_path / "fence"), [bytes([i]) * 100_000 for i in range(8)]
    start, read = threading.Barrier(8), []

    def create(data: bytes) -> None:
        start.wait()
        store.create(uri, data)
        read.append(store.read(uri))

    threads = [threading.Thread(target=create, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 8
    assert len(set(read)) == 1
    assert read[0] in contents
    assert [path.name for path in tmp_path.iterdir()] == ["fence"]


def test_a_put_that_fails_leaves_the_old_object_and_no_litter(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "x")
    store.put(uri, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InfrastructureError, match="full"):
        store.put(uri, b"new")
    assert store.read(uri) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_leftovers_of_a_killed_writer_are_not_listed(store: Store, tmp_path: Path) -> None:
    (tmp_path / ".0123.segray-tmp").write_bytes(b"half")
    assert store.names(str(tmp_path)) == []
    assert keys(store, str(tmp_path)) == []


def test_pyarrow_reads_through_a_reader(store: Store, root: str) -> None:
    table = pa.table({"x": list(range(10_000))})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, row_group_size=1_000)
    store.put(join(root, "t.parquet"), buffer.getvalue().to_pybytes())
    with store.reader(join(root, "t.parquet")) as file:
        assert pq.read_table(file).equals(table)
        assert pq.ParquetFile(file).read_row_group(7)["x"][0].as_py() == 7_000


# Listings


def test_what_is_no_file_is_not_read_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for path in (tmp_path / "pipe.jpg", tmp_path / "folder.jpg", "/dev/zero"):
        with pytest.raises(FileNotFoundError):
            Store().read(str(path), 100)
    assert keys(Store(), str(tmp_path)) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.text("ab./ -\u00e9", min_size=1, max_size=8), max_size=8))
def test_a_folder_is_listed_in_the_order_of_whole_keys(
    tmp_path_factory: pytest.TempPathFactory, wanted: set[str]
) -> None:
    folder, made = tmp_path_factory.mktemp("order"), set()
    for key in wanted:
        path = folder / key.replace(".", "_.").strip("/")  # neither "." nor ".." as a name
        if path != folder and not path.exists() and not any(p.is_file() for p in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
            made.add(path.relative_to(folder).as_posix())
    assert keys(Store(), str(folder)) == sorted(made)


def test_folders_of_a_remote_store_are_listed_side_by_side(
    store: Store, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sorted(f"{day:03d}/0/{name}" for day in range(20) for name in ("a", "b"))
    for key in expected:
        store.put(join(memory, key), b"")
    files = type(fsspec.filesystem("memory"))
    at_once = threading.Semaphore(16)
    list_folder = files.ls

    def slow(self: Any, *arguments: Any, **options: Any) -> Any:
        assert at_once.acquire(blocking=False), "more than 16 requests at once"
        try:
            time.sleep(0.1)
            return list_folder(self, *arguments, **options)
        finally:
            at_once.release()

    monkeypatch.setattr(files, "ls", slow)
    began = time.monotonic()
    assert keys(store, memory) == expected
    assert time.monotonic() - began < 41 * 0.1 / 2  # one after the other takes 41 times 0.1 s
    assert next(iter(store.list(memory))).key == "000/0/a"


def test_a_prefix_narrows_a_listing(store: Store, root: str) -> None:
    for key in ("2023/a", "2024-1/a", "2024-2/b/c", "2024x", "202"):
        store.put(join(root, key), b"")
    assert keys(store, root, "2024-") == ["2024-1/a", "2024-2/b/c"]
    assert keys(store, root, "2024-2/b") == ["2024-2/b/c"]
    assert keys(store, root, "202") == ["202", "2023/a", "2024-1/a", "2024-2/b/c", "2024x"]


def test_versions_change_with_content_and_only_then(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12")
    (first,) = store.list(str(tmp_path))
    assert first == ListedObject(str(path), "a", f"2-{path.stat().st_mtime_ns}", 2)
    assert list(store.list(str(tmp_path))) == [first]
    path.write_bytes(b"123")
    assert store.stat(str(path)).version != first.version


def test_links_are_followed_but_never_in_a_circle(store: Store, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"a")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = {entry.key: entry.size_bytes for entry in store.list(str(tmp_path))}
    assert found == {"broken": -1, "link/a": 1, "real/a": 1}


def test_a_folder_that_is_missing(store: Store, root: str) -> None:
    with pytest.raises(FileNotFoundError):
        list(store.list(join(root, "nowhere")))
    assert store.names(join(root, "nowhere")) == []


# Errors


@pytest.mark.parametrize("path", ["missing", "file/below", "folder", "x" * 300, "nul\0"])
def test_what_is_no_file_is_not_found(store: Store, tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        store.read(join(str(tmp_path), path))
    assert not store.exists(join(str(tmp_path), path))


def failing(monkeypatch: pytest.MonkeyPatch, store: Store, *errors: Exception) -> None:
    """The store's next requests fail so, one after the other; then they work and say b"fine"."""
    left = list(errors)

    def read(uri: str, start: int, size: int | None) -> bytes:
        if left:
            raise left.pop(0)
        return b"fine"

    monkeypatch.setattr(store._backend("s3://b/k"), "read", read)


def reply(status: int, code: str) -> botocore.exceptions.ClientError:
    answer: Any = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(answer, "GetObject")


TRANSIENT = [
    reply(503, "SlowDown"),
    reply(500, "InternalError"),
    reply(429, "TooManyRequests"),
    reply(400, "RequestTimeout"),
    reply(400, "ExpiredToken"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
    botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"),
    TimeoutError(),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    OSError(errno.EIO, "I/O error"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_what_may_pass_is_tried_again_within_the_budget(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    naps = no_sleep(monkeypatch)
    store = Store(StorageOptions(retries=2))
    backend = store._backend("s3://b/k")
    failing(monkeypatch, store, error, error)
    monkeypatch.setattr(storage, "_connect", lambda kind, options: backend)
    assert store.read("s3://b/k") == b"fine"
    assert len(naps) == 2
    assert 0 < naps[0] < naps[1]
    failing(monkeypatch, store, error, error, error)
    with pytest.raises(InfrastructureError, match=r"bucket b"):
        store.read("s3://b/k")


REFUSED = [
    (
        reply(403, "SignatureDoesNotMatch"),
        AccessError,
        "bucket b .*\n.*SignatureDoesNotMatch.*\n.*AWS_SECRET_ACCESS_KEY",
    ),
    (reply(403, "InvalidAccessKeyId"), AccessError, "AWS_ACCESS_KEY_ID"),
    (reply(403, "403"), AccessError, "bucket b"),
    (reply(404, "NoSuchBucket"), AccessError, "No such bucket"),
    (reply(501, "NotImplemented"), AccessError, "NotImplemented"),
    (botocore.exceptions.NoCredentialsError(), AccessError, "AWS_ACCESS_KEY_ID"),
    (botocore.exceptions.ProfileNotFound(profile="p"), AccessError, "profile"),
    (PermissionError(errno.EACCES, "Permission denied"), AccessError, "Permission denied"),
    (reply(404, "NoSuchKey"), FileNotFoundError, "no such object"),
    (reply(404, "404"), FileNotFoundError, "no such object"),
    (reply(403, "InvalidObjectState"), FileNotFoundError, "archived"),
    (OSError(errno.ENOSPC, "No space left"), InfrastructureError, "full"),
]


@pytest.mark.parametrize(("error", "kind", "says"), REFUSED)
def test_what_will_not_pass_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], says: str
) -> None:
    naps = no_sleep(monkeypatch)
    store = Store(StorageOptions(retries=5))
    failing(monkeypatch, store, error)
    with pytest.raises(kind, match=says):
        store.read("s3://b/k")
    assert naps == []


@pytest.mark.parametrize("known", [False, True], ids=["that answered", "told of"])
def test_a_bucket_that_is_there_and_denied_is_the_fault_of_the_store(
    monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    naps = no_sleep(monkeypatch)
    store = Store(StorageOptions(retries=2), existing_uris=["s3://b/elsewhere"] if known else [])
    failing(monkeypatch, store)
    if not known:
        store.read("s3://b/k")
    failing(monkeypatch, store, *[reply(404, "NoSuchBucket")] * 3)
    with pytest.raises(InfrastructureError, match="denies"):
        store.read("s3://b/k")
    assert len(naps) == 2


def test_a_listing_tries_again_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    naps, scan = no_sleep(monkeypatch), local._scan
    for key in ("a/1", "b/2"):
        (tmp_path / key[0]).mkdir()
        (tmp_path / key).write_bytes(b"")

    def fail_once_in_b(folder: str) -> Iterator[str]:
        if folder.endswith("b") and not naps:
            raise OSError(errno.ESTALE, "Stale file handle")
        return scan(folder)

    monkeypatch.setattr(local, "_scan", fail_once_in_b)
    assert keys(Store(), str(tmp_path)) == ["a/1", "b/2"]
    assert len(naps) == 1


def test_a_fault_of_ours_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def divide() -> float:
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        Store().retrying("s3://b/k", divide)


@pytest.mark.parametrize("error", [RuntimeError("odd"), KeyError("size"), ValueError("none")], ids=repr)
def test_whatever_a_call_of_a_backend_raises_is_the_worlds_fault(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    naps = no_sleep(monkeypatch)
    store = Store(StorageOptions(retries=2))
    failing(monkeypatch, store, error, error, error)
    with pytest.raises(InfrastructureError, match=r"A request to storage failed[\s\S]*bucket b"):
        store.read("s3://b/k")
    assert len(naps) == 2


def test_a_name_that_cannot_be_sent_is_no_object() -> None:
    pytest.importorskip("gcsfs")
    for uri in ("gs://bucket/\ud800.jpg", "http://[bad/a.jpg"):
        with pytest.raises(FileNotFoundError):
            Store(StorageOptions(retries=0, anonymous=True)).read(uri)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EINVAL, errno.EIO, errno.ESTALE])
def test_a_fault_of_a_local_disk_names_its_number_and_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    no_sleep(monkeypatch)
    store, path = Store(StorageOptions(retries=1)), tmp_path / "a.jpg"

    def fail(*_: Any) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(store._backend(str(path)), "read", fail)
    with pytest.raises(InfrastructureError) as caught:
        store.read(str(path))
    assert f"errno {number} {errno.errorcode[number]}" in str(caught.value)
    assert str(path) in str(caught.value)
    assert "endpoint_url" not in str(caught.value)


def test_an_unknown_kind_of_storage_names_itself(store: Store) -> None:
    for call in (store.read, lambda uri: list(store.list(uri))):
        with pytest.raises(AccessError, match="nosuch://"):
            call("nosuch://x/y")


@pytest.mark.parametrize("root", ["memory://x/labels", "ftp://host/labels", "hf://datasets/a/b", "https://host/labels"])
def test_a_label_set_is_refused_where_no_table_can_lie(store: Store, root: str) -> None:
    with pytest.raises(AccessError, match=r"cannot lie at[\s\S]*output\.root"):
        store.retrying(root, lambda: store.delta_options(root))


def test_an_endpoint_without_a_scheme_is_refused() -> None:
    with pytest.raises(AccessError, match="http://host:port"):
        Store(StorageOptions(endpoint_url="localhost:9000")).read("s3://b/k")


# Connections


def test_what_goes_abreast_comes_in_order_whatever_ends_first() -> None:
    last_ended = threading.Event()

    def call(number: int) -> int:
        assert number or last_ended.wait(60)  # The first ends when a later one has.
        if number == 7:
            last_ended.set()
        return number

    assert list(storage.bounded_map(call, range(30), lambda _: 0)) == list(range(30))


def test_sizes_limit_what_goes_abreast() -> None:
    started = ended = most = 0

    def made() -> Iterator[int]:
        nonlocal started, most
        for size in (60, 4, 300, 1, 40, 40, 40):
            started += size
            most = max(most, started - ended)
            yield size << 20

    for size in storage.bounded_map(lambda size: size, made(), lambda size: size):
        ended += size >> 20
    assert (started, ended, most) == (485, 485, 364)  # never over 64 MiB, and one more


def test_the_first_error_of_what_goes_abreast_is_raised_and_no_more_begun() -> None:
    begun = []

    def call(number: int) -> None:
        begun.append(number)
        if number >= 2:
            raise InfrastructureError(f"no {number}")

    with pytest.raises(InfrastructureError, match="no 2"):
        list(storage.bounded_map(call, range(1000), lambda _: 0))
    assert len(begun) < 20


def test_a_store_travels_without_its_connections(tmp_path: Path) -> None:
    store = Store(StorageOptions(region="eu-west-1"))
    store.exists(str(tmp_path / "x"))
    copy = pickle.loads(pickle.dumps(store))
    assert copy.options == store.options
    assert copy._backends == {}


def test_a_forked_process_connects_anew_though_a_thread_held_the_lock(store: Store) -> None:
    backend = store._backend("s3://b/k")
    assert store._backend("s3://other/k") is backend
    with store._lock:
        child = os.fork()
        if child == 0:
            os._exit(store._backend("s3://b/k") is backend)
    assert os.waitpid(child, 0)[1] == 0


def test_delta_options_come_from_options_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    options = StorageOptions(endpoint_url="http://localhost:1", region="eu-west-1")
    assert Store(options).delta_options("/data") == {}
    assert Store(options).delta_options("s3://b/t") == {
        "AWS_REGION": "eu-west-1",
        "max_retries": "0",
        "timeout": "60s",
        "AWS_ENDPOINT_URL": "http://localhost:1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    assert Store(StorageOptions(anonymous=True)).delta_options("s3://b/t")["AWS_SKIP_SIGNATURE"] == "true"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (StorageOptions(requester_pays=True), {"AWS_REQUEST_PAYER": "true"}),
        (StorageOptions(addressing="path"), {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false"}),
        (
            StorageOptions(endpoint_url="http://h:1", addressing="virtual"),
            {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true", "AWS_ENDPOINT_URL": "http://h:1"},
        ),
        (
            StorageOptions(sse="aws:kms", sse_kms_key_id="key"),
            {"AWS_SERVER_SIDE_ENCRYPTION": "aws:kms", "AWS_SSE_KMS_KEY_ID": "key"},
        ),
    ],
)
def test_deltalake_gets_the_settings_of_s3(options: StorageOptions, expected: dict[str, str]) -> None:
    given = Store(options).delta_options("s3://b/t")
    assert {name: given.get(name) for name in expected} == expected


def test_requests_to_s3_carry_payer_and_encryption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    seen: list[tuple[str, str | None, str | None]] = []

    class Recorder(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self) -> None:
            seen.append(
                (self.command, self.headers["x-amz-request-payer"], self.headers["x-amz-server-side-encryption"])
            )
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        store = Store(StorageOptions(endpoint_url=address, requester_pays=True, sse="AES256", retries=0))
        store.put("s3://b/k", b"x")
        store.create("s3://b/k", b"x")
        store.read("s3://b/k")
        server.shutdown()
    assert seen == [("PUT", "requester", "AES256"), ("PUT", "requester", "AES256"), ("GET", "requester", None)]


@pytest.fixture
def two_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "credentials"
    for name in ("photos", "labels"):
        with path.open("a") as file:
            file.write(f"[{name}]\naws_access_key_id = KEY{name}\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEYvariables")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")


@pytest.mark.usefixtures("two_profiles")
def test_images_and_label_set_have_the_credentials_of_their_own_profiles() -> None:
    keys: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = re.search(r"Credential=(\w+)/", self.headers.get("Authorization", ""))
            keys.append(found[1] if found else "none")
            self.send_response(200)
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(b"x")

        def log_message(self, *_: object) -> None: ...

    values = {"source": {"uri": "s3://b/photos"}, "output": {"root": "s3://b/labels"}, "model": {"name": "stickers"}}
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        storage = {"endpoint_url": f"http://127.0.0.1:{server.server_port}", "profile": "labels"}
        of_images = [{"profile": "photos"}, {"profile": None}, {"anonymous": True}]
        for source in of_images:
            chosen = config.validate({**values, "storage": storage, "source": {"uri": "a", "storage": source}}, "")
            Store(chosen.source_storage_options()).read("s3://b/k")
        Store(chosen.storage_options()).read("s3://b/k")
        server.shutdown()
    assert keys == ["KEYphotos", "KEYvariables", "none", "KEYlabels"]
    assert Store(chosen.storage_options()).delta_options("s3://b/t")["AWS_ACCESS_KEY_ID"] == "KEYlabels"


@pytest.mark.usefixtures("two_profiles")
def test_a_profile_that_no_file_has_is_refused_at_once_and_the_error_names_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = Store(StorageOptions(profile="other"))
    for call in (lambda: missing.read("s3://b/k"), lambda: missing.delta_options("s3://b/t")):
        with pytest.raises(AccessError, match=r"(?s)No such AWS profile.*other") as caught:
            call()
        assert "storage.profile or source.storage.profile" in caught.value.hint
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(AccessError, match=r"No such AWS profile") as caught:
        Store().read("s3://b/k")
    assert "correct AWS_PROFILE" in caught.value.hint


def test_deltalake_gets_the_same_credentials_until_they_are_others_or_have_expired(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    path, store = tmp_path / "credentials", Store(StorageOptions())
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setattr(retry, "sleep", lambda _: None)

    def key() -> str:
        return store.delta_options("s3://b/t")["AWS_ACCESS_KEY_ID"]

    def now(name: str) -> None:
        path.write_text(f"[default]\naws_access_key_id = {name}\naws_secret_access_key = secret\n")

    def expired() -> str:
        if key() == "first":
            raise reply(400, "ExpiredToken")
        return key()

    now("first")
    assert key() == "first"
    now("second")
    assert key() == "first"  # no file is read again
    assert store.retrying(str(tmp_path), expired) == "second"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "third")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert key() == "third"


# A real S3 server


@pytest.fixture
def s3(swift_env: Swift) -> Store:
    return Store(StorageOptions(endpoint_url=swift_env.endpoint_url, retries=0))


@pytest.mark.parametrize(
    "count", [pytest.param(120, marks=pytest.mark.integration), pytest.param(1_200, marks=pytest.mark.chaos)]
)
def test_s3_lists_more_than_a_page_in_order_with_odd_names(s3: Store, swift_env: Swift, count: int) -> None:
    bucket, client = swift_env.bucket(), swift_env.client()
    wanted = sorted([*(f"p/{i % 7}/{i:04d}.jpg" for i in range(count)), *(f"p/odd/{each}" for each in ODD_NAMES)])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: client.put_object(Bucket=bucket, Key=key, Body=key.encode()), wanted))
    for key in ("p/", "pp/no.jpg", "q.jpg"):
        client.put_object(Bucket=bucket, Key=key, Body=b"")
    entries = list(s3.list(f"s3://{bucket}/p"))
    assert [f"p/{entry.key}" for entry in entries] == wanted
    odd = [entry for entry in entries if entry.key.startswith("odd/")]
    assert [s3.read(entry.uri) for entry in odd] == [f"p/{entry.key}".encode() for entry in odd]
    assert s3.stat(odd[0].uri) == ListedObject(
        odd[0].uri, odd[0].key.removeprefix("odd/"), odd[0].version, odd[0].size_bytes
    )
    assert '"' not in odd[0].version
    assert len(odd[0].version) == 32
    assert keys(s3, f"s3://{bucket}/p/", "3/00") == [k[2:] for k in wanted if k.startswith("p/3/00")]
    assert s3.names(f"s3://{bucket}/p") == ["0", "1", "2", "3", "4", "5", "6", "odd"]
    assert keys(s3, f"s3://{bucket}/nothing") == []


@pytest.mark.integration
def test_s3_objects_are_written_read_and_removed(s3: Store, swift_env: Swift) -> None:
    root = f"s3://{swift_env.bucket()}/a"
    for each in ODD_NAMES:
        s3.put(join(root, each), each.encode())
    assert s3.names(root) == sorted(ODD_NAMES)
    assert s3.read(join(root, ODD_NAMES[2]), max_bytes=4) == ODD_NAMES[2].encode()[:4]
    s3.put(join(root, "empty"), b"")
    assert s3.read(join(root, "empty"), max_bytes=10) == b""
    s3.delete(join(root, "empty"))
    s3.delete(join(root, "empty"))
    assert not s3.exists(join(root, "empty"))
    with pytest.raises(FileNotFoundError):
        s3.read(join(root, "empty"))
    s3.create(join(root, "fence"), b"1")
    s3.create(join(root, "fence"), b"2")
    assert s3.read(join(root, "fence")) == b"1"


@pytest.mark.integration
def test_s3_reads_parquet_by_ranges_and_in_many_threads(s3: Store, swift_env: Swift) -> None:
    uri = f"s3://{swift_env.bucket()}/t.parquet"
    table = pa.table({"x": list(range(500_000))})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, row_group_size=50_000, compression="none", use_dictionary=False)
    s3.put(uri, buffer.getvalue().to_pybytes())
    with s3.reader(uri) as file:
        assert pq.ParquetFile(file).read_row_group(3)["x"][0].as_py() == 150_000
        assert pq.read_table(file).equals(table)
    whole: list[int] = []
    threads = [threading.Thread(target=lambda: whole.append(len(s3.read(uri)))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert whole == [buffer.getvalue().size] * 16


@pytest.mark.integration
def test_s3_reads_a_large_object_in_one_request(s3: Store, swift_env: Swift) -> None:
    uri, asked = f"s3://{swift_env.bucket()}/large", []
    s3.put(uri, b"x" * 8_000_000)
    backend: Any = s3._backend(uri)
    backend._fs.s3.meta.events.register("before-call.s3", lambda model, **_: asked.append(model.name))
    assert len(s3.read(uri)) == 8_000_000
    assert asked == ["GetObject"]


@pytest.mark.integration
def test_deltalake_reaches_the_same_place(s3: Store, swift_env: Swift) -> None:
    uri = f"s3://{swift_env.bucket()}/a b/table"
    deltalake.write_deltalake(uri, pa.table({"x": [1, 2]}), storage_options=s3.delta_options(uri))
    table = deltalake.DeltaTable(uri, storage_options=s3.delta_options(uri))
    (file,) = (urllib.parse.unquote(each) for each in table.file_uris())
    with s3.reader(file) as parquet:
        assert pq.read_table(parquet)["x"].to_pylist() == [1, 2]
    assert s3.names(join(uri, "_delta_log")) == ["00000000000000000000.json"]


@pytest.mark.integration
@pytest.mark.parametrize("operation", ["list", "read", "put", "names", "exists"])
def test_s3_says_at_once_that_the_secret_is_wrong(
    swift_env: Swift, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    bucket = swift_env.bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    store, started = Store(StorageOptions(endpoint_url=swift_env.endpoint_url)), time.monotonic()
    with pytest.raises(AccessError, match=f"bucket {bucket}") as caught:
        list(getattr(store, operation)(f"s3://{bucket}/x", *([b""] if operation == "put" else [])))
    assert time.monotonic() - started < 10
    assert "not-the-secret" not in f"{caught.value}{caught.value.__cause__}"


@pytest.mark.integration
def test_s3_says_at_once_that_there_are_no_credentials(
    swift_env: Swift, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for each in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(each)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    store, started = Store(StorageOptions(endpoint_url=swift_env.endpoint_url)), time.monotonic()
    with pytest.raises(AccessError, match="No usable credentials"):
        store.read("s3://bucket/x")
    assert time.monotonic() - started < 10


@pytest.mark.integration
def test_s3_names_the_bucket_that_is_missing(s3: Store) -> None:
    for operation in (lambda: list(s3.list("s3://no-such-one/x")), lambda: s3.put("s3://no-such-one/x", b"")):
        with pytest.raises(AccessError, match=r"No such bucket[\s\S]*no-such-one"):
            operation()


@pytest.mark.integration
def test_a_server_that_dies_is_the_worlds_fault(
    swift_env: Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps = no_sleep(monkeypatch)
    with serve(tmp_path) as server:
        store = Store(StorageOptions(endpoint_url=server.endpoint_url, retries=2))
        uri = f"s3://{server.bucket()}/x"
        store.put(uri, b"x")
        server.stop()
        with pytest.raises(InfrastructureError, match="cannot be reached"):
            store.read(uri)
        assert len(naps) == 2
