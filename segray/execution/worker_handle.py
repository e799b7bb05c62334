"""One worker as its pool sees it: five states, and the moves between them.

Knows states, slots, tasks, and calls as opaque references; knows nothing of Ray, which makes the references.

    Starting -> Ready -> Draining       any of the three -> Dead -> Gone       any of the three -> Gone
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from segray.execution.placement import Slot
from segray.tasks import Task


@dataclass(frozen=True)
class Starting:
    """The worker's process comes up and loads the model. call: returns when the worker is ready."""

    call: Any
    since_s: float


@dataclass(frozen=True)
class Ready:
    """The worker takes tasks."""


@dataclass(frozen=True)
class Draining:
    """The worker's node is being drained. The worker finishes its tasks; nobody comes in its place."""


@dataclass(frozen=True)
class Dead:
    """The worker's actor died. postmortem: returns the in-flight log, if the node of the worker lives.

    The postmortem is None for a worker that died before it said where it runs.
    """

    reason: str
    since_s: float
    postmortem: Any = None


@dataclass(frozen=True)
class Gone:
    """Nothing is left of the worker, and none of its calls counts any more."""


Alive = Starting | Ready | Draining
State = Alive | Dead | Gone

_NEXT: Mapping[type[State], tuple[type[State], ...]] = {
    Starting: (Ready, Dead, Gone),
    Ready: (Draining, Dead, Gone),
    Draining: (Dead, Gone),
    Dead: (Gone,),
    Gone: (),
}


@dataclass(eq=False)
class WorkerHandle:
    """A worker from its first call to its end.

    slot.node: where the worker was sent, None for anywhere. log: name of its in-flight log.
    """

    name: str
    actor: Any
    slot: Slot
    log: str
    state: State
    tasks: dict[Any, Task] = field(default_factory=dict)
    progress_call: Any = None
    progress_asked_s: float = 0.0
    _node: str | None = field(default=None, init=False)
    _last_alive: Alive = field(init=False)

    def __post_init__(self) -> None:
        assert isinstance(self.state, Starting), "a worker begins with its start"
        self._last_alive = self.state

    def become(self, state: State) -> None:
        """Move to another state; raise RuntimeError for a move that no worker makes."""
        if type(state) not in _NEXT[type(self.state)]:
            raise RuntimeError(f"worker {self.name} cannot become {state}: it is {self.state}")
        self.state = state
        if isinstance(state, Alive):
            self._last_alive = state

    def join(self, node: str) -> None:
        """Become ready on a node."""
        self.become(Ready())
        self._node = node

    @property
    def alive(self) -> bool:
        """Return whether the worker's process may run."""
        return isinstance(self.state, Alive)

    @property
    def started(self) -> bool:
        """Return whether the worker has been ready for tasks, now or before its death."""
        return not isinstance(self._last_alive, Starting)

    @property
    def draining(self) -> bool:
        """Return whether the worker's node is being drained, or was when the worker died."""
        return isinstance(self._last_alive, Draining)

    @property
    def node(self) -> str | None:
        """Return where the worker runs, or else where it was sent."""
        return self._node or self.slot.node

    @property
    def taken(self) -> Slot:
        """Return the slot on the node where the worker runs."""
        return replace(self.slot, node=self.node)

    @property
    def awaited(self) -> list[Any]:
        """Return the calls that may still return something that counts."""
        match self.state:
            case Starting(call):
                calls = [call]
            case Ready() | Draining():
                calls = [self.progress_call, *self.tasks]
            case Dead(postmortem=call):
                calls = [call]
            case Gone():
                calls = []
        return [call for call in calls if call is not None]
