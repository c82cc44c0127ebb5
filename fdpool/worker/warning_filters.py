"""The supervisor's warning filters, in a worker."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, cast

from fdpool.protocol.warning_filters import rebuild_filters

if TYPE_CHECKING:
    from fdpool.protocol.warning_filters import Filter, Told

_told: list[Told] | None = None
_applied: list[Filter] = []


def apply_warning_filters(told: list[Told]) -> None:
    """Put the supervisor's filters in the place of what there is.

    A worker that was forked by a zygote which has the same ones keeps all it has: modules that were loaded there may
    have added some of their own. If the supervisor's have changed since, those of the modules come after them.
    """
    global _told, _applied
    if told == _told:
        return
    own = [] if _told is None else [each for each in warnings.filters if each not in _applied]
    _told, _applied = told, rebuild_filters(told)
    # Makes the interpreter forget what it has shown once and for which filters.
    warnings.resetwarnings()
    cast("list[object]", warnings.filters).extend([*_applied, *own])
