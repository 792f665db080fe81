"""A memo computes again exactly when an argument differs."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.memo import Memo


def test_memo_returns_the_same_object_for_equal_arguments() -> None:
    memo = Memo(lambda *parts: [*parts])
    first = memo((1, 2), {"a": [3]})  # unhashable arguments too
    assert memo((1, 2), {"a": [3]}) is first


def test_memo_computes_again_for_another_argument_and_keeps_only_the_last() -> None:
    seen: list[int] = []

    def listed(part: int) -> list[int]:
        seen.append(part)
        return [part]

    memo = Memo(listed)
    for part in (1, 1, 2, 2, 1):
        assert memo(part) == [part]
    assert seen == [1, 2, 1]


def test_memo_computes_the_first_time_without_any_argument() -> None:
    calls: list[None] = []
    memo = Memo(lambda: calls.append(None))
    memo()
    memo()
    assert len(calls) == 1


def test_memo_keeps_its_last_value_when_the_function_raises() -> None:
    memo = Memo(lambda part: 10 // part)
    assert memo(5) == 2
    with pytest.raises(ZeroDivisionError):
        memo(0)
    assert memo(5) == 2
    with pytest.raises(ZeroDivisionError):
        memo(0)
