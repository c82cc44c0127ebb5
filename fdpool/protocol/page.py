"""The control page: a few words of memory that a worker and its supervisor share.

It says what a message could not, because the one who would send it may be dead: which call had begun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Buffer

PAGE_BYTES: Final = 4096
_BEGUN: Final = 0
_CANCELLED: Final = 1


class ControlPage:
    """The page, over memory that both sides have mapped. One side writes each word, the other reads it.

    A word is 8 bytes at a multiple of 8, which the hardware stores and loads in one piece.

    Args:
      memory: At least `PAGE_BYTES`, writable, aligned to 8.
    """

    __slots__ = ("_words",)

    def __init__(self, memory: Buffer) -> None:
        self._words = memoryview(memory).cast("B").cast("Q")

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()

    @property
    def begun_call(self) -> int:
        """The number of the call the worker last took up, 0 before the first. Written by the worker."""
        return self._words[_BEGUN]

    @begun_call.setter
    def begun_call(self, number: int) -> None:
        self._words[_BEGUN] = number

    @property
    def cancelled_call(self) -> int:
        """The number of the call to be interrupted, 0 if there never was one. Written by the supervisor."""
        return self._words[_CANCELLED]

    @cancelled_call.setter
    def cancelled_call(self, number: int) -> None:
        self._words[_CANCELLED] = number
