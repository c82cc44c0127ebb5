"""Contract tests for MemFd: memory, seals, maps."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import subprocess
import sys

import pytest

from fdpool.kernel import IMMUTABLE, MemFd, OwnedFd, Seal
from fdpool.kernel import memfd as memfd_module


def test_from_bytes_is_immutable_for_everyone() -> None:
    with MemFd.from_bytes(b"hello") as memfd:
        assert memfd.size == 5
        assert memfd.seals & IMMUTABLE == IMMUTABLE
        with memfd.map() as view:
            assert view[:] == b"hello"
        for change in (
            lambda: memfd.write([b"x"]),
            lambda: memfd.resize(1),
            lambda: memfd.map(writable=True),
            lambda: memfd.seal(Seal.GROW),
        ):
            with pytest.raises(PermissionError):
                change()
        reopened = os.open(f"/proc/self/fd/{memfd.fileno()}", os.O_RDWR)
        with OwnedFd(reopened), pytest.raises(PermissionError):
            os.write(reopened, b"x")


def test_a_private_map_of_sealed_memory_is_writable_and_nobody_else_sees_it() -> None:
    with MemFd.from_bytes(b"hello") as memfd:
        with memfd.map(writable=True, private=True) as mine, memfd.map() as theirs:
            mine[0:1] = b"J"
            assert (mine[:], theirs[:]) == (b"Jello", b"hello")


def test_write_takes_any_number_of_buffers_at_an_offset() -> None:
    pieces = [bytes([i % 251]) * (i % 7) for i in range(5000)]
    with MemFd() as memfd:
        assert memfd.write(pieces, offset=10) == len(b"".join(pieces))
        with memfd.map() as view:
            assert view[:10] == bytes(10)
            assert view[10:] == b"".join(pieces)


def test_write_goes_on_where_the_kernel_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def short_write(fd: int, buffers: list[memoryview], offset: int) -> int:
        return real(fd, [buffers[0][:3]], offset)

    monkeypatch.setattr(os, "pwritev", short_write)
    with MemFd.from_bytes(b"abcdefgh") as memfd, memfd.map() as view:
        assert view[:] == b"abcdefgh"


def test_a_map_outlives_the_descriptor() -> None:
    memfd = MemFd.from_bytes(b"still here")
    view = memfd.map()
    memfd.close()
    with view:
        assert view[:] == b"still here"


def test_what_is_outside_cannot_be_mapped() -> None:
    with MemFd(size=mmap.PAGESIZE) as memfd:
        with pytest.raises(ValueError, match=f"the memfd has {mmap.PAGESIZE}"):
            memfd.map(length=mmap.PAGESIZE + 1)
    with MemFd() as empty, pytest.raises(ValueError, match="the memfd has 0"):
        empty.map()


def test_a_part_can_be_mapped() -> None:
    with MemFd(size=2 * mmap.PAGESIZE) as memfd:
        memfd.write([b"second"], mmap.PAGESIZE)
        with memfd.map(offset=mmap.PAGESIZE, length=6) as view:
            assert view[:] == b"second"


def test_sealing_against_writes_is_refused_while_a_writable_map_exists() -> None:
    with MemFd(size=1) as memfd, memfd.map(writable=True) as view:
        with pytest.raises(OSError, match="Device or resource busy") as caught:
            memfd.seal(Seal.WRITE)
        assert caught.value.errno == errno.EBUSY
        memfd.seal(Seal.FUTURE_WRITE | Seal.SHRINK | Seal.GROW | Seal.SEAL)
        view[0:1] = b"x"
        with pytest.raises(PermissionError):
            memfd.map(writable=True)


def test_filling_over_a_limit_is_an_error_and_leaks_nothing() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            MemFd.from_bytes(bytes(2 << 20))
        with pytest.raises(OSError, match="File too large"):
            MemFd(size=2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_reserve_takes_every_page() -> None:
    with MemFd(size=1 << 20) as memfd:
        assert os.fstat(memfd.fileno()).st_blocks == 0
        memfd.reserve()
        assert os.fstat(memfd.fileno()).st_blocks * 512 == 1 << 20


def test_it_works_where_the_interpreter_lacks_memfd_create() -> None:
    number = memfd_module._memfd_create_syscall("fallback", 0x1 | 0x2)
    with MemFd.adopt(number) as memfd:
        assert not os.get_inheritable(number)
        memfd.write([b"abc"])
        memfd.seal(IMMUTABLE)
        assert memfd.size == 3
    with pytest.raises(OSError, match="Invalid argument"):
        memfd_module._memfd_create_syscall("x" * 250, 0x1)


def test_a_name_that_is_too_long_is_an_error() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        MemFd("x" * 250)


def test_it_has_no_name_in_dev_shm() -> None:
    before = os.listdir("/dev/shm")
    with MemFd(size=1 << 20):
        assert os.listdir("/dev/shm") == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")
def test_the_size_of_dev_shm_does_not_matter() -> None:
    program = (
        "import subprocess; subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'none', '/dev/shm'], check=True);"
        "from fdpool.kernel import MemFd; print(MemFd.from_bytes(bytes(32 << 20)).size)"
    )
    result = subprocess.run(
        ["unshare", "--mount", sys.executable, "-W", "ignore", "-c", program],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "unshare failed" in result.stderr:
        pytest.skip("this sandbox allows no mount namespaces")
    assert result.stdout.split() == [str(32 << 20)], result.stderr


def test_no_memory_is_an_error_and_not_a_signal() -> None:
    """Huge pages of the reserved kind are the one memory that a machine can be asked for and has none of."""
    try:
        memfd = MemFd.adopt(os.memfd_create("fdpool-test", os.MFD_CLOEXEC | os.MFD_HUGETLB))
    except OSError:
        pytest.skip("this kernel has no reserved huge pages")
    with memfd:
        memfd.resize(1 << 40)
        with pytest.raises(OSError, match="No space left on device") as caught:
            memfd.reserve()
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(OSError, match="Cannot allocate memory"):
            memfd.map(writable=True)
