"""End-to-end tests of memory when something goes wrong: forged messages, no memory, no descriptors, huge payloads."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import trio

import fdpool
from fdpool import FdLimitError, Pool, RemoteProtocolError, open_pool
from fdpool.memory.arena import arena
from fdpool.protocol.memory import BACK, FORWARD, Extent, News
from tests.support import memory_tasks as tasks
from tests.support.forgery import parcel_of
from tests.test_memory import all_released, pool

np = pytest.importorskip("numpy")

__all__ = ["pool"]


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (News(ended=[99_999]).encode(), "MEMORY"),
        (parcel_of(Extent(BACK, 99_999, 0, 8, 0)), "RESULT"),
        (parcel_of(Extent(FORWARD, 99_999, 0, 8, 1)), "RESULT"),
        (parcel_of(Extent(FORWARD, 1, 0, 8, 1)), "MEMORY"),
        (parcel_of(buffers=1, tail=b"\xff" * 24 + b"N."), "RESULT"),
        (News().encode(), "RESULT"),
    ],
    ids=["lease", "reference back", "segment", "parcel in news", "buffer", "no parcel"],
)
async def test_a_worker_that_forges_references_is_killed_and_nobody_else_is_hurt(message: bytes, answer: str) -> None:
    with trio.fail_after(60):
        async with open_pool(2) as pool:
            held = await pool.run_sync(tasks.make_empty, 1_000_000, 3)
            with pytest.raises(RemoteProtocolError):
                await pool.run_sync(tasks.forge, message, answer)
            for _ in range(4):
                assert (await pool.run_sync(tasks.identity, held) == 3).all()


async def test_no_memory_for_arguments_is_the_callers_error_before_anything_is_sent(pool: Pool) -> None:
    value = np.ones(1_000_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    arena().trim()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            await pool.run_sync(tasks.digest, value)
        assert await pool.run_sync(tasks.digest, value[:50_000]) == tasks.digest(value[:50_000])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await pool.run_sync(tasks.digest, value) == tasks.digest(value)


async def test_no_memory_for_a_result_is_the_calls_error(pool: Pool) -> None:
    await pool.run_sync(tasks.limit_file_size, 1 << 20)
    with pytest.raises(OSError, match="File too large") as caught:
        await pool.run_sync(tasks.make_bytes, 3_000_000, 1)
    assert "packing the result of make_bytes" in caught.value.__notes__[0]
    assert await pool.run_sync(tasks.make_bytes, 500_000, 1) == tasks.make_bytes(500_000, 1)


# RLIMIT_AS makes the kernel itself refuse to map a segment, of 64 MiB, and leaves the interpreter what it needs.
FOR_PYTHON = 40 << 20


async def test_no_address_space_for_arguments_is_the_callers_error_before_anything_is_sent(pool: Pool) -> None:
    value = np.ones(1_000_000)
    arena().trim()
    tasks.limit_address_space(FOR_PYTHON)
    try:
        with pytest.raises(OSError, match="cannot be mapped: Cannot allocate memory") as caught:
            await pool.run_sync(tasks.digest, value)
    finally:
        tasks.limit_address_space(None)
    assert caught.value.errno == errno.ENOMEM
    assert await pool.run_sync(tasks.digest, value) == tasks.digest(value)
    await all_released(pool)
    assert arena().statistics().used_bytes == 0


async def test_a_worker_without_address_space_for_arguments_fails_the_call_and_gives_the_memory_back(
    pool: Pool,
) -> None:
    value = np.ones(1_000_000)
    await pool.run_sync(tasks.limit_address_space, FOR_PYTHON)
    with pytest.raises(OSError, match="cannot be mapped: Cannot allocate memory"):
        await pool.run_sync(tasks.digest, value)
    assert arena().statistics().used_bytes == 0
    await pool.run_sync(tasks.limit_address_space, None)
    assert await pool.run_sync(tasks.digest, value) == tasks.digest(value)


async def test_a_worker_without_address_space_for_a_result_fails_the_call(pool: Pool) -> None:
    await pool.run_sync(tasks.limit_address_space, FOR_PYTHON)
    with pytest.raises(OSError, match="cannot be mapped: Cannot allocate memory") as caught:
        await pool.run_sync(tasks.make_bytes, 3_000_000, 1)
    assert "packing the result of make_bytes" in caught.value.__notes__[0]
    await pool.run_sync(tasks.limit_address_space, None)
    assert await pool.run_sync(tasks.make_bytes, 3_000_000, 1) == tasks.make_bytes(3_000_000, 1)


async def test_no_address_space_for_a_workers_result_is_the_calls_error(pool: Pool) -> None:
    # Made before the limit, so that only the mapping of the worker's segment is missing.
    tasks.limit_address_space(FOR_PYTHON)
    try:
        with pytest.raises(OSError, match="cannot be mapped: Cannot allocate memory"):
            await pool.run_sync(tasks.make_bytes, 3_000_000, 1)
    finally:
        tasks.limit_address_space(None)
    assert await pool.run_sync(tasks.make_bytes, 3_000_000, 1) == tasks.make_bytes(3_000_000, 1)


async def test_memory_that_the_kernel_does_not_have_is_the_callers_error(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Huge pages of the reserved kind are the one memory that a machine can be asked for and has none of."""
    if huge_pages() != 0:
        pytest.skip("there are reserved huge pages here, or none at all")
    value = np.ones(1_000_000)
    arena().trim()
    with monkeypatch.context() as patch:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB
        patch.setattr("fdpool.kernel.memfd._create", lambda name: os.memfd_create(name, flags))
        with pytest.raises(OSError, match="cannot be mapped: Cannot allocate memory"):
            await pool.run_sync(tasks.digest, value)
        with pytest.raises(OSError, match="cannot be mapped: Cannot allocate memory"):
            fdpool.zeros(1_000_000)
    assert await pool.run_sync(tasks.digest, value) == tasks.digest(value)


async def test_a_worker_without_a_free_descriptor_fails_the_call_and_gets_the_segment_with_the_next(pool: Pool) -> None:
    value = np.ones(1_000_000)
    limit = await pool.run_sync(fill_descriptors)
    with pytest.raises(FdLimitError, match="arrive"):
        await pool.run_sync(tasks.digest, value)
    await pool.run_sync(tasks.drop_kept)
    assert limit == 64
    assert await pool.run_sync(tasks.digest, value) == tasks.digest(value)
    assert pool.memory_statistics().workers[0].leased_bytes <= value.nbytes
    await all_released(pool)
    assert arena().statistics().used_bytes == 0


def fill_descriptors() -> int:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        while True:
            tasks.kept.append(fdpool.EventFd())
    except OSError:
        return 64


async def test_it_works_without_a_page_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then every page counts as written: dropped before a block is used again, and copied to be passed on."""

    def refuse(_: object) -> None:
        raise FileNotFoundError("/proc/self/pagemap")

    monkeypatch.setattr("fdpool.kernel.pagemap.PageMap.__init__", refuse)
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            value = np.arange(1_000_000.0)
            for number in range(5):
                result = await pool.run_sync(tasks.identity, value)
                result[::1000] = number
                again = await pool.run_sync(tasks.identity, result)
                assert again[0] == number
                assert again[1] == 1.0


async def test_nothing_is_put_into_dev_shm(pool: Pool) -> None:
    before = named_memory()
    result = await pool.run_sync(tasks.identity, np.ones(1_000_000) + fdpool.zeros(1_000_000))
    assert result[0] == 1.0
    assert named_memory() <= before


def huge_pages() -> int | None:
    """Return how many huge pages are reserved; None where there can be none."""
    try:
        return int(Path("/proc/sys/vm/nr_hugepages").read_text())
    except OSError:
        return None


def named_memory() -> set[Path]:
    # Semaphores are no memory, and those of other programs come and go.
    return {path for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.")}


def available_bytes() -> int:
    return next(
        int(line.split()[1]) << 10
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable")
    )


@pytest.mark.skipif("FDPOOL_HUGE" not in os.environ, reason="takes seconds and much memory: set FDPOOL_HUGE=1")
@pytest.mark.parametrize("length", [(2 << 30) + 4097, (4 << 30) + 4097], ids=["over 2 GiB", "over 4 GiB"])
async def test_payloads_over_two_and_four_gibibytes_travel_whole(length: int) -> None:
    if available_bytes() < 3 * length:
        pytest.skip(f"needs {3 * length >> 30} GiB of memory")
    with trio.fail_after(300):
        async with open_pool(1) as pool:
            made = await pool.run_sync(tasks.make_huge, length)
            assert await pool.run_sync(tasks.summary, made) == [(length, 9)]
            del made
            value = np.zeros(length, "u1")
            value[-1] = 7
            assert await pool.run_sync(tasks.summary, value) == [(length, 7)]
