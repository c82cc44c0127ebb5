"""The end of a process that ran tasks: what they printed is written out, and nothing else is taken apart."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """Write out what was printed so far, and exit with *code*."""
    for stream in (sys.stdout, sys.stderr):
        # Tasks may have put None there, or something that is closed, or on a descriptor that is.
        if stream is not None:
            with suppress(Exception):
                stream.flush()
    os._exit(code)
