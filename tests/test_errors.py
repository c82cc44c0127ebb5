"""Contract tests for errors: what they say, and that they survive being pickled and copied."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import pytest

from fdpool import WorkerDied
from fdpool.errors import describe_size

if TYPE_CHECKING:
    from collections.abc import Callable

DEATH = WorkerDied(7, None, 9, "m.f", "one\ntwo", 1.23456, "a note", 50_000_000)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda death: pickle.loads(pickle.dumps(death))])
def test_a_death_is_the_same_when_it_was_pickled_or_copied(again: Callable[[WorkerDied], WorkerDied]) -> None:
    death = again(DEATH)
    assert vars(death) == vars(DEATH)
    assert vars(death) == {
        "pid": 7,
        "exitcode": None,
        "signal": 9,
        "task": "m.f",
        "stderr_tail": "one\ntwo",
        "ran_for": 1.23456,
        "note": "a note",
        "peak_rss_bytes": 50_000_000,
    }
    assert (str(death), death.args) == (str(DEATH), DEATH.args)


def test_notes_that_were_added_travel_along() -> None:
    death = copy.copy(DEATH)
    death.add_note("in row 3")
    assert pickle.loads(pickle.dumps(death)).__notes__ == ["in row 3"]


@pytest.mark.parametrize(
    ("death", "says"),
    [
        (
            DEATH,
            "worker 7 was killed by SIGKILL while running m.f, after 1.23 seconds, with 47.7 MiB of memory at its peak "
            "(a note); its stderr ended with:\none\ntwo",
        ),
        (WorkerDied(7, 3, None, "m.f"), "worker 7 exited with code 3 while running m.f"),
        (
            WorkerDied(7, None, 9, "m.f", note="its memory peaked at 47.7 MiB", peak_rss_bytes=50_000_000),
            "worker 7 was killed by SIGKILL while running m.f (its memory peaked at 47.7 MiB)",
        ),
        (
            WorkerDied(7, None, None, "m.f"),
            "worker 7 ended, and somebody else collected its exit status while running m.f",
        ),
    ],
)
def test_a_death_says_what_is_known_of_it(death: WorkerDied, says: str) -> None:
    assert str(death) == says


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0.0 MiB"), (3 << 19, "1.5 MiB"), ((1 << 30) - 1, "1024.0 MiB"), (3 << 29, "1.5 GiB")]
)
def test_sizes_are_told_in_the_unit_that_fits(size: int, words: str) -> None:
    assert describe_size(size) == words
