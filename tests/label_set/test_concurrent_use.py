"""Processes that meet at one label set: two runs, readers beside a writer, and a reader that stays for long."""

from __future__ import annotations

from pathlib import Path

import label_sets
import numpy as np
import pytest
from command import start, write_config
from label_sets import Image
from test_host_process import run

import segray
from segray import rle
from segray.label_set.validation import verify
from segray.storage.store import StorageOptions
from segray.synthetic import dataset

pytestmark = pytest.mark.integration

IMAGES = 24
PER_BATCH, INSTANCES = 3, 2


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, IMAGES, seed=11)
    return folder / "images"


@pytest.mark.usefixtures("shared_ray")
def test_two_runs_at_once_on_one_root_end_rightly_and_every_row_is_there_once(tmp_path: Path, scenes: Path) -> None:
    root = tmp_path / "labels"
    config = write_config(
        tmp_path / "run.yaml",
        scenes,
        root,
        unit_images=2,
        publish={"batch_images": 4},
        workers=[{"count": 1, "num_cpus": 1}],
    )
    processes = [start("label", "--config", config) for _ in range(2)]
    codes = []
    for process in processes:
        output, _ = process.communicate(timeout=300)
        codes.append(process.returncode)
        assert process.returncode == 0 or "another run " in output, output
        assert "Traceback" not in output
    assert sorted(codes) in ([0, 3], [0, 0]), "the second is refused, or begins when the first has ended"
    rows = segray.images(str(root)).to_table().to_pylist()
    assert len({row["image_key"] for row in rows}) == len(rows) == IMAGES
    assert segray.scan(str(root)).count_rows() == sum(row["n_instances"] for row in rows)
    assert not verify(str(root), StorageOptions()).violations


# ---- reading --------------------------------------------------------------------------------------


def commit(root: str, batch: int) -> None:
    found = [(1, 0.9, rle.encode_crop(np.ones((4, 4), bool), 2, 2, (40, 40)))] * INSTANCES
    label_sets.write(root, {f"{batch}-{i}.jpg": Image((40, 40), found) for i in range(PER_BATCH)})


WRITER = """
import sys
from test_concurrent_use import commit
for batch in range(1, int(sys.argv[2])):
    commit(sys.argv[1], batch)
"""

# Every kind of call; each returns how many images and instances it saw, None for what it does not tell.
CALLS = """
import itertools, os, sys, threading
from pathlib import Path
import duckdb, segray
from segray._system import memory
from segray.label_set import snapshot as tables

def by_scan(root):
    return None, segray.scan(root).to_table(["image_id"]).num_rows

def by_images(root):
    rows = segray.images(root).to_table(["n_instances"])
    return rows.num_rows, None

def by_snapshot(root):
    state = tables.snapshot(root)
    return len(state.images.to_table(["image_id"])), len(state.instances.to_table(["image_id"]))

def by_sql(root):
    with duckdb.connect() as con:
        segray.sql(con, root)
        return con.sql("select (select count(*) from images), (select count(*) from instances)").fetchall()[0]

root = sys.argv[1]
"""

BESIDE = f"""
import subprocess
most = {{by_scan: (0, 0), by_images: (0, 0), by_snapshot: (0, 0), by_sql: (0, 0)}}
writer = subprocess.Popen([sys.executable, "-c", sys.argv[2], root, sys.argv[3]])
calls, seen = 0, set()
while writer.poll() is None:
    for call in most:
        images, instances = call(root)
        calls += 1
        seen.add(images)
        assert images is None or images % {PER_BATCH} == 0, (call, images)
        assert instances is None or instances % {PER_BATCH * INSTANCES} == 0, (call, instances)
        assert None in (images, instances) or instances == images * {INSTANCES}, (call, images, instances)
        now = images or 0, instances or 0
        assert now >= most[call], (call, now, most[call])
        most[call] = now
assert writer.returncode == 0
print(calls, len(seen))
"""

LONG = """
def held():
    files, tasks = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
    return files, threading.active_count(), tasks, memory.rss_bytes()

turn = itertools.cycle([by_scan, by_images, by_snapshot, by_sql])
for i in range(1000):
    next(turn)(root)
    if i in (299, 999):
        print(*held())
"""


@pytest.fixture
def labels(tmp_path: Path) -> str:
    root = str(tmp_path / "labels")
    commit(root, 0)
    return root


@pytest.mark.parametrize(
    "batches", [8, pytest.param(20, marks=pytest.mark.thorough), pytest.param(60, marks=pytest.mark.chaos)]
)
def test_readers_beside_a_writer_see_whole_batches_and_never_fewer(labels: str, batches: int) -> None:
    calls, states = map(int, run(CALLS + BESIDE, labels, WRITER, batches).split()[-2:])
    print(f"{calls} calls, {states} states seen")
    assert calls >= batches
    assert states > batches // 6


@pytest.mark.chaos
def test_a_thousand_reads_hold_no_more_than_a_few(labels: str) -> None:
    early, late = (list(map(int, line.split())) for line in run(CALLS + LONG, labels).splitlines())
    files, threads, tasks, rss = (after - before for before, after in zip(early, late, strict=True))
    print(f"after 700 more calls: {files} descriptors, {threads} threads, {tasks} tasks, {rss / 2**20:.1f} MiB")
    assert files <= 2
    assert threads <= 1
    assert tasks <= 2
    assert rss < 24 * 2**20
