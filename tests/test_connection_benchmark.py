"""End-to-end test: the benchmark runs, and its variants cost what they are documented to."""

from __future__ import annotations

import json

from tests.support.programs import REPOSITORY, run_python

PROGRAM = REPOSITORY / "benchmarks" / "connection.py"


def test_a_burst_at_once_costs_less_than_message_by_message() -> None:
    finished = run_python(PROGRAM, "--seconds", "0.02", "--json")
    assert finished.stderr == ""
    for variants in json.loads(finished.stdout).values():
        at_once, one_by_one = list(variants.values())[-2:]
        assert 0 < at_once < one_by_one


def test_the_tables_compare_with_the_raw_system_calls() -> None:
    finished = run_python(PROGRAM, "--seconds", "0.001")
    assert finished.stderr == ""
    assert finished.stdout.count("against raw") == 2
    assert finished.stdout.count("1.00 x") >= 2
