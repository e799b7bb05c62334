"""A worker's memory beside its model, with pictures that are larger than photographs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a peak is measured through /proc"),
]

_WORKER = """
import json, os, sys
from pathlib import Path
from segray import config
from segray._system import memory
from segray.execution.worker_spec import WorkerSpec, build, prepared_process
from segray.instances import ImageRef
from segray.limits import ImageLimits
from segray.models import resolve
from segray.storage.store import StorageOptions
from segray.tasks import Task
file, staged, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = resolve.resolve("stickers")
spec = WorkerSpec(config.ModelSettings(name="stickers"), model.fingerprint, ImageLimits(), StorageOptions(), staged)
with prepared_process():
    labeller, _ = build(spec, "CPU", threads)
    refs = [ImageRef(f"{i}.png", file, "1", os.path.getsize(file)) for i in range(24)]
    Path("/proc/self/clear_refs").write_text("5")
    before = memory.rss_bytes()
    report = labeller.label(Task(0, 0, len(refs)), refs)
    labelled = sum(unit.ok + unit.empty for unit in report.staged)
    print(json.dumps([labelled, memory.peak_bytes() - before, memory.rss_bytes() - before]))
"""


@pytest.mark.parametrize("threads", [2, 7])
def test_a_worker_takes_less_than_a_gigabyte_for_pngs_of_30_megapixels(tmp_path: Path, threads: int) -> None:
    file = tmp_path / "large.png"
    Image.new("RGBA", (6000, 5000), (200, 30, 60, 255)).save(file, compress_level=1)
    command = [sys.executable, "-c", _WORKER, str(file), str(tmp_path / "staged"), str(threads)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    labelled, peak_bytes, kept_bytes = json.loads(ended.stdout)
    assert labelled == 24
    assert peak_bytes < 10**9
    assert kept_bytes < 5 * 10**8
