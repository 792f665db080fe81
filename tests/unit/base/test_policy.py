"""Settings over settings: each value alone falls back."""

from __future__ import annotations

import dataclasses

import pytest

from iscsi_ipsec.base.policy import Start, Tuning

FULL = Tuning(
    ike_proposals=("aes256-sha256-modp2048",), esp_proposals=("aes256gcm16",), ike_rekey_time=3600, esp_rekey_time=600,
    dpd_delay=0, dpd_timeout=30, replay_window=0, start=Start.START,
)  # fmt: skip


@pytest.mark.parametrize("name", Tuning.__dataclass_fields__)
def test_with_fallback_takes_each_value_of_its_own_and_the_rest_from_below(name: str) -> None:
    alone = Tuning(**{name: getattr(FULL, name)})  # 0 counts as set
    below = Tuning(ike_rekey_time=1, dpd_delay=2, start=Start.TRAP)
    assert alone.with_fallback(below) == dataclasses.replace(below, **{name: getattr(FULL, name)})


def test_with_fallback_changes_nothing_where_one_side_is_silent() -> None:
    assert FULL.with_fallback(Tuning()) == FULL == Tuning().with_fallback(FULL)


def test_with_fallback_takes_nothing_from_below_where_everything_is_set() -> None:
    assert FULL.with_fallback(Tuning(dpd_delay=9, replay_window=64)) == FULL
