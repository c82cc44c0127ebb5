"""The command `fdpool`, also `python -m fdpool`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from fdpool.doctor import Finding, examine

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with *arguments*, those of the process by default; return its exit code."""
    parser = argparse.ArgumentParser(prog="fdpool", description="Run Python work in other Linux processes.")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser(
        "doctor",
        help="say what this machine offers, and what fdpool does without it",
        description="Say what this kernel and interpreter offer. Exits with 1 if fdpool cannot work here.",
    )
    doctor.add_argument("--json", action="store_true", help="for programs to read")
    options = parser.parse_args(arguments)
    findings = examine()
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _show(findings)
    return 1 if any(finding.is_required and not finding.is_there for finding in findings) else 0


def _show(findings: list[Finding]) -> None:
    rows = [_row(finding) for finding in findings]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, (7, 30, 40, 0), strict=True)).rstrip())
        return
    table = Table("", "", "found", "", title="fdpool doctor", box=None)
    for row in rows:
        style = {"yes": None, "no": "yellow", "MISSING": "bold red"}[row[0]]
        table.add_row(*row, style=style)
    Console(soft_wrap=False).print(table, markup=False)


def _row(finding: Finding) -> tuple[str, str, str, str]:
    if finding.is_there:
        return "yes", finding.name, finding.detail, ""
    return "MISSING" if finding.is_required else "no", finding.name, finding.detail, f"without it: {finding.without}"
