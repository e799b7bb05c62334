"""The records of a label set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.errors import LabelSetError
from segray.label_set import plan, run_records, schema
from segray.label_set.run_records import LabelSetIdentity, Run
from segray.storage.store import Store
from segray.tasks import Task

MINE = LabelSetIdentity("f" * 64, {"name": "stickers", "score_threshold": 0.05}, ((13, "stop sign", "stop_sign"),))
OTHER = LabelSetIdentity("0" * 64, {"name": "stickers", "score_threshold": 0.5}, MINE.classes)


def test_a_root_belongs_to_the_first_model_that_claims_it(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert run_records.check(Store(), root, MINE) is False
    run_records.create_or_check(Store(), root, MINE)
    run_records.create_or_check(Store(), root, MINE)
    with pytest.raises(LabelSetError, match=r"model.score_threshold: 0.05 -> 0.5"):
        run_records.create_or_check(Store(), root, OTHER)


def test_the_latest_run_that_is_not_done_is_resumed(tmp_path: Path) -> None:
    store, root = Store(), str(tmp_path)
    assert run_records.unfinished(store, root) is None
    Run(root, "20260101T000000Z-a").save(store, {"state": "running"})
    assert run_records.unfinished(store, root) == Run(root, "20260101T000000Z-a")
    Run(root, "20260102T000000Z-b").save(store, {"state": "done"})
    assert run_records.unfinished(store, root) is None


def test_a_staged_name_tells_its_task_and_no_two_are_alike() -> None:
    task = Task(7, 0, 64, 2)
    assert run_records.staged_task(run_records.staged_name(task)) == task
    assert run_records.staged_name(task) != run_records.staged_name(task)
    assert run_records.staged_task("something.arrow") is None
    assert run_records.staged_task(run_records.staged_name(task).replace(".arrow", ".parquet")) is None, (
        "as they once were"
    )


def test_of_overlapping_staged_files_each_image_is_taken_once() -> None:
    names = [
        run_records.staged_name(t) for t in (Task(1, 0, 4), Task(1, 0, 8), Task(1, 8, 9), Task(1, 4, 12), Task(2, 3, 4))
    ]
    assert sorted((t.unit, t.start, t.stop) for t in run_records.select_staged(names)) == [
        (1, 0, 8),
        (1, 8, 9),
        (2, 3, 4),
    ]


def test_files_of_an_interrupted_batch_are_chosen_before_other_files_of_the_same_images() -> None:
    first, again = (run_records.staged_name(Task(0, 0, 4, attempt)) for attempt in (1, 2))
    halves = [run_records.staged_name(Task(1, start, start + 2, 1)) for start in (0, 2)]
    whole = run_records.staged_name(Task(1, 0, 4, 1))
    assert set(run_records.select_staged([first, again, *halves, whole]).values()) == {first, whole}
    assert set(run_records.select_staged([first, again, *halves, whole], (again, halves[1])).values()) == {
        again,
        *halves,
    }


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(1, 10), st.integers(1, 3)), max_size=12))
def test_what_was_staged_in_whatever_pieces_and_what_is_left_make_the_plan(
    pieces: list[tuple[int, int, int, int]],
) -> None:
    frozen = plan.Plan(plan.cut(27, 10), lambda number: schema.PLAN.empty_table(), 27)
    tasks = [
        Task(unit, start, min(start + size, 10 if unit < 2 else 7), attempt) for unit, start, size, attempt in pieces
    ]
    names = [run_records.staged_name(task) for task in tasks if task.start < task.stop]
    done = np.zeros(27, np.int64)
    for task in run_records.select_staged(names, names[::3]):
        done[frozen.rows(task)] += 1
    assert done.max(initial=0) <= 1
    for task in plan.remaining_tasks(frozen, done > 0):
        done[frozen.rows(task)] += 1
    assert (done == 1).all()


def test_run_ids_sort_by_time_within_a_second() -> None:
    ids = [run_records.new_run("root").id for _ in range(20)]
    assert [each.partition("-")[0] for each in sorted(ids)] == [each.partition("-")[0] for each in ids]


def test_another_model_is_named_before_what_its_file_says(tmp_path: Path) -> None:
    labels = {str(number): f"class {number}" for number in range(40)}
    of_file = {"form": "exported", "name": "yolo_seg", "description": {"colour": "RGB", "labels": labels}}
    run_records.create_or_check(Store(), str(tmp_path), LabelSetIdentity("a", of_file, ()))
    with pytest.raises(LabelSetError) as caught:
        run_records.check(Store(), str(tmp_path), LabelSetIdentity("b", {"name": "stickers"}, ()))
    first, second, third = caught.value.found.split("; ")[:3]
    assert first == "model.name: 'yolo_seg' -> 'stickers'"
    assert (second, third[:24]) == ("model.form: 'exported' -> none", "model.description.colour")
    assert caught.value.hint.startswith("label into a new folder (OUTPUT, `output.root`)")
