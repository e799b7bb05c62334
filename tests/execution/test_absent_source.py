"""A source on a disk that is unmounted before or during a run: no failed row, and the same command completes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from watchers import Notes

import segray
from segray import config
from segray.errors import InfrastructureError, SourceError
from segray.execution import run
from segray.execution.labeller import Labeller
from segray.execution.worker_pool import InProcess
from segray.execution.worker_spec import WorkerSpec, build
from segray.instances import ImageRef
from segray.synthetic import dataset
from segray.tasks import Progress, Task, TaskReport

IMAGES = 6


class Watched:
    """A labeller that calls `before` before each task."""

    def __init__(self, labeller: Labeller, before: Callable[[Task], None]) -> None:
        self._labeller, self._before = labeller, before

    def label(self, task: Task, refs: Sequence[ImageRef]) -> TaskReport:
        self._before(task)
        return self._labeller.label(task, refs)

    def progress(self) -> Progress:
        return self._labeller.progress()

    def close(self) -> None:
        self._labeller.close()


def start(before: Callable[[Task], None] = lambda task: None) -> run.StartWorkers:
    def workers(spec: WorkerSpec, chosen: config.Config) -> InProcess:
        labeller, facts = build(spec, "CPU", 1)
        return InProcess(Watched(labeller, before), facts)

    return workers


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    dataset.write(tmp_path / "scenes", IMAGES, seed=4)
    return (tmp_path / "scenes" / "images").rename(tmp_path / "disk")


def chosen(source: object, root: Path) -> config.Config:
    values = {
        "source": {"uri": str(source)},
        "output": {"root": str(root)},
        "model": {"name": "stickers"},
        "unit_images": 2,
        "cluster": {"stall_timeout_s": 2},
        "report": False,
    }
    return config.validate(values, "test")


def unmount(disk: Path, left: str) -> None:
    disk.rename(disk.with_name("unmounted"))
    if left == "an empty folder":
        disk.mkdir()


def mount(disk: Path) -> None:
    if disk.exists():
        disk.rmdir()
    disk.with_name("unmounted").rename(disk)


def statuses(root: Path) -> list[str]:
    return segray.images(str(root)).to_table(["status"])["status"].to_pylist()


@pytest.mark.parametrize(
    ("form", "left"),
    [
        ("folder", "an empty folder"),
        ("glob", "nothing"),
        pytest.param("folder", "nothing", marks=pytest.mark.chaos),
        pytest.param("glob", "an empty folder", marks=pytest.mark.chaos),
    ],
)
def test_a_disk_that_is_absent_when_a_run_is_resumed_is_told(tmp_path: Path, disk: Path, left: str, form: str) -> None:
    settings = chosen(f"{disk}/*" if form == "glob" else disk, tmp_path / "labels")

    def interrupt(task: Task) -> None:
        if task.unit == 1:
            raise InfrastructureError("stopped")

    with pytest.raises(InfrastructureError):
        run.label(settings, Notes(), start(interrupt), retry_s=0.1)
    before = statuses(tmp_path / "labels")
    assert 0 < len(before) < IMAGES
    unmount(disk, left)
    with pytest.raises(SourceError, match=r"not on this machine[\s\S]*mount the disk"):
        run.label(settings, Notes(), start())
    assert statuses(tmp_path / "labels") == before
    mount(disk)
    assert run.label(settings, Notes(), start()).exit_code == 0
    assert sorted(set(statuses(tmp_path / "labels"))) in (["ok"], ["empty", "ok"])
    assert len(statuses(tmp_path / "labels")) == IMAGES


def test_a_disk_that_is_unmounted_in_mid_run_makes_no_failed_row(tmp_path: Path, disk: Path) -> None:
    settings = chosen(disk, tmp_path / "labels")

    def lose(task: Task) -> None:
        if task.unit == 1 and disk.exists():
            unmount(disk, "nothing")

    with pytest.raises(InfrastructureError, match="all files are gone"):
        run.label(settings, Notes(), start(lose), retry_s=0.1)
    assert "failed" not in statuses(tmp_path / "labels")
    mount(disk)
    assert run.label(settings, Notes(), start()).exit_code == 0
    assert "failed" not in statuses(tmp_path / "labels")
    assert len(statuses(tmp_path / "labels")) == IMAGES


def test_a_manifest_names_files_anywhere_and_missing_ones_are_failed_rows(tmp_path: Path, disk: Path) -> None:
    manifest = tmp_path / "files.txt"
    manifest.write_text("".join(f"{tmp_path}/nowhere/{number}.jpg\n" for number in range(3)))
    assert run.label(chosen(manifest, tmp_path / "labels"), Notes(), start()).exit_code == 3
    assert statuses(tmp_path / "labels") == ["failed"] * 3
