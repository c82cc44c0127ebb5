"""Cancelling a call that runs an event loop of its own: what a signal handler raises could come out of the loop's code.

There it breaks trio, with every task in it, and is reported and forgotten by asyncio. Both are loaded here only if the
call has loaded them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


def cancel_task_loop(frame: FrameType | None) -> bool:
    """Have a loop that was interrupted in code of its own cancel what it runs; return False if this is no such moment.

    To be called from a signal handler, with the frame that the signal came into.
    """
    return _cancel_trio() or _cancel_asyncio(frame)


def _cancel_trio() -> bool:
    trio = sys.modules.get("trio")
    try:
        # Where a KeyboardInterrupt would be let through, a call may be interrupted as well: in code of its own.
        if trio is None or not trio.lowlevel.currently_ki_protected():
            return False
        root = trio.lowlevel.current_root_task()
        token = trio.lowlevel.current_trio_token()
    except (AttributeError, RuntimeError):  # trio is only being imported, or nobody runs it here
        return False

    def cancel() -> None:
        # The root task's last nursery holds the main task alone, the others hold system tasks.
        for nursery in root.child_nurseries[-1:]:
            nursery.cancel_scope.cancel()

    token.run_sync_soon(cancel)
    return True


def _cancel_asyncio(frame: FrameType | None) -> bool:
    asyncio = sys.modules.get("asyncio")
    try:
        if asyncio is None or not _is_in_asyncio(frame):
            return False
        loop = asyncio.get_running_loop()
    except (AttributeError, RuntimeError):  # as above
        return False

    def cancel() -> None:
        # Nothing tells which of them is the main one; asyncio.run cancels the others as well, as it ends.
        for task in asyncio.all_tasks(loop):
            task.cancel()

    loop.call_soon_threadsafe(cancel)
    return True


def _is_in_asyncio(frame: FrameType | None) -> bool:
    """Whether *frame* is asyncio's own; waiting for events is in the module `selectors`."""
    name = "" if frame is None else frame.f_globals.get("__name__", "")
    return name == "selectors" or name.partition(".")[0] == "asyncio"
