"""Contract tests for OwnedFd: one owner, closed once."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import socket
import sys
import warnings

import pytest

from fdpool.kernel import OwnedFd
from tests.support.interrupts import interrupt_at


def is_open(number: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{number}")


@pytest.fixture
def owned() -> OwnedFd:
    return OwnedFd(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))


def test_close_closes_once_and_forgets_the_number(owned: OwnedFd) -> None:
    number = owned.fileno()
    owned.close()
    assert owned.closed
    assert owned.fileno() == -1
    reused = os.open("/dev/null", os.O_RDONLY)
    assert reused == number
    owned.close()
    assert is_open(reused)
    os.close(reused)


def test_the_with_block_closes(owned: OwnedFd) -> None:
    with owned as same:
        number = same.fileno()
    assert not is_open(number)


def test_a_forgotten_owner_warns_and_closes() -> None:
    number = os.open("/dev/null", os.O_RDONLY)
    with pytest.warns(ResourceWarning, match="unclosed <OwnedFd fd="):
        OwnedFd(number)
    assert not is_open(number)


def test_a_forgotten_owner_closes_even_if_warnings_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: unraisable.append(event.exc_type))
    number = os.open("/dev/null", os.O_RDONLY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OwnedFd(number)
    assert unraisable == [ResourceWarning]
    assert not is_open(number)


@pytest.mark.parametrize("number", [-1, -24])
def test_negative_numbers_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"{number} is not a descriptor"):
        OwnedFd(number)


@pytest.mark.parametrize("thing", [True, "3", 3.0, None])
def test_what_is_not_an_int_is_refused(thing: object) -> None:
    with pytest.raises(TypeError, match="is an int, not"):
        OwnedFd(thing)  # type: ignore[arg-type]


def test_detach_gives_the_number_up(owned: OwnedFd) -> None:
    number = owned.detach()
    assert owned.closed
    assert is_open(number)
    os.close(number)
    with pytest.raises(ValueError, match="was given up"):
        owned.detach()


def test_duplicate_is_a_second_owner_that_no_exec_inherits(owned: OwnedFd) -> None:
    with owned, owned.duplicate() as second:
        assert second.fileno() != owned.fileno()
        assert not os.get_inheritable(second.fileno())
        assert os.path.sameopenfile(second.fileno(), owned.fileno())


def test_into_socket_asks_the_kernel_for_family_and_type() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    owned = OwnedFd(left.detach())
    with owned.into_socket() as sock, right:
        assert owned.closed
        assert (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.send(b"x")
        assert right.recv(1) == b"x"


def test_into_socket_keeps_what_is_not_a_socket(owned: OwnedFd) -> None:
    with owned:
        with pytest.raises(OSError, match="Socket operation on non-socket"):
            owned.into_socket()
        assert is_open(owned.fileno())


def test_into_file_reads_and_writes_without_truncating() -> None:
    number = os.memfd_create("x")
    os.write(number, b"hello world")
    with OwnedFd(number).into_file("r+b") as file:
        file.seek(0)
        assert file.read() == b"hello world"


def test_into_file_of_a_mode_nobody_knows_keeps_the_descriptor(owned: OwnedFd) -> None:
    with owned:
        with pytest.raises(ValueError, match="mode"):
            owned.into_file("q")
        assert is_open(owned.fileno())


def test_into_file_that_fails_half_way_closes_once(owned: OwnedFd) -> None:
    number = owned.fileno()
    with pytest.raises(LookupError, match="no-such-encoding"):
        owned.into_file("r", encoding="no-such-encoding")
    assert owned.closed
    assert not is_open(number)


@pytest.mark.parametrize("operation", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_cannot_be_copied_or_pickled(owned: OwnedFd, operation: object) -> None:
    with owned, pytest.raises(TypeError, match="duplicate\\(\\) makes a second owner"):
        operation(owned)  # type: ignore[operator]


def test_use_after_close_says_so(owned: OwnedFd) -> None:
    owned.close()
    for operation in (owned.detach, owned.duplicate, owned.into_socket, owned.into_file):
        with pytest.raises(ValueError, match="is closed, or was given up"):
            operation()


def test_repr_shows_the_number_or_that_it_is_closed(owned: OwnedFd) -> None:
    assert repr(owned) == f"<OwnedFd fd={owned.fileno()}>"
    owned.close()
    assert repr(owned) == "<OwnedFd closed>"


# What an interrupt keeps from being returned closes itself, with a warning.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_an_interrupt_at_any_bytecode_of_into_socket_leaves_one_owner() -> None:
    step = 0
    while True:
        left, right = socket.socketpair()
        with right:
            number = left.detach()
            owned = OwnedFd(number)
            try:
                with interrupt_at(step, __file__):
                    sock = owned.into_socket()
            except KeyboardInterrupt:
                step += 1
            else:
                sock.close()
                break
            # The exception held what there was in the frames that it left.
            gc.collect()
            assert is_open(number) == (owned.fileno() == number), f"step {step}"
            owned.close()
            assert not is_open(number), f"leaked at step {step}"
    assert step > 10
