"""Limits as the worker that they are set for sees them."""

from __future__ import annotations

import resource
from contextlib import suppress

from fdpool.protocol.limits import Limits

_RESOURCES = {
    "nofile": resource.RLIMIT_NOFILE,
    "data": resource.RLIMIT_DATA,
    "fsize": resource.RLIMIT_FSIZE,
    "cpu": resource.RLIMIT_CPU,
}
_limits = Limits()


def apply_limits(limits: Limits) -> None:
    """Have the kernel enforce *limits* on this process and what it starts; a limit that is lower already stays."""
    global _limits
    _limits = limits
    for name, value in limits.items():
        _, hard = resource.getrlimit(_RESOURCES[name])
        # At its soft limit of processor time a process gets SIGXCPU, at the hard one SIGKILL.
        ceiling = value + (name == "cpu")
        if hard != resource.RLIM_INFINITY:
            ceiling = min(ceiling, hard)
        resource.setrlimit(_RESOURCES[name], (min(value, ceiling), ceiling))


def note_limit(error: BaseException) -> None:
    """Add to *error* which limit it comes from, if from one."""
    if note := _limits.explain_error(error):
        # An exception class of the user's may have made this impossible.
        with suppress(AttributeError, TypeError):
            error.add_note(note)
