"""The state machine under a simulated clock: everything labelled once, whatever dies."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import tried
from scheduling import CheckedScheduler, at_work

from segray.execution.events import Action, Assign, FailImage, Quarantine, ReleaseWorker, ReplaceWorker, TaskFailed
from segray.execution.scheduler import DisplayNames, Halt, Policy
from segray.tasks import Progress, Task, WithheldImage


def tasks_of(units: list[int]) -> list[Task]:
    return [Task(unit, 0, size) for unit, size in enumerate(units)]


def whole(max_attempts: int = 3, image_timeout_s: float = 120, stall_timeout_s: float = 600) -> Policy:
    """A policy under which units are not cut."""
    return Policy(max_attempts, image_timeout_s, stall_timeout_s, least_images=10**6)


def only_task(actions: list[Action]) -> Task:
    (action,) = actions
    assert isinstance(action, Assign)
    return action.task


def test_two_workers_share_the_queue_and_finish() -> None:
    scheduler = CheckedScheduler(tasks_of([4, 4]), whole())
    first, second = only_task(scheduler.joined("a", 0)), only_task(scheduler.joined("b", 0))
    assert {first.unit, second.unit} == {0, 1}
    assert scheduler.finished("a", first, 1) == (True, [])
    assert scheduler.finished("b", second, 1) == (True, [])
    assert scheduler.complete


def test_a_second_task_waits_behind_the_first_where_that_leaves_enough_for_the_others() -> None:
    def units(actions: list[Action]) -> list[int]:
        return [action.task.unit for action in actions if isinstance(action, Assign)]

    few, many = CheckedScheduler(tasks_of([4] * 5), whole()), CheckedScheduler(tasks_of([4] * 9), whole())
    for scheduler, expected in ((few, [3]), (many, [3, 4])):
        task, *_ = [only_task(scheduler.joined(name, 0)) for name in "abc"]
        assert units(scheduler.finished("a", task, 1)[1]) == expected


@pytest.mark.parametrize(("host_served", "fails_after_s"), [(False, 20), (True, 180)])
def test_a_link_whose_host_served_before_gets_more_time(host_served: bool, fails_after_s: float) -> None:
    scheduler = CheckedScheduler(tasks_of([2]), whole())
    task = only_task(scheduler.joined("a", 0))
    image = WithheldImage(1, "no answer", row_error="Unreachable", host_served=host_served)
    _, actions = scheduler.finished("a", task, 0, [image])
    now_s = 0.0
    while not scheduler.complete:
        now_s += 5
        for action in [*actions, *scheduler.tick(now_s)]:
            assert isinstance(action, Assign)
            _, actions = scheduler.finished("a", action.task, now_s, [image])
            if actions:
                assert actions == [FailImage(Task(0, 1, 2), "Unreachable", "no answer")]
                actions = []
        assert now_s < 1000
    assert fails_after_s - 10 <= now_s <= fails_after_s + 65


def test_images_in_flight_at_a_death_are_tried_alone() -> None:
    scheduler = CheckedScheduler(tasks_of([5]), whole())
    scheduler.joined("a", 0)
    scheduler.progressed("a", at_work(2, (0, 2, "decode", 0.1)), 1)
    scheduler.lost("a", "killed", 2, blame_images=True)
    seen = []
    actions = scheduler.joined("b", 3)
    while actions:
        task = only_task(actions)
        seen.append((list(task.indices), task.attempt))
        _, actions = scheduler.finished("b", task, 4)
    assert seen == [([0, 1, 3, 4], 2), ([2], 2)]
    assert scheduler.complete


def test_what_the_dead_left_behind_outweighs_its_last_pulse() -> None:
    scheduler = CheckedScheduler(tasks_of([5]), whole())
    scheduler.joined("a", 0)
    scheduler.progressed("a", at_work(0, (0, 0, "decode", 0.1)), 1)
    trail = ((0, 3, "infer", 0.0), (0, 4, "read", 0.0))
    scheduler.lost("a", "killed", 2, blame_images=True, in_flight=trail)
    seen = []
    actions = scheduler.joined("b", 3)
    while actions:
        task = only_task(actions)
        seen.append(list(task.indices))
        _, actions = scheduler.finished("b", task, 4)
    assert seen == [[0, 1, 2, 4], [3]]


def test_an_image_answers_for_its_own_deaths_and_not_for_those_of_its_slice() -> None:
    """Its slice died twice before it was suspected; it still has to die alone twice."""
    scheduler = CheckedScheduler([Task(0, 0, 2, 3)], whole(max_attempts=3))
    scheduler.joined("a", 0)
    scheduler.lost("a", "killed", 1, blame_images=True, in_flight=((0, 1, "decode", 0.0),))
    innocent = only_task(scheduler.joined("b", 2))
    assert innocent == Task(0, 0, 1, 2)
    suspect = only_task(scheduler.finished("b", innocent, 3)[1])
    for now, attempt in enumerate((2, 3), start=4):
        assert suspect == Task(0, 1, 2, attempt)
        actions = scheduler.lost("b" * (now - 3), "killed", now, blame_images=True)
        if attempt == 2:
            suspect = only_task(scheduler.joined("bb", now))
    assert [type(action) for action in actions] == [Quarantine]
    assert scheduler.complete


def test_a_swollen_worker_finishes_gets_nothing_new_and_is_replaced_without_blame() -> None:
    scheduler = CheckedScheduler(tasks_of([2, 2, 2, 2]), whole())
    _, actions = scheduler.finished("a", only_task(scheduler.joined("a", 0)), 1)
    first, second = (action.task for action in actions if isinstance(action, Assign))
    scheduler.progressed("a", Progress(0, (), rss_bytes=11, max_rss_bytes=10), 1)
    assert scheduler.finished("a", first, 2) == (True, [])
    assert scheduler.tick(3) == []
    assert scheduler.finished("a", second, 4) == (True, [])
    (retire,) = scheduler.tick(5)
    assert isinstance(retire, ReplaceWorker)
    assert retire.worker == "a"
    assert only_task(scheduler.joined("b", 6)) == Task(3, 0, 2, 1)


def test_a_worker_on_a_node_that_is_being_drained_finishes_gets_nothing_new_and_is_released() -> None:
    scheduler = CheckedScheduler(tasks_of([2, 2, 2, 2]), whole())
    _, actions = scheduler.finished("a", only_task(scheduler.joined("a", 0)), 1)
    first, second = (action.task for action in actions if isinstance(action, Assign))
    scheduler.draining("a", 1)
    assert scheduler.finished("a", first, 2) == (True, [])
    assert scheduler.tick(3) == []
    assert scheduler.finished("a", second, 4) == (True, [])
    assert [(type(action), action.worker) for action in scheduler.tick(5)] == [(ReleaseWorker, "a")]
    assert only_task(scheduler.joined("b", 6)) == Task(3, 0, 2, 1)


def test_a_drained_node_that_goes_before_its_worker_is_done_is_not_held_against_the_task() -> None:
    scheduler = CheckedScheduler(tasks_of([5]), whole(max_attempts=1))
    before = only_task(scheduler.joined("a", 0))
    scheduler.draining("a", 1)
    scheduler.lost("a", "node gone", 1, blame_images=False)
    assert only_task(scheduler.joined("b", 2)) == before


def test_idle_workers_are_released_at_the_tail_and_no_more_are_asked_for_than_have_something_to_do() -> None:
    scheduler = CheckedScheduler(tasks_of([8, 8]), Policy(idle_s=10, least_images=8))
    assert scheduler.workers_of_use == 2
    first, second = only_task(scheduler.joined("a", 0)), only_task(scheduler.joined("b", 0))
    assert scheduler.workers_of_use == 2
    assert scheduler.joined("c", 1) == []
    assert scheduler.finished("b", second, 2) == (True, [])
    assert scheduler.workers_of_use == 1
    assert scheduler.tick(11) == []
    assert {action.worker for action in scheduler.tick(12.5) if isinstance(action, ReleaseWorker)} == {"b", "c"}
    scheduler.lost("a", "node gone", 13, blame_images=False)
    assert scheduler.workers_of_use == 1
    assert only_task(scheduler.joined("d", 14)) == first
    assert scheduler.finished("d", first, 15)[0]
    assert (scheduler.complete, scheduler.workers_of_use) == (True, 0)


def test_a_lost_node_blames_nobody() -> None:
    scheduler = CheckedScheduler(tasks_of([5]), whole())
    before = only_task(scheduler.joined("a", 0))
    scheduler.lost("a", "node gone", 1, blame_images=False)
    assert only_task(scheduler.joined("b", 2)) == before


def test_an_image_that_takes_its_node_along_each_time_is_set_aside_in_the_end() -> None:
    scheduler = CheckedScheduler(tasks_of([1]), whole(max_attempts=2))
    attempts = []
    for life in range(4):
        attempts.append(only_task(scheduler.joined(str(life), life)).attempt)
        actions = scheduler.lost(str(life), "node gone", life, blame_images=False)
    assert attempts == [1, 1, 2, 2]
    assert [type(action) for action in actions] == [Quarantine]
    assert scheduler.complete


def test_a_late_report_of_a_lost_worker_does_not_count() -> None:
    scheduler = CheckedScheduler(tasks_of([3]), whole())
    task = only_task(scheduler.joined("a", 0))
    scheduler.lost("a", "partitioned", 1, blame_images=False)
    assert scheduler.finished("a", task, 2) == (False, [])
    assert not scheduler.complete


def test_an_outage_halts_the_run_when_nothing_was_labelled_for_long_and_no_image_is_left_over() -> None:
    scheduler = CheckedScheduler(tasks_of([300]), whole(max_attempts=2, stall_timeout_s=60))
    actions = scheduler.joined("a", 0)
    tries = 0
    for now in range(1, 200):
        for action in actions:
            assert isinstance(action, Assign)
            tries += 1
            assert scheduler.failed("a", action.task, "503", now) == []
        actions = scheduler.tick(now)
        if scheduler.halted:
            break
    assert now == 61
    assert scheduler.halted is not None
    assert scheduler.halted.what == "no image gets labelled"
    assert scheduler.halted.found.endswith("hung or died; the last: worker a, unit 0: 503")
    assert tries > 3
    assert (scheduler.images_waiting, len(scheduler.left_over)) == (300, 0)


def test_a_full_disk_halts_the_run_at_once_and_keeps_everything() -> None:
    scheduler = CheckedScheduler(tasks_of([4, 4, 4, 4]), whole(max_attempts=2))
    task = only_task(scheduler.joined("a", 0))
    (assign,) = scheduler.handle(TaskFailed("a", task, "disk full", lasting=True), 1)
    assert isinstance(assign, Assign)
    assert scheduler.handle(TaskFailed("a", assign.task, "disk full", lasting=True), 2) == []
    assert scheduler.halted == Halt("storage failed repeatedly", "disk full")
    assert (scheduler.images_waiting, len(scheduler.left_over)) == (16, 0)


def test_an_outage_that_ends_costs_nothing() -> None:
    """Everything fails for half the time that halts a run, then everything succeeds."""
    scheduler = CheckedScheduler(tasks_of([50] * 4), whole(max_attempts=2, stall_timeout_s=600))
    actions = scheduler.joined("a", 0)
    for now in range(1, 1000):
        given = [action.task for action in actions if isinstance(action, Assign)]
        actions = []
        for task in given:
            actions += scheduler.failed("a", task, "503", now) if now < 300 else scheduler.finished("a", task, now)[1]
        actions += scheduler.tick(now)
        if scheduler.complete:
            break
    assert scheduler.halted is None
    assert 300 <= now < 320


def labelled(scheduler: CheckedScheduler, actions: list[Action], dead: set[tuple[int, int]], width: int = 10**6) -> int:
    """Do all that is assigned, until nothing is; storage withholds the dead. Images of staged rows.

    width: so many images are tried at first, and no more if all of them are withheld.
    """
    now, done = 0.0, 0
    while now < 10_000:
        now += 1
        if actions and isinstance(action := actions.pop(0), Assign):
            task = action.task
            withheld = [i for i in task.indices if (task.unit, i) in dead]
            untried: list[int] = []
            if withheld[:width] == list(task.indices[:width]):
                withheld, untried = withheld[:width], list(task.indices[width:])
            counts, more = scheduler.finished(action.worker, task, now, withheld, untried)
            done += counts * (len(task) - len(withheld) - len(untried))
            actions += more
        actions += scheduler.tick(now)
        if scheduler.settled or scheduler.halted:
            return done
    raise AssertionError("it never ends")


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    "dead",
    [
        {(1, 3), (1, 4), (2, 7)},
        {(4, i) for i in range(8)},  # the last unit
        {(unit, i) for unit in range(1, 5) for i in range(8)},
        {(unit, i) for unit in range(5) for i in range(0, 8, 2)},
    ],
)
@pytest.mark.parametrize("width", [3, 10**6])
def test_images_that_storage_withholds_are_left_over_when_all_others_are_done(
    workers: int, dead: set[tuple[int, int]], width: int
) -> None:
    scheduler = CheckedScheduler(tasks_of([8] * 5), whole())
    waiting = [action for i in range(workers) for action in scheduler.joined(str(i), 0)]
    done = labelled(scheduler, waiting, dead, width)
    assert done == scheduler.images_done == 5 * 8 - len(dead)
    assert not scheduler.complete
    assert (set(scheduler.left_over), scheduler.workers_of_use) == (dead, 0)
    assert scheduler.settled
    assert scheduler.halted is None
    assert set(scheduler.left_over.values()) == {"no such host"}


def test_twelve_withheld_images_side_by_side_cost_no_other_image_its_row() -> None:
    dead = {(20, i) for i in range(100, 112)}
    scheduler = CheckedScheduler(tasks_of([256] * 40), Policy())
    assert labelled(scheduler, scheduler.joined("a", 0), dead, width=8) == 10_228
    assert len(scheduler.left_over) == 12


def test_only_the_withheld_images_are_tried_again_and_a_few_seconds_later() -> None:
    scheduler = CheckedScheduler(tasks_of([6]), whole())
    task = only_task(scheduler.joined("a", 0))
    assert scheduler.finished("a", task, 1, withheld=[1, 4]) == (True, [])
    assert scheduler.tick(5) == []
    assert only_task(scheduler.tick(6)) == Task(0, 1, 5, only=(1, 4))
    assert scheduler.finished("a", Task(0, 1, 5, only=(1, 4)), 7)[0]
    assert scheduler.complete


def test_an_image_that_storage_withheld_answers_for_its_deaths_alone() -> None:
    """Withheld twice, then its process dies once: that is no reason to quarantine it."""
    scheduler = CheckedScheduler(tasks_of([2]), whole(max_attempts=3))
    assert scheduler.finished("a", only_task(scheduler.joined("a", 0)), 1, withheld=[1])[0]
    assert scheduler.finished("a", only_task(scheduler.tick(6)), 7, withheld=[1])[0]
    assert only_task(scheduler.tick(17)).attempt == 1
    scheduler.lost("a", "killed", 18, blame_images=True)
    assert only_task(scheduler.joined("b", 19)) == Task(0, 1, 2, 2)


def test_a_hung_image_retires_its_worker_and_is_suspected_alone() -> None:
    scheduler = CheckedScheduler(tasks_of([3]), whole(image_timeout_s=10))
    scheduler.joined("a", 0)
    scheduler.progressed("a", at_work(0, (0, 0, "infer", 0.5), (0, 1, "decode", 11.0)), 11)
    (retire,) = scheduler.tick(11)
    assert isinstance(retire, ReplaceWorker)
    assert "image 1 of unit 0" in retire.reason
    assert only_task(scheduler.joined("b", 12)) == Task(0, 0, 3, 2, only=(0, 2))


def test_a_silent_worker_is_retired_and_an_idle_one_is_not() -> None:
    scheduler = CheckedScheduler(tasks_of([3]), whole(stall_timeout_s=60))
    scheduler.joined("busy", 0)
    scheduler.joined("idle", 0)
    (retire,) = (action for action in scheduler.tick(61) if isinstance(action, ReplaceWorker))
    assert retire == ReplaceWorker("busy", "no progress for 61 s; no image of unit 0 is in flight")


def test_updates_that_show_no_change_are_no_sign_of_life() -> None:
    scheduler = CheckedScheduler(tasks_of([3]), whole(stall_timeout_s=60))
    scheduler.joined("a", 0)
    for now in range(1, 61):
        scheduler.progressed("a", at_work(0, (0, 1, "read", float(now))), now)
        assert scheduler.tick(now) == []
    scheduler.progressed("a", at_work(0, (0, 1, "read", 62.0)), 62)
    (replaced,) = scheduler.tick(62)
    assert replaced == ReplaceWorker("a", "no progress for 61 s; image 1 of unit 0 has been in read for 62 s")


class Called(DisplayNames):
    """Workers have hosts, images have keys."""

    def worker(self, worker: str) -> str:
        return f"worker {worker} on host-7"

    def image(self, unit: int, index: int) -> str:
        return f"{index}.jpg (image {index} of unit {unit})"


def test_storage_that_hangs_is_named_blamed_on_no_image_and_halts_the_run() -> None:
    scheduler = CheckedScheduler(tasks_of([3, 3]), whole(max_attempts=2, stall_timeout_s=60), Called())
    actions = scheduler.joined("w0", 0)
    for now, worker, after in ((61, "w0", "w1"), (122, "w1", "w2")):
        assert scheduler.halted is None
        assert only_task(actions) == (Task(0, 0, 3) if now == 61 else Task(0, 0, 1))
        unit = only_task(actions).unit
        in_flight = ((unit, 1, "read", 3.0), (unit, 2, "read", 1.0))
        scheduler.progressed(worker, at_work(0, *in_flight), now - 61)
        (replaced,) = scheduler.tick(now)
        assert replaced == ReplaceWorker(
            worker, "no progress for 61 s; 1.jpg (image 1 of unit 0) has been in read for 3 s (and 1 more)"
        )
        actions = scheduler.joined(after, now)
    assert actions == []
    assert scheduler.halted is not None
    assert scheduler.halted.what == "no image gets labelled"
    assert scheduler.halted.found.endswith(f"the last: worker w1 on host-7, unit 0: {replaced.reason}")
    assert (scheduler.images_waiting, len(scheduler.left_over)) == (6, 0)


def test_a_quarantined_image_says_on_which_worker_it_was_last() -> None:
    scheduler = CheckedScheduler([Task(4, 2, 3, 3)], whole(max_attempts=3, image_timeout_s=10), Called())
    scheduler.joined("w9", 0)
    scheduler.progressed("w9", at_work(0, (4, 2, "infer", 11.0)), 11)
    found = "2.jpg (image 2 of unit 4) has been in infer for 11 s"
    assert scheduler.tick(11) == [
        ReplaceWorker("w9", found),
        Quarantine(Task(4, 2, 3, 3), f"worker w9 on host-7: {found}"),
    ]


def simulated(
    units: list[int], workers: int, hangs: Callable[[int, int], bool] = lambda unit, index: True
) -> tuple[CheckedScheduler, float]:
    """Some images hang in whatever worker, all others are done at once; a new worker takes half a minute to come.

    The scheduler when all is over, and when that was.
    """
    scheduler = CheckedScheduler(tasks_of(units), whole(image_timeout_s=120, stall_timeout_s=600), Called())
    busy: dict[str, list[tuple[int, Task]]] = {}
    names = (f"w{i}" for i in count())
    coming = [(0, next(names)) for _ in range(workers)]

    def carry_out(actions: list[Action], now: int) -> None:
        for action in actions:
            if isinstance(action, Assign):
                busy[action.worker].append((now, action.task))
            elif isinstance(action, ReplaceWorker):
                del busy[action.worker]
                coming.append((now + 30, next(names)))

    for now in range(0, 200_000, 5):
        for at, name in [each for each in coming if each[0] <= now]:
            coming.remove((at, name))
            busy[name] = []
            carry_out(scheduler.joined(name, now), now)
        for name, tasks in list(busy.items()):
            if not tasks:
                continue
            since, task = tasks[0]
            stuck = [i for i in task.indices if hangs(task.unit, i)]
            if stuck:
                here = tuple((task.unit, i, "infer", float(now - since)) for i in stuck[:10])
                done = len(task) - len(stuck) if len(stuck) < 10 else 0
                scheduler.progressed(name, at_work(done * (now > since), *here), now)
            else:
                tasks.pop(0)
                carry_out(scheduler.finished(name, task, now)[1], now)
        carry_out(scheduler.tick(now), now)
        if scheduler.halted or scheduler.complete:
            return scheduler, now
    raise AssertionError("it never ends")


@pytest.mark.parametrize(
    ("units", "workers", "wrongly_quarantined"),
    [
        ([256] * 1000, 1, 0),
        pytest.param([256] * 1000, 50, 0, marks=pytest.mark.chaos),
        ([256] * 3, 2, 0),
        ([256], 1, 0),
        ([256], 20, 60),
        ([1] * 999, 1, 12),
    ],
)
def test_when_every_worker_gets_stuck_the_run_halts(units: list[int], workers: int, wrongly_quarantined: int) -> None:
    """wrongly_quarantined: most images that are quarantined before.

    Some are when workers have nothing to do but try suspects.
    """
    scheduler, seconds = simulated(units, workers)
    assert scheduler.halted is not None
    assert seconds < 6000
    assert scheduler.images_done <= wrongly_quarantined
    assert "tasks failed, hung or died; the last: worker w" in scheduler.halted.found
    assert "jpg (image" in scheduler.halted.found
    assert "in infer for 12" in scheduler.halted.found


@pytest.mark.parametrize("workers", [1, 4])
def test_many_images_that_hang_are_each_set_aside_and_no_reason_to_halt(workers: int) -> None:
    scheduler, seconds = simulated([256] * 40, workers, lambda unit, index: unit % 2 == 0 and index in (7, 100))
    assert scheduler.halted is None
    assert scheduler.complete
    assert seconds > 40 * 240 / workers


def test_an_outage_halts_a_long_queue_in_minutes() -> None:
    """Every unit is withheld once; none is tried twice."""
    scheduler = CheckedScheduler(tasks_of([256] * 1000), whole(stall_timeout_s=600))
    given = [action.task for action in scheduler.joined("a", 0) if isinstance(action, Assign)]
    for now in range(60, 6000, 60):
        given += [
            action.task for action in scheduler.failed("a", given.pop(0), "503", now) if isinstance(action, Assign)
        ]
        scheduler.tick(now)
        if scheduler.halted:
            break
    assert now == 660


def test_a_run_without_workers_halts_instead_of_waiting_for_ever() -> None:
    scheduler = CheckedScheduler(tasks_of([3]), whole(stall_timeout_s=60))
    assert scheduler.tick(100) == []
    scheduler.joined("a", 150)
    assert scheduler.tick(155) == []
    scheduler.lost("a", "node gone", 190, blame_images=False)
    scheduler.tick(210)
    assert scheduler.halted is None
    scheduler.tick(216)
    assert scheduler.halted == Halt("no worker joins", "no worker for 61 s")


def test_reading_slowly_is_the_worlds_matter_not_the_images() -> None:
    scheduler = CheckedScheduler(tasks_of([3]), whole(image_timeout_s=10))
    scheduler.joined("a", 0)
    scheduler.progressed("a", at_work(0, (0, 0, "read", 50.0)), 50)
    assert scheduler.tick(51) == []


@tried(300)
@given(
    units=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    crashing_share=st.sampled_from([0.0, 0.05, 0.3]),
    least_images=st.sampled_from([1, 2, 10**6]),
    workers=st.integers(1, 4),
    stale=st.booleans(),
    nodes=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_every_image_is_done_exactly_once_and_only_crashing_images_are_quarantined(
    units: list[int], crashing_share: float, least_images: int, workers: int, stale: bool, nodes: bool, seed: int
) -> None:
    """No image is lost, doubled or wrongly quarantined.

    Crashing images kill their process or node, nodes die at random, and progress updates may be stale.
    """
    rng = random.Random(seed)
    crashing = {(u, i) for u, size in enumerate(units) for i in range(size) if rng.random() < crashing_share}
    scheduler = CheckedScheduler(tasks_of(units), Policy(max_attempts=3, least_images=least_images))
    outcome: dict[tuple[int, int], str] = {}
    running: dict[str, list[Task]] = {}
    names = iter(range(10**9))

    def record(task: Task, what: str) -> None:
        for index in task.indices:
            assert (task.unit, index) not in outcome
            outcome[task.unit, index] = what

    def carry_out(actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Assign):
                assert len(running[action.worker]) < 2
                running[action.worker].append(action.task)
            elif isinstance(action, Quarantine):
                record(action.task, "quarantined")

    for now in range(100_000):
        while len(running) < workers:
            name = str(next(names))
            running[name] = []
            carry_out(scheduler.joined(name, now))
        if scheduler.complete:
            break
        name = rng.choice([n for n, tasks in running.items() if tasks])
        task = running[name][0]
        bad = [i for i in task.indices if (task.unit, i) in crashing]
        if bad or rng.random() < 0.1:
            if bad and not stale:
                scheduler.progressed(name, at_work(0, (task.unit, bad[0], "decode", 0.0)), now)
            del running[name]
            carry_out(scheduler.lost(name, "died", now, blame_images=bool(bad) and not nodes))
        else:
            running[name].pop(0)
            counts, actions = scheduler.finished(name, task, now)
            assert counts
            record(task, "done")
            carry_out(actions)
    assert scheduler.complete
    assert {key for key, what in outcome.items() if what == "quarantined"} == crashing
    assert len(outcome) == sum(units)


def test_who_waits_for_a_quicker_worker_does_so_no_longer_when_that_one_hangs() -> None:
    scheduler = CheckedScheduler(tasks_of([100] * 5), Policy(least_images=100))
    first = {name: only_task(scheduler.joined(name, 0)) for name in ("fast", "slow")}
    busy = tuple((0, i, "infer", 0.1) for i in range(8))
    scheduler.progressed("slow", at_work(1, *busy), 1)
    scheduler.progressed("fast", at_work(100, *busy), 1)
    assert len(scheduler.finished("fast", first["fast"], 1)[1]) == 2
    scheduler.progressed("slow", at_work(100, *busy), 40)
    assert scheduler.finished("slow", first["slow"], 40) == (True, [])
    assert scheduler.tick(41) == []
    for now in range(42, 200):
        scheduler.progressed("fast", at_work(100, *busy), now)
    assert only_task(scheduler.tick(200)).unit == 4


@tried(200)
@given(
    units=st.lists(st.integers(1, 300), min_size=1, max_size=12),
    speeds=st.lists(st.sampled_from([0.3, 1.0, 10.0, 200.0]), min_size=1, max_size=6),
    pulses=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_however_units_are_cut_every_image_is_given_out_once(
    units: list[int], speeds: list[float], pulses: bool, seed: int
) -> None:
    """Workers of any speeds, some failed by the world, some lost with their nodes; pieces overlap nowhere."""
    rng = random.Random(seed)
    scheduler = CheckedScheduler(tasks_of(units), Policy(max_attempts=10**6, stall_timeout_s=10**9))
    pace: dict[str, float] = {}
    running: dict[str, list[Task]] = {}
    finished: dict[str, int] = {}
    done: set[tuple[int, int]] = set()
    names = (str(i) for i in count())

    def carry_out(actions: list[Action]) -> None:
        for action in actions:
            assert isinstance(action, Assign)
            running[action.worker].append(action.task)
            assert len(running[action.worker]) <= 2

    def join(speed: float, now: float) -> None:
        name = next(names)
        pace[name], running[name], finished[name] = speed, [], 0
        carry_out(scheduler.joined(name, now))

    for speed in speeds:
        join(speed, 0.0)
    now = 0.0
    while not scheduler.complete:
        if not any(running.values()):
            now += 60  # All that is left was withheld a short while ago.
            carry_out(scheduler.tick(now))
        assert any(running.values()), "nobody works, and work is left"
        name = min((name for name, tasks in running.items() if tasks), key=lambda n: len(running[n][0]) / pace[n])
        task = running[name][0]
        now += rng.random() * len(task) / pace[name]
        if pulses:
            here = tuple((task.unit, i, "infer", 0.1) for i in task.indices[:4])
            scheduler.progressed(name, at_work(finished[name] + rng.randint(0, len(task)), *here), now)
        fate = rng.random()
        if fate < 0.05:
            del running[name]
            carry_out(scheduler.lost(name, "node gone", now, blame_images=False))
            join(pace[name], now)
            continue
        running[name].remove(task)
        if fate < 0.1:
            carry_out(scheduler.failed(name, task, "503", now))
            continue
        finished[name] += len(task)
        images = {(task.unit, index) for index in task.indices}
        assert images.isdisjoint(done)
        done |= images
        carry_out(scheduler.finished(name, task, now)[1])
    assert len(done) == sum(units)
