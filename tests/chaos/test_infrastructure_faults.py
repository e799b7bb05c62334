"""Faults of the infrastructure, in front of a real S3 server: overload, cut and reset connections, silence, expired
credentials, a bucket that is gone, a full disk. Never a `failed` row; a run ends whole or can be resumed."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import segray as command
from command import write_config
from fault_proxy import FaultPlan, Proxy, Reply, Reset, Stall, Truncate, serve
from swift_server import Swift
from watchers import Notes

import segray
from segray import config
from segray.errors import InfrastructureError, SegrayError
from segray.execution import run
from segray.execution.progress import ProgressListener
from segray.execution.staging import ImageOutcome, stage
from segray.execution.worker_pool import InProcess
from segray.execution.worker_spec import WorkerSpec
from segray.instances import ImageRef, Instances
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join
from segray.synthetic import dataset
from segray.tasks import Progress, Task, TaskReport

IMAGES = 24
VOLATILE = ("batch", "run_id", "labelled_at", "attempts", "uri")


class Reader:
    """A labeller that reads every image through the store and makes its score of the bytes."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec, self._store = spec, Store(spec.storage)

    def label(self, task: Task, refs: Sequence[ImageRef]) -> TaskReport:
        outcomes = [self._outcome(task, ref) for ref in refs]
        rows = dict(zip(task.indices, outcomes, strict=True))
        return TaskReport(task, stage(self._store, self._spec.staged, task, rows, {13: "stop sign"}))

    def _outcome(self, task: Task, ref: ImageRef) -> ImageOutcome:
        data = self._store.read(ref.uri)
        score = np.array([hashlib.sha256(data).digest()[0] / 256], np.float32)
        found = Instances(np.array([13], np.int32), score, np.array([[0, 0, 2, 2]], np.float32), ("04",), (2, 2))
        return ImageOutcome(ref, task.attempt, len(data), (2, 2), instances=found)

    def progress(self) -> Progress:
        return Progress(0)

    def close(self) -> None: ...


def here(spec: WorkerSpec, chosen: config.Config) -> InProcess:
    return InProcess(Reader(spec), {"device": "FAKE", "precision": "f32", "host": "here"})


@pytest.fixture(scope="module")
def proxy(swift: Swift) -> Iterator[Proxy]:
    with serve(swift.endpoint_url) as running:
        yield running


@pytest.fixture
def fault_proxy(proxy: Proxy, swift_env: Swift) -> Iterator[Proxy]:
    """The proxy, fair before and after; the credentials are in the environment."""
    proxy.change()
    yield proxy
    proxy.change()


@pytest.fixture
def source(swift_env: Swift) -> str:
    """A prefix with images of 100 kB that hold their own name."""
    bucket, client = swift_env.bucket(), swift_env.client()
    for i in range(IMAGES):
        client.put_object(Bucket=bucket, Key=f"raw/{i:02d}.jpg", Body=f"{i:02d}".encode() * 50_000)
    return f"s3://{bucket}/raw/"


def chosen(proxy: Proxy, source: str, **storage: Any) -> config.Config:
    """A run over the source into a root of its own in the same bucket."""
    values = {
        "source": {"uri": source},
        "output": {"root": source.replace("/raw/", "/labels")},
        "model": {"name": "stickers"},
        "storage": {"endpoint_url": proxy.endpoint_url, "timeout_s": 5, **storage},
        "publish": {"batch_images": 12},
        "cluster": {"stall_timeout_s": 15},
        "unit_images": 2,
        "max_attempts": 1,
    }
    return config.validate(values, "test")


def label(settings: config.Config, listener: ProgressListener | None = None) -> run.Summary:
    return run.label(settings, listener or Notes(), here)


def check_whole(root: str, endpoint_url: str) -> None:
    """Each image has its one row and its one instance, whose score says that all its bytes came; none failed."""
    images = segray.images(root, endpoint_url=endpoint_url).to_table().to_pylist()
    assert sorted(row["image_key"] for row in images) == [f"{i:02d}.jpg" for i in range(IMAGES)]
    assert {(row["status"], row["bytes"], row["n_instances"]) for row in images} == {("ok", 100_000, 1)}
    found = segray.scan(root, endpoint_url=endpoint_url).to_table().to_pylist()
    wanted = {f"{i:02d}.jpg": hashlib.sha256(f"{i:02d}".encode() * 50_000).digest()[0] / 256 for i in range(IMAGES)}
    assert {row["image_key"]: row["score"] for row in found} == wanted
    assert len(found) == IMAGES


def further(*faults: FaultPlan) -> list[Any]:
    """Faults that the thorough tier tries."""
    return [pytest.param(fault, marks=pytest.mark.thorough) for fault in faults]


# ---- one store ------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize(
    "passing",
    [
        FaultPlan(Reply(503, "SlowDown"), share=0.3),
        FaultPlan(Reset(late=True), share=0.3),
        *further(
            FaultPlan(Reply(503, "SlowDown"), seconds=3),
            FaultPlan(Reset(), share=0.3),
            FaultPlan(Truncate(), "GET", share=0.3),
            FaultPlan(Reply(403, "ExpiredToken"), seconds=1),
            FaultPlan(Stall(3), "GET", seconds=1),
        ),
    ],
    ids=repr,
)
def test_a_store_comes_through_what_passes(fault_proxy: Proxy, swift_env: Swift, passing: FaultPlan) -> None:
    root = f"s3://{swift_env.bucket()}/x"
    store, data = (
        Store(StorageOptions(endpoint_url=fault_proxy.endpoint_url, timeout_s=2, retries=8)),
        os.urandom(300_000),
    )
    fault_proxy.change(passing)
    store.put(join(root, "a"), data)
    store.create(join(root, "b"), b"b")
    store.create(join(root, "b"), b"c")
    assert store.read(join(root, "b")) == b"b"
    assert store.read(join(root, "a")) == data
    assert store.read(join(root, "a"), 1000) == data[:1000]
    assert [entry.key for entry in store.list(root)] == ["a", "b"]
    assert fault_proxy.faults > 0


@pytest.mark.integration
@pytest.mark.parametrize(
    ("lasting", "says"),
    [
        (Reply(503, "SlowDown"), "overloaded"),
        (Stall(20), "cannot be reached"),
        pytest.param(Reset(), "cannot be reached", marks=pytest.mark.thorough),
        pytest.param(Truncate(), "cannot be reached", marks=pytest.mark.thorough),
        pytest.param(Reply(403, "ExpiredToken"), "credentials have expired", marks=pytest.mark.thorough),
    ],
    ids=repr,
)
def test_a_store_gives_up_within_its_budget(fault_proxy: Proxy, swift_env: Swift, lasting: Any, says: str) -> None:
    root = f"s3://{swift_env.bucket()}/x"
    store = Store(StorageOptions(endpoint_url=fault_proxy.endpoint_url, timeout_s=1, retries=2))
    store.put(root, b"x" * 1000)
    fault_proxy.change(FaultPlan(lasting))
    with pytest.raises(InfrastructureError, match=says):
        store.read(root)
    assert 3 <= fault_proxy.faults <= 6  # aiohttp asks once more on its own when a connection ends before any answer


# ---- a run ----------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize(
    "passing",
    [
        FaultPlan(Reply(503, "SlowDown"), skip=20, seconds=5),
        pytest.param(FaultPlan(Reset(), share=0.1), marks=pytest.mark.chaos),
        pytest.param(FaultPlan(Reset(late=True), "PUT", share=0.2), marks=pytest.mark.chaos),
        pytest.param(FaultPlan(Truncate(), "GET", share=0.1), marks=pytest.mark.chaos),
        pytest.param(FaultPlan(Stall(0.5), share=0.05), marks=pytest.mark.chaos),
    ],
    ids=repr,
)
def test_a_run_comes_through_what_passes(fault_proxy: Proxy, source: str, passing: FaultPlan) -> None:
    settings = chosen(fault_proxy, source)
    fault_proxy.change(passing)
    summary = label(settings)
    assert fault_proxy.faults > 0
    fault_proxy.change()
    assert summary.images == {"ok": IMAGES}
    check_whole(settings.output.root, fault_proxy.endpoint_url)


# The first images come through; then all that is told ends the run.
AFTER_SOME = {"wanted": "raw/.*jpg", "skip": 12}
COMMITS = {"wanted": "PUT .*images/_delta_log", "skip": 1}


NOT_LABELLED_YET = r"\d+ images of this run not labelled yet"
# A run ends in either way: all images were tried often enough, or none was labelled for the stall timeout.
LEFT_OVER = rf"12 images could not be labelled; all others are labelled|{NOT_LABELLED_YET}"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("lasting", "says"),
    [
        pytest.param(FaultPlan(Reply(403, "ExpiredToken"), **AFTER_SOME), NOT_LABELLED_YET, marks=pytest.mark.thorough),
        pytest.param(FaultPlan(Reply(404, "NoSuchBucket"), **AFTER_SOME), LEFT_OVER, marks=pytest.mark.chaos),
        pytest.param(FaultPlan(Stall(30), **AFTER_SOME), LEFT_OVER, marks=pytest.mark.chaos),
        pytest.param(FaultPlan(Reset(), skip=60), NOT_LABELLED_YET, marks=pytest.mark.chaos),
        (FaultPlan(Reply(503, "SlowDown"), **COMMITS), NOT_LABELLED_YET),
        pytest.param(FaultPlan(Reset(late=True), **COMMITS), NOT_LABELLED_YET, marks=pytest.mark.chaos),
    ],
    ids=repr,
)
def test_a_run_that_cannot_go_on_says_what_remains_and_is_resumed(
    fault_proxy: Proxy, source: str, lasting: FaultPlan, says: str
) -> None:
    settings = chosen(fault_proxy, source, timeout_s=1, retries=1)
    fault_proxy.change(lasting)
    try:
        label(settings)
    except SegrayError as error:
        assert error.exit_code == 3
        assert re.search(says, f"{error.what} {error.found}")
        assert "the same command" in error.hint
    else:
        # Only an answer that was lost can be found out about afterwards.
        assert lasting.fault == Reset(late=True)
    assert fault_proxy.faults > 0
    fault_proxy.change()
    again = Notes()
    label(chosen(fault_proxy, source), again)
    check_whole(settings.output.root, fault_proxy.endpoint_url)


@pytest.mark.chaos
def test_the_command_ends_with_3_when_credentials_expire_and_the_same_command_completes(
    fault_proxy: Proxy, swift_env: Swift, tmp_path: Path
) -> None:
    dataset.write(tmp_path / "scenes", IMAGES, seed=8)
    bucket, client = swift_env.bucket(), swift_env.client()
    for path in (tmp_path / "scenes" / "images").iterdir():
        client.put_object(Bucket=bucket, Key=f"raw/{path.name}", Body=path.read_bytes())
    storage = {"endpoint_url": fault_proxy.endpoint_url, "retries": 0}

    def settings(name: str) -> Path:
        source, root = f"s3://{bucket}/raw", f"s3://{bucket}/{name}"
        return write_config(tmp_path / f"{name}.yaml", source, root, unit_images=2, storage=storage)

    fault_proxy.change(FaultPlan(Reply(403, "ExpiredToken"), "raw/.*png|raw/.*jpg", skip=10))
    stopped = command("label", "--config", settings("disturbed"))
    assert fault_proxy.faults > 0
    assert stopped.returncode == 3, stopped.stderr
    assert "credentials have expired" in stopped.stderr
    assert "images of this run not labelled yet" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    fault_proxy.change()
    for name in ("disturbed", "undisturbed"):
        done = command("label", "--config", settings(name))
        assert done.returncode == 0, done.stderr

    def rows(name: str) -> list[list[dict[str, Any]]]:
        root = f"s3://{bucket}/{name}"
        tables = [kind(root, endpoint_url=fault_proxy.endpoint_url).to_table() for kind in (segray.images, segray.scan)]
        order = [[("image_key", "ascending")], [("image_key", "ascending"), ("instance", "ascending")]]
        return [
            table.drop_columns([c for c in VOLATILE if c in table.column_names]).sort_by(by).to_pylist()
            for table, by in zip(tables, order, strict=True)
        ]

    assert rows("disturbed") == rows("undisturbed")


# ---- a full disk ----------------------------------------------------------------------------------


def local(tmp_path: Path) -> config.Config:
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    for i in range(IMAGES):
        (folder / f"{i:02d}.jpg").write_bytes(f"{i:02d}".encode() * 50_000)
    values = {
        "source": {"uri": str(folder)},
        "output": {"root": str(tmp_path / "labels")},
        "model": {"name": "stickers"},
        "storage": {"retries": 0},
        "unit_images": 2,
    }
    return config.validate(values, "test")


def test_a_disk_that_fills_up_stops_the_run_and_room_lets_it_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, fsync, synced = local(tmp_path), os.fsync, []

    def full(handle: int) -> None:
        synced.append(handle)
        if len(synced) > 15:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InfrastructureError, match="full") as caught:
        label(settings)
    assert "images of this run not labelled yet" in caught.value.found
    monkeypatch.setattr(os, "fsync", fsync)
    assert not list(Path(settings.output.root).rglob("*.segray-tmp"))
    listener = Notes()
    label(settings, listener)
    assert any("resuming run" in note for note in listener.notes)
    check_whole(settings.output.root, "")


@pytest.mark.integration
def test_a_file_that_may_not_grow_is_never_seen_in_part(tmp_path: Path) -> None:
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from segray.errors import InfrastructureError\n"
        "from segray.storage.store import Store\n"
        "try:\n"
        "    Store().put(sys.argv[1], bytes(100_000))\n"
        "except InfrastructureError as error:\n"
        "    sys.exit(error.exit_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == 3
    assert list(tmp_path.iterdir()) == []
