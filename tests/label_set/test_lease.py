"""The lease of a label set: its rules in any interleaving of processes, and real runs that meet at one root."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from clusters import Driver
from command import segray as command
from command import write_config
from hypothesis import given
from hypothesis import strategies as st
from swift_server import Swift

import segray
from segray._system import process_identity
from segray.errors import ConflictError
from segray.label_set import lease
from segray.label_set.lease import Lease, Read, Steps, Wait, Write, holding, renewing, taking, uri_of
from segray.label_set.validation import verify
from segray.storage.store import StorageOptions, Store
from segray.synthetic import dataset

# ---- the rules ------------------------------------------------------------------------------------


@dataclass
class Contender:
    """A simulated process: it takes the lease, then renews it at each turn until it is refused, loses or is killed."""

    mine: Lease
    steps: Steps
    step: lease.Step
    state: str = "taking"


@dataclass
class World:
    """Some processes at one object. conditional: whether the store refuses to create an object that exists."""

    conditional: bool
    there: Lease | None = None
    contenders: list[Contender] = field(default_factory=list)
    killed: set[str] = field(default_factory=set)

    def begin(self) -> None:
        mine = Lease(str(len(self.contenders)))
        steps = taking(mine, lambda other: other.token in self.killed)
        self.contenders.append(Contender(mine, steps, next(steps)))

    def advance(self, contender: Contender) -> None:
        """Carry out one step, as a process that is interrupted after any request."""
        if contender.state not in ("taking", "holding"):
            return
        answer = None
        match contender.step:
            case Read():
                answer = self.there
            case Write(written, create):
                if not (create and self.conditional and self.there):
                    self.there = written
            case Wait():
                pass
        try:
            contender.step = contender.steps.send(answer)
        except StopIteration as end:
            if end.value.token != contender.mine.token:
                contender.state = "refused" if contender.state == "taking" else "lost"
                return
            contender.state, contender.mine = "holding", end.value
            contender.steps = renewing(contender.mine)
            contender.step = next(contender.steps)

    @property
    def holders(self) -> list[Contender]:
        return [each for each in self.contenders if each.state == "holding"]


@given(st.booleans(), st.lists(st.tuples(st.sampled_from(["begin", "step", "kill"]), st.integers(0, 7)), max_size=120))
def test_in_any_interleaving_one_run_holds_the_lease_in_the_end(
    conditional: bool, moves: list[tuple[str, int]]
) -> None:
    world = World(conditional)
    world.begin()
    for move, number in moves:
        chosen = world.contenders[number % len(world.contenders)]
        if move == "begin" and len(world.contenders) < 5:
            world.begin()
        elif move == "kill" and chosen.state in ("taking", "holding"):
            chosen.state = "killed"
            world.killed.add(chosen.mine.token)
        else:
            world.advance(chosen)
    for _ in range(3 * lease._SILENT_READS):  # From here on all have their turns, as in the seconds after a start.
        for contender in world.contenders:
            world.advance(contender)
    states = [contender.state for contender in world.contenders]
    assert len(world.holders) <= 1, states
    if world.holders:
        assert world.there is not None
        assert world.there.token == world.holders[0].mine.token
    assert world.holders or "killed" in states, states


@given(st.booleans(), st.integers(1, 4 * lease._SILENT_READS))
def test_a_living_holder_keeps_its_lease_and_the_second_is_refused_at_its_first_renewal(
    conditional: bool, silent_reads: int
) -> None:
    world = World(conditional)
    world.begin()
    holder = world.contenders[0]
    while holder.state == "taking":
        world.advance(holder)
    world.begin()
    second = world.contenders[1]
    for _ in range(2 * min(silent_reads, lease._SILENT_READS - 1)):  # Wait and Read by turns.
        world.advance(second)
    assert second.state == "taking"
    for _ in range(2):
        world.advance(holder)
    for _ in range(2):
        world.advance(second)
    assert (holder.state, second.state) == ("holding", "refused")


def test_a_killed_holder_of_this_machine_is_replaced_without_waiting() -> None:
    world = World(conditional=False, there=Lease("dead"), killed={"dead"})
    world.begin()
    for _ in range(3):
        world.advance(world.contenders[0])
    assert world.contenders[0].state == "holding"


def test_a_silent_holder_elsewhere_is_replaced_after_the_time_of_a_lease() -> None:
    world, waits = World(conditional=False, there=Lease("silent")), 0
    world.begin()
    while world.contenders[0].state == "taking":
        waits += isinstance(world.contenders[0].step, Wait)
        world.advance(world.contenders[0])
    assert world.contenders[0].state == "holding"
    assert waits * lease._POLL_S == lease.LEASE_S


@given(st.binary(max_size=200))
def test_any_bytes_are_a_lease_of_somebody(data: bytes) -> None:
    assert not lease.is_gone(Lease.parse(data))


def test_a_lease_is_read_as_written() -> None:
    mine = replace(Lease.of_this_process(), run="20260101T000000.000000Z-aaaaaaaa", renewals=7)
    assert Lease.parse(mine.dump()) == mine


# ---- processes ------------------------------------------------------------------------------------


def test_an_ended_process_and_another_one_of_its_id_are_told_from_a_living_one() -> None:
    pid = os.getpid()
    start = process_identity.start_of(pid)
    assert not process_identity.has_ended(pid, start)
    assert process_identity.has_ended(pid, str(int(start) - 1)), "the id is used again"
    assert not process_identity.has_ended(pid, ""), "nobody knows"
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = process_identity.start_of(child.pid)
    assert not process_identity.has_ended(child.pid, start)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_identity.has_ended(child.pid, start), "a zombie has ended"
    child.wait()
    assert process_identity.has_ended(child.pid, start)


def test_a_lease_of_another_container_or_machine_is_never_judged_by_its_process_id() -> None:
    mine = Lease.of_this_process()
    assert lease.is_gone(replace(mine, start="1"))
    assert not lease.is_gone(replace(mine, start="1", machine="another boot/pid:[1]"))
    assert not lease.is_gone(replace(mine, start="1", machine=""))


# ---- one process ----------------------------------------------------------------------------------


def test_a_second_holder_is_refused_and_after_the_end_the_lease_and_new_folders_are_gone(tmp_path: Path) -> None:
    root, notes = str(tmp_path / "new" / "labels"), list[str]()
    with holding(root, Store(), notes.append) as held:
        held.name_run("RUN")
        begin_s = time.monotonic()
        with (
            pytest.raises(ConflictError, match=rf"run RUN on host .*, process {os.getpid()}, since 20"),
            holding(root, Store(), notes.append),
        ):
            pytest.fail("two runs hold one lease")
        assert time.monotonic() - begin_s < 2 * lease.RENEW_S
        held.check()
    assert list(tmp_path.iterdir()) == []
    assert notes == []


def test_a_holder_whose_lease_was_taken_is_told_by_whom(tmp_path: Path) -> None:
    root = str(tmp_path / "labels")
    other = replace(Lease.of_this_process(), run="OTHER")
    with holding(root, Store(), print) as held:
        Store().put(uri_of(root), other.dump())
        time.sleep(lease._FIRST_RENEWAL_S + 0.5)
        with pytest.raises(segray.errors.InfrastructureError, match=r"took over this label set(?s:.*)run OTHER"):
            held.check()
    assert Lease.parse(Store().read(uri_of(root))) == other, "the winner keeps its lease"


# ---- real runs ------------------------------------------------------------------------------------

IMAGES = 40


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, IMAGES, seed=11)
    return folder / "images"


@pytest.fixture(params=["local", pytest.param("swift", marks=pytest.mark.chaos)])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, StorageOptions]:
    """A new root, in a folder and in an object store whose conditional PUT admits several simultaneous writers."""
    if request.param == "local":
        return str(tmp_path / "labels"), StorageOptions()
    swift: Swift = request.getfixturevalue("swift_env")
    return f"s3://{swift.bucket()}/labels", StorageOptions(endpoint_url=swift.endpoint_url)


@pytest.fixture
def config(place: tuple[str, StorageOptions], tmp_path: Path, scenes: Path) -> Path:
    root, options = place
    storage = {"endpoint_url": options.endpoint_url} if options.endpoint_url else {}
    workers = [{"count": 1, "num_cpus": 1}]
    return write_config(tmp_path / "run.yaml", scenes, root, storage=storage, unit_images=2, workers=workers)


def wait_for_lease(root: str, options: StorageOptions, driver: Driver) -> Lease:
    deadline = time.monotonic() + 120
    while not Store(options).exists(uri_of(root)) or not Lease.parse(Store(options).read(uri_of(root))).run:
        assert driver.running, driver.text
        assert time.monotonic() < deadline, driver.text
        time.sleep(0.05)
    return Lease.parse(Store(options).read(uri_of(root)))


@pytest.fixture
def driver(config: Path) -> Iterator[Driver]:
    process = Driver(config)
    yield process
    process.kill()


@pytest.mark.integration
@pytest.mark.usefixtures("shared_ray")
def test_a_second_run_is_refused_within_seconds_and_the_first_labels_every_image_once(
    place: tuple[str, StorageOptions], config: Path, driver: Driver
) -> None:
    root, options = place
    first = wait_for_lease(root, options, driver)
    os.killpg(driver.process.pid, signal.SIGSTOP)  # It holds what it has, so that it cannot end before the second.
    second = Driver(config)
    time.sleep(3)
    os.killpg(driver.process.pid, signal.SIGCONT)
    assert second.end(30) == 3, second.text
    expected = f"another run works on this label set\n  where: {root}\n  found: run {first.run} on host {first.host}, "
    assert expected + f"process {driver.process.pid}, since {first.since}" in second.text
    assert "segray status" in second.text
    assert driver.end(200) == 0, driver.text
    assert not Store(options).exists(uri_of(root)), "released"
    rows = segray.images(root, **({"endpoint_url": options.endpoint_url} if options.endpoint_url else {}))
    assert rows.count_rows() == IMAGES
    assert not verify(root, options).violations


@pytest.mark.thorough
@pytest.mark.integration
@pytest.mark.usefixtures("shared_ray")
def test_a_killed_run_is_followed_at_once_and_resumed(
    place: tuple[str, StorageOptions], config: Path, driver: Driver
) -> None:
    root, options = place
    first = wait_for_lease(root, options, driver)
    driver.kill()
    driver.process.wait()
    assert Store(options).exists(uri_of(root)), "a killed process releases nothing"
    again = Driver(config)
    assert again.end(200) == 0, again.text
    assert f"resuming run {first.run}" in again.text
    assert "waiting up to" not in again.text
    assert not Store(options).exists(uri_of(root))
    assert not verify(root, options).violations


@pytest.mark.integration
@pytest.mark.usefixtures("shared_ray")
def test_a_run_that_is_asked_to_end_or_fails_releases_its_lease(
    place: tuple[str, StorageOptions], config: Path, driver: Driver
) -> None:
    root, options = place
    wait_for_lease(root, options, driver)
    driver.process.send_signal(signal.SIGINT)
    assert driver.end(60) == 130, driver.text
    assert not Store(options).exists(uri_of(root))
    failed = command(
        "label", "--config", config, "--set", "cluster.address=127.0.0.1:1", "--set", "cluster.head_timeout_s=2"
    )
    assert failed.returncode == 3, failed.stderr
    assert not Store(options).exists(uri_of(root))
    assert command("label", "--config", config).returncode == 0


@pytest.mark.chaos
@pytest.mark.usefixtures("shared_ray")
def test_a_lease_of_a_dead_machine_delays_the_next_run_by_its_time_and_the_run_says_for_whom(
    place: tuple[str, StorageOptions], config: Path
) -> None:
    root, options = place
    dead = replace(Lease.of_this_process(), host="gone.example", machine="another", run="DEAD")
    Store(options).put(uri_of(root), dead.dump())
    done = command("label", "--config", config, "--limit", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert "waiting up to 30 s for a sign of life of run DEAD on host gone.example" in done.stderr
    assert json.loads(done.stdout)["images"]
    assert not Store(options).exists(uri_of(root))
