"""fdpool: hand over handles, not bytes.

Run Python work in other Linux processes from trio, with any file descriptor as an argument or a result.

     examples/      workers/                  programs
        |              |
     pool                                     what a user opens
        |
     supervisor                               which processes, when, how many
        |
     life                                     one worker: what it says, how it is watched and ended
     ┌──┴───────────┐
     process/      memory/                    starts and processes | objects as they travel: handles, buffers, pickles
     └──┬───────────┘
     channel  connection  doorbell            trio: waiting and cancelling
        |
     transport  stream                        messages with handles over one socket, never waiting
     ┌──┴───────────┐
     kernel/       protocol/                  syscalls, synchronous | bytes and states, no I/O
     └──┬───────────┘
     errors

     worker/   what runs inside a worker: everything below trio

Names resolve on first use, so that `import fdpool` costs a worker no trio.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "channel": ("Channel", "open_channel_pair"),
    "connection": ("Connection", "Disconnected", "PartialMessage", "StreamMessage"),
    "connection_listener": ("ConnectionListener", "open_connection", "open_connection_listener", "serve_connections"),
    "doorbell": ("Doorbell",),
    "executor": ("Executor",),
    "errors": (
        "ControlTruncatedError",
        "FdLimitError",
        "LocalProtocolError",
        "OversizedMessage",
        "PoolBroken",
        "ProtocolError",
        "RemoteError",
        "RemoteProtocolError",
        "TaskCancelled",
        "UnexpectedFds",
        "WorkerDied",
        "WorkerStartError",
        "ZygoteError",
    ),
    "memory.allocation": ("allocate", "copy", "empty", "zeros"),
    "memory.handles": ("give",),
    "memory.shared": ("Shared",),
    "events": ("PoolEvent", "PoolEvents"),
    "pool": ("Pool", "Worker", "open_pool"),
    "protocol.limits": ("Limits",),
    "protocol.restart": ("Backoff", "Restart"),
    "protocol.strategy": ("Keep", "RestartGroup", "Strategy"),
    "statistics": ("CallCounts", "PoolStatistics", "WorkerStatistics"),
    "transport": ("Message",),
    "warehouse": ("MemoryStatistics", "WorkerMemory"),
    "kernel": (
        "ControlBuffer",
        "EventFd",
        "MemFd",
        "OwnedFd",
        "PidFd",
        "Received",
        "ScmCredentials",
        "ScmPidfd",
        "ScmRights",
        "Seal",
        "Sender",
        "control_space",
        "deny_handles",
        "enable",
        "peer_credentials",
        "peer_pidfd",
        "recv_with_fd",
        "recv_with_fds",
        "recvmsg",
        "send_with_fd",
        "send_with_fds",
        "sendmsg",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
