"""Records of open-iscsi: which of them are for discovery."""

from __future__ import annotations

from tests.support.values import discovery, record


def test_is_discovery_is_a_record_without_a_target() -> None:
    assert discovery().is_discovery
    assert not record().is_discovery
