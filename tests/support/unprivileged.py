"""Running part of a test as nobody: what root is exempt from can only be shown by somebody else."""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY: Final = 65534


def run_as_nobody(check: Callable[[], None]) -> None:
    """Run *check* in a forked child that gave up every privilege; fail with its traceback if it fails."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            if os.getuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
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
