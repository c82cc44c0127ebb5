"""What the README shows is true: its example runs, and prints what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.test_processes import ENVIRONMENT, ROOT

README = (ROOT / "README.md").read_text()


def block(language: str, number: int = 0) -> str:
    text: str = re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)[number]
    return text


def test_the_example_prints_what_the_readme_says(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(block("python"))
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT
    )
    assert result.stderr == ""
    output = re.sub(r"worker \d+", "worker 4242", result.stdout)
    output = re.sub(r"after \S+ seconds, with \S+ MiB", "after 0.06 seconds, with 25.3 MiB", output)
    assert output == block("text")


def test_the_layer_picture_is_the_one_in_the_package() -> None:
    import fdpool

    def names(text: str) -> list[str]:
        picture = text[text.index("examples/") : text.index("worker/   what")]
        return re.findall(r"[a-z]{4,}/?", picture)

    assert fdpool.__doc__ is not None
    assert names(README[README.index("## How it is built") :]) == names(fdpool.__doc__)


def test_every_file_it_names_is_there() -> None:
    for name in re.findall(r"\(((?:docs|examples)/[\w./-]+)\)|`((?:examples|benchmarks)/[\w./-]+)`", README):
        assert (ROOT / (name[0] or name[1])).exists(), name
