"""After any crash the same command converges to what an undisturbed run gives; readers see whole batches only.

A history is some disturbed runs of one command over one label set, then an undisturbed one. crash_model.py says what
can become of a write, and what readers of the log may see after each.

The plain glob is judged too: each data file in the table folders was committed, so nothing is there twice that an
undisturbed run would not leave twice (the files that changed images were removed from stay until `segray maintain`).
Whoever loses a race deletes the files of its batch. Only when a process dies in a race, files of its batch may be
there that no commit names, likewise until `segray maintain`: the run that goes on is not always the one that died.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from crash_model import Fault, Judge, Plan, Race, World
from swift_server import Swift

from segray.config import Config, validate
from segray.label_set.validation import verify
from segray.storage.store import Store
from segray.storage.uris import join

Dataset = Mapping[str, int]  # bytes by key
OLD: Dataset = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
GROWN: Dataset = {**OLD, "b": 10, "d": 9, "f": 4, "bb": 2}  # two changed, two new
CHANGED: Dataset = {key: size for key, size in GROWN.items() if key != "a"}  # and one is gone
BROKEN = frozenset({"b.jpg", "c.jpg", "d.jpg", "e.jpg"})  # at first, where a history mends images
SHRUNK: Dataset = {"b": 10, "bb": 2, "g": 5}  # four of the old ones are gone, which is more than a batch holds


@dataclass(frozen=True)
class History:
    """The runs before the last one: what the source held, and what happened at which write."""

    steps: tuple[tuple[Dataset, Plan], ...]
    raced: bool = False  # and died in it
    retries: int = 0  # of storage operations
    deleted: str = "keep"
    failed: str = "keep"  # retry: some images of the first run failed, and are mended after it


@dataclass
class Site:
    """A dataset in a folder, and a new label set for each history. nearby: the same site with label sets on a disk,
    where what nothing disturbs is quicker to make."""

    world: World
    source: Path
    roots: Iterator[str]
    storage: Mapping[str, Any] = field(default_factory=dict)
    nearby: Site | None = None
    _undisturbed: dict[str, Any] = field(default_factory=dict)
    _begun: dict[str, Config] = field(default_factory=dict)

    def config(self, retries: int = 0, deleted: str = "keep", failed: str = "keep") -> Config:
        source = {"uri": str(self.source), "deleted": deleted, "max_retired_fraction": 1, "failed": failed}
        values = {"source": source, "output": {"root": next(self.roots)}, "unit_images": 2,
                  "model": {"name": "stickers"}, "publish": {"batch_images": 3, "file_rows": 2},
                  "max_attempts": 50, "storage": {**self.storage, "retries": retries}}  # fmt: skip
        return validate(values, "test")

    def arrange(self, dataset: Dataset) -> None:
        """Make the source hold just this; an image's version says its size."""
        shutil.rmtree(self.source, ignore_errors=True)
        self.source.mkdir()
        for key, size in dataset.items():
            path = self.source / f"{key}.jpg"
            path.write_bytes(b"." * size)
            os.utime(path, ns=(0, 0))

    def undisturbed(self, *datasets: Dataset) -> Any:
        """The rows of a label set that was brought up to date with each dataset in turn, and nothing else happened."""
        if self.nearby is not None:
            return self.nearby.undisturbed(*datasets)
        name = repr(datasets)
        if name not in self._undisturbed:
            chosen = self.config()
            for dataset in datasets:
                self.arrange(dataset)
                self.world.label(chosen)
            self._undisturbed[name] = Judge(chosen).rows()
        return self._undisturbed[name]

    def _begin(self, chosen: Config, dataset: Dataset) -> None:
        """A label set of this dataset: a copy of one in which nothing was in the way."""
        begun = (self.nearby or self).begun(dataset)
        if self.nearby is None:
            shutil.copytree(begun, chosen.output.root)
        else:
            store = Store(Judge(chosen).options)
            for path in sorted(path for path in begun.rglob("*") if path.is_file()):
                self.world.put(store, join(chosen.output.root, *path.relative_to(begun).parts), path.read_bytes())
        Judge(chosen).look_anew()

    def begun(self, dataset: Dataset) -> Path:
        """A label set of this dataset, in which nothing was in the way."""
        name = repr(dataset)
        if name not in self._begun:
            self._begun[name] = self.config()
            self.arrange(dataset)
            self.world.label(self._begun[name])
        return Path(self._begun[name].output.root)

    def writes(self, dataset: Dataset, *earlier: Dataset, deleted: str = "keep", failed: str = "keep") -> int:
        """How many writes bring a label set of the earlier datasets up to date with this one."""
        chosen = self.config(deleted=deleted, failed=failed)
        for each in earlier:
            self.arrange(each)
            with self.broken(failed == "retry"):
                self.world.label(chosen)
        self.arrange(dataset)
        return self.world.label(chosen)

    @contextmanager
    def broken(self, are_broken: bool) -> Iterator[None]:
        """Some images cannot be decoded, if so."""
        self.world.broken = BROKEN if are_broken else frozenset()
        yield
        self.world.broken = frozenset()

    def tell(self, history: History) -> None:
        """Let it happen, then judge."""
        chosen = self.config(history.retries, history.deleted, history.failed)
        steps = list(history.steps)
        if history.failed == "retry":
            dataset, plan = steps.pop(0)
            self.arrange(dataset)
            with self.broken(True):
                self.world.label(chosen, plan)
        elif len(steps) > 1 and not steps[0][1]:
            self._begin(chosen, steps.pop(0)[0])
        for dataset, plan in steps:
            self.arrange(dataset)
            self.world.label(chosen, plan)
        self.world.label(chosen)
        judge = Judge(chosen)
        datasets = [dataset for dataset, _ in history.steps]
        found, last = judge.rows(), datasets[-1]
        if history.deleted == "keep" and SHRUNK in datasets:
            found, datasets = _of(last, found), [last]  # Whether an image was labelled before it was gone is chance.
        elif history.deleted == "retire" or all(each.keys() <= last.keys() for each in datasets):
            datasets = [last]
        assert found == self.undisturbed(*datasets)
        assert history.raced or not judge.orphans()
        assert verify(chosen.output.root, judge.options).violations == ()
        if not self.storage:
            shutil.rmtree(chosen.output.root)


def _of(dataset: Dataset, rows: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rows of these images."""
    wanted = {f"{key}.jpg" for key in dataset}
    return {name: [row for row in found if row["image_key"] in wanted] for name, found in rows.items()}


# ---- histories ------------------------------------------------------------------------------------


def first_runs(site: Site) -> Iterator[History]:
    """Every fault at every write of a first run."""
    for k in range(site.writes(OLD)):
        yield from (History(((OLD, {k: fault}),)) for fault in Fault)


def resumed_runs(site: Site) -> Iterator[History]:
    """A crash somewhere, and another at every write of the run that resumes."""
    writes = site.writes(OLD)
    for first in range(4, writes, 3):
        for k in range(writes - first):
            for fault in (Fault.DIES_BEFORE, Fault.DIES_AFTER):
                yield History(((OLD, {first: Fault.DIES_AFTER}), (OLD, {k: fault})))


def incremental_runs(site: Site) -> Iterator[History]:
    """Every fault at every write of a run over new and changed images."""
    for k in range(site.writes(CHANGED, OLD)):
        yield from (History(((OLD, {}), (CHANGED, {k: fault})), retries=1) for fault in Fault)


def retiring_runs(site: Site) -> Iterator[History]:
    """Every fault at every write of a run that retires, changes and adds; every crash of a run that only retires."""
    for k in range(site.writes(SHRUNK, OLD, deleted="retire")):
        yield from (History(((OLD, {}), (SHRUNK, {k: fault})), retries=1, deleted="retire") for fault in Fault)
    for k in range(site.writes({"b": 2}, OLD, deleted="retire")):
        for fault in (Fault.DIES_BEFORE, Fault.DIES_AFTER):  # And what is gone comes back, before or after the crash.
            yield History(((OLD, {}), ({"b": 2}, {k: fault})), deleted="retire")
            yield History(((OLD, {}), ({"b": 2}, {k: fault}), (GROWN, {})), deleted="retire")


def retrying_runs(site: Site) -> Iterator[History]:
    """Every fault at every write of a run over mended images; new and changed ones besides; crashes of both runs."""
    for dataset, faults in ((OLD, tuple(Fault)), (GROWN, (Fault.DIES_BEFORE, Fault.DIES_AFTER))):
        for k in range(site.writes(dataset, OLD, failed="retry")):
            for fault in faults:
                yield History(((OLD, {}), (dataset, {k: fault})), retries=1, failed="retry")
            for rival in (Race(), Race({k % 17 + 4: Fault.DIES_AFTER})):
                yield History(((OLD, {}), (dataset, {k: rival})), raced=bool(rival.plan), failed="retry")
    writes = site.writes(OLD, OLD, failed="retry")
    for first in range(4, site.writes(OLD), 3):
        for k in range(0, writes, 2):
            plans: tuple[Plan, Plan] = {first: Fault.DIES_AFTER}, {k: Fault.DIES_BEFORE}
            yield History(((OLD, plans[0]), (OLD, plans[1])), failed="retry")
            yield History(((OLD, {}), (OLD, plans[0]), (OLD, plans[1])), failed="retry")


def races(site: Site) -> Iterator[History]:
    """At every write of a run, another runs to its end or dies on its way; the first goes on with its stale view."""
    for earlier in ((), (OLD,)):
        for k in range(site.writes(GROWN, *earlier)):
            for rival in (Race(), Race({k % 17 + 4: Fault.DIES_AFTER})):
                before: tuple[tuple[Dataset, Plan], ...] = tuple((dataset, {}) for dataset in earlier)
                yield History((*before, (GROWN, {k: rival})), raced=bool(rival.plan))
    for k in range(site.writes(SHRUNK, OLD, deleted="retire")):
        for rival in (Race(), Race({k % 17 + 4: Fault.DIES_AFTER})):
            yield History(((OLD, {}), (SHRUNK, {k: rival})), raced=bool(rival.plan), deleted="retire")


def random_histories(site: Site) -> Iterator[History]:
    """Several disturbed runs, each with several faults, while the dataset changes; one in three has races."""
    for seed in range(150):
        chance = random.Random(seed)
        raced, deleted = seed % 3 == 0, ("keep", "keep", "retire", "keep", "retire")[seed % 5]
        datasets = (OLD, GROWN, SHRUNK) if deleted == "retire" or seed % 2 else (OLD, GROWN)
        steps = [(chance.choice(datasets), _plan(chance, raced)) for _ in range(chance.randint(2, 4))]
        yield History((*steps, (chance.choice((GROWN, datasets[-1])), {})), raced, seed % 2, deleted)


def _plan(chance: random.Random, raced: bool) -> Plan:
    plan: dict[int, Fault | Race] = {k: chance.choice(list(Fault)) for k in chance.sample(range(40), 2)}
    if raced:
        plan[chance.randrange(30)] = Race(_plan(chance, raced=chance.random() < 0.3))
    return plan


FAMILIES: tuple[Callable[[Site], Iterator[History]], ...] = (
    first_runs, resumed_runs, incremental_runs, retiring_runs, retrying_runs, races, random_histories,
)  # fmt: skip


# ---- tests ----------------------------------------------------------------------------------------


ALWAYS = frozenset(f"{key}.jpg" for key in OLD.keys() & GROWN.keys() & SHRUNK.keys())


def _in_memory(folder: Path) -> Path:
    """A folder that costs no disk, where there is such a thing."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else folder))


@contextmanager
def local_site(tmp_path: Path) -> Iterator[Site]:
    folder = _in_memory(tmp_path)
    try:
        with pytest.MonkeyPatch.context() as patch:
            yield Site(World(patch, ALWAYS), folder / "source", (str(folder / f"labels{i}") for i in count()))
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Site]:
    with local_site(tmp_path) as site:
        yield site


def _tell_each(site: Site, histories: Iterator[History]) -> int:
    told = 0
    for told, history in enumerate(histories, 1):  # noqa: B007
        try:
            site.tell(history)
        except BaseException as exc:
            exc.add_note(f"in {history}")
            raise
    return told


def _tell_all(site: Site, histories: Iterator[History], title: str, capsys: pytest.CaptureFixture[str]) -> int:
    told, points = _tell_each(site, histories), site.world.points
    with capsys.disabled():
        print(f"\n{title}: {told} histories, {len(points)} kinds of crash points, met {sum(points.values())} times")
    return told


@pytest.mark.parametrize("family", [first_runs, resumed_runs, retrying_runs])
def test_some_histories(family: Any, local: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert _tell_all(local, islice(family(local), 3, 4), family.__name__, capsys) == 1


def _share(family: int, share: int, shares: int, folder: Path) -> tuple[int, Counter[tuple[str, str]]]:
    """Every so-manieth history of a family: how many, and the crash points that they met."""
    with local_site(folder) as site:
        told = _tell_each(site, islice(FAMILIES[family](site), share, None, shares))
        return told, site.world.points


@pytest.mark.parametrize(
    "sample", [pytest.param(3, marks=pytest.mark.integration), pytest.param(30, marks=pytest.mark.thorough)]
)
def test_a_sample_of_all_histories(local: Site, capsys: pytest.CaptureFixture[str], sample: int) -> None:
    """Others with each seed."""
    every = [history for family in FAMILIES for history in family(local)]
    chosen = random.Random(int(os.environ["SEGRAY_SEED"])).sample(every, sample)
    assert _tell_all(local, iter(chosen), "sample", capsys) == sample


@pytest.mark.chaos
def test_all_histories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In as many processes as there are cores, four at most."""
    processes, shares = min(4, len(os.sched_getaffinity(0))), 4
    told: Counter[int] = Counter()
    points: Counter[tuple[str, str]] = Counter()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        asked = {
            pool.submit(_share, family, share, shares, tmp_path): family
            for share in range(shares)
            for family in range(len(FAMILIES))
        }
        for each in as_completed(asked):
            histories, met = each.result()
            told[asked[each]] += histories
            points += met
    counted = {FAMILIES[family].__name__: histories for family, histories in sorted(told.items())}
    with capsys.disabled():
        print(f"\n{counted}: {len(points)} kinds of crash points, met {points.total()} times")
    assert min(told.values()) > 90
    assert told.total() >= 500


@pytest.mark.chaos
def test_histories_on_a_real_object_store(
    local: Site, tmp_path: Path, swift_env: Swift, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sample: 4 histories, or as many as SEGRAY_CRASH_HISTORIES says (each takes some ten seconds)."""
    sample = int(os.environ.get("SEGRAY_CRASH_HISTORIES", "4"))
    chosen = random.Random(1).sample([history for family in FAMILIES for history in family(local)], sample)
    roots = (f"s3://{swift_env.bucket()}/labels" for _ in count())
    storage = {"endpoint_url": swift_env.endpoint_url, "region": "us-east-1"}
    site = Site(local.world, local.source, roots, storage, local)
    assert _tell_all(site, iter(chosen), "on Swift", capsys) == sample
