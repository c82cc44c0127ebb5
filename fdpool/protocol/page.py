"""The control page: a few words of memory that a worker and its supervisor share.

It says what a message could not, because the one who would send it may be dead: which call had begun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Buffer

PAGE_BYTES: Final = 4096
DUMP_BYTES: Final = 60 * 1024
"""How much follows the page in the same memory, for text that a worker writes without asking its interpreter."""
_BEGUN: Final = 0
_CANCELLED: Final = 1
_BEAT: Final = 8
_DUMPS: Final = 9


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

    @property
    def beat(self) -> int:
        """A number that changes while the worker runs Python code. Written by the worker, if it was told to."""
        return self._words[_BEAT]

    @beat.setter
    def beat(self, number: int) -> None:
        self._words[_BEAT] = number

    @property
    def answers_dumps(self) -> bool:
        """Whether the signal that asks for its stacks does no harm any more. Written by the worker."""
        return bool(self._words[_DUMPS])

    @answers_dumps.setter
    def answers_dumps(self, value: bool) -> None:
        self._words[_DUMPS] = value
