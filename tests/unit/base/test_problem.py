"""Problems: one sentence that begins with its place, and no control characters."""

from __future__ import annotations

from typing import Any

import pytest

from iscsi_ipsec.base.problem import Problem, Severity


def test_problem_escapes_what_a_terminal_obeys() -> None:
    problem = Problem(code="x", message="a\x1b[2J", hint="b\n", file="/etc/c\x07", portal="d\r", line=1)
    assert str(problem).isprintable()
    assert (problem.message, problem.hint, problem.file, problem.portal) == (
        r"a\x1b[2J",
        r"b\n",
        r"/etc/c\x07",
        r"d\r",
    )


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (
            {"file": "a.toml", "line": 3, "portal": "10.0.0.20:3260"},
            "a.toml:3: the key is missing (write one)",
        ),
        ({"file": "a.toml", "portal": "10.0.0.20:3260"}, "a.toml: the key is missing (write one)"),
        ({"portal": "10.0.0.20:3260", "line": 3}, "10.0.0.20:3260: the key is missing (write one)"),
        ({}, "the key is missing (write one)"),
        ({"hint": ""}, "the key is missing"),
    ],
)
def test_problem_is_one_sentence_that_begins_with_its_place(place: dict[str, Any], text: str) -> None:
    whole: dict[str, Any] = {"code": "no-key", "message": "the key is missing", "hint": "write one", **place}
    assert str(Problem(**whole)) == text


def test_problem_is_an_error_of_the_whole_file_unless_it_says_otherwise() -> None:
    problem = Problem(code="no-key", message="the key is missing")
    assert (problem.severity, problem.line, problem.file, problem.portal) == (Severity.ERROR, 0, "", "")
