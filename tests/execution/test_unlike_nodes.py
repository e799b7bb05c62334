"""Nodes that differ from the driver: without its model, with another segray, or without room. Real clusters."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from clusters import Driver, command_of, is_actor, nodes
from command import write_config

import segray
from segray.execution import model_files
from segray.execution.package_digest import digest_of, package_digest
from segray.label_set.validation import verify
from segray.models.resolve import EMBEDDED, resolve
from segray.storage.store import StorageOptions
from segray.synthetic import dataset

IMAGES = 48
PACKAGE = Path(segray.__file__).parent


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, IMAGES, seed=5)
    return folder / "images"


@pytest.fixture
def model_on_driver(tmp_path: Path) -> Path:
    """A folder with a model. The driver of a test works in it."""
    folder = tmp_path / "driver"
    folder.mkdir()
    for file in EMBEDDED.parent.iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture
def other_segray(tmp_path: Path) -> Path:
    """A folder with a segray of the same version and other code."""
    folder = tmp_path / "other"
    shutil.copytree(PACKAGE, folder / "segray", ignore=shutil.ignore_patterns("__pycache__", "configs"))
    with (folder / "segray" / "label_set" / "schema.py").open("a") as file:
        file.write("# other\n")
    return folder


def wait(condition: Callable[[], object], driver: Driver, within_s: float = 180) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert driver.running, driver.text
        assert time.monotonic() < deadline, driver.text
        time.sleep(0.1)


@contextmanager
def running(config: Path, folder: Path, address: str) -> Iterator[Driver]:
    """A driver that works in a folder and joins a cluster; killed at the end of the block."""
    driver = Driver(config, ["env", "-C", str(folder)], options=["--set", f"cluster.address={address}"])
    try:
        yield driver
    finally:
        driver.kill()


def complete(root: Path) -> None:
    assert segray.images(str(root)).count_rows() == IMAGES
    assert not verify(str(root), StorageOptions()).violations


@pytest.mark.chaos
@pytest.mark.parametrize("pool", [{"num_cpus": 1}, {"count": 2, "num_cpus": 1}])
def test_a_model_that_lies_on_the_driver_alone_is_sent_to_every_node_once(
    tmp_path: Path, scenes: Path, model_on_driver: Path, pool: dict[str, int]
) -> None:
    # Every process has another folder at this path, as every machine has another disk.
    model = {"name": "stickers", "path": "/proc/self/cwd/stickers.xml"}
    config = write_config(
        tmp_path / "run.yaml", scenes, tmp_path / "labels", model=model, workers=[pool], unit_images=4
    )
    (tmp_path / "node").mkdir()
    with nodes(count=0) as cluster:
        for _ in range(2):
            cluster.add(TMPDIR=str(tmp_path / "node"))
        with running(config, model_on_driver, cluster.address) as driver:
            assert driver.end(300) == 0, driver.text
    assert driver.times("worker ready"), (
        driver.text
    )  # The first worker may label everything before the second is ready.
    complete(tmp_path / "labels")
    (folder,) = (path for path in (tmp_path / "node").glob("segray-models-*/*") if path.is_dir())
    names = {file.name for file in folder.iterdir()}
    assert names == {file.name for file in model_on_driver.iterdir()} & {"stickers.xml", "stickers.bin", "segray.json"}


@pytest.mark.chaos
@pytest.mark.parametrize("pool", [{"num_cpus": 1}, {"count": 2, "num_cpus": 1}])
def test_a_node_with_another_segray_is_left_out_at_the_start_and_in_mid_run_and_the_others_work(
    tmp_path: Path, scenes: Path, other_segray: Path, pool: dict[str, int]
) -> None:
    config = write_config(tmp_path / "run.yaml", scenes, tmp_path / "labels", workers=[pool], unit_images=2)
    with nodes(count=1) as cluster:
        cluster.add(PYTHONPATH=str(other_segray))
        with running(config, Path("/"), cluster.address) as driver:
            told = "is left out: a worker has another segray than the driver"
            wait(lambda: driver.first(told) and driver.first("worker ready"), driver)
            (worker,) = (pid for pid in cluster.actors if "start_on_node" not in command_of(pid))
            os.kill(worker, signal.SIGSTOP)  # It holds what it has, so that the run lasts until the node has come.
            cluster.add(PYTHONPATH=str(other_segray))
            wait(lambda: len(driver.times(told)) == 2, driver)
            os.kill(worker, signal.SIGCONT)
            assert driver.end(300) == 0, driver.text
    assert package_digest() in driver.text
    complete(tmp_path / "labels")


@pytest.mark.thorough
@pytest.mark.integration
def test_a_run_ends_in_words_when_no_node_can_start_a_worker(tmp_path: Path, scenes: Path, other_segray: Path) -> None:
    config = write_config(tmp_path / "run.yaml", scenes, tmp_path / "labels", workers=[{"num_cpus": 1}])
    with nodes(count=0) as cluster:
        for _ in range(2):
            cluster.add(PYTHONPATH=str(other_segray))
        with running(config, Path("/"), cluster.address) as driver:
            assert driver.end(300) == 2, driver.text
    assert "error: a worker has another segray than the driver, with the same version" in driver.text
    assert len(driver.times("is left out")) == 1, driver.text


@pytest.mark.chaos
def test_nodes_without_the_folder_of_the_images_make_no_failed_rows(tmp_path: Path, scenes: Path) -> None:
    # Every process has another folder at this path, as every machine has another disk.
    config = write_config(tmp_path / "run.yaml", f"/proc/self/cwd/{scenes.name}", tmp_path / "labels")
    with nodes(count=1) as cluster, running(config, scenes.parent, cluster.address) as driver:
        assert driver.end(300) == 2, driver.text
    assert "error: the images are not on this machine" in driver.text
    assert not segray.images(str(tmp_path / "labels")).count_rows()


def fill(path: Path) -> None:
    """Write a file until its disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**20))
        except OSError as exc:
            assert exc.errno == errno.ENOSPC


SMALL_DISK = 'mkdir -p "$1" && mount -t tmpfs -o size=200m tmpfs "$1" && shift && exec "$@"'


@pytest.mark.chaos
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk, which needs root")
def test_a_full_temporary_folder_of_ray_is_named_within_seconds(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(
        tmp_path / "run.yaml", scenes, tmp_path / "labels", workers=[{"count": 1, "num_cpus": 1}], unit_images=2
    )
    disk = Path("/tmp") / f"segray-{secrets.token_hex(3)}"  # Ray's sockets have short paths.
    monkeypatch.setenv("RAY_TMPDIR", str(disk))
    # The disk is mounted for the driver and its children alone.
    driver = Driver(config, ["unshare", "-m", "sh", "-c", SMALL_DISK, "sh", str(disk)])
    try:
        wait(lambda: driver.first("worker ready"), driver)
        processes = psutil.Process(driver.process.pid).children(recursive=True)
        (worker,) = (process.pid for process in processes if is_actor(process.pid))
        os.kill(worker, signal.SIGSTOP)
        fill(Path(f"/proc/{driver.process.pid}/root{disk}/fill"))
        os.kill(worker, signal.SIGKILL)
        killed_s = time.monotonic()
        wait(lambda: driver.first("Ray's temporary folder is full"), driver)
        assert time.monotonic() - killed_s < 10, driver.text
        assert driver.end(60) == 3, driver.text
    finally:
        driver.kill()
        disk.rmdir()
    assert f"{disk}/ray/session_" in driver.text
    assert "memory is the usual cause" not in driver.text


# ---- the package and the files, without a cluster -------------------------------------------------


def test_the_digest_of_a_copy_is_the_same_and_of_changed_code_another(tmp_path: Path, other_segray: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "same", ignore=shutil.ignore_patterns("__pycache__", "configs"))
    assert digest_of(tmp_path / "same") == package_digest()
    assert digest_of(other_segray / "segray") != package_digest()


def test_a_model_arrives_with_its_fingerprint_in_pieces_and_a_spoilt_copy_is_written_again(
    tmp_path: Path, model_on_driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "PIECE_BYTES", 1000)
    fingerprint = resolve("stickers", str(model_on_driver / "stickers.xml")).fingerprint
    pieces: list[bytes] = []

    def put(piece: bytes) -> int:
        pieces.append(piece)
        return len(pieces) - 1

    offered = model_files.offer(str(model_on_driver / "stickers.xml"), fingerprint, put)
    assert max(map(len, pieces)) == 1000
    for _ in range(2):
        path = model_files.received(offered, pieces.__getitem__, tmp_path / "home")
        assert resolve("stickers", str(path)).fingerprint == fingerprint
        path.with_suffix(".bin").write_bytes(b"spoilt")
    assert [entry.name for entry in (tmp_path / "home").iterdir() if entry.is_dir()] == [fingerprint]


def test_a_saved_model_folder_arrives_whole(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    (folder / "variables").mkdir(parents=True)
    for name in ("saved_model.pb", "variables/variables.index"):
        (folder / name).write_text(name)
    for path in (folder, folder / "saved_model.pb"):
        offered = model_files.offer(str(path), "f" * 64, bytes)
        arrived = model_files.received(offered, bytes, tmp_path / "home")
        assert {str(file.relative_to(arrived)) for file in arrived.rglob("*") if file.is_file()} == {
            "saved_model.pb",
            "variables/variables.index",
        }


@pytest.mark.chaos
def test_copies_of_models_that_nobody_uses_are_removed_and_others_are_kept(tmp_path: Path) -> None:
    home, source = tmp_path / "home", tmp_path / "model.onnx"
    source.write_bytes(b"weights")

    def received(fingerprint: str) -> Path:
        return model_files.received(model_files.offer(str(source), fingerprint, bytes), bytes, home)

    script = (
        "import sys; from pathlib import Path; from segray.execution import model_files as m; "
        "m.received(m.offer(sys.argv[1], 'used', bytes), bytes, Path(sys.argv[2])); print('has it', flush=True); "
        "input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(source), str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "has it\n"
    for fingerprint, days in (("old", 8), ("recent", 6)):
        copied = home / fingerprint
        shutil.copytree(home / "used", copied)
        os.utime(copied, (time.time() - days * 86_400,) * 2)
    (home / "incomplete-killed").mkdir()
    os.utime(home / "used", (0, 0))

    def kept() -> set[str]:
        received("new")
        return {entry.name for entry in home.iterdir() if entry.is_dir()}

    assert kept() == {"new", "recent", "used"}
    other.communicate("\n", timeout=60)
    assert kept() == {"new", "recent"}
    os.utime(home / "new", (0, 0))
    received("recent")
    assert (home / "new").exists(), "this process still uses its copy"
