"""The inputs that a pass reads: those its wakeups name, and periodically the others."""

from __future__ import annotations

import pytest

from iscsi_ipsec.service.pass_schedule import LITTLE, MUCH, PARTS, RELOAD, RESYNC, START, ResyncSchedule


@pytest.mark.parametrize("reason", [START, RELOAD])
def test_a_start_and_a_reload_look_at_everything(reason: str) -> None:
    assert ResyncSchedule().inputs_due(frozenset({reason}), 100_000) >= set(PARTS)


def test_where_there_is_little_each_regular_pass_looks_at_everything() -> None:
    turns = ResyncSchedule()
    for _ in range(3):
        assert turns.inputs_due(frozenset({RESYNC}), LITTLE) >= set(PARTS)


def test_where_there_is_much_regular_passes_look_at_one_part_after_the_other() -> None:
    turns = ResyncSchedule()
    looked = [turns.inputs_due(frozenset({RESYNC}), LITTLE + 1) & set(PARTS) for _ in range(2 * len(PARTS))]
    assert [len(parts) for parts in looked] == [1] * len(looked)
    assert frozenset().union(*looked[: len(PARTS)]) == frozenset().union(*looked[len(PARTS) :]) == set(PARTS)


def test_where_there_is_very_much_every_other_regular_pass_looks_at_a_part() -> None:
    turns = ResyncSchedule()
    looked = [turns.inputs_due(frozenset({RESYNC}), MUCH + 1) & set(PARTS) for _ in range(2 * len(PARTS))]
    assert [len(parts) for parts in looked] == [1, 0] * len(PARTS)
    assert frozenset().union(*looked) == set(PARTS)
    assert [turns.inputs_due(frozenset({RESYNC}), size) & set(PARTS) for size in (MUCH, MUCH)] == [
        {PARTS[0]},
        {PARTS[1]},
    ]


@pytest.mark.parametrize("reason", ["sa", "due", "files", "cause"])
def test_a_wakeup_looks_at_nothing_that_it_does_not_call_for(reason: str) -> None:
    assert ResyncSchedule().inputs_due(frozenset({reason}), 0) == {reason}
