"""Networks in which nobody has named a portal yet: the closed ones, and their exceptions."""

from __future__ import annotations

from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.portal import EVERYWHERE
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.desired import Desired
from tests.support.values import (
    CLEAR,
    SOURCE,
    broken,
    derived,
    per_id,
    policy,
    record,
    serves,
)


def ranges(desired: Desired) -> tuple[set[str], set[str]]:
    """The closed networks, and the exceptions in or beside them."""
    assert len(set(desired.clear_exceptions)) == len(desired.clear_exceptions)
    return {*map(str, desired.networks)}, {*map(str, desired.clear_exceptions)}


def test_closed_networks_are_those_that_policies_and_broken_files_name_to_initiators() -> None:
    parts = (
        policy("10.1.0.0/16", "[fd01::/64]:3261", "10.1.0.9", "san.lab", name="closed"),
        policy("10.2.0.0/16", "[fd02::/64]:3261", "10.2.0.9", "san.lab", name="clear", flags=CLEAR),
        serves("10.3.0.0/16", name="serves"),
        serves("10.4.0.0/16", name="serves-in-clear", flags=CLEAR),
    )
    mistaken = (
        *broken("10.5.0.0/16", "10.5.0.9", "san.lab"),
        *broken("10.6.0.0/16", role=Role.TARGET),
        *broken("10.7.0.0/16", is_policy=False),
    )
    closed = {"10.1.0.0/16:3260", "[fd01::/64]:3261", "10.5.0.0/16:3260", "10.7.0.0/16:3260"}
    clear = {"10.2.0.0/16:3260", "[fd02::/64]:3261"}
    assert ranges(derived(*parts, broken=mistaken)) == (closed, {*clear, "10.2.0.9:3260"})
    by_default = Settings(default_choice=CLEAR)
    assert ranges(derived(*parts, broken=mistaken, settings=by_default)) == (
        {"10.5.0.0/16:3260", "10.7.0.0/16:3260"},
        {*clear, "10.1.0.0/16:3260", "[fd01::/64]:3261", "10.1.0.9:3260", "10.2.0.9:3260"},
    )
    required = derived(*parts, broken=mistaken, settings=Settings(require_ipsec=True))
    assert (required.networks, required.clear_exceptions) == (EVERYWHERE, ())


def test_clear_exceptions_leave_out_what_as_narrow_a_policy_closes_on_the_port() -> None:
    desired = derived(
        policy("10.0.0.0/8", name="wide", flags=CLEAR),
        policy("10.0.0.0/9", "10.160.0.0/12", "[10.192.0.0/10]:3261", name="narrower"),
        policy("10.64.0.0/10", name="narrowest", flags=CLEAR),
        policy("[10.0.0.0/7]:3260", "172.16.0.0/12", name="wider"),
        policy("172.16.0.0/12", name="also-in-clear", flags=CLEAR),
    )
    assert ranges(desired)[1] == {
        *("10.128.0.0/11:3260", "10.176.0.0/12:3260", "10.192.0.0/10:3260"),  # 10.0.0.0/8
        "10.64.0.0/10:3260",
    }


def test_clear_exceptions_have_an_unencrypted_portal_on_its_port_inside_of_a_closed_network() -> None:
    desired = derived(
        policy("10.0.0.0/24", "[10.0.0.0/24]:3261", name="closed", psk="db1"),
        policy("10.0.0.20:3261", "[fd00::20]:3260", name="clear", flags=CLEAR),
        serves("10.0.0.250", name="serves-in-clear", flags=CLEAR),
        per_id("db1", portals=["10.0.0.0/24"]),
        record("10.0.0.21"),
        record("192.0.2.1"),
        local=[SOURCE, "10.0.0.250"],
    )
    assert ranges(desired) == (
        {"10.0.0.0/24:3260", "10.0.0.0/24:3261"},
        {"10.0.0.20:3261", "[fd00::20]:3260"},
    )
