"""The command line: what it prints, and what it exits with."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fdpool import cli, doctor
from fdpool.doctor import Finding


@pytest.fixture
def bad_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lacks something that fdpool needs, and something that it does not."""
    findings = [
        Finding("pidfd", False, "Function not implemented", "does not run", is_required=True),
        Finding("Landlock", False, "Operation not supported", "nothing changes"),
        Finding("kernel", True, "Linux 6.18", "does not run", is_required=True),
    ]
    monkeypatch.setattr(cli, "examine", lambda: findings)


def test_this_machine_passes_and_programs_can_read_it() -> None:
    result = subprocess.run([sys.executable, "-m", "fdpool", "doctor", "--json"], capture_output=True, check=False)
    assert result.returncode == 0
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)}
    assert findings["pidfd"]["is_there"]
    assert findings["Python"]["detail"].startswith("CPython 3.")
    assert all(finding["without"] for finding in findings.values())


@pytest.mark.parametrize("has_rich", [True, False])
@pytest.mark.usefixtures("bad_machine")
def test_what_is_missing_is_named_with_what_follows_and_the_exit_code_says_so(
    has_rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if has_rich:
        pytest.importorskip("rich")
        monkeypatch.setenv("COLUMNS", "200")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    assert cli.main(["doctor"]) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "MISSING pidfd Function not implemented without it: does not run" in lines
    assert "no Landlock Operation not supported without it: nothing changes" in lines
    assert "yes kernel Linux 6.18" in lines


def test_a_question_whose_answer_is_an_error_is_a_no() -> None:
    def refuse() -> str:
        raise OSError(38, "Function not implemented")

    finding = doctor._Question("it", refuse, "nothing").answer()
    assert not finding.is_there
    assert "Function not implemented" in finding.detail


def test_an_old_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "4.19.0-generic")
    (kernel,) = (finding for finding in doctor.examine() if finding.name == "kernel")
    assert not kernel.is_there
    assert "4.19.0-generic" in kernel.detail


def test_without_a_command_it_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "usage: fdpool" in capsys.readouterr().err
