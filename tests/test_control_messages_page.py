"""The page on control messages is right: its recipes run, and its table is the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fdpool.kernel
from fdpool.kernel import CONTROL_MESSAGES

PAGE = (Path(__file__).parents[1] / "docs" / "control-messages.md").read_text()
HEADINGS_AND_BLOCKS = re.findall(r"^#+ ([^\n]*)$|^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def recipes() -> list[tuple[str, str]]:
    heading, found = "", []
    for text, code in HEADINGS_AND_BLOCKS:
        if text:
            heading = text
        else:
            found.append((heading, code))
    return found


@pytest.mark.parametrize(("heading", "code"), recipes(), ids=lambda value: value[:40].splitlines()[0])
def test_the_recipe_runs(heading: str, code: str) -> None:
    exec(compile(code, f"<{heading}>", "exec"), {"__name__": "__main__"})


def test_the_table_has_every_message_with_its_numbers_and_fields() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| ([^|]+) \| [^|]+ \| [^|]+ \| ([^|]+) \|", PAGE, re.MULTILINE)
    listed = {
        (int(level), int(number)): getattr(fdpool.kernel, name)
        for name, level, types, _ in rows
        for number in re.findall(r"\d+", types)
    }
    assert listed == CONTROL_MESSAGES
    for name, _, _, fields in rows:
        if not fields.startswith("as "):
            for field in re.findall(r"`(\w+)`", fields):
                assert hasattr(getattr(fdpool.kernel, name), field)
