"""A worker's states: which follow which, what each still waits for, and what a dead worker is remembered by."""

from __future__ import annotations

import pytest

from segray.execution.placement import Slot
from segray.execution.worker_handle import Dead, Draining, Gone, Ready, Starting, State, WorkerHandle
from segray.tasks import Task

STATES: dict[str, State] = {
    "Starting": Starting("again", 1.0),
    "Ready": Ready(),
    "Draining": Draining(),
    "Dead": Dead("killed", 2.0, "log"),
    "Gone": Gone(),
}
ALLOWED = {
    "Starting": {"Starting", "Ready", "Dead", "Gone"},
    "Ready": {"Draining", "Dead", "Gone"},
    "Draining": {"Dead", "Gone"},
    "Dead": {"Gone"},
    "Gone": set[str](),
}


def worker(*path: str, node: str | None = None) -> WorkerHandle:
    """A worker that went through these states."""
    made = WorkerHandle("7", "actor", Slot(0, node, 2.0), "segray-0-7", Starting("start", 0.0))
    for name in path:
        made.become(STATES[name])
    return made


PATHS = {"Starting": (), "Ready": ("Ready",), "Draining": ("Ready", "Draining"), "Dead": ("Dead",), "Gone": ("Gone",)}


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("after", STATES)
def test_a_worker_makes_the_moves_that_are_allowed_and_no_other(before: str, after: str) -> None:
    made = worker(*PATHS[before])
    if after in ALLOWED[before]:
        made.become(STATES[after])
        assert type(made.state).__name__ == after
    else:
        state = made.state
        with pytest.raises(RuntimeError, match=f"worker 7 cannot become {after}"):
            made.become(STATES[after])
        assert made.state is state


def test_only_calls_of_the_present_state_are_awaited() -> None:
    made = worker()
    assert made.awaited == ["start"]
    made.become(Ready())
    assert made.awaited == []
    made.progress_call, made.tasks["label"] = "progress", Task(0, 0, 4)
    assert made.awaited == ["progress", "label"]
    made.become(Draining())
    assert made.awaited == ["progress", "label"]
    made.become(Dead("killed", 2.0, "log"))
    assert made.awaited == ["log"]
    made.become(Gone())
    assert made.awaited == []
    assert worker("Dead").awaited == ["log"]
    nowhere = worker()
    nowhere.become(Dead("killed", 2.0))
    assert nowhere.awaited == []


@pytest.mark.parametrize("end", [(), ("Dead",), ("Gone",), ("Dead", "Gone")])
def test_whether_a_worker_had_started_or_was_leaving_is_known_after_its_end(end: tuple[str, ...]) -> None:
    for path, started, draining in (((), False, False), (("Ready",), True, False), (("Ready", "Draining"), True, True)):
        made = worker(*path, *end)
        assert (made.started, made.draining, made.alive) == (started, draining, not end)


def test_a_worker_is_on_the_node_that_it_names_or_else_where_it_was_sent() -> None:
    anywhere, pinned = worker(), worker(node="a")
    assert (anywhere.node, anywhere.taken) == (None, Slot(0, None, 2.0))
    assert (pinned.node, pinned.taken) == ("a", Slot(0, "a", 2.0))
    anywhere.join("b")
    assert isinstance(anywhere.state, Ready)
    assert (anywhere.node, anywhere.taken, anywhere.slot) == ("b", Slot(0, "b", 2.0), Slot(0, None, 2.0))


def test_a_worker_begins_with_its_start() -> None:
    with pytest.raises(AssertionError):
        WorkerHandle("7", "actor", Slot(0, None, 2.0), "log", Ready())
