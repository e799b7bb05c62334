"""Short scripts that read a label set end with 0, by themselves, from a folder and from S3."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import label_sets
import pytest
from swift_server import Swift

TIMES = int(os.environ.get("SEGRAY_SCRIPTS", "1"))
WITHIN_S = 120

# Each leaves while Arrow's threads may still be reading ahead.
SCRIPTS = {
    "head": "print(segray.scan(root).head(5).num_rows)",
    "first batch": "print(next(segray.scan(root).to_batches()).num_rows > 0)",
    "batches kept": "batches = segray.scan(root).to_batches(); print(next(batches).num_rows > 0)",
    "table": "print(segray.scan(root).to_table(columns=['score']).num_rows)",
    "filter": "import pyarrow.dataset as ds; print(segray.scan(root).head(3, filter=ds.field('score') > 0.5).num_rows)",
    "polars": "import polars; print(polars.scan_pyarrow_dataset(segray.scan(root)).head(3).collect().height)",
    "duckdb": "import duckdb\nc = duckdb.connect()\nc.register('t', segray.scan(root))\n"
    "print(c.sql('SELECT * FROM t LIMIT 3').fetchall()[0][1])",
    "sql": "import duckdb\nsegray.sql(duckdb, root)\nprint(duckdb.sql('SELECT rle FROM instances LIMIT 1').fetchall())",
    "uncaught error": "next(segray.scan(root).to_batches()); raise SystemExit(0)",
}
# Plain pytest tries those that leave most behind. Thorough tries each script in one place at least, and chaos tries all
# scripts everywhere.
PLAIN_FROM_A_FOLDER, FROM_A_FOLDER = ("first batch", "uncaught error"), ("table", "filter")
PLAIN_FROM_S3, FROM_S3 = ("batches kept", "polars"), ("head", "sql")
PLAIN_THROUGH_PYTHON, THROUGH_PYTHON_TOO = ("duckdb",), ("uncaught error",)
THROUGH_PYTHON = "from segray.storage import arrow_fs\narrow_fs.native = lambda uri, options: None\n"


def tried(plain: Collection[str], further: Collection[str]) -> list[object]:
    """All scripts: plain ones in plain pytest, further ones in thorough, the rest in chaos."""
    seldom = {name: pytest.mark.thorough if name in further else pytest.mark.chaos for name in SCRIPTS}
    return [pytest.param(name, marks=() if name in plain else seldom[name]) for name in SCRIPTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("labels")
    for batch in range(3):
        images = label_sets.stickers(12, seed=batch)
        label_sets.write(root, {f"{batch}-{key}": image for key, image in images.items()})
    return str(root)


@pytest.fixture(scope="module")
def copied(folder: str, swift: Swift) -> str:
    """The same label set in a bucket."""
    bucket, client = swift.bucket(), swift.client()
    for path in filter(Path.is_file, Path(folder).rglob("*")):
        client.put_object(Bucket=bucket, Key=f"a b/{path.relative_to(folder)}", Body=path.read_bytes())
    return f"s3://{bucket}/a b"


@pytest.fixture
def bucket(copied: str, swift_env: Swift, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", swift_env.endpoint_url)
    return copied


def run(program: str, root: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import segray\nroot = {root!r}\n{program}"],
        capture_output=True, text=True, timeout=WITHIN_S, check=False,
    )  # fmt: skip


def bad_endings(program: str, root: str, times: int) -> list[tuple[int, str]]:
    """Run a program some times; return exit code and errors of the runs that did not end with 0."""
    ended = [run(program, root) for _ in range(times)]
    return [(done.returncode, done.stderr) for done in ended if done.returncode]


@pytest.mark.integration
@pytest.mark.parametrize("script", tried(PLAIN_FROM_A_FOLDER, FROM_A_FOLDER))
def test_a_script_that_reads_a_folder_ends_well(folder: str, script: str) -> None:
    assert bad_endings(SCRIPTS[script], folder, TIMES) == []


@pytest.mark.integration
@pytest.mark.parametrize("script", tried(PLAIN_FROM_S3, FROM_S3))
def test_a_script_that_reads_s3_ends_well(bucket: str, script: str) -> None:
    assert bad_endings(SCRIPTS[script], bucket, TIMES) == []


@pytest.mark.integration
@pytest.mark.parametrize("script", tried(PLAIN_THROUGH_PYTHON, THROUGH_PYTHON_TOO))
def test_what_is_read_through_python_is_waited_for(folder: str, script: str) -> None:
    """As it is where Arrow has no file system of its own for a store."""
    assert bad_endings(THROUGH_PYTHON + SCRIPTS[script], folder, TIMES) == []
