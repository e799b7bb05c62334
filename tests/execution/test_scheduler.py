"""The state machine under a simulated clock: everything labelled once, whatever dies."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import tried

from segray.execution.scheduler import Action, Assign, Halt, Names, Policy, Quarantine, Release, Retire, Scheduler
from segray.tasks import Progress, Task


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
    scheduler = Scheduler(tasks_of([4, 4]), whole())
    first, second = only_task(scheduler.joined("a", 0)), only_task(scheduler.joined("b", 0))
    assert {first.unit, second.unit} == {0, 1}
    assert scheduler.finished("a", first, 1) == (True, [])
    assert scheduler.finished("b", second, 1) == (True, [])
    assert scheduler.complete


def test_a_second_task_waits_behind_the_first_where_that_leaves_enough_for_the_others() -> None:
    def units(actions: list[Action]) -> list[int]:
        return [action.task.unit for action in actions if isinstance(action, Assign)]

    few, many = Scheduler(tasks_of([4] * 5), whole()), Scheduler(tasks_of([4] * 9), whole())
    for scheduler, expected in ((few, [3]), (many, [3, 4])):
        task, *_ = [only_task(scheduler.joined(name, 0)) for name in "abc"]
        assert units(scheduler.finished("a", task, 1)[1]) == expected


def test_images_in_flight_at_a_death_are_tried_alone() -> None:
    scheduler = Scheduler(tasks_of([5]), whole())
    scheduler.joined("a", 0)
    scheduler.pulse("a", Progress(2, ((0, 2, "decode", 0.1),)), 1)
    scheduler.lost("a", "killed", 2, blame_images=True)
    seen = []
    actions = scheduler.joined("b", 3)
    while actions:
        task = only_task(actions)
        seen.append((task.start, task.stop, task.attempt))
        _, actions = scheduler.finished("b", task, 4)
    assert seen == [(0, 2, 2), (3, 5, 2), (2, 3, 2)]
    assert scheduler.complete


def test_what_the_dead_left_behind_outweighs_its_last_pulse() -> None:
    scheduler = Scheduler(tasks_of([5]), whole())
    scheduler.joined("a", 0)
    scheduler.pulse("a", Progress(0, ((0, 0, "decode", 0.1),)), 1)
    trail = ((0, 3, "infer", 0.0), (0, 4, "read", 0.0))
    scheduler.lost("a", "killed", 2, blame_images=True, in_flight=trail)
    seen = []
    actions = scheduler.joined("b", 3)
    while actions:
        task = only_task(actions)
        seen.append((task.start, task.stop))
        _, actions = scheduler.finished("b", task, 4)
    assert seen == [(0, 3), (3, 4), (4, 5)]


def test_an_image_answers_for_its_own_deaths_and_not_for_those_of_its_slice() -> None:
    """Its slice died twice before it was suspected; it still has to die alone twice."""
    scheduler = Scheduler([Task(0, 0, 2, 3)], whole(max_attempts=3))
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
    scheduler = Scheduler(tasks_of([2, 2, 2, 2]), whole())
    _, actions = scheduler.finished("a", only_task(scheduler.joined("a", 0)), 1)
    first, second = (action.task for action in actions if isinstance(action, Assign))
    scheduler.pulse("a", Progress(0, (), rss_bytes=11, max_rss_bytes=10), 1)
    assert scheduler.finished("a", first, 2) == (True, [])
    assert scheduler.tick(3) == []
    assert scheduler.finished("a", second, 4) == (True, [])
    (retire,) = scheduler.tick(5)
    assert isinstance(retire, Retire)
    assert retire.worker == "a"
    assert only_task(scheduler.joined("b", 6)) == Task(3, 0, 2, 1)


def test_a_worker_on_a_node_that_is_being_drained_finishes_gets_nothing_new_and_is_released() -> None:
    scheduler = Scheduler(tasks_of([2, 2, 2, 2]), whole())
    _, actions = scheduler.finished("a", only_task(scheduler.joined("a", 0)), 1)
    first, second = (action.task for action in actions if isinstance(action, Assign))
    scheduler.leaving("a")
    assert scheduler.finished("a", first, 2) == (True, [])
    assert scheduler.tick(3) == []
    assert scheduler.finished("a", second, 4) == (True, [])
    assert [(type(action), action.worker) for action in scheduler.tick(5)] == [(Release, "a")]
    assert only_task(scheduler.joined("b", 6)) == Task(3, 0, 2, 1)


def test_a_drained_node_that_goes_before_its_worker_is_done_is_not_held_against_the_task() -> None:
    scheduler = Scheduler(tasks_of([5]), whole(max_attempts=1))
    before = only_task(scheduler.joined("a", 0))
    scheduler.leaving("a")
    scheduler.lost("a", "node gone", 1, blame_images=False)
    assert only_task(scheduler.joined("b", 2)) == before


def test_idle_workers_are_released_at_the_tail_and_no_more_are_asked_for_than_have_something_to_do() -> None:
    scheduler = Scheduler(tasks_of([8, 8]), Policy(idle_s=10, least_images=8))
    assert scheduler.workers_of_use == 2
    first, second = only_task(scheduler.joined("a", 0)), only_task(scheduler.joined("b", 0))
    assert scheduler.workers_of_use == 2
    assert scheduler.joined("c", 1) == []
    assert scheduler.finished("b", second, 2) == (True, [])
    assert scheduler.workers_of_use == 1
    assert scheduler.tick(11) == []
    assert {action.worker for action in scheduler.tick(12.5) if isinstance(action, Release)} == {"b", "c"}
    scheduler.lost("a", "node gone", 13, blame_images=False)
    assert scheduler.workers_of_use == 1
    assert only_task(scheduler.joined("d", 14)) == first
    assert scheduler.finished("d", first, 15)[0]
    assert (scheduler.complete, scheduler.workers_of_use) == (True, 0)


def test_a_lost_node_blames_nobody() -> None:
    scheduler = Scheduler(tasks_of([5]), whole())
    before = only_task(scheduler.joined("a", 0))
    scheduler.lost("a", "node gone", 1, blame_images=False)
    assert only_task(scheduler.joined("b", 2)) == before


def test_an_image_that_takes_its_node_along_each_time_is_set_aside_in_the_end() -> None:
    scheduler = Scheduler(tasks_of([1]), whole(max_attempts=2))
    attempts = []
    for life in range(4):
        attempts.append(only_task(scheduler.joined(str(life), life)).attempt)
        actions = scheduler.lost(str(life), "node gone", life, blame_images=False)
    assert attempts == [1, 1, 2, 2]
    assert [type(action) for action in actions] == [Quarantine]
    assert scheduler.complete


def test_a_late_report_of_a_lost_worker_does_not_count() -> None:
    scheduler = Scheduler(tasks_of([3]), whole())
    task = only_task(scheduler.joined("a", 0))
    scheduler.lost("a", "partitioned", 1, blame_images=False)
    assert scheduler.finished("a", task, 2) == (False, [])
    assert not scheduler.complete


def test_the_world_failing_again_and_again_halts_the_run() -> None:
    scheduler = Scheduler(tasks_of([300]), whole(max_attempts=2))
    task = only_task(scheduler.joined("a", 0))
    for now in range(1, 6):
        task = only_task(scheduler.failed("a", task, "503", now))
    assert scheduler.failed("a", task, "503", 6) == []
    assert scheduler.halted == Halt("storage or the network failed again and again", "worker a, unit 0, attempt 2: 503")
    assert scheduler.images_waiting == 300


@pytest.mark.parametrize("workers", [1, 3])
def test_images_that_the_world_withholds_are_left_over_when_all_others_are_done(workers: int) -> None:
    dead = {(1, 3), (1, 4), (2, 7)}
    scheduler = Scheduler(tasks_of([8] * 5), whole())
    waiting = [action for i in range(workers) for action in scheduler.joined(str(i), 0)]
    now, done = 0.0, 0
    while waiting:
        now += 1
        action = waiting.pop(0)
        assert isinstance(action, Assign)
        task = action.task
        if any((task.unit, i) in dead for i in range(task.start, task.stop)):
            waiting += scheduler.failed(action.worker, task, "no such host", now)
        else:
            counts, actions = scheduler.finished(action.worker, task, now)
            done += len(task) * counts
            waiting += actions
    assert done == scheduler.images_done == 5 * 8 - len(dead)
    assert not scheduler.complete
    assert (scheduler.images_left_over, scheduler.workers_of_use) == (3, 0)
    assert scheduler.halted is not None
    assert scheduler.halted.what == "3 images could not be labelled, all others are"
    assert "no such host" in scheduler.halted.found


def test_a_hung_image_retires_its_worker_and_is_suspected_alone() -> None:
    scheduler = Scheduler(tasks_of([3]), whole(image_timeout_s=10))
    scheduler.joined("a", 0)
    scheduler.pulse("a", Progress(0, ((0, 0, "infer", 0.5), (0, 1, "decode", 11.0))), 11)
    (retire,) = scheduler.tick(11)
    assert isinstance(retire, Retire)
    assert "image 1 of unit 0" in retire.reason
    assert only_task(scheduler.joined("b", 12)) == Task(0, 0, 1, 2)


def test_a_silent_worker_is_retired_and_an_idle_one_is_not() -> None:
    scheduler = Scheduler(tasks_of([3]), whole(stall_timeout_s=60))
    scheduler.joined("busy", 0)
    scheduler.joined("idle", 0)
    (retire,) = (action for action in scheduler.tick(61) if isinstance(action, Retire))
    assert retire == Retire("busy", "no progress for 61 s; unit 0 is with it, none of its images in flight")


class Called(Names):
    """Workers have hosts, images have keys."""

    def worker(self, worker: str) -> str:
        return f"worker {worker} on host-7"

    def image(self, unit: int, index: int) -> str:
        return f"{index}.jpg (image {index} of unit {unit})"


def test_storage_that_hangs_is_named_blamed_on_no_image_and_halts_the_run() -> None:
    scheduler = Scheduler(tasks_of([3, 3]), whole(max_attempts=2, stall_timeout_s=60), Called())
    actions = scheduler.joined("w0", 0)
    for now, worker, after in ((61, "w0", "w1"), (122, "w1", "w2")):
        assert scheduler.halted is None
        assert only_task(actions) == Task(0, 0, 3, 1 + (now > 61))
        in_flight = ((0, 1, "read", 3.0), (0, 2, "read", 1.0))
        scheduler.pulse(worker, Progress(0, in_flight), now - 61)
        (retire,) = scheduler.tick(now)
        assert retire == Retire(
            worker, "no progress for 61 s; 1.jpg (image 1 of unit 0) has been in read for 3 s (and 1 more)"
        )
        actions = scheduler.joined(after, now)
    assert actions == []
    assert scheduler.halted is not None
    assert scheduler.halted.what == "nothing moves"
    assert scheduler.halted.found == f"worker w1 on host-7, unit 0, attempt 2: {retire.reason}"
    assert scheduler.images_waiting == 6


def test_a_quarantined_image_says_on_which_worker_it_was_last() -> None:
    scheduler = Scheduler([Task(4, 2, 3, 3)], whole(max_attempts=3, image_timeout_s=10), Called())
    scheduler.joined("w9", 0)
    scheduler.pulse("w9", Progress(0, ((4, 2, "infer", 11.0),)), 11)
    found = "2.jpg (image 2 of unit 4) has been in infer for 11 s"
    assert scheduler.tick(11) == [
        Retire("w9", found),
        Quarantine(Task(4, 2, 3, 3), f"worker w9 on host-7: {found}"),
    ]


def simulated(
    units: list[int], workers: int, hangs: Callable[[int, int], bool] = lambda unit, index: True
) -> tuple[Scheduler, float]:
    """Some images hang in whatever worker, all others are done at once; a new worker takes half a minute to come.

    The scheduler when all is over, and when that was.
    """
    scheduler = Scheduler(tasks_of(units), whole(image_timeout_s=120, stall_timeout_s=600), Called())
    busy: dict[str, list[tuple[int, Task]]] = {}
    names = (f"w{i}" for i in count())
    coming = [(0, next(names)) for _ in range(workers)]

    def carry_out(actions: list[Action], now: int) -> None:
        for action in actions:
            if isinstance(action, Assign):
                busy[action.worker].append((now, action.task))
            elif isinstance(action, Retire):
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
            stuck = [i for i in range(task.start, task.stop) if hangs(task.unit, i)]
            if stuck:
                here = tuple((task.unit, i, "infer", float(now - since)) for i in stuck[:10])
                done = len(task) - len(stuck) if len(stuck) < 10 else 0
                scheduler.pulse(name, Progress(done * (now > since), here), now)
            else:
                tasks.pop(0)
                carry_out(scheduler.finished(name, task, now)[1], now)
        carry_out(scheduler.tick(now), now)
        if scheduler.halted or scheduler.complete:
            return scheduler, now
    raise AssertionError("it never ends")


@pytest.mark.parametrize(
    ("units", "workers", "slandered"),
    [
        ([256] * 1000, 1, 0),
        ([256] * 1000, 50, 0),
        ([256] * 3, 2, 0),
        ([256], 1, 0),
        ([256], 20, 60),
        ([1] * 999, 1, 12),
    ],
)
def test_when_every_worker_gets_stuck_the_run_halts(units: list[int], workers: int, slandered: int) -> None:
    """slandered: most images that are set aside before; some are when workers have nothing to do but try suspects."""
    scheduler, seconds = simulated(units, workers)
    assert scheduler.halted is not None
    assert seconds < 6000
    assert scheduler.images_done <= slandered
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
    """Every unit is failed by storage once; none is near its last attempt."""
    scheduler = Scheduler(tasks_of([256] * 1000), whole(stall_timeout_s=600))
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
    scheduler = Scheduler(tasks_of([3]), whole(stall_timeout_s=60))
    assert scheduler.tick(100) == []
    scheduler.joined("a", 150)
    assert scheduler.tick(155) == []
    scheduler.lost("a", "node gone", 190, blame_images=False)
    scheduler.tick(210)
    assert scheduler.halted is None
    scheduler.tick(216)
    assert scheduler.halted == Halt("no worker comes", "no worker for 61 s")


def test_reading_slowly_is_the_worlds_matter_not_the_images() -> None:
    scheduler = Scheduler(tasks_of([3]), whole(image_timeout_s=10))
    scheduler.joined("a", 0)
    scheduler.pulse("a", Progress(0, ((0, 0, "read", 50.0),)), 50)
    assert scheduler.tick(51) == []


@tried(300)
@given(
    units=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    poison_share=st.sampled_from([0.0, 0.05, 0.3]),
    least_images=st.sampled_from([1, 2, 10**6]),
    workers=st.integers(1, 4),
    stale=st.booleans(),
    nodes=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_every_image_is_done_exactly_once_and_only_poison_is_quarantined(
    units: list[int], poison_share: float, least_images: int, workers: int, stale: bool, nodes: bool, seed: int
) -> None:
    """Poison kills its process or node; nodes die at random; pulses may be stale. Nothing lost, doubled, slandered."""
    rng = random.Random(seed)
    poison = {(u, i) for u, size in enumerate(units) for i in range(size) if rng.random() < poison_share}
    scheduler = Scheduler(tasks_of(units), Policy(max_attempts=3, least_images=least_images))
    outcome: dict[tuple[int, int], str] = {}
    running: dict[str, list[Task]] = {}
    names = iter(range(10**9))

    def record(task: Task, what: str) -> None:
        for index in range(task.start, task.stop):
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
        bad = [i for i in range(task.start, task.stop) if (task.unit, i) in poison]
        if bad or rng.random() < 0.1:
            if bad and not stale:
                scheduler.pulse(name, Progress(0, ((task.unit, bad[0], "decode", 0.0),)), now)
            del running[name]
            carry_out(scheduler.lost(name, "died", now, blame_images=bool(bad) and not nodes))
        else:
            running[name].pop(0)
            counts, actions = scheduler.finished(name, task, now)
            assert counts
            record(task, "done")
            carry_out(actions)
    assert scheduler.complete
    assert {key for key, what in outcome.items() if what == "quarantined"} == poison
    assert len(outcome) == sum(units)


def test_who_waits_for_a_quicker_worker_does_so_no_longer_when_that_one_hangs() -> None:
    scheduler = Scheduler(tasks_of([100] * 5), Policy(least_images=100))
    first = {name: only_task(scheduler.joined(name, 0)) for name in ("fast", "slow")}
    busy = tuple((0, i, "infer", 0.1) for i in range(8))
    scheduler.pulse("slow", Progress(1, busy), 1)
    scheduler.pulse("fast", Progress(100, busy), 1)
    assert len(scheduler.finished("fast", first["fast"], 1)[1]) == 2
    scheduler.pulse("slow", Progress(100, busy), 40)
    assert scheduler.finished("slow", first["slow"], 40) == (True, [])
    assert scheduler.tick(41) == []
    for now in range(42, 200):
        scheduler.pulse("fast", Progress(100, busy), now)
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
    scheduler = Scheduler(tasks_of(units), Policy(max_attempts=10**6))
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
        assert any(running.values()), "nobody works, and work is left"
        name = min((name for name, tasks in running.items() if tasks), key=lambda n: len(running[n][0]) / pace[n])
        task = running[name][0]
        now += rng.random() * len(task) / pace[name]
        if pulses:
            here = tuple((task.unit, i, "infer", 0.1) for i in range(task.start, min(task.stop, task.start + 4)))
            scheduler.pulse(name, Progress(finished[name] + rng.randint(0, len(task)), here), now)
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
        images = {(task.unit, index) for index in range(task.start, task.stop)}
        assert images.isdisjoint(done)
        done |= images
        carry_out(scheduler.finished(name, task, now)[1])
    assert len(done) == sum(units)
