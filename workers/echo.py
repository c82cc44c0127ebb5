"""An echo server on a listener that somebody else opened.

A pool task, `pool.run_sync(echo.serve, listener)`, or a program: `python workers/echo.py FD` with the
number of an inherited listening socket.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import NoReturn

READ_BYTES = 65536


def serve(listener: socket.socket) -> NoReturn:
    """Accept connections, one after the other; greet each with the worker's pid, then echo until its end."""
    with listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                try:
                    echo(connection)
                except ConnectionError:
                    continue  # the client's own business


def echo(connection: socket.socket) -> None:
    """Greet, then send back whatever comes, until the client has sent everything."""
    connection.sendall(f"worker {os.getpid()}\n".encode())
    while data := connection.recv(READ_BYTES):
        connection.sendall(data)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].isdigit():
        sys.exit("usage: python workers/echo.py FD\nThe number of an inherited listening socket.")
    serve(socket.socket(fileno=int(sys.argv[1])))
