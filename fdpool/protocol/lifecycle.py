"""The life of a worker's place, as one literal table: every state, every event, and nothing else is possible.

A place outlives its workers: it is where the next one starts. The picture in docs/lifecycle.md is made from this.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from fdpool.errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable


class State(enum.Enum):
    """Where a worker's place stands."""

    STARTING = "starting"
    """A process is being made, or loads what it needs."""
    READY = "ready"
    """It takes calls, or runs one."""
    DRAINING = "draining"
    """It was asked to finish what it runs, and to exit then."""
    STOPPING = "stopping"
    """Signals are sent to it, each harder than the one before."""
    STUCK = "stuck"
    """It gave no sign of life for too long; its stacks are being written down before it is killed."""
    EXITED = "exited"
    """Its process has ended, and its exit status is known."""
    BACKOFF = "backoff"
    """It died, and the policy wants a pause before the next start."""
    FAILED = "failed"
    """It died more often than the policy allows: nothing starts here by itself any more."""


class Event(enum.Enum):
    """What happens to a worker's place."""

    START = "start"
    READY = "says it is ready"
    DRAIN = "is asked to stop"
    SIGNAL = "is signalled"
    SILENCE = "gives no sign of life"
    EXIT = "ends"
    PAUSE = "has to wait"
    GIVE_UP = "died too often"


TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.STARTING, Event.READY): State.READY,
    (State.STARTING, Event.DRAIN): State.DRAINING,
    (State.STARTING, Event.SIGNAL): State.STOPPING,
    (State.STARTING, Event.SILENCE): State.STUCK,
    (State.STARTING, Event.EXIT): State.EXITED,
    (State.READY, Event.DRAIN): State.DRAINING,
    (State.READY, Event.SIGNAL): State.STOPPING,
    (State.READY, Event.SILENCE): State.STUCK,
    (State.READY, Event.EXIT): State.EXITED,
    # What it sent before it was asked may still arrive.
    (State.DRAINING, Event.READY): State.DRAINING,
    (State.DRAINING, Event.SIGNAL): State.STOPPING,
    (State.DRAINING, Event.SILENCE): State.STUCK,
    (State.DRAINING, Event.EXIT): State.EXITED,
    (State.STOPPING, Event.READY): State.STOPPING,
    (State.STOPPING, Event.DRAIN): State.STOPPING,
    (State.STOPPING, Event.SIGNAL): State.STOPPING,
    (State.STOPPING, Event.EXIT): State.EXITED,
    (State.STUCK, Event.READY): State.STUCK,
    (State.STUCK, Event.DRAIN): State.STUCK,
    (State.STUCK, Event.SIGNAL): State.STOPPING,
    (State.STUCK, Event.EXIT): State.EXITED,
    (State.EXITED, Event.START): State.STARTING,
    (State.EXITED, Event.PAUSE): State.BACKOFF,
    (State.EXITED, Event.GIVE_UP): State.FAILED,
    (State.BACKOFF, Event.START): State.STARTING,
    # Whoever runs the program is always right: a place that is asked to stop waits for nothing …
    (State.BACKOFF, Event.DRAIN): State.EXITED,
    # … and one that has failed can be started by hand.
    (State.FAILED, Event.START): State.STARTING,
}

HAS_PROCESS: Final = frozenset({State.STARTING, State.READY, State.DRAINING, State.STOPPING, State.STUCK})
"""The states in which there is a process, or may be one soon."""


class Lifecycle:
    """One place's state. It begins as one whose last worker has ended.

    Args:
      on_change: Called with each new state.
    """

    __slots__ = ("_on_change", "state")

    def __init__(self, on_change: Callable[[State], None] | None = None) -> None:
        self.state = State.EXITED
        self._on_change = on_change

    def allows(self, event: Event) -> bool:
        """Whether *event* can happen now."""
        return (self.state, event) in TRANSITIONS

    def on(self, event: Event) -> State:
        """Take in what happened; return the new state.

        Raises:
          LocalProtocolError: it cannot happen in this state, which stays as it was.
        """
        before = self.state
        try:
            self.state = TRANSITIONS[before, event]
        except KeyError:
            raise LocalProtocolError(f"a worker's place that is {before.value} never {event.value}") from None
        if self._on_change is not None and self.state is not before:
            self._on_change(self.state)
        return self.state


def diagram() -> str:
    """Draw the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.EXITED.value}"]
    for (state, event), after in TRANSITIONS.items():
        if state is not after:
            lines.append(f"    {state.value} --> {after.value}: {event.value}")
    return "\n".join(lines) + "\n"
