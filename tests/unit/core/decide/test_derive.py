"""The decisions for all portals together: guard, networks, warnings, connections that exclude each other, memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from iscsi_ipsec.base.policy import IkeMode, Role, Tuning
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.derive import Deriver, derive
from iscsi_ipsec.core.decide.desired import Desired
from iscsi_ipsec.core.decide.lookup import Lookup
from tests.support.values import (
    SOURCE,
    TARGET,
    address,
    broken,
    choice,
    derived,
    discovery,
    group,
    managed,
    per_id,
    policy,
    portal,
    record,
    session,
    world,
)

# -- two keys for peers that charon cannot distinguish


def test_derive_refuses_two_keys_for_one_pair_of_identities() -> None:
    # IKE authenticates hosts, not ports: both secrets would have the same owners
    desired = derived(
        per_id("db1", "one", portals=[f"{TARGET}:3260"]),
        per_id("db1", "two", portals=[f"{TARGET}:3261"]),
        record(port=3260),
        record(port=3261),
    )
    owners = [entry.owners for entry in desired.secrets]
    assert len(owners) == len(set(owners))
    message = "different keys apply between db1 and 10.0.0.20: psk.d/one.toml, psk.d/two.toml"
    assert desired.problems == tuple(
        Problem(
            code="ambiguous-key",
            message=message,
            hint="let one key serve all portals of that target, or give them different target_id",
            portal=f"{TARGET}:{port}",
        )
        for port in (3260, 3261)
    )
    assert {view.reasons[-1] for view in desired.portals} == {f"{message}: the portal stays closed"}
    assert desired.guarded == (portal(), portal(f"{TARGET}:3261"))


def test_derive_shares_one_connection_between_bindings_that_differ_in_the_interface_only() -> None:
    desired = managed(
        per_id("10.0.0.1"),
        record(),
        record(net_ifacename="ens4"),
        sources={TARGET: "10.0.0.1", (TARGET, "ens4"): "10.0.0.1"},
    )
    assert len(desired.portals) == 2
    assert [c.name for c in desired.connections] == ["iscsi-ipsec-10.0.0.20-3260"]
    assert {v.connection for v in desired.portals} == set(desired.connections)


# -- what is guarded


def test_derive_guards_a_previously_managed_portal_that_nothing_names() -> None:
    desired = derived(previously_managed=[TARGET, "[fd00::20]:3260"])
    assert desired.guarded == (portal(TARGET), portal("[fd00::20]:3260"))


@pytest.mark.parametrize("host", ["fe80::1%eth0", "fe80::1%1"])
def test_derive_reports_a_portal_with_a_zone_and_does_not_guard_it(host: str) -> None:
    # nft would refuse the whole table, and with it every other portal
    desired = managed(per_id(SOURCE), group(), record(host), record())
    assert portal() in desired.guarded
    assert not any("%" in str(p) for p in desired.guarded)
    assert desired.problems == (
        Problem(
            code="link-local",
            message=f"the link-local portal {host} cannot be protected",
            hint="give the target a global or unique local address",
            file=f"nodes/{host},3260",
        ),
    )


# -- warnings


def test_derive_warns_once_about_a_group_key_in_use() -> None:
    desired = managed(group(), record("10.0.0.20"), record("10.0.0.21"))
    warnings = [p for p in desired.problems if p.code == "group-key-in-use"]
    assert warnings == [
        Problem(
            code="group-key-in-use",
            message="a group key is in use: whoever has it can pose as the target (RFC 3723, 5.8.3)",
            hint="give each initiator a key of its own",
            file="psk.d/group.toml",
            severity=Severity.WARNING,
        )
    ]


def test_derive_does_not_warn_about_an_unused_group_key() -> None:
    assert managed(group(), per_id(SOURCE), record()).problems == ()


def test_derive_warns_about_aggressive_mode() -> None:
    desired = derived(per_id(SOURCE, flags=choice(IkeMode.AGGRESSIVE), portals=[TARGET]))
    assert desired.problems == (
        Problem(
            code="aggressive-mode",
            message="aggressive mode with a pre-shared key lets a listener guess the key offline",
            hint="use IKEv2 (leave out both mode flags) where the target can",
            file=f"psk.d/{SOURCE}.toml",
            severity=Severity.WARNING,
        ),
    )


# -- connections that charon would mix up


def crossed(ike: IkeMode) -> Desired:
    """R1 shares a key with each of two identities of the host, one of which has another key for R2."""
    r1, other_portal_of_r1, r2 = "10.0.0.20:3260", "10.0.0.20:3261", "10.0.0.21:3260"
    keys = (per_id("a", name="a-r1"), per_id("a", name="a-r2"), per_id("b", name="b-r1"))
    uses = {r1: "a-r1", r2: "a-r2", other_portal_of_r1: "b-r1"}
    policies = (policy(at, name=key, psk=key, flags=choice(ike)) for at, key in uses.items())
    return managed(*keys, *policies, *(record(*split_portal(at)) for at in uses))


def split_portal(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def test_derive_refuses_a_target_whose_key_would_let_it_pose_as_another() -> None:
    # an IKEv2 peer is believed with every key that matches either id, so R1's, of [a, R1], would do for R2
    desired = crossed(IkeMode.V2)
    assert {c.key.name for c in desired.connections} == {"a-r2", "b-r1"}
    (problem,) = [p for p in desired.problems if p.code == "ambiguous-key"]
    assert (problem.portal, "pose as the others" in problem.message) == ("10.0.0.20:3260", True)
    assert portal("10.0.0.20") in desired.guarded


def test_derive_accepts_the_same_keys_with_ikev1_which_takes_the_best_match_only() -> None:
    assert {c.key.name for c in crossed(IkeMode.AGGRESSIVE).connections} == {"a-r1", "a-r2", "b-r1"}


def test_derive_gives_the_same_outcome_for_the_same_world() -> None:
    parts = (
        per_id(SOURCE),
        per_id("db1"),
        group(),
        policy(psk="db1"),
        record("fd00::20"),
        session("10.0.0.9"),
    )
    assert derived(*parts) == derived(*parts)


def test_derive_keeps_the_ports_of_one_address_apart() -> None:
    desired = derived(group(portals=[TARGET, f"{TARGET}:13260"]))
    assert {c.remote_ts for c in desired.connections} == {"dynamic[6/3260]", "dynamic[6/13260]"}
    assert desired.guarded == (Portal(address(TARGET), 3260), Portal(address(TARGET), 13260))


def test_derive_reports_a_warning_about_a_file_once_for_all_its_portals() -> None:
    aggressive = policy("10.0.0.0/24", flags=choice(IkeMode.AGGRESSIVE))
    desired = managed(per_id(SOURCE), aggressive, record(), record("10.0.0.21"))
    assert [(p.code, p.file) for p in desired.problems] == [("aggressive-mode", "portal.d/san.toml")]
    by_key = derived(per_id(SOURCE, flags=choice(IkeMode.AGGRESSIVE), portals=[TARGET, "10.0.0.21"]))
    assert [(p.code, p.file) for p in by_key.problems] == [("aggressive-mode", "psk.d/10.0.0.1.toml")]


@pytest.mark.parametrize("outer", [None, "203.0.113.1"])
def test_deriver_gives_another_source_address_another_connection(outer: str | None) -> None:
    tunnel: dict[str, Any] = {"tunnel_outer_remote": address(outer)} if outer else {}
    deriver, before = Deriver(), world(per_id("db1"), policy(psk="db1", **tunnel), record())
    lookup, here = None, address(SOURCE)
    for source in (SOURCE, "10.0.0.6", SOURCE):
        there = {(address(TARGET), ""): here, (address(outer or TARGET), ""): address(source)}
        of = dataclasses.replace(before, sources=there)
        lookup = Lookup(of, lookup)
        (view,) = deriver.derive(lookup).portals
        assert view.connection
        assert view.connection.local_address == address(source)


# -- what was derived before

NOWHERE = "nowhere.example.com"
IN_DOUBT = per_id("db1", portals=[f"{NOWHERE}:3261"])


@pytest.mark.parametrize(
    "other",
    [
        {"settings": Settings(tuning=Tuning(dpd_delay=3))},
        {"broken": broken(TARGET)},
        {"names": {NOWHERE: (address(TARGET),)}},
        {"local_addresses": frozenset({address(TARGET)})},
        {"user_space_esp": True},
        {"fast_aes": False},
        {"previously_managed": frozenset({(portal("192.0.2.1"), Role.INITIATOR)})},
        {"keys": (per_id(SOURCE), IN_DOUBT)},
        {"keys": (per_id("db2"), IN_DOUBT)},
        {"keys": (group(secret=b"another key of the group"), IN_DOUBT)},
        {"keys": (group(), IN_DOUBT, per_id("db3", portals=[NOWHERE]))},
        {"policies": (policy("10.0.0.0/24", flags=choice(IkeMode.MAIN)),)},
        {"records": (discovery(), record(port=3261), record("192.0.2.1"))},
    ],
    ids=lambda other: next(iter(other)),
)
def test_deriver_decides_as_derive_does_after_any_input_changed_and_changed_back(
    other: dict[str, Any],
) -> None:
    parts = (group(portals=["10.0.0.0/24"]), IN_DOUBT, record(), record(port=3261), record("192.0.2.1"))
    deriver, before = Deriver(), world(*parts)
    lookup, seen = None, []
    for of in (before, dataclasses.replace(before, **other), before):
        lookup = Lookup(of, lookup)
        seen.append(deriver.derive(lookup))
        assert seen[-1] == derive(Lookup(of))
    assert seen[0].portals != seen[1].portals


HERE = address(SOURCE)
FOUR = [f"10.0.0.{n}" for n in (21, 22, 23, 24)]
DB1, DB2, OTHERS = per_id("db1", portals=FOUR[:1]), per_id("db2", portals=FOUR[1:2]), group()


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (
            {"keys": (DB1, per_id("db2", portals=FOUR[1:2], secret=b"another key"), OTHERS)},
            [FOUR[0], *FOUR[2:]],
        ),
        ({"keys": (DB1, DB2, group(secret=b"another key"))}, FOUR[:2]),
        ({"sources": {(address(host), ""): HERE for host in FOUR[1:]}}, FOUR[1:]),
    ],
    ids=["key", "group", "route"],
)
def test_deriver_keeps_the_views_that_a_change_does_not_concern(
    other: dict[str, Any], same: list[str]
) -> None:
    policies = (
        policy(FOUR[0], name="a", psk="db1"),
        policy(FOUR[1], name="b", psk="db2"),
        policy(FOUR[2], name="c"),
        policy(FOUR[3], name="d"),
    )
    of = world(DB1, DB2, OTHERS, *policies)
    of = dataclasses.replace(of, sources={(address(host), ""): HERE for host in FOUR})
    deriver, lookup = Deriver(), Lookup(of)
    before = deriver.derive(lookup)
    lookup = Lookup(dataclasses.replace(of, **other), lookup)
    after = deriver.derive(lookup)
    assert after == derive(lookup)
    kept = [now for now, then in zip(after.portals, before.portals, strict=True) if now is then]
    assert [str(view.binding.portal.address) for view in kept] == same


def test_deriver_keeps_view_and_secrets_that_another_key_does_not_concern() -> None:
    deriver, of = Deriver(), world(per_id("db1"), policy(psk="db1"), group(), record())
    lookup = Lookup(of)
    before = deriver.derive(lookup)
    other = dataclasses.replace(of, keys=(*of.keys, per_id("db2")))
    after = deriver.derive(Lookup(other, lookup))
    assert after.portals[0] is before.portals[0]
    assert {id(entry) for entry in before.secrets} < {id(entry) for entry in after.secrets}
