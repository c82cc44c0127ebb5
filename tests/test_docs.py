"""What the pages promise is held by tests, and their snippets run."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.test_processes import ENVIRONMENT, ROOT

if TYPE_CHECKING:
    from pathlib import Path

TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/migration.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", re.findall(r"`(test_\w+)`", (ROOT / "docs/pool.md").read_text()))
def test_a_test_that_is_said_to_hold_a_promise_is_there(name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", TESTS, re.MULTILINE)


def test_every_snippet_has_its_counterpart() -> None:
    assert len(SNIPPETS) == 12


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_does_what_its_counterpart_does(snippet: str, tmp_path: Path) -> None:
    for library in ("anyio", "joblib", "trio_parallel"):
        if f"import {library}" in snippet:
            pytest.importorskip(library)
    script = tmp_path / "snippet.py"
    script.write_text(snippet + "\nif __name__ == '__main__':\n    print(work())\n")
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False,
        env={**ENVIRONMENT, "PYTHONWARNINGS": ""},
    )  # fmt: skip
    assert result.stdout == "([1, 2], 32)\n", result.stderr
