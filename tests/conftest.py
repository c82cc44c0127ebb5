"""What holds after every test: no descriptor, process, memory or thread is left behind."""

from __future__ import annotations

import gc
import os
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.support.leaks import children, open_descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator


# How long an example takes says something of the machine only. Where CI is set, the examples are always the same ones.
settings.register_profile(
    "fdpool",
    settings.get_profile("ci" if "CI" in os.environ else "default"),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fdpool")


def pytest_collection_finish() -> None:
    """Have the collections around each test pass by what was imported for all of them: most of the time went there."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail the test that leaves a descriptor, a child process or a thread."""
    gc.collect()
    before, threads = open_descriptors(), set(threading.enumerate())
    yield
    gc.collect()
    leaked = {number: name for number, name in open_descriptors().items() if before.get(number) != name}
    assert not leaked, f"descriptors left open: {leaked}"
    assert not children(), f"processes left: {children()}"
    assert set(threading.enumerate()) <= threads, "threads left running"
