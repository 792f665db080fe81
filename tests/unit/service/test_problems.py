"""Problems and journal fields that several parts of a pass report in the same words."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.service.problems import (
    fields,
    kernel_problem,
    message_id,
    state_problem,
    unlisted_problem,
)


def test_message_id_never_changes() -> None:
    """Operators' rules name them."""
    assert message_id("wrong-key") == "131e313e4e925d0b9479cae8740b1d11"
    assert message_id("guard-changed") == "04011e70e0595b3ea72ce9acfb74a8f3"


def test_fields_has_what_is_known_and_nothing_empty() -> None:
    assert fields() == {"fields": {}}
    assert fields(portal="10.0.0.20:3260", note="released") == {
        "fields": {"ISCSI_PORTAL": "10.0.0.20:3260", "MESSAGE_ID": message_id("released")}
    }
    assert fields(item="iscsi-ipsec-10.0.0.20-3260")["fields"] == {
        "IPSEC_CONNECTION": "iscsi-ipsec-10.0.0.20-3260"
    }


@pytest.mark.parametrize(
    ("problem", "code", "severity"),
    [
        (kernel_problem(OSError("no answer")), "kernel-unavailable", Severity.ERROR),
        (state_problem(OSError("no answer")), "state-unsaved", Severity.ERROR),
        (unlisted_problem(), "secrets-unlisted", Severity.WARNING),
    ],
)
def test_problem_names_what_to_do(problem: Problem, code: str, severity: Severity) -> None:
    assert (problem.code, problem.severity) == (code, severity)
    assert problem.hint


@pytest.mark.parametrize("problem_of", [kernel_problem, state_problem])
def test_problem_of_an_error_names_its_cause(problem_of: Callable[[Exception], Problem]) -> None:
    assert "no space left" in problem_of(OSError("no space left")).message
