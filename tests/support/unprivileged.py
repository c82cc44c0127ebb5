"""Running part of a test as nobody: what root is exempt from can only be shown by somebody else."""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY: Final = 65534


def own_uid() -> int:
    """Return a user id that no other process has: some limits are counted for all processes of a user together."""
    return 61_000 + os.getpid() % 4_000


def run_as_nobody(check: Callable[[], None], *, alone: bool = False) -> None:
    """Run *check* in a forked child that gave up every privilege; fail with its traceback if it fails.

    Args:
      alone: As a user whom nobody else here is, not another run of these tests either.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            if os.getuid() == 0:
                uid = own_uid() if alone else NOBODY
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            check()
            status = 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[:60_000])
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, encoding="utf-8", errors="replace") as report:
        text = report.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"as uid {NOBODY}:\n{text}"
