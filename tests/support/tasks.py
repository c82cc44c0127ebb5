"""Functions for workers to run."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import random
import resource
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

from fdpool.kernel import EventFd, MemFd


def add(left: Any, right: Any = 1) -> Any:
    return left + right


def pid() -> int:
    return os.getpid()


def kill_self(number: int = signal.SIGKILL) -> NoReturn:
    os.kill(os.getpid(), number)
    signal.pause()
    raise AssertionError("a signal that was caught")


def square_or_die(number: int, deadly: frozenset[int]) -> int:
    if number in deadly:
        kill_self()
    return number * number


def exit_at_once(code: int) -> NoReturn:
    os._exit(code)


def exit_politely(code: int) -> NoReturn:
    sys.exit(code)


def loaded(module: str) -> bool:
    return module in sys.modules


def ring_and_hang(event: EventFd) -> NoReturn:
    """Say that the task runs, then wait for ever."""
    with event:
        event.write()
    while True:
        signal.pause()


def ring_and_spin_in_c(event: EventFd) -> int:
    """Say that the task runs, then hold the GIL for longer than any test waits."""
    with event:
        event.write()
    return int(pow(7, 10**9))


def report_pid_and_hang(memfd: MemFd, event: EventFd) -> NoReturn:
    with memfd:
        memfd.write([os.getpid().to_bytes(8, "little")])
    ring_and_hang(event)


class FailsToLoad(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def raise_error(kind: str) -> NoReturn:
    if kind == "value":
        error: BaseException = ValueError("of the worker")
        error.add_note("a note")
        raise error
    if kind == "unpicklable":
        error = RuntimeError("holds a generator")
        error.generator = (number for number in [1])  # type: ignore[attr-defined]
        raise error
    if kind == "group":
        raise ExceptionGroup("two", [ValueError(1), KeyError(2)])
    if kind == "interrupt":
        raise KeyboardInterrupt
    raise FailsToLoad(1, 2)


def return_generator() -> Any:
    return (i for i in range(3))


def use_handles(handles: dict[str, Any]) -> bytes:
    """Accept a connection, read a memfd, ring an eventfd."""
    with handles["listener"] as listener, handles["nested"][0]["memfd"] as memfd, handles["event"] as event:
        connection, _ = listener.accept()
        with connection, memfd.map() as view:
            connection.sendall(view[:])
            event.write(view[0])
            return bytes(view)


def connect(address: Any) -> socket.socket:
    return socket.create_connection(address)


def make_handles(count: int) -> list[EventFd]:
    return [EventFd(number) for number in range(count)]


def read_events(events: list[EventFd]) -> list[int]:
    values = []
    for event in events:
        with event:
            values.append(event.read())
    return values


def read_until_end(sock: socket.socket, event: EventFd) -> bytes:
    with sock, event:
        event.write()
        return sock.recv(1)


def take(*_: Any) -> None:
    """Take anything, and leave its closing to the worker."""


def descriptor_total() -> int:
    return len(os.listdir("/proc/self/fd"))


def close_channel() -> None:
    """Close every datagram socket there is: the worker's channel is one."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if is_datagram_socket(number):
            os.close(number)


def write_garbage(garbage: bytes) -> None:
    """Write into the worker's channel past its owner."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if is_datagram_socket(number):
            os.write(number, garbage)
    signal.pause()


def is_datagram_socket(number: int) -> bool:
    try:
        sock = socket.socket(fileno=os.dup(number))
    except OSError:
        return False
    with sock:
        return sock.family == socket.AF_UNIX and sock.type == socket.SOCK_DGRAM


def limit_descriptors(limit: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def double_in_place(array: Any) -> Any:
    array *= 2
    return array


def describe(array: Any) -> tuple[Any, ...]:
    return array.shape, array.dtype.str, bool(array.flags.writeable), float(array.sum())


def matrix_product(size: int) -> float:
    import numpy as np

    square = np.ones((size, size))
    return float((square @ square)[0, 0])


def parent_and_group() -> tuple[int, int]:
    return os.getppid(), os.getpgrp()


def circumstances() -> dict[str, Any]:
    """Tell what a process inherits from the one that starts it."""
    return {
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "input": os.read(0, 100),
        "name": Path("/proc/self/comm").read_text().strip(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
    }


def in_thread(value: int) -> int:
    found: list[int] = []
    thread = threading.Thread(target=found.append, args=(value,))
    thread.start()
    thread.join()
    return found[0]


def ring_at_exit(event: EventFd) -> None:
    atexit.register(event.write)


def random_number() -> float:
    return random.random()


def numpy_random_number() -> float:
    import numpy as np

    return float(np.random.random())


def ring_and_wait(event: EventFd, leave: EventFd) -> str:
    with event, leave:
        event.write()
        select.select([leave], [], [])
    return "left"


def ring_when_terminated(event: EventFd) -> NoReturn:
    """Ring once when the task runs, and seven times when SIGTERM comes."""

    def terminated(_number: int, _frame: object) -> NoReturn:
        event.write(7)
        os._exit(0)

    signal.signal(signal.SIGTERM, terminated)
    event.write()
    while True:
        signal.pause()


def ring_and_be_deaf(event: EventFd) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ring_and_hang(event)


def ring_and_wait_with_the_gil(event: EventFd) -> None:
    with event:
        event.write()
    # A deadlock in C: a mutex, which all zeros is, that is locked twice. PyDLL keeps the GIL where CDLL lets go of it.
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


def open_many_files() -> None:
    with contextlib.ExitStack() as files:
        for _ in range(100):
            files.enter_context(open("/dev/null", "rb"))
    raise AssertionError("100 could be opened")


def use_memory() -> None:
    raise AssertionError(f"{len(bytearray(512 << 20))} bytes were there")


def write_a_file() -> None:
    with MemFd.from_bytes(bytes(2 << 20)) as memfd:
        raise AssertionError(f"{memfd.size} bytes were written")
