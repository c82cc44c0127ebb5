"""The end of a process that ran tasks: what they printed is written out, and nothing else is taken apart."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """Write out what was printed so far, and exit with *code*."""
    write_out()
    os._exit(code)


def write_out() -> None:
    """Write out what was printed so far, as far as that is possible."""
    for stream in (sys.stdout, sys.stderr):
        # There is none where the supervisor's is closed; tasks may have put something there that is, too.
        if stream is not None:
            with suppress(Exception):
                stream.flush()
