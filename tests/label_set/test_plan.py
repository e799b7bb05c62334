"""The frozen plan: what is left, cut the same way every time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.errors import SegrayError
from segray.label_set import plan, schema
from segray.sources.listing import REF_SCHEMA
from segray.storage.store import Store
from segray.tasks import Task


def listed(*rows: tuple[str, str]) -> list[pa.RecordBatch]:
    keys, versions = zip(*rows, strict=True) if rows else ((), ())
    uris = [f"/data/{key}" for key in keys]
    columns = [pa.array(keys, pa.string()), pa.array(uris, pa.string()), pa.array(versions, pa.string())]
    sizes = pa.array([10] * len(keys), pa.int64())
    return [pa.record_batch([*columns, sizes], names=["key", "uri", "version", "size_bytes"])]


def committed(*rows: tuple[str, str]) -> plan.Committed:
    keys, versions = zip(*rows, strict=True)
    table = pa.table({"image_key": pa.array(keys), "version": pa.array(versions)})
    return plan.Committed(table.to_batches(max_chunksize=2))


def keys(found: plan.ImageList) -> list[str]:
    return found.table.column("image_key").to_pylist()


def test_the_plan_is_sorted_and_holds_each_key_once() -> None:
    table, total, _ = plan.build(listed(("b", "1"), ("a", "1"), ("b", "1")), None)
    assert (keys(table), total) == (["a", "b"], 2)


def test_only_new_and_changed_images_are_left() -> None:
    table, total, _ = plan.build(listed(("a", "1"), ("b", "2"), ("c", "1")), committed(("a", "1"), ("b", "1")))
    assert (keys(table), total) == (["b", "c"], 3)


def test_rows_to_replace_are_planned_again_where_the_source_still_lists_them() -> None:
    done = committed(("a", "1"), ("b", "1"), ("c", "1"), ("d", "1"))
    to_retry = done.holding(pa.table({"image_key": ["b", "c", "d", "a"], "version": ["1", "1", "1", "2"]}))
    assert to_retry.sum() == 3
    table, total, seen = plan.build(listed(("a", "1"), ("b", "1"), ("d", "2"), ("e", "1"), ("b", "1")), done, to_retry)
    assert (keys(table), total, seen.sum()) == (["b", "d", "e"], 4, 2)
    assert table.present(pa.table({"image_key": ["b", "c", "d"]}))["image_key"].to_pylist() == ["b", "d"]


def test_what_is_listed_in_no_version_is_gone_but_not_what_lies_in_a_file_that_could_not_be_read() -> None:
    known = [("a", "1"), ("b", "1"), ("c.tar/x/1", "1"), ("c.tar/2", "1"), ("d.mp4#t=1", "1"), ("e/f", "1"), ("g", "1")]
    names = [key for key, _ in known]
    table = pa.table({"image_key": names, "version": ["1"] * 7, "batch": pa.array(range(7), pa.int32())})
    done = plan.Committed(table.to_batches(max_chunksize=2))

    def gone(*rows: tuple[str, str]) -> list[tuple[str, int]]:
        left, _, seen = plan.build(listed(*rows), done)
        found = plan.unlisted(left, seen, done, lambda: table.to_batches(max_chunksize=3))
        return [(row["image_key"], row["batch"]) for row in found.to_pylist()]

    assert gone(*known) == []
    assert gone(("b", "2"), ("d.mp4", "2"), ("e/f", "1")) == [("a", 0), ("c.tar/2", 3), ("c.tar/x/1", 2), ("g", 6)]
    assert gone(("a", "1"), ("c.tar", "2"), ("g", "1")) == [("b", 1), ("d.mp4#t=1", 4), ("e/f", 5)]
    table = table.set_column(0, "image_key", pa.array(["a", "b", "c.tar/x/1", "c.tar", "d.mp4#t=1", "e/f", "g"]))
    done = plan.Committed(table.to_batches())
    assert gone(("a", "1"), ("b", "1"), ("c.tar", "1"), ("d.mp4#t=1", "1"), ("e/f", "1")) == [("g", 6)]


ROWS = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("12"), st.sampled_from(["/data/", "s3://b/", ""])),
    max_size=14,
)


@given(st.lists(ROWS, max_size=3), st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("12"))))
def test_whatever_the_order_the_plan_is_what_is_listed_less_what_is_committed(
    batches: list[list[tuple[str, str, str]]], known: list[tuple[str, str]]
) -> None:
    """Keys that repeat agree, as sources.py sees to; URIs have any base, or none."""
    agreed: dict[str, tuple[str, str]] = {}
    parts = []
    for rows in batches:
        for key, version, base in rows:
            agreed.setdefault(key, (base + key, version))
        columns = [[key, *agreed[key], 7] for key, _, _ in rows]
        parts.append(
            pa.RecordBatch.from_pylist([dict(zip(REF_SCHEMA.names, c, strict=True)) for c in columns], REF_SCHEMA)
        )
    done = committed(*known) if known else None
    found, total, _ = plan.build(parts, done)
    wanted = sorted((key, *rest, 7) for key, rest in agreed.items() if (key, rest[1]) not in known)
    rows = found.rows(0, len(found))
    assert rows.schema.equals(schema.PLAN)
    assert [tuple(row.values()) for row in rows.to_pylist()] == wanted
    assert total == len(agreed)
    planned = plan.Plan(plan.cut(len(found), 3), lambda number: rows, max(1, len(found)))
    assert [ref.uri for task in planned.tasks() for ref in planned.refs(task)] == [w[1] for w in wanted]


def test_a_key_and_its_version_are_not_confused_with_others_that_read_alike() -> None:
    assert committed(("a1", "2")).positions(pa.array(["a", "a1"]), pa.array(["12", "2"])).tolist() == [-1, 0]


@given(st.integers(0, 5000), st.integers(1, 300))
def test_units_cover_every_image_once(images: int, unit_images: int) -> None:
    starts = plan.cut(images, unit_images)
    sizes = np.diff(starts)
    assert starts[0] == 0
    assert starts[-1] == images
    assert (sizes[:-1] == unit_images).all()
    assert (sizes > 0).all()
    assert (sizes <= unit_images).all()


def test_a_frozen_plan_loads_as_it_was(tmp_path: Path) -> None:
    table, _, _ = plan.build(listed(*[(f"{i:03d}", "1") for i in range(50)]), None)
    frozen = plan.freeze(Store(), str(tmp_path), table, 16)
    loaded = plan.load(Store(), str(tmp_path))
    assert loaded is not None
    assert pa.concat_tables(loaded.parts()).equals(table.rows(0, 50))
    assert (loaded.starts == frozen.starts).all()
    assert [ref.key for ref in loaded.refs(Task(1, 2, 4))] == ["018", "019"]


def test_a_frozen_plan_keeps_the_rows_that_it_replaces_and_others_are_as_they_were(tmp_path: Path) -> None:
    table, _, _ = plan.build(listed(*[(f"{i:03d}", "1") for i in range(50)]), None)
    old = pa.table({"image_key": ["003", "040"], "batch": pa.array([1, 2], pa.int32())}, schema=schema.RETIRED)
    retried = plan.freeze(Store(), str(tmp_path / "a"), table, 16, retried=old)
    loaded = plan.load(Store(), str(tmp_path / "a"))
    assert loaded is not None
    assert loaded.retried == retried.retried == {"retried-00000.parquet": 2}
    assert plan.old_rows(Store(), str(tmp_path / "a"), "retried-00000.parquet") == old
    assert np.flatnonzero(loaded.holds(pa.array(["003", "040", "other"]))).tolist() == [3, 40]
    plan.freeze(Store(), str(tmp_path / "b"), table, 16, retried=old.slice(0, 0))
    assert "retried" not in (tmp_path / "b" / "plan" / "plan.json").read_text()


def test_a_unit_may_lie_in_two_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_PART_ROWS", 7)
    table, _, _ = plan.build(listed(*[(f"{i:03d}", "1") for i in range(50)]), None)
    frozen = plan.freeze(Store(), str(tmp_path), table, 16)
    assert [part.num_rows for part in frozen.parts()] == [7] * 7 + [1]
    assert [ref.key for task in frozen.tasks() for ref in frozen.refs(task)] == keys(table)
    done = plan.committed_rows(frozen, committed(("002", "1"), ("030", "1"), ("031", "other")))
    assert np.flatnonzero(done).tolist() == [2, 30]


def test_a_plan_without_its_last_object_never_was(tmp_path: Path) -> None:
    table, _, _ = plan.build(listed(("a", "1")), None)
    plan.freeze(Store(), str(tmp_path), table, 16)
    (tmp_path / "plan" / "plan.json").unlink()
    assert plan.load(Store(), str(tmp_path)) is None


def test_a_changed_plan_is_refused(tmp_path: Path) -> None:
    table, _, _ = plan.build(listed(("a", "1")), None)
    plan.freeze(Store(), str(tmp_path), table, 16)
    (tmp_path / "plan" / "part-00000.parquet").write_bytes(b"other")
    frozen = plan.load(Store(), str(tmp_path))
    assert frozen is not None
    with pytest.raises(SegrayError, match="was changed"):
        frozen.refs(Task(0, 0, 1))


def test_what_is_left_are_the_runs_between_done_images(tmp_path: Path) -> None:
    table, _, _ = plan.build(listed(*[(f"{i:03d}", "1") for i in range(8)]), None)
    frozen = plan.freeze(Store(), str(tmp_path), table, 8)
    done = plan.committed_rows(frozen, committed(("002", "1"), ("003", "other")))
    assert done.tolist() == [False, False, True, False, False, False, False, False]
    done[frozen.rows(Task(0, 5, 7))] = True
    assert plan.remaining_tasks(frozen, done) == [Task(0, 0, 2), Task(0, 3, 5), Task(0, 7, 8)]


_A_MILLION = """
from pathlib import Path
import pyarrow as pa
from segray.label_set import plan
from segray.storage.store import Store

def batches(count):
    for first in range(0, count, 65536):
        keys = [f"raw/2026/11/{i:09d}-a-name-of-common-length.jpg" for i in range(first, min(count, first + 65536))]
        versions = [f"{i:032x}" for i in range(len(keys))]
        columns = [keys, ["s3://bucket/" + key for key in keys], versions]
        sizes = pa.array([100_000] * len(keys), pa.int64())
        yield pa.record_batch([*map(pa.array, columns), sizes], names=["key", "uri", "version", "size_bytes"])

table, total, _ = plan.build(batches(1_000_000), None)
frozen = plan.freeze(Store(), FOLDER, table, 256)
assert total == frozen.images == 1_000_000
# Not getrusage: a child inherits its parent's peak there.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.thorough
@pytest.mark.integration
def test_a_million_images_are_planned_in_less_than_half_a_gigabyte(tmp_path: Path) -> None:
    code = _A_MILLION.replace("FOLDER", repr(str(tmp_path)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(f"{int(done.stdout) / 1e6:.0f} MB")
    assert int(done.stdout) < 5 * 10**8
