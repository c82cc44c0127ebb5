"""Functions for workers to run that log."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import warnings
from typing import NoReturn

from fdpool.kernel import EventFd

NAME = "tests.worker"
logger = logging.getLogger(NAME)


def log(message: str, level: int = logging.WARNING, name: str = NAME) -> int:
    logging.getLogger(name).log(level, message)
    return os.getpid()


def log_everything() -> tuple[int, int]:
    """Log a record that has all there is; return the pid and the thread."""
    try:
        raise LookupError("not there")
    except LookupError:
        logger.error("%s of %d", "part", 3, exc_info=True, stack_info=True, extra={"request": {"id": 7}, "lock": LOCK})
    return os.getpid(), threading.get_ident()


LOCK = threading.Lock()


def log_in_thread(message: str) -> None:
    thread = threading.Thread(target=log, args=(message,), name="the task's own")
    thread.start()
    thread.join()


async def log_async(message: str) -> int:
    import trio

    await trio.lowlevel.checkpoint()
    return log(message)


class Sulky:
    """What cannot even be shown."""

    def __str__(self) -> NoReturn:
        raise ValueError("no")


def log_sulky() -> None:
    logger.warning("before")
    logger.warning("sulky: %s", Sulky())
    logger.warning("after")


def log_many(count: int) -> int:
    for number in range(count):
        logger.warning("%d", number)
    return os.getpid()


def log_and_die(message: str) -> None:
    log(message)
    os.kill(os.getpid(), signal.SIGKILL)


def log_at_exit(message: str) -> None:
    atexit.register(log, message)


def log_for_ever_in_a_daemon() -> None:
    """Have a thread log for as long as the process is there, through its very end."""
    begun = threading.Event()

    def work() -> NoReturn:
        while True:
            log("from a daemon")
            begun.set()

    threading.Thread(target=work, daemon=True).start()
    begun.wait()


def log_while_handles_return(count: int) -> list[EventFd]:
    """Return handles in several datagrams, while a thread of this worker does nothing but log."""
    if not any(thread.name == "busy" for thread in threading.enumerate()):
        begun = threading.Event()

        def work() -> NoReturn:
            number = 0
            while True:
                logger.warning("%d", number)
                number += 1
                begun.set()

        threading.Thread(target=work, daemon=True, name="busy").start()
        begun.wait()
    return [EventFd(1) for _ in range(count)]


def ring_and_log_for_ever(event: EventFd) -> NoReturn:
    with event:
        event.write()
    while True:
        logger.warning("in a loop")


def log_in_forked_child(message: str) -> int:
    pid = os.fork()
    if pid == 0:
        log(message)
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def log_in_a_process(message: str) -> int:
    """Log in a process that multiprocessing forks."""
    import multiprocessing

    process = multiprocessing.get_context("fork").Process(target=log, args=(message,), name="the task's own")
    process.start()
    process.join()
    assert process.pid is not None
    return process.pid


def levels(*names: str) -> list[int]:
    """Return the effective levels of loggers, and what is disabled altogether."""
    return [*(logging.getLogger(name).getEffectiveLevel() for name in names), logging.root.manager.disable]


def root_handlers() -> list[str]:
    return [type(handler).__name__ for handler in logging.getLogger().handlers]


def warn(message: str) -> None:
    warnings.warn(message, stacklevel=1)


def send_as_record(body: bytes) -> None:
    """Send what is no record in the place of one."""
    from fdpool.protocol.tasks import Operation, encode
    from fdpool.worker.records import RecordSender

    [sender] = [handler for handler in logging.getLogger().handlers if isinstance(handler, RecordSender)]
    assert sender._channel is not None
    sender._channel.send(encode(Operation.LOG, body=body))
    signal.pause()


async def log_in_a_pool(message: str) -> int:
    import fdpool

    async with fdpool.open_pool(1) as pool:
        result: int = await pool.run_sync(log, message)
        return result
