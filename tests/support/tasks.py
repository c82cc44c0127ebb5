"""Functions for workers to run."""

from __future__ import annotations

import atexit
import collections
import contextlib
import ctypes
import itertools
import mmap
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

from fdpool.errors import PoolBroken
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


def ring_and_spin_in_c(event: EventFd) -> None:
    """Say that the task runs, then hold the GIL for longer than any test waits, and look at no signal."""
    # The ring comes from within the loop: no bytecode, at which a signal would be looked at, runs after it.
    ring = map(os.eventfd_write, [event.fileno()], [1])
    collections.deque(itertools.chain(ring, itertools.repeat(None, 10**14)), maxlen=0)


def ring_and_refuse(event: EventFd) -> NoReturn:
    """Do what no task should: go on whatever is raised."""
    # Rings and remembers that it has in one step, between which no interrupt can come.
    ring = map(os.eventfd_write, [event.fileno()], [1])
    while True:
        try:
            for _ in ring:
                pass
            signal.pause()
        except BaseException:
            continue


def raise_pool_broken() -> None:
    raise PoolBroken("the task's own", ["exit 1"])


def ring_and_wait(event: EventFd, go_on: EventFd) -> int:
    with event, go_on:
        event.write()
        select.select([go_on], [], [])
        return go_on.read()


def ring_and_wait_and_ring(event: EventFd, go_on: EventFd, has_ended: EventFd) -> None:
    with has_ended:
        ring_and_wait(event, go_on)
        has_ended.write()


def ring_and_stay(event: EventFd, go_on: EventFd) -> int:
    """Say that the task runs; return where, once *go_on* is rung, which it stays for others."""
    with event, go_on:
        event.write()
        select.select([go_on], [], [])
    return os.getpid()


def clean_up(event: EventFd, cleaned_up: EventFd) -> NoReturn:
    with cleaned_up:
        try:
            ring_and_hang(event)
        except Exception:
            cleaned_up.write(100)
            raise
        finally:
            cleaned_up.write()


def interrupt_self() -> str:
    signal.raise_signal(signal.SIGINT)
    return "went on"


def die_until(memory: MemFd, count: int) -> int:
    """Die as often as *count*, which is kept track of in memory."""
    with memory, memory.map(writable=True) as view:
        if view[0] >= count:
            return view[0]
        view[0] += 1
        kill_self()


def divide(left: int, right: int) -> float:
    return left / right


def divide_or_wait(number: int, event: EventFd, cleaned_up: EventFd) -> float:
    """Wait for ever in the case of 1; divide by any other number."""
    if number == 1:
        clean_up(event, cleaned_up)
    return 1 / number


def pid_and(number: int) -> tuple[int, int, int]:
    """Return something that is different for each call, and the number."""
    caller = sys._getframe(1)
    return os.getpid(), id(caller.f_locals["outcomes"]), number


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


class ExitsWhenLoaded:
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def return_what_exits() -> ExitsWhenLoaded:
    return ExitsWhenLoaded()


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


def make_handles_when(gate: EventFd, count: int) -> list[EventFd]:
    with gate:
        select.select([gate], [], [])
    return make_handles(count)


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


def set_state(value: str) -> None:
    _state.append(value)


def get_state(_number: int) -> str:
    return _state[0]


_state: list[str] = []


def pid_of(_number: int) -> int:
    return os.getpid()


def open_marks(path: str) -> None:
    with open(path, "r+b") as file:
        _marks.append(mmap.mmap(file.fileno(), 0))


_marks: list[mmap.mmap] = []


def mark(number: int, pause: float) -> int:
    """Count that this call was begun, in memory that outlives the worker."""
    _marks[0][number] += 1
    if pause:
        select.select([], [], [], pause)
    return number


def mark_and_read(number: int, events: list[EventFd]) -> tuple[int, int]:
    return mark(number, 0), read_events(events)[0]


async def async_add(left: Any, right: Any = 1) -> Any:
    import trio

    await trio.lowlevel.checkpoint()
    return left + right


async def async_pid() -> int:
    return os.getpid()


async def async_ring_and_stay(event: EventFd, go_on: EventFd) -> int:
    """Do what `ring_and_stay` does."""
    import trio

    with event, go_on:
        event.write()
        await trio.lowlevel.wait_readable(go_on)
    return os.getpid()


async def async_ring(event: EventFd) -> None:
    with event:
        event.write()


async def async_divide(left: int, right: int) -> float:
    return left / right


async def wait_and_pass_on(bell: EventFd, next_bell: EventFd) -> int:
    import trio

    with bell, next_bell:
        await trio.lowlevel.wait_readable(bell)
        next_bell.write(bell.read())
    return os.getpid()


async def async_ring_and_hang(event: EventFd, cleaned_up: EventFd) -> None:
    import trio

    event.write()
    try:
        await trio.sleep_forever()
    finally:
        if cleaned_up is not event:
            cleaned_up.write()
        cleaned_up.close()
        event.close()


async def use_a_pool(number: int) -> int:
    import fdpool

    async with fdpool.open_pool(1) as pool:
        result: int = await pool.run_sync(add, number)
        return result


def use_a_pool_of_its_own(number: int) -> int:
    import trio

    return trio.run(use_a_pool, number)


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


def ring_and_leave(event: EventFd, leave: EventFd) -> str:
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
    ring_and_refuse(event)


def ring_and_be_deaf(event: EventFd) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ring_and_refuse(event)


def ring_and_wait_with_the_gil(event: EventFd) -> None:
    with event:
        event.write()
    # A deadlock in C: a mutex, which all zeros is, that is locked twice. PyDLL keeps the GIL where CDLL lets go of it.
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


def keep_memory(nbytes: int) -> int:
    """Have this worker use memory of its own from now on."""
    _kept.append(bytearray(b"x") * nbytes)
    return os.getpid()


_kept: list[bytearray] = []


def touch(memory: memoryview) -> int:
    """Look at each page of what was lent."""
    return sum(memory[::4096])


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


def exit_if_odd(number: int) -> int:
    if number % 2:
        sys.exit(3)
    return number


async def async_exit_if_odd(number: int) -> int:
    return exit_if_odd(number)
