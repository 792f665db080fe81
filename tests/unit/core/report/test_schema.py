"""The rows of `status --json` that the command makes by itself, whole, and a problem as one sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.report.schema import has_errors, problem_row, sentence, session_row
from tests.support.values import SOURCE, TARGET, address, session


@pytest.mark.parametrize(
    ("remote", "own", "local"),
    [
        (f"{TARGET}:3260", address(SOURCE), f"{SOURCE}:40007"),
        ("[fd00::20]:3261", address("fd00::1"), "[fd00::1]:40007"),
        (f"{TARGET}:3260", None, None),
    ],
)
def test_session_row_shows_both_ends_as_portals_are_written(
    remote: str, own: Address | None, local: str | None
) -> None:
    assert session_row(replace(session(remote, sid=7), local_address=own)) == {
        "sid": 7,
        "target": "iqn.2024-01.com.example:a",
        "state": "LOGGED_IN",
        "transport": "iscsi_tcp",
        "local": local,
        "remote": remote,
    }


FULL: dict[str, Any] = {
    "code": "no-key", "file": "a.toml", "line": 3, "portal": "10.0.0.20:3260",
    "message": "the key is missing", "hint": "write one",
}  # fmt: skip
NOTHING: dict[str, Any] = {"file": None, "line": None, "portal": None, "hint": None}


@pytest.mark.parametrize("severity", Severity)
def test_a_problems_row_has_all_fields_and_null_for_nothing(severity: Severity) -> None:
    empty: dict[str, Any] = {"code": "no-key", "message": "the key is missing"}
    assert problem_row(Problem(**FULL, severity=severity)) == {**FULL, "severity": severity.value}
    assert problem_row(Problem(**empty, severity=severity)) == {
        **NOTHING, **empty, "severity": severity.value,
    }  # fmt: skip
    assert has_errors([problem_row(Problem(**empty, severity=severity))]) is (severity is Severity.ERROR)


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        ("", "a.toml:3: the key is missing (write one)"),
        ("hint", "a.toml:3: the key is missing"),
        ("line", "a.toml: the key is missing (write one)"),
        ("file", "10.0.0.20:3260: the key is missing (write one)"),
        ("file portal", "the key is missing (write one)"),
        ("file portal line hint", "the key is missing"),
    ],
)
def test_a_problem_is_one_sentence_that_begins_with_its_place(without: str, expected: str) -> None:
    problem = Problem(**{name: value for name, value in FULL.items() if name not in without.split()})
    assert sentence(problem_row(problem)) == str(problem) == expected
