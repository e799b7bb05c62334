"""kill -9 against running jobs on a real cluster: workers, nodes, the head, the driver, the store, at random moments.

    pytest tests/chaos/test_kills.py                  4 kills, one of each kind
    pytest -m chaos tests/chaos/test_kills.py         60 kills
    SEGRAY_KILLS=200 pytest -s tests/chaos/test_kills.py    the long run; -s shows what was seen
    SEGRAY_SEED=...                                   the same order of kills again

A kill from outside cannot be told from one that an image caused, so images get more attempts than by default.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import statistics
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import swift_server
from clusters import Driver, Nodes, children_of, command_of, nodes
from command import segray as command
from command import write_config
from label_sets import contents
from swift_server import Swift

import segray
from segray.synthetic import dataset

KILLS = int(os.environ.get("SEGRAY_KILLS", "60"))
SEED = int(os.environ["SEGRAY_SEED"])
DRAWN, NAMES = 60, 4
UNIT_IMAGES = 4
# Of every twenty kills.
SHARES = {"worker": 15, "node": 2, "driver": 2, "head": 1}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes(AWS_ACCESS_KEY_ID=swift_server.KEY, AWS_SECRET_ACCESS_KEY=swift_server.SECRET) as found:
        yield found


# ---- what is measured -----------------------------------------------------------------------------


class Reads:
    """How often files of a folder were opened, since this was made; from inotify(7)."""

    _OPEN, _IS_DIR = 0x20, 0x40000000

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._queue = libc.inotify_init1(os.O_CLOEXEC)
        assert libc.inotify_add_watch(self._queue, os.fsencode(folder), self._OPEN) >= 0, os.strerror(
            ctypes.get_errno()
        )
        self.count = 0
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while True:
            events, at = os.read(self._queue, 2**16), 0
            while at < len(events):
                _, mask, _, length = struct.unpack_from("iIII", events, at)
                self.count += not mask & self._IS_DIR
                at += 16 + length


@dataclass
class Record:
    """What was killed, and how soon it was noticed and replaced, in seconds by kind."""

    kills: Counter[str] = field(default_factory=Counter)
    noticed_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    replaced_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    stopped: int = 0

    def describe(self) -> str:
        lines = [f"{self.kills.total()} kills; {self.stopped} times the command ended with 3 and was given again"]
        for kind, count in self.kills.most_common():
            parts = [f"{count:4} x {kind:7}"]
            for name, seconds in (("noticed", self.noticed_s[kind]), ("replaced", self.replaced_s[kind])):
                if seconds:
                    parts.append(f"{name} after {statistics.median(seconds):.1f} s, at most {max(seconds):.1f} s")
            lines.append("; ".join(parts))
        return "\n".join(lines)


# ---- killing --------------------------------------------------------------------------------------


@dataclass
class Killer:
    """Kills what is next in its deck. struck: what was killed during the present driver, and when."""

    cluster: Nodes
    rng: random.Random
    deck: list[str]
    swift: Swift | None = None
    record: Record = field(default_factory=Record)
    struck: list[tuple[str, float]] = field(default_factory=list)

    def strike(self, driver: Driver) -> None:
        """One kill or two at once."""
        for _ in range(self.rng.choice((1, 2))):
            if not self.deck or not driver.running:
                return
            kind, at = self.deck[-1], time.monotonic()
            if kind == "driver":
                driver.kill()
            elif not {"worker": self._worker, "node": self._node, "head": self._head, "store": self._store}[kind]():
                return
            self.struck.append((self.deck.pop(), at))
            self.record.kills[kind] += 1

    def _worker(self) -> bool:
        workers = self.cluster.actors
        with suppress(ProcessLookupError, IndexError):
            os.kill(self.rng.choice(workers), signal.SIGKILL)
            return True
        return False

    def _node(self) -> bool:
        """A raylet, with all that it runs; another node comes."""
        self.cluster.kill_node(self.rng.choice(self.cluster.raylets))
        self.cluster.add()
        return True

    def _head(self) -> bool:
        self.cluster.kill_head()
        return True

    def _store(self) -> bool:
        """One of its servers or all of them; after a while all are started again on the same disk."""
        assert self.swift is not None
        servers = [pid for pid in children_of(self.swift.process.pid) if "swift-" in command_of(pid)]
        for pid in self.rng.choice((servers, [self.rng.choice(servers)])):
            os.kill(pid, signal.SIGKILL)
        time.sleep(self.rng.uniform(0, 6))
        self.swift.stop()
        self.swift.start()
        return True

    def when(self, kinds: Collection[str]) -> list[tuple[str, float]]:
        return [(kind, at) for kind, at in self.struck if kind in kinds]

    def measure(self, driver: Driver) -> None:
        """How soon the driver saw each death of a worker, and how soon another worked; in order of the deaths."""
        lost, ready = driver.times("is lost"), driver.times("worker ready")
        for kind, at in self.when(("worker", "node")):
            if (noticed := _take(lost, at)) is not None:
                self.record.noticed_s[kind].append(noticed - at)
                if (replaced := _take(ready, noticed)) is not None:
                    self.record.replaced_s[kind].append(replaced - at)


def _take(times: list[float], after_s: float) -> float | None:
    """The first time after a moment, taken out of the list."""
    found = next((at for at in times if at > after_s), None)
    if found is not None:
        times.remove(found)
    return found


def run_with_kills(killer: Killer, configure: Callable[[str], Path]) -> None:
    """The same command again and again until it ends by itself. configure: a configuration for a cluster's address."""
    ended: list[tuple[str, float]] = []
    for _ in range(1000):
        killer.struck.clear()
        driver = Driver(configure(killer.cluster.address))
        strike_until_it_ends(driver, killer)
        code = driver.end(300)
        killer.measure(driver)
        for kind, at in ended:
            if (ready := driver.first("worker ready")) is not None:
                killer.record.replaced_s[kind].append(ready - at)
        ended = killer.when(("driver", "head"))
        if code == 0:
            return
        if code == 3:
            assert "the same command" in driver.text, driver.text
            assert "Traceback" not in driver.text, driver.text
            killer.record.stopped += 1
            for kind, at in killer.when(("head",)):
                killer.record.noticed_s[kind].append(driver.lines[-1][0] - at)
        else:
            assert code == -signal.SIGKILL, driver.text
            assert killer.when(("driver",)), driver.text
    raise AssertionError("the run never came to its end")


def strike_until_it_ends(driver: Driver, killer: Killer) -> None:
    """Mostly soon after a worker has become ready, sometimes long before; once without its head, it is left alone."""
    since, rng = driver.began_s, killer.rng
    while driver.running and killer.deck and not killer.when(("head",)):
        until = since + (30 if rng.random() < 0.8 else rng.uniform(0, 8))
        while driver.running and not driver.first("worker ready", since) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 1.5))
        since = time.monotonic()
        killer.strike(driver)


def deck(kills: int, shares: dict[str, int], rng: random.Random) -> list[str]:
    """So many kills, of each kind its share and at least one."""
    rare = [kind for kind, share in shares.items() for _ in range(max(1, kills * share // sum(shares.values())))]
    cards = [*rare, *["worker"] * (kills - len(rare))][-kills:]
    rng.shuffle(cards)
    return cards


def check(root: str, images: int, **storage: Any) -> None:
    """Every promise is kept, and no image is there twice."""
    at = [f"--endpoint-url={url}" for url in storage.values()]
    verified = command("verify", root, *at)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    keys = segray.images(root, **storage).to_table().column("image_key").to_pylist()
    assert len(keys) == len(set(keys)) == images


# ---- the tests ------------------------------------------------------------------------------------


@pytest.mark.chaos
def test_whatever_is_killed_the_same_command_ends_with_the_undisturbed_tables(cluster: Nodes, tmp_path: Path) -> None:
    rng, source = random.Random(SEED), tmp_path / "scenes" / "images"
    dataset.write(tmp_path / "scenes", DRAWN, seed=3)
    for path in list(source.iterdir()):
        for i in range(1, NAMES):
            os.link(path, source / f"{i}-{path.name}")
    images, reads = DRAWN * NAMES, Reads(source)

    def configure(root: Path, address: str) -> Path:
        return write_config(tmp_path / "run.yaml", source, root, **_settings(address))

    quiet = Driver(configure(tmp_path / "quiet", cluster.address))
    assert quiet.end(300) == 0, quiet.text
    assert reads.count == images
    expected, rounds = contents(tmp_path / "quiet"), 0
    killer = Killer(cluster, rng, deck(KILLS - KILLS // 10, SHARES, rng))
    while killer.deck:
        root = tmp_path / f"round-{rounds}"
        run_with_kills(killer, partial(configure, root))
        check(str(root), images)
        assert contents(root) == expected, f"seed {SEED}"
        rounds += 1
    again, record = reads.count - images * (1 + rounds), killer.record
    print(f"\nseed {SEED}, {rounds} rounds of {images} images, {record.describe()}")
    print(f"{again / rounds / images:.1%} of the images were read again, {again / record.kills.total():.1f} a kill")
    # A worker has two units at most, and a run two workers.
    workers = record.kills["worker"] + record.kills["node"] + 2 * (record.kills["driver"] + record.stopped)
    assert again <= workers * 2 * UNIT_IMAGES


@pytest.mark.chaos
def test_whatever_the_store_suffers_the_same_command_ends_with_the_undisturbed_tables(
    cluster: Nodes, tmp_path: Path
) -> None:
    pytest.importorskip("swift", reason="the S3 server of the tests is the package `swift`")
    rng = random.Random(SEED)
    dataset.write(tmp_path / "scenes", DRAWN, seed=3)
    with swift_server.serve(tmp_path) as swift:
        bucket, client, storage = swift.bucket(), swift.client(), {"endpoint_url": swift.endpoint_url}
        for path in (tmp_path / "scenes" / "images").iterdir():
            client.put_object(Bucket=bucket, Key=f"raw/{path.name}", Body=path.read_bytes())

        def configure(root: str, address: str) -> Path:
            more = _settings(address) | {"storage": {**storage, "retries": 3, "timeout_s": 10}}
            return write_config(tmp_path / "run.yaml", f"s3://{bucket}/raw", root, **more)

        quiet, root, rounds = f"s3://{bucket}/quiet", f"s3://{bucket}/round", 0
        undisturbed = Driver(configure(quiet, cluster.address))
        assert undisturbed.end(300) == 0, undisturbed.text
        killer = Killer(cluster, rng, deck(KILLS // 10, {"worker": 1, "store": 2}, rng), swift)
        while killer.deck:
            run_with_kills(killer, partial(configure, f"{root}-{rounds}"))
            check(f"{root}-{rounds}", DRAWN, **storage)
            assert contents(f"{root}-{rounds}", **storage) == contents(quiet, **storage), f"seed {SEED}"
            rounds += 1
    print(f"\nseed {SEED}, {rounds} rounds of {DRAWN} images on S3, {killer.record.describe()}")


def _settings(address: str) -> dict[str, Any]:
    return {
        "unit_images": UNIT_IMAGES,
        "max_attempts": 30,
        "publish": {"batch_images": 48},
        "workers": [{"num_cpus": 1}],
        "cluster": {"address": address, "head_timeout_s": 3},
    }
