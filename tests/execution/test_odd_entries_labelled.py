"""A whole run, as a user who may not read everything: odd entries alone have no row, or a failed one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import write_config

import segray
import segray.synthetic.dataset as scenes

# Root reads everything by two capabilities. Without them, an owner's file of mode 0 is as closed to root as to others.
WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


@pytest.fixture
def as_a_user() -> tuple[str, ...]:
    """Arguments before a command, so that it runs without the rights of root."""
    if os.geteuid():
        return ()
    if not shutil.which(WITHOUT_RIGHTS[0]):
        pytest.skip("setpriv is absent, and root reads everything")
    return WITHOUT_RIGHTS


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images, and an odd entry of each kind beside them."""
    scenes.write(tmp_path / "scenes", 6, seed=1)
    images = (tmp_path / "scenes" / "images").rename(tmp_path / "photos")
    example = next(images.iterdir()).read_bytes()
    for name in ("lost+found/a.jpg", ".Trash-0/b.jpg", "secret.jpg"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(example)
    for name in ("secret.jpg", "lost+found", ".Trash-0"):
        (images / name).chmod(0)
    (images / "me").symlink_to("me")
    Path(os.fsdecode(os.fsencode(images) + b"/\xff.jpg")).write_bytes(example)
    return images


LABEL = """
import sys
from command import here
done = here("label", "--config", sys.argv[1])
print(done.stdout, done.stderr)
sys.exit(done.returncode)
"""


def label(config: Path, as_a_user: tuple[str, ...]) -> tuple[int, str]:
    """Exit code and output of a run whose one worker has no more rights than the command."""
    done = subprocess.run(
        [*as_a_user, sys.executable, "-c", LABEL, config], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.integration
def test_odd_entries_cost_no_other_image_its_row(tmp_path: Path, photos: Path, as_a_user: tuple[str, ...]) -> None:
    root = tmp_path / "labels"
    config = write_config(tmp_path / "run.yaml", photos, root, storage={"retries": 0})
    code, output = label(config, as_a_user)
    assert code == 3, output
    rows = segray.images(str(root)).to_table(["image_key", "status", "error"]).to_pylist()
    failed = {row["image_key"]: row["error"] for row in rows if row["status"] == "failed"}
    assert failed == {"secret.jpg": "AccessDenied", "\\xff.jpg": "ImageError"}
    assert len(rows) == 8
    assert "lost+found/ (permission denied)" in output
    assert "me (" in output
    assert ".Trash-0" not in output
    code, output = label(config, as_a_user)
    assert code == 0, output
    assert "nothing to do" in output
