"""Every example is run, on input small enough for a test, and its output is looked at."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.test_processes import ENVIRONMENT, ROOT

if TYPE_CHECKING:
    from pathlib import Path


def run_example(name: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, f"examples/{name}.py", *arguments],
        capture_output=True, text=True, timeout=100, check=False, cwd=ROOT,
        env={**ENVIRONMENT, "PYTHONWARNINGS": "", "COLUMNS": "100"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout


def test_corpus_counts_names_and_not_words_in_strings_or_comments(tmp_path: Path) -> None:
    pytest.importorskip("rich")
    (tmp_path / "one.py").write_text('apple = "pear pear pear"  # pear\napple(apple)\nif plum: """pear\npear"""\n')
    (tmp_path / "two.py").write_text("apple = rb'pear' + plum\n" * 10)
    output = run_example("corpus", str(tmp_path))
    assert "2 files" in output
    assert re.search(r"apple\s+│ 13 ", output)
    assert re.search(r"plum\s+│ 11 ", output)
    assert "pear" not in output
    assert "all equal" in output


def test_corpus_of_many_ranges_equals_the_serial_count() -> None:
    pytest.importorskip("rich")
    output = run_example("corpus", os.path.dirname(os.__file__) + "/asyncio", os.path.dirname(os.__file__) + "/test")
    assert "ranges counted serially as well: all equal" in output
    assert re.search(r"fdpool \d+\.\d\d s, ProcessPoolExecutor \d+\.\d\d s", output)


def test_corpus_without_files_says_so(tmp_path: Path) -> None:
    pytest.importorskip("rich")
    result = subprocess.run(
        [sys.executable, "examples/corpus.py", str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, env=ENVIRONMENT,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == f"no Python files in {tmp_path}\n"


def test_memfd_handoff_shows_that_both_sides_see_the_same_pages() -> None:
    output = run_example("memfd_handoff", "16")
    assert len(re.findall(r"MiB +[\d.]+ µs  signed by worker \d+", output)) == 3
    assert "SHA-256 of 16 MiB by the worker" in output
    assert len(set(re.findall(r"signed by worker (\d+)", output))) == 1


def test_socket_handoff_loses_no_request_when_a_worker_is_killed() -> None:
    output = run_example("socket_handoff")
    (killed,) = re.findall(r"worker (\d+) answered; killing it", output)
    assert f"worker {killed} was killed by SIGKILL while running workers.echo.serve" in output
    (answered,) = re.findall(r"20 requests later, none lost: answered by \[(.*)\]", output)
    assert killed not in answered


def test_parallel_image_fills_one_image_from_several_workers(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    output = run_example("parallel_image", "--size", "300x600", "--directory", str(tmp_path))
    assert re.findall(r"300x600, (\d) workers: [\d.]+ s", output) == ["1", "2"]
    before, after = map(float, re.findall(r"[\d.]+ (?=before|after)", output))
    assert after > before
    assert (tmp_path / "before.png").read_bytes()[:4] == (tmp_path / "after.png").read_bytes()[:4] == b"\x89PNG"
