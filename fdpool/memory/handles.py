"""Objects with a descriptor in them: how each kind is taken apart here and put together over there.

Pickle meets such an object anywhere in a graph; its descriptor goes on a list that travels beside the
pickle, and the pickle says which entry to rebuild it from. Objects of trio need trio on both sides, and
nothing else here does.
"""

from __future__ import annotations

import fcntl
import io
import os
import socket
import sys
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from fdpool.errors import RemoteProtocolError
from fdpool.kernel import HasFileno, OwnedFd

if TYPE_CHECKING:
    from collections.abc import Callable

Reduced = tuple["Callable[..., Any]", tuple[Any, ...]]


@dataclass(slots=True)
class Lent:
    """The handles met while pickling: all of them lent, some of them to be closed here once they have arrived."""

    handles: list[HasFileno] = field(default_factory=list)
    given: list[Any] = field(default_factory=list)

    def add(self, handle: HasFileno) -> int:
        """Put *handle* on the list; return where."""
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

    def rebuilder(self, name: str) -> Callable[..., Any]:
        """Return the rebuilder of that *name*, bound to these handles.

        Raises:
          RemoteProtocolError: there is none of that name.
        """
        if name not in _REBUILDERS:
            raise RemoteProtocolError(f"the pickle names a rebuilder {name!r} that does not exist")
        return partial(_REBUILDERS[name], self)


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
    if reducer_for(handle) is None:
        raise TypeError(f"a {type(handle).__name__} cannot be given: it has no descriptor that could travel")
    return Given(handle)


def close_given(handles: list[Any]) -> None:
    """Close here what was handed over."""
    while handles:
        handle = handles.pop()
        # A trio stream or listener closes through its socket; its own close is asynchronous.
        getattr(handle, "socket", handle).close()


def reducer_for(value: Any) -> Callable[[Lent, Any], Reduced] | None:
    """Return the function that takes *value* apart, or None if it has no descriptor."""
    return _reducer_for_class(type(value))  # type: ignore[arg-type]  # mypy doubts that classes can be hashed


@lru_cache(maxsize=4096)
def _reducer_for_class(kind: type) -> Callable[[Lent, Any], Reduced] | None:
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
    return _trio_stream, (type(stream).__name__, stream.socket)


def _trio_stream(_arrived: Arrived, name: str, sock: Any) -> Any:
    import trio

    return {"SocketStream": trio.SocketStream, "SocketListener": trio.SocketListener}[name](sock)


def _reduce_raw_file(lent: Lent, file: io.FileIO) -> Reduced:
    return _raw_file, (lent.add(file), _open_mode(file))


def _raw_file(arrived: Arrived, index: int, mode: str) -> Any:
    return _as_fd(arrived.take(index)).into_file(mode, buffering=0)


def _reduce_buffered_file(lent: Lent, file: Any) -> Reduced:
    return _file, (lent.add(file), _open_mode(file.raw), {}, _settled_position(file))


def _reduce_text_file(lent: Lent, file: io.TextIOWrapper) -> Reduced:
    mode = _open_mode(file.buffer.raw).replace("b", "")  # type: ignore[attr-defined]
    options = {"encoding": file.encoding, "errors": file.errors}
    return _file, (lent.add(file), mode, options, _settled_position(file))


def _file(arrived: Arrived, index: int, mode: str, options: dict[str, str], position: int | None) -> Any:
    file = _as_fd(arrived.take(index)).into_file(mode, **options)
    if position is not None:
        file.seek(position)
    return file


def _as_fd(handle: OwnedFd | socket.socket) -> OwnedFd:
    return handle if isinstance(handle, OwnedFd) else OwnedFd(handle.detach())


def _open_mode(raw: io.FileIO) -> str:
    # With a descriptor to open there is nothing left to create or truncate; only the direction and O_APPEND count.
    flags = fcntl.fcntl(raw.fileno(), fcntl.F_GETFL)
    access = flags & os.O_ACCMODE
    if flags & os.O_APPEND:
        return "ab" if access == os.O_WRONLY else "a+b"
    return {os.O_RDONLY: "rb", os.O_WRONLY: "wb"}.get(access, "r+b")


def _settled_position(file: Any) -> int | None:
    """Write out what is buffered, and say where the reader stands: ahead of the descriptor's offset, it has read on."""
    if file.writable():
        file.flush()
    return file.tell() if file.seekable() else None


def _reduce_pipe_connection(lent: Lent, connection: Any) -> Reduced:
    return _pipe_connection, (lent.add(connection), connection.readable, connection.writable)


def _pipe_connection(arrived: Arrived, index: int, readable: bool, writable: bool) -> Any:
    from multiprocessing.connection import Connection

    return Connection(arrived.take(index).detach(), readable, writable)


def _itself(_arrived: Arrived, handle: Any) -> Any:
    return handle


_REBUILDERS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (_file, _itself, _owned, _pipe_connection, _raw_file, _socket, _trio_socket, _trio_stream)
}

# By name, so that looking for a trio socket does not import trio.
_BY_NAME: dict[str, Callable[[Lent, Any], Reduced]] = {
    f"{__name__}.Given": _reduce_given,
    "fdpool.kernel.descriptor.OwnedFd": _reduce_owned,
    "socket.socket": _reduce_socket,
    "trio.socket.SocketType": _reduce_trio_socket,
    "trio.SocketStream": _reduce_trio_stream,
    "trio.SocketListener": _reduce_trio_stream,
    "_io.FileIO": _reduce_raw_file,
    "_io.BufferedReader": _reduce_buffered_file,
    "_io.BufferedWriter": _reduce_buffered_file,
    "_io.BufferedRandom": _reduce_buffered_file,
    "_io.TextIOWrapper": _reduce_text_file,
    "multiprocessing.connection.Connection": _reduce_pipe_connection,
}
