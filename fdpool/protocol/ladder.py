"""How a worker is ended: asked first, then told louder and louder, each time with a deadline."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Step(enum.Enum):
    """What is done to a worker that is to end."""

    DRAIN = "drain"
    """Ask it to finish what it runs and exit."""
    INTERRUPT = "interrupt"
    """SIGINT: what Python code runs may clean up."""
    TERMINATE = "terminate"
    """SIGTERM, and SIGCONT so that one that is stopped gets it."""
    KILL = "kill"
    """SIGKILL, which nothing withstands."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """The deadlines of the steps, in seconds. SIGKILL comes after the last.

    Args:
      drain: What it has to finish its call in.
      interrupt: What it has to react to SIGINT in.
      terminate: What it has to react to SIGTERM in.
    """

    drain: float = 1.0
    interrupt: float = 0.2
    terminate: float = 0.3

    def __post_init__(self) -> None:
        if min(self.drain, self.interrupt, self.terminate) < 0:
            raise ValueError(f"{self}: no deadline can be negative")

    @property
    def steps(self) -> tuple[tuple[Step, float], ...]:
        """Each step before SIGKILL, and how long to wait for its effect."""
        return ((Step.DRAIN, self.drain), (Step.INTERRUPT, self.interrupt), (Step.TERMINATE, self.terminate))
