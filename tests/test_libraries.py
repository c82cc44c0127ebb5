"""End-to-end tests of what other libraries' objects are after they have travelled, there and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from fdpool import Pool, open_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytest.importorskip("numpy")

from tests.support import library_values as values

MODULES = {
    "array": "array",
    "numpy": "numpy",
    "pandas": "pandas",
    "pillow": "PIL",
    "pyarrow": "pyarrow",
    "torch": "torch",
}


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    with trio.fail_after(120):
        async with open_pool(1) as pool:
            yield pool


@pytest.fixture(params=MODULES)
def names(request: pytest.FixtureRequest) -> list[str]:
    """Return the names of all values of one library."""
    pytest.importorskip(MODULES[request.param])
    return [name for name in values.MAKERS if name.partition(" ")[0] == request.param]


async def test_arguments_arrive_as_what_they_are(pool: Pool, names: list[str]) -> None:
    changed = [name for name in names if not await pool.run_sync(values.is_as_made, name, values.make(name))]
    assert changed == []
    assert names


async def test_results_arrive_as_what_they_are(pool: Pool, names: list[str]) -> None:
    changed = [name for name in names if not values.is_as_made(name, await pool.run_sync(values.make, name))]
    assert changed == []


async def test_what_comes_back_is_what_was_sent(pool: Pool, names: list[str]) -> None:
    changed = [
        name for name in names if not values.is_as_made(name, await pool.run_sync(values.identity, values.make(name)))
    ]
    assert changed == []
