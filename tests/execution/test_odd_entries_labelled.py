"""A whole run, as a user who may not read everything: odd entries alone have no row, or a failed one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from watchers import Notes

import segray
import segray.synthetic.dataset as scenes
from segray import config
from segray.execution import run
from segray.execution.worker_pool import InProcess
from segray.execution.worker_spec import WorkerSpec, build, prepared_process

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach and write to."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def another_user() -> Iterator[None]:
    """Root reads everything, so a test that runs as root goes on as nobody."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    yield
    if is_root:
        os.seteuid(0)


@pytest.fixture
def photos(folder: Path) -> Path:
    """Six images, and an odd entry of each kind beside them."""
    scenes.write(folder / "scenes", 6, seed=1)
    images = (folder / "scenes" / "images").rename(folder / "photos")
    images.chmod(0o755)
    for image in images.iterdir():
        image.chmod(0o644)
    example = next(images.iterdir()).read_bytes()
    for name in ("lost+found/a.jpg", ".Trash-0/b.jpg", "secret.jpg"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(example)
    (images / "secret.jpg").chmod(0o600)
    for name in ("lost+found", ".Trash-0"):
        (images / name).chmod(0o700)
    (images / "me").symlink_to("me")
    Path(os.fsdecode(os.fsencode(images) + b"/\xff.jpg")).write_bytes(example)
    return images


@pytest.mark.integration
def test_odd_entries_cost_no_other_image_its_row(folder: Path, photos: Path, another_user: None) -> None:
    root, listener = folder / "labels", Notes()
    values = {"source": {"uri": str(photos)}, "output": {"root": str(root)}, "model": {"name": "stickers"}}
    chosen = config.validate({**values, "storage": {"retries": 0}}, "test")
    with ExitStack() as stack:
        stack.enter_context(prepared_process())

        def start(spec: WorkerSpec, _: config.Config) -> InProcess:
            labeller, facts = build(spec, "CPU", 2)
            stack.callback(labeller.close)
            return InProcess(labeller, facts)

        run.label(chosen, listener, start, retry_s=0.1)
        rows = segray.images(str(root)).to_table(["image_key", "status", "error"]).to_pylist()
        failed = {row["image_key"]: row["error"] for row in rows if row["status"] == "failed"}
        assert failed == {"secret.jpg": "AccessDenied", "\\xff.jpg": "ImageError"}
        assert len(rows) == 8
        notes = "\n".join(listener.notes)
        assert "lost+found/ (permission denied)" in notes
        assert "me (" in notes
        assert ".Trash-0" not in notes
        again = Notes()
        run.label(chosen, again, start)
        assert "nothing to do" in again.notes[-1]
