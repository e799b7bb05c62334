"""Label sets in forked and spawned processes: what the parent opened is read, and more is opened, without a hang."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import label_sets
import pytest
from swift_server import Swift

import segray
from segray.storage.store import Store

pytestmark = pytest.mark.integration
WITHIN_S = 240

# Everything that a child may do with what its parent opened, and by itself.
PROGRAM = """
import json, multiprocessing, sys, tempfile, threading
from pathlib import Path

import duckdb
import polars
import pyarrow.dataset as ds

import segray
from segray.label_set import snapshot as tables
from segray.analytics.reports import diff
from segray.analytics.export import export
from segray.storage.store import StorageOptions
from segray.label_set.validation import verify

method, root, busy = sys.argv[1], sys.argv[2], sys.argv[3] == "busy"
opened = segray.scan(root)
filtered = opened.filter(ds.field("score") > 0.5)
state = tables.snapshot(root)
connection = duckdb.connect()
segray.sql(connection, root)
rows = opened.to_table().num_rows
connection.sql("SELECT count(*) FROM instances").fetchall()

def exported():
    with tempfile.TemporaryDirectory() as folder:
        return export.export(root, "coco", Path(folder) / "coco.json", export.ExportSelection()).instances

CALLS = {
    "table": lambda: opened.to_table().num_rows,
    "batches": lambda: sum(batch.num_rows for batch in opened.to_batches()),
    "count": lambda: opened.count_rows(),
    "head": lambda: opened.head(7).num_rows,
    "filter": lambda: filtered.count_rows(),
    "fragments": lambda: sum(each.count_rows() for each in opened.get_fragments()),
    "sorted": lambda: opened.sort_by("score").to_table().num_rows,
    "snapshot": lambda: state.images.count_rows(),
    "scan": lambda: segray.scan(root).count_rows(),
    "images": lambda: segray.images(root).count_rows(),
    "earlier": lambda: tables.snapshot(root, version=1).images.count_rows(),
    "sql": lambda: (c := duckdb.connect(), segray.sql(c, root), c.sql("SELECT count(*) FROM instances").fetchall())[2],
    "diff": lambda: diff.diff(root, root).images,
    "verify": lambda: len(verify(root, StorageOptions()).violations),
    "export": exported,
}
if method == "fork":
    CALLS["view"] = lambda: connection.sql("SELECT count(*) FROM instances").fetchall()
else:  # Polars' own threads do not survive a fork
    CALLS["polars"] = lambda: polars.scan_pyarrow_dataset(opened).head(3).collect().height

def call(name):
    try:
        return name, str(CALLS[name]())
    except BaseException as error:
        return name, f"{type(error).__name__}: {error}"

if __name__ == "__main__":
    expected = dict(map(call, CALLS))
    done = threading.Event()
    def read():
        while not done.is_set():
            opened.to_table()
    reader = threading.Thread(target=read)
    if busy:
        reader.start()
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = dict(pool.map(call, CALLS))
    done.set()
    print(json.dumps({name: [found[name], expected[name]] for name in CALLS}))
"""

LOADER = """
import sys
import torch.utils.data
import segray

opened = segray.scan(sys.argv[1])
keys = segray.images(sys.argv[1]).to_table(columns=["image_key"]).column("image_key").to_pylist()

class Masks(torch.utils.data.Dataset):
    def __len__(self):
        return len(keys)

    def __getitem__(self, index):
        import pyarrow.dataset as ds
        rows = opened.to_table(filter=ds.field("image_key") == keys[index]).to_pylist()
        masks = [segray.rle.decode(row["rle"], (row["height"], row["width"])) for row in rows]
        return sum(int(mask.sum()) for mask in masks)

if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(Masks(), batch_size=4, num_workers=2, multiprocessing_context=sys.argv[2])
    areas = opened.to_table(columns=["area"]).column("area").to_pylist()
    for epoch in range(2):
        assert sum(int(batch.sum()) for batch in loader) == sum(areas) > 0
    print("read")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("labels")
    for batch in range(2):
        images = label_sets.stickers(12, seed=batch)
        label_sets.write(root, {f"{batch}-{key}": image for key, image in images.items()})
    return str(root)


@pytest.fixture
def bucket(folder: str, swift_env: Swift, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", swift_env.endpoint_url)
    root, store = f"s3://{swift_env.bucket()}/labels", Store()
    for entry in store.list(folder):
        store.put(f"{root}/{entry.key}", store.read(entry.uri))
    return root


def run(path: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path.write_text(program)  # a file: spawned processes import it
    return subprocess.run(
        [sys.executable, str(path), *arguments], capture_output=True, text=True, timeout=WITHIN_S, check=False
    )


def check(path: Path, method: str, root: str, when: str) -> None:
    done = run(path, PROGRAM, method, root, when)
    assert done.returncode == 0, done.stderr
    for name, (found, expected) in json.loads(done.stdout).items():
        assert found == expected, name
        assert "Error" not in found, name
    assert "panicked" not in done.stderr


@pytest.mark.parametrize(
    ("method", "when"),
    [("fork", "busy"), pytest.param("spawn", "idle", marks=pytest.mark.chaos),
     pytest.param("fork", "idle", marks=pytest.mark.chaos), pytest.param("spawn", "busy", marks=pytest.mark.chaos)],
)  # fmt: skip
def test_children_read_a_folder(tmp_path: Path, folder: str, method: str, when: str) -> None:
    check(tmp_path / "program.py", method, folder, when)


@pytest.mark.chaos
@pytest.mark.parametrize("when", ["idle", "busy"])
def test_forked_children_read_s3(tmp_path: Path, bucket: str, when: str) -> None:
    check(tmp_path / "program.py", "fork", bucket, when)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.thorough)])
def test_a_data_loader_trains_from_a_label_set(tmp_path: Path, folder: str, method: str) -> None:
    pytest.importorskip("torch")
    done = run(tmp_path / "train.py", LOADER, folder, method)
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr


FORKING = """
import os, sys
import segray
root = sys.argv[1]
opened = segray.scan(root)
opened.count_rows()
child = os.fork()
if child == 0:
    batches = opened.to_batches()
    next(batches)
    sys.exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_ends_by_itself_with_its_own_exit_code(tmp_path: Path, folder: str, bucket: str) -> None:
    for root in (folder, bucket):
        done = run(tmp_path / "program.py", FORKING, root)
        assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


ITS_OWN = """
import os, sys
import deltalake
deltalake.DeltaTable(sys.argv[1] + "/images").version()
import segray
child = os.fork()
if child == 0:
    sys.exit(0 if segray.scan(sys.argv[1]).count_rows() == int(sys.argv[2]) else 5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_parent_that_used_deltalake_by_itself_is_no_hindrance(tmp_path: Path, folder: str) -> None:
    done = run(tmp_path / "program.py", ITS_OWN, folder, str(segray.scan(folder).count_rows()))
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


BEGUN = """
import os, sys
import segray
from segray.errors import UserError
batches = segray.scan(sys.argv[1]).to_batches()
next(batches)
child = os.fork()
if child == 0:
    try:
        sum(batch.num_rows for batch in batches)
    except UserError as error:
        print(error, flush=True)
        sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sum(batch.num_rows for batch in batches) > 0)
"""


def test_batches_that_the_parent_has_begun_are_refused_in_words(tmp_path: Path, folder: str) -> None:
    done = run(tmp_path / "program.py", BEGUN, folder)
    assert done.returncode == 0, done.stderr
    assert "after the fork" in done.stdout
    assert done.stdout.endswith("\n0 True\n")


WRITING = """
import os, sys
import segray
from segray.label_set import maintenance as maintain
from segray.errors import UserError
from segray.storage.store import StorageOptions
segray.scan(sys.argv[1])
child = os.fork()
if child == 0:
    try:
        maintain.maintain(sys.argv[1], StorageOptions())
    except UserError as error:
        print(error, flush=True)
        sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_that_would_write_is_refused_in_words(tmp_path: Path, folder: str) -> None:
    done = run(tmp_path / "program.py", WRITING, folder)
    assert done.returncode == 0, done.stderr
    assert "spawn" in done.stdout
    assert done.stdout.endswith("\n0\n")
