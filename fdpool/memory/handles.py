"""Objects with a descriptor in them: how each kind is taken apart here and put together over there.

Pickle meets such an object anywhere in a graph; its descriptor goes on a list that travels beside the
pickle, and the pickle says which entry to rebuild it from. Objects of trio need trio on both sides, and
nothing else here does.
"""

from __future__ import annotations

import io
import socket
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

from fdpool.errors import RemoteProtocolError
from fdpool.kernel import HasFileno, OwnedFd
from fdpool.kernel.descriptor import fd_number

if TYPE_CHECKING:
    from collections.abc import Callable

Reduced = tuple["Callable[..., Any]", tuple[Any, ...]]
Reducer: TypeAlias = "Callable[[Lent, Any], Any]"
"""Takes an object apart into a rebuilder and its arguments; or returns NotImplemented, if it has no descriptor."""


@dataclass(slots=True)
class Lent:
    """The handles met while pickling: all of them lent, some of them to be closed here once they have arrived."""

    handles: list[HasFileno] = field(default_factory=list)
    given: list[Any] = field(default_factory=list)

    def add(self, handle: HasFileno) -> int:
        """Put *handle* on the list; return where.

        Raises:
          ValueError: it is closed.
        """
        fd_number(handle)
        self.handles.append(handle)
        return len(self.handles) - 1


class Arrived:
    """The handles that came beside a pickle. Those that nothing was rebuilt from are closed with it."""

    def __init__(self, handles: list[OwnedFd | socket.socket]) -> None:
        self._handles: list[OwnedFd | socket.socket | None] = [*handles]
        handles.clear()

    def take(self, index: int) -> OwnedFd | socket.socket:
        """Give up one handle. Each can be taken once.

        Raises:
          RemoteProtocolError: there is no such handle, or not any more.
        """
        handle = self._handles[index] if 0 <= index < len(self._handles) else None
        if handle is None:
            raise RemoteProtocolError(f"the pickle asks for handle {index} of {len(self._handles)}, or asks twice")
        self._handles[index] = None
        return handle

    def close(self) -> None:
        """Close every handle that was not taken."""
        for handle in self._handles:
            if handle is not None:
                handle.close()
        self._handles.clear()

    def rebuilder(self, name: str) -> Callable[..., Any] | None:
        """Return the rebuilder of that *name*, bound to these handles; None if there is no such rebuilder."""
        return partial(_REBUILDERS[name], self) if name in _REBUILDERS else None


@dataclass(frozen=True, slots=True)
class Given:
    """A handle to hand over; see `give`."""

    handle: Any


def give(handle: Any) -> Any:
    """Mark *handle* to be handed over: once the worker has it, the copy here is closed.

    Without it a handle is lent: the worker gets a duplicate, and the one here stays open until its owner
    closes it. Use it for a connection whose end the peer must see as soon as the worker closes it.

    Args:
      handle: Anything a call can carry that has a descriptor: a socket, a file, an `OwnedFd`, a trio stream.

    Returns:
      Something to pass as an argument, at any depth, of one call. It arrives as *handle* itself.

    Raises:
      TypeError: *handle* has no descriptor.
    """
    if isinstance(handle, Given):
        return handle
    if reducer_for(handle) is None:
        raise TypeError(f"a {type(handle).__name__} cannot be given: it has no descriptor that could travel")
    return Given(handle)


def close_given(handles: list[Any]) -> None:
    """Close here what was handed over, all of it even if some refuse."""
    with ExitStack() as closing:
        while handles:
            handle = handles.pop()
            # A trio stream or listener closes through its socket; its own close is asynchronous.
            closing.callback(getattr(handle, "socket", handle).close)


def reducer_for(value: Any) -> Reducer | None:
    """Return the function that takes *value* apart, or None if its class has no descriptor."""
    return _reducer_for_class(type(value))  # type: ignore[arg-type]  # mypy doubts that classes can be hashed


@lru_cache(maxsize=4096)
def _reducer_for_class(kind: type) -> Reducer | None:
    names = [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__]
    return next((_BY_NAME[name] for name in names if name in _BY_NAME), None)


def _reduce_given(lent: Lent, given: Given) -> Reduced:
    lent.given.append(given.handle)
    return _itself, (given.handle,)


def _reduce_owned(lent: Lent, fd: OwnedFd) -> Reduced:
    return _owned, (lent.add(fd), type(fd))


def _owned(arrived: Arrived, index: int, kind: type[OwnedFd]) -> OwnedFd:
    handle = arrived.take(index)
    # An OwnedFd arrives as the class for what it is; what the sender calls by that name is what the user gets.
    return handle if type(handle) is kind else kind.adopt(handle.detach())


def _reduce_socket(lent: Lent, sock: socket.socket) -> Reduced:
    if "ssl" in sys.modules and isinstance(sock, sys.modules["ssl"].SSLSocket):
        raise TypeError("a TLS connection cannot change process: its keys live in this one. Hand over the plain socket")
    return _socket, (lent.add(sock), sock.gettimeout())


def _socket(arrived: Arrived, index: int, timeout: float | None) -> socket.socket:
    sock = _as_socket(arrived.take(index))
    # O_NONBLOCK is shared with the sender's copy and set already; only this object has to be told.
    sock.settimeout(timeout)
    return sock


def _as_socket(handle: OwnedFd | socket.socket) -> socket.socket:
    return handle.into_socket() if isinstance(handle, OwnedFd) else handle


def _reduce_trio_socket(lent: Lent, sock: Any) -> Reduced:
    return _trio_socket, (lent.add(sock),)


def _trio_socket(arrived: Arrived, index: int) -> Any:
    import trio

    return trio.socket.from_stdlib_socket(_as_socket(arrived.take(index)))


def _reduce_trio_stream(_lent: Lent, stream: Any) -> Reduced:
    return _trio_stream, (stream.socket,)


def _trio_stream(_arrived: Arrived, sock: Any) -> Any:
    import trio

    return trio.SocketStream(sock)


def _reduce_trio_listener(_lent: Lent, listener: Any) -> Reduced:
    return _trio_listener, (listener.socket,)


def _trio_listener(_arrived: Arrived, sock: Any) -> Any:
    import trio

    return trio.SocketListener(sock)


# Files. The descriptor is open already, so there is nothing left to create or truncate, and whether it appends
# is a property of the open file description that travels: of a mode, only the direction counts. (With "a" in
# it, Python would also move the offset, which the sender shares.)
#
# What a reader of a pipe or a terminal has read ahead stays here: only a file with positions can be told to
# stand where its reader stood.


def _reduce_raw_file(lent: Lent, file: io.FileIO) -> Reduced:
    return _raw_file, (lent.add(file), _direction(file))


def _raw_file(arrived: Arrived, index: int, mode: str) -> Any:
    return _as_fd(arrived.take(index)).into_file(mode, buffering=0)


def _reduce_buffered_file(lent: Lent, file: Any) -> Any:
    if not isinstance(file.raw, io.FileIO):
        # On top of something in memory, or of a socket: what it has read ahead could not follow it.
        return NotImplemented
    index = lent.add(file)
    return _buffered_file, (index, _direction(file), _settled_position(file))


def _buffered_file(arrived: Arrived, index: int, mode: str, position: int | None) -> Any:
    return _at(position, _as_fd(arrived.take(index)).into_file(mode))


def _reduce_text_file(lent: Lent, file: io.TextIOWrapper) -> Any:
    if not isinstance(getattr(file.buffer, "raw", None), io.FileIO):
        return NotImplemented
    index = lent.add(file)
    mode = _direction(file).replace("b", "")
    coding = {"encoding": file.encoding, "errors": file.errors}
    flushing = {"line_buffering": file.line_buffering, "write_through": file.write_through}
    return _text_file, (index, mode, coding, flushing, _settled_position(file))


def _text_file(
    arrived: Arrived, index: int, mode: str, coding: dict[str, str], flushing: dict[str, bool], position: int | None
) -> Any:
    file: Any = _as_fd(arrived.take(index)).into_file(mode, **coding)
    file.reconfigure(**flushing)
    return _at(position, file)


def _as_fd(handle: OwnedFd | socket.socket) -> OwnedFd:
    return handle if isinstance(handle, OwnedFd) else OwnedFd(handle.detach())


def _direction(file: Any) -> str:
    if file.readable() and file.writable():
        return "r+b"
    return "wb" if file.writable() else "rb"


def _settled_position(file: Any) -> int | None:
    """Write out what is buffered, and say where the reader stands: ahead of the descriptor's offset, it has read on."""
    if file.writable():
        file.flush()
    return file.tell() if file.seekable() else None


def _at(position: int | None, file: Any) -> Any:
    if position is not None:
        file.seek(position)
    return file


def _reduce_temporary_file(lent: Lent, temporary: Any) -> Any:
    # It arrives as the file it wraps: its name is removed by the one who made it, and by nobody else.
    return _itself, (temporary.file,)


def _reduce_pipe_connection(lent: Lent, connection: Any) -> Reduced:
    return _pipe_connection, (lent.add(connection), connection.readable, connection.writable)


def _pipe_connection(arrived: Arrived, index: int, readable: bool, writable: bool) -> Any:
    from multiprocessing.connection import Connection

    return Connection(arrived.take(index).detach(), readable, writable)


def _reduce_as_itself(_lent: Lent, value: Any) -> Any:
    """Take apart a class of fdpool that pickles itself once what is inside it can be."""
    return value.__reduce__()


def _itself(_arrived: Arrived, handle: Any) -> Any:
    return handle


_REBUILDERS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        _buffered_file,
        _itself,
        _owned,
        _pipe_connection,
        _raw_file,
        _socket,
        _text_file,
        _trio_listener,
        _trio_socket,
        _trio_stream,
    )
}

# By name, so that looking for a trio socket does not import trio.
_BY_NAME: dict[str, Reducer] = {
    f"{__name__}.Given": _reduce_given,
    "fdpool.kernel.descriptor.OwnedFd": _reduce_owned,
    "fdpool.channel.Channel": _reduce_as_itself,
    "fdpool.doorbell.Doorbell": _reduce_as_itself,
    "socket.socket": _reduce_socket,
    "trio.socket.SocketType": _reduce_trio_socket,
    "trio.SocketStream": _reduce_trio_stream,
    "trio.SocketListener": _reduce_trio_listener,
    "_io.FileIO": _reduce_raw_file,
    "_io.BufferedReader": _reduce_buffered_file,
    "_io.BufferedWriter": _reduce_buffered_file,
    "_io.BufferedRandom": _reduce_buffered_file,
    "_io.TextIOWrapper": _reduce_text_file,
    "tempfile._TemporaryFileWrapper": _reduce_temporary_file,
    "multiprocessing.connection.Connection": _reduce_pipe_connection,
}
