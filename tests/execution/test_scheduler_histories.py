"""Random histories: each image ends labelled, failed, quarantined or left over, and no healthy one is blamed."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from properties import tried
from scheduling import CheckedScheduler, at_work

from segray.execution.events import Action, Assign, FailImage, Quarantine, ReleaseWorker, ReplaceWorker
from segray.execution.scheduler import Policy, Scheduler
from segray.tasks import Task, WithheldImage

POLICY = Policy(max_attempts=3, image_timeout_s=30, stall_timeout_s=300, least_images=2, idle_s=5, retry_s=2)
NATURES = st.sampled_from(["good"] * 12 + ["kills", "hangs", "dead", "refused", "link", "site"])
ROW_ERRORS = {"refused": "AccessDenied", "link": "Unreachable", "site": "Unreachable"}


class Histories(RuleBasedStateMachine):
    """A cluster of a few workers, under images each of which is good, kills or hangs its process, or cannot be read.

    dead: storage withholds the image. refused: storage refuses the image alone. link: the image's host is gone.
    site: the image's host refuses all its images, and other hosts serve theirs.
    """

    @initialize(units=st.lists(st.lists(NATURES, min_size=1, max_size=12), min_size=1, max_size=6))
    def begin(self, units: list[list[str]]) -> None:
        self.now_s, self.names, self.node_deaths = 0.0, iter(range(10**6)), 0
        self.nature = {(unit, index): kind for unit, kinds in enumerate(units) for index, kind in enumerate(kinds)}
        self.scheduler = CheckedScheduler([Task(u, 0, len(kinds)) for u, kinds in enumerate(units)], POLICY)
        self.running: dict[str, list[Task]] = {}
        self.since_s: dict[str, float] = {}
        self.labelled: set[tuple[int, int]] = set()
        self.withheld: Counter[tuple[int, int]] = Counter()
        self.labelled_s = 0.0
        self.halted_s = 0.0
        self.quarantined: set[tuple[int, int]] = set()
        self.failed: set[tuple[int, int]] = set()
        self.given_up: set[tuple[int, int]] = set()  # left over after the stall timeout, however often tried
        self.have_served: set[str] = set()
        self.refusals = 0  # tasks in a row of which everything was refused, up to the halt

    # ---- what the caller of a scheduler does ----

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Assign(worker, task):
                    if not self.running[worker]:
                        self.since_s[worker] = self.now_s
                    self.running[worker].append(task)
                case ReplaceWorker(worker):
                    del self.running[worker]
                case ReleaseWorker(worker):
                    assert self.running.pop(worker) == []
                case Quarantine(task):
                    (index,) = task.indices
                    assert (task.unit, index) not in self.labelled | self.quarantined
                    self.quarantined.add((task.unit, index))
                case FailImage(task, error):
                    (index,) = task.indices
                    assert (task.unit, index) not in self.labelled | self.quarantined | self.failed
                    assert ROW_ERRORS[self.nature[task.unit, index]] == error
                    self.failed.add((task.unit, index))
                case _:
                    pass

    def pick(self, data: st.DataObject, among: list[str]) -> str:
        return data.draw(st.sampled_from(sorted(among)))

    @property
    def busy(self) -> list[str]:
        return [name for name, tasks in self.running.items() if tasks]

    def of_kind(self, task: Task, kind: str) -> list[int]:
        return [index for index in task.indices if self.nature[task.unit, index] == kind]

    def withheld_image(self, unit: int, index: int, worker: str, outage: str) -> WithheldImage:
        nature = "refused" if outage == "refusal" else self.nature[unit, index]
        is_refused = nature in ("refused", "site") and outage != "down"
        can_tell = not outage and worker in self.have_served
        row_error = ROW_ERRORS.get(nature, "") if can_tell else ""
        host_served = bool(row_error) and nature == "link" and index % 2 == 0
        return WithheldImage(index, "withheld", is_refused, row_error, host_served)

    def work(self, worker: str, *, outage: str = "") -> None:
        """Do the worker's first task, as its images and storage allow."""
        task = self.running[worker][0]
        killers, hung = self.of_kind(task, "kills"), self.of_kind(task, "hangs")
        if killers and not outage:
            del self.running[worker]
            images = [(task.unit, index, "decode", 0.1) for index in killers[:2]]
            self.carry_out(self.scheduler.lost(worker, "killed", self.now_s, blame_images=True, in_flight=images))
            return
        if hung and not outage:
            seconds = self.now_s - self.since_s[worker]
            self.carry_out(
                self.scheduler.progressed(worker, at_work(0, (task.unit, hung[0], "infer", seconds)), self.now_s)
            )
            return
        self.running[worker].pop(0)
        self.since_s[worker] = self.now_s
        unread = [index for kind in ("dead", *ROW_ERRORS) for index in self.of_kind(task, kind)]
        withheld = list(task.indices) if outage else sorted(unread)
        untried: list[int] = []
        if len(withheld) == len(task) and len(withheld) > 2:
            withheld, untried = withheld[:2], withheld[2:]
        self.withheld.update((task.unit, index) for index in withheld)
        done = {(task.unit, index) for index in task.indices} - {(task.unit, at) for at in (*withheld, *untried)}
        assert not done & (self.labelled | self.quarantined | self.failed | set(self.scheduler.left_over))
        if done:
            self.have_served.add(worker)
        images = [self.withheld_image(task.unit, index, worker, outage) for index in withheld]
        blaming = [image for image in images if not image.row_error]
        if done and not self.scheduler.halted:
            self.refusals = 0
        if blaming and all(image.refused for image in blaming):
            self.refusals += 1
        counts, actions = self.scheduler.finished(worker, task, self.now_s, images, untried)
        assert counts
        self.labelled |= done
        self.labelled_s = self.now_s if done else self.labelled_s
        self.carry_out(actions)

    # ---- what may happen ----

    @precondition(lambda self: len(self.running) < 4)
    @rule()
    def join(self) -> None:
        name = str(next(self.names))
        self.running[name] = []
        self.carry_out(self.scheduler.joined(name, self.now_s))

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def task_ends(self, data: st.DataObject) -> None:
        self.work(self.pick(data, self.busy))

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def storage_is_down(self, data: st.DataObject) -> None:
        self.work(self.pick(data, self.busy), outage="down")

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def storage_refuses_everything(self, data: st.DataObject) -> None:
        self.work(self.pick(data, self.busy), outage="refusal")

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def staging_fails(self, data: st.DataObject) -> None:
        worker = self.pick(data, self.busy)
        task = self.running[worker].pop(0)
        self.withheld.update((task.unit, index) for index in task.indices)
        self.carry_out(self.scheduler.failed(worker, task, "503", self.now_s))

    @precondition(lambda self: self.running and self.node_deaths < POLICY.max_attempts - 1)
    @rule(data=st.data())
    def node_dies(self, data: st.DataObject) -> None:
        worker = self.pick(data, list(self.running))
        self.node_deaths += 1
        del self.running[worker]
        self.carry_out(self.scheduler.lost(worker, "its node is gone", self.now_s, blame_images=False))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def node_is_drained(self, data: st.DataObject) -> None:
        self.carry_out(self.scheduler.draining(self.pick(data, list(self.running)), self.now_s))

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def late_report_of_a_lost_worker(self, data: st.DataObject) -> None:
        worker = self.pick(data, self.busy)
        task = self.running[worker][0]
        assert self.scheduler.finished("gone", task, self.now_s) == (False, [])

    @rule(seconds=st.sampled_from([0.5, 5.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        for worker in self.busy:
            if hung := self.of_kind(self.running[worker][0], "hangs"):
                image = (self.running[worker][0].unit, hung[0], "infer", self.now_s - self.since_s[worker])
                self.carry_out(self.scheduler.progressed(worker, at_work(0, image), self.now_s))
        left_over = set(self.scheduler.left_over)
        self.carry_out(self.scheduler.tick(self.now_s))
        if self.now_s - self.labelled_s > POLICY.stall_timeout_s:
            self.given_up |= self.scheduler.left_over.keys() - left_over
        if self.scheduler.halted and not self.halted_s:
            self.halted_s = self.now_s

    # ---- what always holds ----

    @invariant()
    def images_are_counted(self) -> None:
        if hasattr(self, "scheduler"):
            assert self.scheduler.images_done == len(self.labelled) + len(self.quarantined) + len(self.failed)

    def teardown(self) -> None:
        """From here on storage and nodes are healthy: the run ends, and rightly."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(5_000):
            if self.scheduler.settled or self.scheduler.halted:
                break
            if len(self.running) < 2:
                self.join()
            for worker in list(self.busy):
                if self.running.get(worker):
                    self.work(worker)
            self.time_passes(5.0)
        else:
            raise AssertionError("it never ends")
        left_over = set(self.scheduler.left_over)
        assert {self.nature[at] for at in self.quarantined} <= {"kills", "hangs"}
        assert all(self.withheld[at] >= POLICY.max_attempts for at in left_over - self.given_up)
        if self.scheduler.halted is None:
            assert self.labelled | self.quarantined | self.failed | left_over == self.nature.keys()
        elif self.scheduler.halted.refused:
            assert self.refusals >= POLICY.max_attempts
        else:
            assert self.halted_s - self.labelled_s > POLICY.stall_timeout_s
        replayed = Scheduler([Task(*key) for key in self._tasks()], POLICY)
        for now_s, event in self.scheduler.history:
            replayed.handle(event, now_s)
        assert replayed.state() == self.scheduler.state()

    def _tasks(self) -> list[tuple[int, int, int]]:
        units = sorted({unit for unit, _ in self.nature})
        return [(unit, 0, sum(other == unit for other, _ in self.nature)) for unit in units]


Histories.TestCase.settings = settings(tried(200), stateful_step_count=40)
test_random_histories = Histories.TestCase
