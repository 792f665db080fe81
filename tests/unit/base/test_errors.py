"""Errors: who must act, and what each says."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.errors import (
    CharonRefused,
    CharonUnavailable,
    ConfigError,
    IscsiIpsecError,
    KernelUnavailable,
    NotPermitted,
    StateUnavailable,
    Unavailable,
)
from iscsi_ipsec.base.problem import Problem


def test_config_error_names_every_problem() -> None:
    problems = (Problem(code="a", message="one", file="x.toml", line=2), Problem(code="b", message="two"))
    error = ConfigError(problems)
    assert error.problems == problems
    assert str(error) == "x.toml:2: one; two"


def test_charon_refused_names_command_item_and_reason() -> None:
    error = CharonRefused("load-conn", "iscsi-ipsec-10.0.0.20-3260", "invalid value for: proposals")
    assert (
        str(error) == "charon refused load-conn of iscsi-ipsec-10.0.0.20-3260: invalid value for: proposals"
    )
    assert (error.command, error.item, error.reason) == (
        "load-conn", "iscsi-ipsec-10.0.0.20-3260", "invalid value for: proposals",
    )  # fmt: skip


@pytest.mark.parametrize("kind", [CharonUnavailable, StateUnavailable])
def test_unavailable_names_path_and_reason(kind: type[CharonUnavailable | StateUnavailable]) -> None:
    error = kind("/run/x", "No space left on device")
    assert "/run/x: No space left on device" in str(error)
    assert error.reason == "No space left on device"


@pytest.mark.parametrize("kind", [CharonUnavailable, KernelUnavailable, StateUnavailable])
def test_unavailable_is_what_a_second_try_may_cure(kind: type[Unavailable]) -> None:
    assert issubclass(kind, Unavailable)


@pytest.mark.parametrize("kind", [CharonRefused, ConfigError, NotPermitted])
def test_what_a_second_try_alone_cannot_cure_is_not_unavailable(kind: type[IscsiIpsecError]) -> None:
    assert not issubclass(kind, Unavailable)
