"""Which policy a portal gets."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.portal import parse_portal_pattern
from iscsi_ipsec.core.decide.policy_choice import served_by
from tests.support.values import (
    TARGET,
    address,
    connection_of,
    derived,
    group,
    per_id,
    policy,
    portal,
    record,
    serves,
    view_of,
    world,
)


def test_served_by_a_network_are_the_hosts_own_addresses_in_it_without_link_local_ones() -> None:
    own = ["fe80::2", "fd00::2", "10.0.0.9", "fd00::1", "10.0.0.10", "192.0.2.1"]
    zoned: Address = ipaddress.ip_address("fd00::3%eth0")
    of = world(names={"san.lab": ["10.0.0.21", "fd00::21"]})
    of = replace(of, local_addresses=frozenset([*map(address, own), zoned]))
    for pattern, served in {
        "10.0.0.0/24:3261": ["10.0.0.9:3261", "10.0.0.10:3261"],
        "[::/0]:3262": ["[fd00::1]:3262", "[fd00::2]:3262"],
        "0.0.0.0/0": ["10.0.0.9:3260", "10.0.0.10:3260", "192.0.2.1:3260"],
        "10.0.0.30:3263": ["10.0.0.30:3263"],
        "san.lab:3264": ["10.0.0.21:3264", "[fd00::21]:3264"],
        "unknown.lab": [],
    }.items():
        assert [*map(str, served_by(of, parse_portal_pattern(pattern)))] == served


def test_policy_for_takes_the_most_specific_pattern() -> None:
    policies = (
        policy("0.0.0.0/0", name="1-all", psk="all"),
        policy("10.0.0.0/8", name="2-wide", psk="wide"),
        policy("10.0.0.0/24", name="3-narrow", psk="narrow"),
        policy(TARGET, name="4-exact", psk="exact"),
    )
    keys = tuple(per_id(n) for n in ("all", "wide", "narrow", "exact"))
    records = tuple(record(h) for h in ("192.0.2.1", "10.1.0.1", "10.0.0.21", TARGET))
    desired = derived(*policies[::-1], *keys, *records)
    assert [connection_of(desired, r.host).key.name for r in records] == ["all", "wide", "narrow", "exact"]


def test_policy_for_takes_the_first_file_by_name_of_equally_specific_ones() -> None:
    one, two = policy(name="10-a", psk="a"), policy(name="20-b", psk="b")
    for order in ((one, two), (two, one)):
        assert connection_of(derived(*order, per_id("a"), per_id("b"))).key.name == "a"


def test_policy_for_compares_the_port() -> None:
    desired = derived(policy(f"{TARGET}:3261"), group(), record(port=3260))
    assert view_of(desired, f"{TARGET}:3260").policy == ""
    assert view_of(desired, f"{TARGET}:3261").policy == "portal.d/san.toml"


def test_policy_for_an_initiator_ignores_target_policies() -> None:
    assert view_of(derived(group(), serves("10.0.0.0/24"), record())).policy == ""


def test_policy_for_takes_a_named_pattern_for_each_of_its_addresses() -> None:
    desired = derived(
        policy("san.example.com"), group(), names={"san.example.com": ["10.0.0.20", "10.0.0.21", "fd00::20"]}
    )
    assert desired.guarded == tuple(map(portal, ("10.0.0.20", "10.0.0.21", "[fd00::20]")))
