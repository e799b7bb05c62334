"""The lease of a label set: one run at a time works on a root, and a second run is refused.

Knows when a lease is held, free or abandoned, and how a run takes, renews and releases its lease. Knows nothing of
images. Correct rows need no lease, since the tables' logs admit one of two commits. The lease keeps two runs from
labelling the same images, and replaced files out of a plain glob.

    ROOT/_segray/lease.json      the run that works here: token, host, process, run, start, number of renewals

The rules need no conditional write and no equal clocks:

    take      write the lease if none is there, or if its holder is gone. Then read: the token there is the holder's.
    renew     every few seconds: read, then write if the token is still one's own. Another token means: lost, stop.
    gone      the holder's process has ended, on this machine; or the lease did not change for LEASE_S.
    release   delete the lease if the token is still one's own.

Two runs that take a lease at the same moment may both read their own token. The next renewal then stops the run whose
token was overwritten. A store with conditional writes shows the loser at once.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from segray._system import process_identity
from segray.errors import ConflictError, InfrastructureError, SegrayError
from segray.storage.local import missing_folders, remove_empty_folders
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join, scheme

RENEW_S = 5.0  # seconds between two renewals
LEASE_S = 30.0  # seconds without a renewal after which the holder counts as dead; longer than a slow renewal
_POLL_S = 1.0
_FIRST_RENEWAL_S = 1.0  # shows early which of two runs that began together holds the lease
_TIMEOUT_S, _STOP_S = 10.0, 5.0
_SILENT_READS = round(LEASE_S / _POLL_S)
_NOTE_AFTER_READS = round(1.5 * RENEW_S / _POLL_S)  # A living holder has renewed by then.


@dataclass(frozen=True)
class Lease:
    """The content of lease.json.

    token: unique to the holder. host, pid: the holder's machine and process, for people. machine, start: the same, for
    process_identity. run: id of the holder's run; "" before there is one. since: time of taking, UTC. renewals: number
    of renewals.
    """

    token: str
    host: str = "?"
    pid: int = 0
    machine: str = ""
    start: str = ""
    run: str = ""
    since: str = "?"
    renewals: int = 0

    @classmethod
    def of_this_process(cls) -> Lease:
        """Return a new lease of this process."""
        pid, now = os.getpid(), datetime.now(UTC).isoformat(timespec="seconds")
        host, machine = platform.node(), process_identity.machine()
        return cls(secrets.token_hex(8), host, pid, machine, process_identity.start_of(pid), since=now)

    def dump(self) -> bytes:
        """Return the lease as the bytes of its file."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes) -> Lease:
        """Return the lease from the bytes of its file. A file that is no lease is a lease of nobody known."""
        try:
            fields: dict[str, Any] = json.loads(data)
            return cls(**{name: fields[name] for name in cls.__dataclass_fields__})
        except (ValueError, KeyError, TypeError):
            return cls(token=data.hex()[:64])

    def holder(self) -> str:
        """Return the holder for a message: run, host, process and start."""
        run = f"run {self.run}" if self.run else "a run that still plans"
        return f"{run} on host {self.host}, process {self.pid}, since {self.since}"


# ---- the rules ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """A step: read the lease; the answer is the lease, None if there is none."""


@dataclass(frozen=True)
class Write:
    """A step: write the lease. create: only if there is none, where the store can tell."""

    lease: Lease
    create: bool = False


@dataclass(frozen=True)
class Wait:
    """A step: wait. silent_for: consecutive reads that showed the same lease of `holder`."""

    seconds: float
    holder: Lease
    silent_for: int


Step = Read | Write | Wait
Steps = Generator[Step, Lease | None, Lease]


def taking(mine: Lease, is_gone: Callable[[Lease], bool]) -> Steps:
    """Yield the steps to take the lease; return the lease that is there at the end. The caller holds its own.

    Args:
        mine: the caller's lease.
        is_gone: whether the holder of a lease has certainly ended.
    """
    while True:
        first = latest = yield Read()
        silent_for = 0
        # A read that failed is no sign of silence, so reads count and not seconds.
        while latest is not None and not is_gone(latest) and silent_for < _SILENT_READS:
            yield Wait(_POLL_S, latest, silent_for)
            latest = yield Read()
            if latest is not None and latest != first:
                return latest
            silent_for += 1
        yield Write(mine, create=latest is None)
        if (holder := (yield Read())) is not None:
            return holder


def renewing(mine: Lease) -> Steps:
    """Yield the steps to renew the lease; return the lease that is there, which has another token if `mine` is lost."""
    found = yield Read()
    if found is not None and found.token != mine.token:
        return found
    renewed = replace(mine, renewals=mine.renewals + 1)
    yield Write(renewed)
    return renewed


def is_gone(lease: Lease) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    if not lease.machine or lease.machine != process_identity.machine():
        return False
    return process_identity.has_ended(lease.pid, lease.start)


# ---- the lease of a run ---------------------------------------------------------------------------


class HeldLease:
    """A lease that a thread renews until stop().

    root: the label set.
    options: access to storage.
    lease: the lease, as written.
    note: receives messages, from the thread.
    """

    def __init__(self, root: str, options: StorageOptions, lease: Lease, note: Callable[[str], None]) -> None:
        self._root, self._lease, self._note = root, lease, note
        self._store = Store(replace(options, retries=0, timeout_s=min(options.timeout_s, _TIMEOUT_S)))
        self._run = lease.run
        self._winner: Lease | None = None
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="lease", daemon=True)
        self._thread.start()

    def name_run(self, run: str) -> None:
        """Write the id of the holder's run into the lease."""
        self._run = run
        self._wake.set()

    def check(self) -> None:
        """Raise InfrastructureError if another run has taken the lease."""
        if self._winner is not None:
            raise InfrastructureError(
                "another run took over this label set",
                where=self._root,
                found=self._winner.holder(),
                hint=f"wait for that run; a run that is suspended, or cut off from storage, for {LEASE_S:.0f} s loses "
                "its label set",
            )

    def stop(self) -> None:
        """End the thread, if storage answers in time."""
        self._stopped.set()
        self._wake.set()
        self._thread.join(_STOP_S)

    def _renew_until_stopped(self) -> None:
        failing = False
        self._wake.wait(_FIRST_RENEWAL_S)
        while not self._stopped.is_set() and self._winner is None:
            self._wake.clear()
            failing = self._renew(failing)
            self._wake.wait(RENEW_S)

    def _renew(self, failing: bool) -> bool:
        """Renew the lease, and return whether that failed.

        failing: whether the renewal before failed.
        """
        try:
            latest = _carry_out(renewing(replace(self._lease, run=self._run)), self._store, self._root)
        except (
            SegrayError,
            FileNotFoundError,
        ) as exc:  # While nobody can read the lease, nobody takes it.
            if not failing:
                self._note(f"the lease of this label set cannot be renewed, the run continues: {_reason(exc)}")
            return True
        if latest.token == self._lease.token:
            self._lease = latest
        else:
            self._winner = latest
        return False


def uri_of(root: str) -> str:
    """Return the URI of the lease of a label set."""
    return join(root, "_segray", "lease.json")


@contextmanager
def holding(root: str, store: Store, note: Callable[[str], None]) -> Iterator[HeldLease]:
    """Hold the lease of a label set during the block.

    Args:
        root: the label set.
        store: storage of the label set.
        note: receives messages.

    Raises:
        ConflictError: another run holds the lease.
    """
    new_folders = [] if scheme(root) else missing_folders(join(root, "_segray"))
    mine, held = Lease.of_this_process(), None
    try:
        holder = _carry_out(taking(mine, is_gone), store, root, note)
        if holder.token != mine.token:
            raise ConflictError(
                "another run works on this label set",
                where=root,
                found=holder.holder(),
                hint=f"wait for the run (`segray status {root}`) or end that process, then run the same command again",
            )
        held = HeldLease(root, store.options, mine, note)
        yield held
    finally:
        if held is not None:
            held.stop()
        _release(root, store.options, mine, note)
        remove_empty_folders(new_folders)


def _release(root: str, options: StorageOptions, mine: Lease, note: Callable[[str], None]) -> None:
    """Delete the lease if it is one's own."""
    store = Store(replace(options, retries=1, timeout_s=_STOP_S))
    try:
        found = _read(store, root)
        if found is not None and found.token == mine.token:
            store.delete(uri_of(root))
    except SegrayError as exc:  # The error of the run itself says more, and the lease ends by itself.
        note(f"the lease of this label set cannot be deleted and ends within {LEASE_S:.0f} s: {exc.short()}")


def _carry_out(steps: Steps, store: Store, root: str, note: Callable[[str], None] = lambda text: None) -> Lease:
    """Carry out the steps on a store; return their result."""
    answer: Lease | None = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            result: Lease = end.value
            return result
        answer = None
        match step:
            case Read():
                answer = _read(store, root)
            case Write(lease, create):
                (store.create if create else store.put)(uri_of(root), lease.dump())
            case Wait(seconds, holder, silent_for):
                if silent_for == _NOTE_AFTER_READS:
                    note(f"waiting up to {LEASE_S:.0f} s for a sign of life of {holder.holder()}, which holds {root}")
                time.sleep(seconds)


def _read(store: Store, root: str) -> Lease | None:
    try:
        return Lease.parse(store.read(uri_of(root)))
    except FileNotFoundError:
        return None


def _reason(exc: Exception) -> str:
    return exc.short() if isinstance(exc, SegrayError) else str(exc)
