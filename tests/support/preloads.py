"""What preloading this module does is said in the environment; it remembers which process loaded it."""

from __future__ import annotations

import os
import signal
import threading
import time

LOADED_BY = os.getpid()

match os.environ.get("FDPOOL_TEST_PRELOAD", ""):
    case "raise":
        raise ValueError("no good")
    case "exit":
        raise SystemExit(5)
    case "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    case "hang":
        time.sleep(1000)
    case "thread":
        threading.Thread(target=time.sleep, args=(1000,), name="the test's own", daemon=True).start()


def loaded_by() -> int:
    return LOADED_BY
