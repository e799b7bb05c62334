"""A worker from its pool's view: five states, and the transitions between them.

Knows states, slots, tasks, and calls as opaque references. Knows nothing of Ray, which makes the references.

    Starting (-> Starting) -> Ready -> Draining       any of the three -> Dead -> Gone       any of the three -> Gone
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from segray.execution.placement import Slot
from segray.tasks import Task


@dataclass(frozen=True)
class Starting:
    """A state: the worker's process starts and loads the model. A start that failed may be tried again.

    call: returns when the worker is ready.
    since_s: time of the start in seconds.
    """

    call: Any
    since_s: float


@dataclass(frozen=True)
class Ready:
    """A state: the worker takes tasks."""


@dataclass(frozen=True)
class Draining:
    """A state: the worker's node is being drained. The worker finishes its tasks and gets no successor."""


@dataclass(frozen=True)
class Dead:
    """A state: the worker's actor died.

    reason: the first line of Ray's error.
    since_s: time of the death in seconds.
    postmortem: returns the in-flight log if the node lives; None for a worker whose node is unknown.
    node: id of the node; None if it is unknown.
    """

    reason: str
    since_s: float
    postmortem: Any = None
    node: str | None = None


@dataclass(frozen=True)
class Gone:
    """A state: the worker has ended, and the results of its calls are ignored."""


Alive = Starting | Ready | Draining
State = Alive | Dead | Gone

_NEXT: Mapping[type[State], tuple[type[State], ...]] = {
    Starting: (Starting, Ready, Dead, Gone),
    Ready: (Draining, Dead, Gone),
    Draining: (Dead, Gone),
    Dead: (Gone,),
    Gone: (),
}


@dataclass(eq=False)
class WorkerHandle:
    """A worker from its first call to its end.

    actor: the worker's actor, opaque here.
    slot: the slot that the worker was started for; slot.node is None for any node.
    log: name of the in-flight log.
    state: the present state.
    tasks: running tasks by their calls.
    progress_call: the call that asks for progress; None without one.
    progress_asked_s: time of the last such call in seconds.
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
        """Move to another state; raise RuntimeError for a transition that no worker makes."""
        if type(state) not in _NEXT[type(self.state)]:
            raise RuntimeError(f"worker {self.name} cannot become {state}, since its state is {self.state}")
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
        """Return the node where the worker runs, or the node of its slot while the worker starts."""
        return self._node or self.slot.node

    @property
    def taken(self) -> Slot:
        """Return the slot on the node where the worker runs."""
        return replace(self.slot, node=self.node)

    @property
    def awaited(self) -> list[Any]:
        """Return the calls whose results the present state waits for."""
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
