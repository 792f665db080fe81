"""Keys: two that differ in anything that is sent or chosen by are two keys."""

from __future__ import annotations

from tests.support.values import per_id


def test_per_id_key_with_an_id_of_another_case_is_another_key_for_an_equal_identity() -> None:
    lower, upper = per_id("db1.lab", name="db1"), per_id("DB1.lab", name="db1")
    assert lower.id == upper.id
    assert lower != upper
    assert (lower.id_as_written, upper.id_as_written) == ("db1.lab", "DB1.lab")


def test_per_id_key_shows_no_secret() -> None:
    assert "canary" not in repr(per_id("db1", secret=b"canary-key-0123456789"))
