"""After any crash the same command converges to what an undisturbed run gives; readers see whole batches only.

A history is some disturbed runs of one command over one label set, then an undisturbed one. crash_model.py says what
can become of a write, and what readers of the log may see after each.

The plain glob is judged too: after every history without a race each data file in the table folders was committed,
so nothing is there twice that an undisturbed run would not leave twice (the files that changed images were removed
from stay until `segray maintain`). After a race, files of the loser's batch may be there that no commit names, until
`segray maintain` likewise: the loser does not delete them, because it cannot tell for sure a commit that another made
from one of its own whose answer was lost.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from crash_model import Fault, Judge, Plan, Race, World
from swift_server import Swift

from segray.config import Config, validate
from segray.verify import verify

Dataset = Mapping[str, int]  # bytes by key
OLD: Dataset = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
GROWN: Dataset = {**OLD, "b": 10, "d": 9, "f": 4, "bb": 2}  # two changed, two new
CHANGED: Dataset = {key: size for key, size in GROWN.items() if key != "a"}  # and one is gone: its rows stay


@dataclass(frozen=True)
class History:
    """The runs before the last one: what the source held, and what happened at which write."""

    steps: tuple[tuple[Dataset, Plan], ...]
    raced: bool = False
    retries: int = 0  # of storage operations


@dataclass
class Site:
    """A dataset in a folder, and a new label set for each history."""

    world: World
    source: Path
    roots: Iterator[str]
    storage: Mapping[str, Any] = field(default_factory=dict)
    _undisturbed: dict[str, Any] = field(default_factory=dict)

    def config(self, retries: int = 0) -> Config:
        values = {"source": {"uri": str(self.source)}, "output": {"root": next(self.roots)}, "unit_images": 2,
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
        name = repr(datasets)
        if name not in self._undisturbed:
            chosen = self.config()
            for dataset in datasets:
                self.arrange(dataset)
                self.world.label(chosen)
            self._undisturbed[name] = Judge(chosen).rows()
        return self._undisturbed[name]

    def writes(self, dataset: Dataset, *earlier: Dataset) -> int:
        """How many writes bring a label set of the earlier datasets up to date with this one."""
        chosen = self.config()
        for each in (*earlier, dataset):
            self.arrange(each)
            writes = self.world.label(chosen)
        return writes

    def tell(self, history: History) -> None:
        """Let it happen, then judge."""
        chosen = self.config(history.retries)
        for dataset, plan in history.steps:
            self.arrange(dataset)
            self.world.label(chosen, plan)
        self.world.label(chosen)
        judge = Judge(chosen)
        assert judge.rows() == self.undisturbed(*(dataset for dataset, _ in history.steps))
        assert history.raced or not judge.orphans()
        assert verify(chosen.output.root, judge.options).violations == ()


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


def races(site: Site) -> Iterator[History]:
    """At every write of a run, another runs to its end or dies on its way; the first goes on with its stale view."""
    for earlier in ((), (OLD,)):
        for k in range(site.writes(GROWN, *earlier)):
            for rival in (Race(), Race({k % 17 + 4: Fault.DIES_AFTER})):
                before: tuple[tuple[Dataset, Plan], ...] = tuple((dataset, {}) for dataset in earlier)
                yield History((*before, (GROWN, {k: rival})), raced=True)


def random_histories(site: Site) -> Iterator[History]:
    """Several disturbed runs, each with several faults, while the dataset changes; one in three has races."""
    for seed in range(100):
        chance = random.Random(seed)
        raced = seed % 3 == 0
        steps = [(chance.choice((OLD, GROWN)), _plan(chance, raced)) for _ in range(chance.randint(2, 4))]
        yield History((*steps, (GROWN, {})), raced, retries=seed % 2)


def _plan(chance: random.Random, raced: bool) -> Plan:
    plan: dict[int, Fault | Race] = {k: chance.choice(list(Fault)) for k in chance.sample(range(40), 2)}
    if raced:
        plan[chance.randrange(30)] = Race(_plan(chance, raced=chance.random() < 0.3))
    return plan


FAMILIES: tuple[Callable[[Site], Iterator[History]], ...] = (
    first_runs, resumed_runs, incremental_runs, races, random_histories,
)  # fmt: skip


# ---- tests ----------------------------------------------------------------------------------------


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    return Site(World(monkeypatch), tmp_path / "source", (str(tmp_path / f"labels{i}") for i in count()))


def _tell_all(site: Site, histories: Iterator[History], title: str, capsys: pytest.CaptureFixture[str]) -> int:
    told = 0
    for told, history in enumerate(histories, 1):  # noqa: B007
        try:
            site.tell(history)
        except BaseException as exc:
            exc.add_note(f"in {history}")
            raise
    points = site.world.points
    with capsys.disabled():
        print(f"\n{title}: {told} histories, {len(points)} kinds of crash points, met {sum(points.values())} times")
    return told


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_some_histories(family: Any, local: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert _tell_all(local, islice(family(local), 3, None, 31), family.__name__, capsys) >= 3


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_all_histories(family: Any, local: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert _tell_all(local, family(local), family.__name__, capsys) > 90


@pytest.mark.full
def test_histories_on_a_real_object_store(
    local: Site, tmp_path: Path, swift_env: Swift, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sample: 4 histories, or as many as SEGRAY_CRASH_HISTORIES says (each takes some ten seconds)."""
    sample = int(os.environ.get("SEGRAY_CRASH_HISTORIES", "4"))
    chosen = random.Random(1).sample([history for family in FAMILIES for history in family(local)], sample)
    roots = (f"s3://{swift_env.bucket()}/labels" for _ in count())
    storage = {"endpoint_url": swift_env.endpoint_url, "region": "us-east-1"}
    site = Site(local.world, tmp_path / "remote", roots, storage)
    assert _tell_all(site, iter(chosen), "on Swift", capsys) == sample
