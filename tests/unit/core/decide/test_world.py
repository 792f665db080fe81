"""What a world names: portals, routes and names to ask for; and what is taken over from the world before it."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.portal import parse_portal_pattern
from iscsi_ipsec.core.decide.world import (
    Lookup,
    PortalBinding,
    candidates,
    served_by,
    wanted_names,
    wanted_sources,
)
from tests.support.values import (
    TARGET,
    address,
    broken,
    connection_of,
    derived,
    discovery,
    group,
    per_id,
    policy,
    portal,
    record,
    serves,
    session,
    view_of,
    world,
)


def test_candidates_are_the_portals_of_all_inputs_with_their_origins() -> None:
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


def test_wanted_names_have_neither_addresses_nor_hosts_with_a_zone() -> None:
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
def test_lookup_gathers_portals_again_only_where_their_inputs_differ(
    other: dict[str, object], taken: bool
) -> None:
    of = replace(BEFORE.world, **other)  # type: ignore[arg-type]  # one field of many
    anew, after = Lookup(of), Lookup(of, BEFORE)
    assert (after.candidates is BEFORE.candidates) is (after.wanted_sources is BEFORE.wanted_sources) is taken
    assert (after.candidates, after.wanted_sources) == (anew.candidates, anew.wanted_sources)
    for at in map(portal, (TARGET, "10.0.0.99")):
        assert after.policy_for(at, Role.INITIATOR) == anew.policy_for(at, Role.INITIATOR)


def test_with_sources_keeps_what_other_routes_do_not_change() -> None:
    before, of = BEFORE.world, replace(BEFORE.world, sources={(address(TARGET), ""): address("10.0.0.6")})
    lookup = BEFORE.with_sources(of)
    assert lookup.world is of
    assert BEFORE.world is before
    assert lookup.candidates is BEFORE.candidates
    assert lookup.policy_for(portal(), Role.INITIATOR) is BEFORE.policy_for(portal(), Role.INITIATOR)


# -- which policy


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


# -- where portals come from


def test_candidates_keep_the_lost_address_of_a_name() -> None:
    desired = derived(policy("san.example.com"), group(), names={}, previously_managed=[TARGET])
    assert desired.guarded == (portal(),)


def test_candidates_have_a_plain_policys_portal_before_the_first_discovery() -> None:
    assert derived(group(), policy()).guarded == (portal(),)


def test_candidates_have_no_portal_of_a_policys_network() -> None:
    assert derived(group(), policy("10.0.0.0/24")).portals == ()


def test_candidates_have_the_portal_of_a_discovery_record() -> None:
    view = view_of(derived(group(), discovery()))
    assert view.managed
    assert view.connection is not None
    assert view.origins == ("discovery record send_targets/10.0.0.20,3260",)


def test_candidates_have_the_portal_that_a_session_was_redirected_to() -> None:
    desired = derived(group(), record(TARGET), session("10.0.0.77", persistent=TARGET))
    assert desired.guarded == (portal(TARGET), portal("10.0.0.77"))
    assert connection_of(desired, "10.0.0.77").remote_address == address("10.0.0.77")


def test_candidates_have_no_second_binding_for_a_session_to_a_known_portal() -> None:
    desired = derived(group(), record(net_ifacename="ens4"), session())
    assert [v.binding.oif for v in desired.portals] == ["ens4"]


def test_candidates_leave_out_the_portal_of_an_offload_card() -> None:
    assert derived(group(), record(transport="bnx2i")).portals == ()


def test_candidates_name_each_origin_of_a_portal_once() -> None:
    (view,) = derived(group(), record(), record(), discovery(), policy()).portals
    assert len(view.origins) == len(set(view.origins)) == 3


def test_wanted_sources_have_the_bound_interface_and_the_outer_address() -> None:
    lookup = Lookup(
        world(record(net_ifacename="ens4"), policy("10.0.0.0/24", tunnel_outer_remote=address("203.0.113.1")))
    )
    assert wanted_sources(lookup) == {(address(TARGET), "ens4"), (address("203.0.113.1"), "ens4")}


def test_candidates_come_in_a_stable_order() -> None:
    hosts = ["fd00::20", "10.0.0.3", "10.0.0.20"]
    bindings = [list(candidates(world(*map(record, order)))) for order in (hosts, hosts[::-1])]
    assert (
        bindings[0]
        == bindings[1]
        == [PortalBinding(portal(h)) for h in ("10.0.0.3", "10.0.0.20", "[fd00::20]")]
    )


def test_candidates_have_an_ipv4_mapped_portal_as_the_ipv4_portal_that_tcp_uses() -> None:
    assert derived(group(), policy("[::ffff:10.0.0.20]:3260")).guarded == (portal(TARGET),)
