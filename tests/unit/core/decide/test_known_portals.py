"""Which portals there are, and which names must be looked up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.core.decide.derive import derive
from iscsi_ipsec.core.decide.known_portals import candidates, kept_names, wanted_names
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.world import PortalBinding
from tests.support.values import (
    SOURCE,
    TARGET,
    address,
    broken,
    connection_of,
    derived,
    discovery,
    group,
    managed,
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
        per_id("db1", portals=["10.0.0.25", "10.1.0.0/16", SOURCE]),
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
        (PortalBinding(portal("10.0.0.25")), ("key psk.d/db1.toml",)),
        (PortalBinding(portal("10.0.0.94")), ("key the/file.toml",)),
    ]


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


# -- where portals come from


def test_candidates_keep_the_lost_address_of_a_name() -> None:
    desired = derived(policy("san.example.com"), group(), names={}, previously_managed=[TARGET])
    assert desired.guarded == (portal(),)


def test_candidates_have_a_plain_policys_portal_before_the_first_discovery() -> None:
    assert derived(group(), policy()).guarded == (portal(),)


def test_candidates_have_no_portal_of_a_policys_network() -> None:
    assert derived(group(), policy("10.0.0.0/24")).portals == ()


def test_candidates_have_the_portal_of_a_discovery_record() -> None:
    view = view_of(managed(group(), discovery()))
    assert view.managed
    assert view.connection is not None
    assert view.origins == ("discovery record send_targets/10.0.0.20,3260",)


def test_candidates_have_the_portal_that_a_session_was_redirected_to() -> None:
    desired = managed(group(), record(TARGET), session("10.0.0.77", persistent=TARGET))
    assert desired.guarded == (portal(TARGET), portal("10.0.0.77"))
    assert connection_of(desired, "10.0.0.77").remote_address == address("10.0.0.77")


def test_candidates_have_no_second_binding_for_a_session_to_a_known_portal() -> None:
    desired = derived(group(), record(net_ifacename="ens4"), session())
    assert [v.binding.oif for v in desired.portals] == ["ens4"]


@pytest.mark.parametrize("transport", ["bnx2i", "iser"])
def test_candidates_leave_out_the_portal_of_an_offload_card(transport: str) -> None:
    assert derived(group(), record(transport=transport)).portals == ()


def test_candidates_name_each_origin_of_a_portal_once() -> None:
    (view,) = derived(group(), record(), record(), discovery(), policy()).portals
    assert len(view.origins) == len(set(view.origins)) == 3


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


@pytest.mark.parametrize("host", ["0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "ff02::1"])  # noqa: S104  # what targets announce
def test_candidates_leave_out_addresses_that_no_single_host_can_have(host: str) -> None:
    assert derived(group(), record(host)).portals == ()


# -- names whose answers change


def kept(sessions: Any = (), records: Any = (), answer: str = "10.0.0.21") -> list[str]:
    before, now = {"san.lab": (address(TARGET),)}, {"san.lab": (address(answer),)}
    return [*map(str, kept_names(before, now, sessions, records)["san.lab"])]


def test_kept_names_have_an_earlier_address_while_a_session_or_a_record_uses_it() -> None:
    assert kept() == ["10.0.0.21"]
    assert kept([session(TARGET)]) == ["10.0.0.21", TARGET]
    assert kept([session("10.0.0.99", persistent=TARGET)]) == ["10.0.0.21", TARGET], "a login redirect"
    assert kept(records=[record()]) == ["10.0.0.21", TARGET]
    assert kept([session("10.0.0.21")], [record("10.0.0.22"), record("san.lab")]) == ["10.0.0.21"]
    assert kept([session(TARGET)], answer=TARGET) == [TARGET], "once"


def test_a_name_that_answers_otherwise_leaves_policy_and_key_to_the_address_that_a_session_uses() -> None:
    parts = (policy("san.lab"), per_id("db1", portals=["san.lab"]), session())
    before = world(*parts, names={"san.lab": [TARGET]})
    now = {"san.lab": (address("10.0.0.21"),)}
    after = replace(before, names=kept_names(before.names, now, before.sessions, before.records))
    old, new = derive(Lookup(before)), derive(Lookup(after))
    assert view_of(new).connection == view_of(old).connection is not None
    assert view_of(new, "10.0.0.21").connection
