"""What a world names: portals, routes and names to ask for; and what is taken over from the world before it."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.portal import parse_portal_pattern
from iscsi_ipsec.core.decide.world import Lookup, PortalBinding, candidates, served_by, wanted_names
from tests.support.values import (
    TARGET,
    address,
    broken,
    discovery,
    per_id,
    policy,
    portal,
    record,
    serves,
    session,
    world,
)


def test_each_portal_is_told_with_all_that_names_it_and_no_other() -> None:
    of = world(
        record(net_ifacename="ens4"),
        discovery(),
        record("san.lab", 3262),
        record("10.0.0.90", transport="bnx2i"),
        policy(TARGET, "san.lab:3261", "10.0.0.0/24"),
        serves("10.0.0.91"),
        session(TARGET, sid=1),
        session("10.0.0.22", sid=2),
        names={"san.lab": ["10.0.0.21"]},
        previously_managed=[TARGET, "10.0.0.23", ("10.0.0.92", Role.TARGET)],
        broken=broken("10.0.0.24") + broken("10.0.0.93", role=Role.TARGET) + broken("10.0.0.94", is_policy=False),
    )  # fmt: skip
    assert list(candidates(of).items()) == [
        (
            PortalBinding(portal()),
            ("discovery record send_targets/10.0.0.20,3260", "policy portal.d/san.toml"),
        ),
        (PortalBinding(portal(), "ens4"), ("node record nodes/10.0.0.20,3260",)),
        (PortalBinding(portal("10.0.0.21:3261")), ("policy portal.d/san.toml",)),
        (PortalBinding(portal("10.0.0.21:3262")), ("node record nodes/san.lab,3262",)),
        (PortalBinding(portal("10.0.0.22")), ("iSCSI session 2",)),
        (PortalBinding(portal("10.0.0.23")), ("managed before",)),
        (PortalBinding(portal("10.0.0.24")), ("policy the/file.toml",)),
    ]


def test_a_policys_network_serves_the_hosts_own_addresses_in_it_and_those_of_no_link() -> None:
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


def test_names_are_asked_for_and_neither_addresses_nor_what_has_a_zone() -> None:
    records = [record(host) for host in ("a.lab", TARGET, "fd00::20", "fe80::1%eth0", "")]
    asked = wanted_names(
        records,
        broken("b.lab", TARGET),
        [policy("c.lab:3261", "10.0.0.0/24")],
        [per_id("x", portals=["d.lab"]), per_id("y")],
    )
    assert asked == {
        "a.lab": "nodes/a.lab,3260",
        "b.lab": "the/file.toml",
        "c.lab": "portal.d/san.toml",
        "d.lab": "psk.d/x.toml",
    }


BEFORE = Lookup(world(per_id("db1"), policy(), policy("10.0.0.0/24", name="net"), record()))


@pytest.mark.parametrize(
    ("other", "taken"),
    [
        ({"keys": ()}, True),
        ({"sources": {}}, True),
        ({"records": (record("10.0.0.99"),)}, False),
        ({"policies": ()}, False),
        ({"broken": broken("10.0.0.99")}, False),
        ({"names": {"san.lab": (address("10.0.0.99"),)}}, False),
        ({"sessions": (session("10.0.0.99"),)}, False),
        ({"previously_managed": frozenset({(portal("10.0.0.99"), Role.INITIATOR)})}, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_portals_are_gathered_anew_only_where_what_names_them_differs(
    other: dict[str, object], taken: bool
) -> None:
    of = replace(BEFORE.world, **other)  # type: ignore[arg-type]  # one field of many
    anew, after = Lookup(of), Lookup(of, BEFORE)
    assert (after.candidates is BEFORE.candidates) is (after.wanted_sources is BEFORE.wanted_sources) is taken
    assert (after.candidates, after.wanted_sources) == (anew.candidates, anew.wanted_sources)
    for at in map(portal, (TARGET, "10.0.0.99")):
        assert after.policy_for(at, Role.INITIATOR) == anew.policy_for(at, Role.INITIATOR)


def test_the_same_arrangement_serves_for_a_world_with_other_routes() -> None:
    before, of = BEFORE.world, replace(BEFORE.world, sources={(address(TARGET), ""): address("10.0.0.6")})
    lookup = BEFORE.with_sources(of)
    assert lookup.world is of
    assert BEFORE.world is before
    assert lookup.candidates is BEFORE.candidates
    assert lookup.policy_for(portal(), Role.INITIATOR) is BEFORE.policy_for(portal(), Role.INITIATOR)
