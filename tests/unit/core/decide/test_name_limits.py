"""Limits of host names: a name never opens or weakens a portal that is closed without it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from iscsi_ipsec.base.policy import IkeMode, Role, Tuning
from iscsi_ipsec.base.problem import Severity
from iscsi_ipsec.core.decide.derive import Deriver, derive
from iscsi_ipsec.core.decide.desired import PortalView
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.name_limits import weaker_flags
from tests.support.values import (
    CLEAR,
    SOURCE,
    TARGET,
    address,
    choice,
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

NAME = "test.example.com"
NAMES = {NAME: [TARGET]}
WIDE = policy("10.0.0.0/24", name="wide")


def overruled(view: PortalView) -> bool:
    return view.problem is not None and view.problem.code == "name-overruled"


CLOSING = pytest.mark.parametrize(
    ("parts", "more"),
    [
        ((policy(TARGET, name="z-literal"), group()), {}),
        ((policy("10.0.0.0/24", name="z-network"), group()), {}),
        ((policy("any", name="z-any"), group()), {}),
        ((group(portals=[TARGET]),), {}),
        ((group(portals=["10.0.0.0/24"]),), {}),
        ((), {"previously_managed": [TARGET]}),
        ((group(),), {"previously_managed": [TARGET], "inherited": frozenset({portal()})}),
        ((policy(TARGET, name="z-literal"),), {}),
    ],
    ids=["literal", "network", "any", "key", "key's network", "memory", "inherited", "no key"],
)


@CLOSING
@pytest.mark.parametrize(
    "opening",
    [policy(NAME, name="a-test", flags=CLEAR), per_id("db9", "a-test", portals=[NAME], flags=CLEAR)],
    ids=["policy", "key"],
)
def test_a_name_opens_nothing_that_is_closed_without_it(parts: Any, more: Any, opening: Any) -> None:
    without = view_of(derived(*parts, record(), **more))
    desired = derived(opening, *parts, record(), names=NAMES, **more)
    view = view_of(desired)
    assert without.closed
    assert (view.closed, view.managed, view.connection) == (True, without.managed, without.connection)
    assert desired.guarded == (portal(),)
    assert desired.clear_exceptions == ()


@pytest.mark.parametrize(
    ("named", "fault"),
    [
        ({"flags": CLEAR}, "would allow unencrypted traffic"),
        ({"flags": choice(pfs=False)}, "would give up PFS"),
        ({"flags": choice(IkeMode.MAIN)}, "would use IKEv1 main instead of IKEv2"),
        ({"flags": choice(IkeMode.AGGRESSIVE)}, "would use IKEv1 aggressive instead of IKEv2"),
        ({"psk": "group"}, "would use the group key"),
        ({"psk": "missing"}, "would leave it without a connection"),
        ({"tuning": Tuning(ike_proposals=("aes128-sha1-modp1024",))}, "would offer other IKE proposals"),
        ({"tuning": Tuning(esp_proposals=("aes128-sha1-modp1024",))}, "would offer other ESP proposals"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_name_weakens_nothing_that_a_network_closes(named: Any, fault: str) -> None:
    parts = (WIDE, per_id("db1"), group(), record())
    without = view_of(derived(*parts))
    view = view_of(derived(policy(NAME, name="test", **named), *parts, names=NAMES))
    assert view.connection == without.connection is not None
    assert view.problem
    assert (view.problem.code, view.problem.severity) == ("name-overruled", Severity.WARNING)
    assert view.problem.message == (
        f"portal.d/test.toml names {TARGET}:3260 by a host name and {fault}:"
        " the decision without the name stays in force"
    )
    assert view.problem.hint == f'if that is meant, write the address: portals = ["{TARGET}:3260"]'
    assert view.reasons[-1] == view.problem.message


@pytest.mark.parametrize(
    "named",
    [
        {"psk": "db1"},
        {"target_id": per_id("san").id},
        {"tuning": Tuning(dpd_delay=3)},
        {"flags": choice(pfs=True)},
        {"tuning": Tuning(ike_proposals=("aes128-sha256-modp2048",))},
    ],
    ids=["key", "peer", "tuning", "flags", "fewer proposals"],
)
def test_a_name_that_weakens_nothing_decides_over_a_network(named: Any) -> None:
    wide = dataclasses.replace(
        WIDE, tuning=Tuning(ike_proposals=("aes128-sha256-modp2048", "aes256gcm16-prfsha384-ecp384"))
    )
    view = view_of(derived(policy(NAME, name="test", **named), wide, per_id("db1"), record(), names=NAMES))
    assert (view.policy, view.problem) == ("portal.d/test.toml", None)
    assert view.connection


def test_a_name_may_close_and_strengthen_what_a_network_leaves_open() -> None:
    wide = dataclasses.replace(WIDE, choice=CLEAR)
    assert not view_of(derived(wide, group(), record())).closed
    assert view_of(derived(policy(NAME, name="test"), wide, group(), record(), names=NAMES)).connection
    weak = dataclasses.replace(WIDE, choice=choice(IkeMode.MAIN, pfs=False))
    strong = connection_of(derived(policy(NAME, name="test"), weak, group(), record(), names=NAMES))
    assert (strong.ike, strong.pfs) == (IkeMode.V2, True)


@pytest.mark.parametrize("literal", [CLEAR, choice()], ids=["clear", "closed"])
@pytest.mark.parametrize("name", ["a-name", "z-name"])
def test_a_literal_beats_a_name_whatever_their_files_are_called(literal: Any, name: str) -> None:
    named = policy(NAME, name=name, flags=choice(IkeMode.AGGRESSIVE))
    view = view_of(derived(named, policy(TARGET, name="m", flags=literal), group(), names=NAMES))
    assert (view.policy, view.closed) == ("portal.d/m.toml", literal.required)


def test_a_key_that_names_the_address_beats_one_that_names_it_by_a_host_name() -> None:
    by_name, literal = per_id("db9", portals=[NAME]), per_id("db1", portals=[TARGET])
    assert connection_of(derived(by_name, literal, names=NAMES)).key == literal
    groups = group("a", portals=[NAME]), group("b", portals=[TARGET])
    assert connection_of(derived(*groups, names=NAMES)).key == groups[1]
    # several that are as narrow as each other are refused as ever
    both = view_of(derived(literal, per_id("db2", portals=[TARGET]), by_name, names=NAMES))
    assert both.problem
    assert both.problem.code == "ambiguous-key"


def test_what_was_managed_before_is_opened_by_a_name_after_its_release_only() -> None:
    opening = policy(NAME, name="test", flags=CLEAR)
    held = view_of(derived(opening, names=NAMES, previously_managed=[TARGET]))
    assert held.closed
    assert held.problem
    assert (held.problem.code, held.problem.severity) == ("name-overruled", Severity.ERROR)
    assert f"iscsi-ipsec release {TARGET}:3260" in held.problem.hint
    assert not held.covered, "release must be possible"
    assert not view_of(derived(opening, names=NAMES)).closed


def test_a_name_that_does_not_resolve_yet_still_keeps_a_lesser_key_from_standing_in() -> None:
    parts = (WIDE, group(), per_id("db1", portals=["gone.example.com"]), record())
    view = view_of(derived(policy(NAME, name="test"), *parts, names=NAMES))
    assert view.connection is None
    assert view.problem
    assert view.problem.code == "name-not-resolved"


def test_a_deriver_follows_what_closes_without_the_name() -> None:
    named, literal = (
        policy(NAME, name="test", psk="db1", flags=choice(pfs=False)),
        policy("10.0.0.0/16", name="w"),
    )
    deriver, lookup = Deriver(), None
    base = world(named, per_id("db1"), group(), record(), names=NAMES)
    for policies in ((named,), (named, literal), (named, WIDE, literal), (named,)):
        of = dataclasses.replace(base, policies=policies)
        lookup = Lookup(of, lookup)
        assert deriver.derive(lookup) == derive(Lookup(of))
    for keys in ((per_id("db1"),), (per_id("db1"), group(portals=["any"])), (per_id("db1"),)):
        of = dataclasses.replace(base, keys=keys)
        lookup = Lookup(of, lookup)
        assert deriver.derive(lookup) == derive(Lookup(of))


def test_a_name_asks_for_the_routes_of_the_policy_without_it_too() -> None:
    wide = policy("10.0.0.0/24", name="wide", tunnel_outer_remote=address("203.0.113.1"))
    lookup = Lookup(world(policy(NAME, name="test"), wide, names=NAMES))
    assert (address("203.0.113.1"), "") in lookup.wanted_sources


# -- the target's side


@pytest.mark.parametrize(
    ("closing", "more"),
    [
        ((serves("10.0.0.0/24", name="z-wide"),), {}),
        ((serves(SOURCE, name="z-literal"),), {}),
        ((), {"previously_managed": [(SOURCE, Role.TARGET)]}),
    ],
    ids=["network", "literal", "memory"],
)
@pytest.mark.parametrize(
    "opening",
    [(serves(NAME, name="a-test", flags=CLEAR),), (serves(NAME, name="a-test", flags=choice(pfs=False)),)],
    ids=["opens", "weakens"],
)
def test_a_name_opens_and_weakens_no_served_portal(closing: Any, more: Any, opening: Any) -> None:
    names = {NAME: [SOURCE]}
    desired = derived(*opening, *closing, per_id("db1"), names=names, **more)
    assert desired.local_portals == (portal(SOURCE),)
    if closing:
        (view,) = desired.portals
        assert view.connection
        assert view.connection.pfs
    elif opening[0].choice == CLEAR:
        assert overruled(desired.portals[0])


def test_the_narrowest_target_policy_decides_whatever_its_file_is_called() -> None:
    wide = serves("10.0.0.0/24", name="a-wide", flags=CLEAR)
    desired = derived(wide, serves(SOURCE, name="b-narrow"), per_id("db1"))
    assert desired.local_portals == (portal(SOURCE),)


def test_weaker_flags_compares_nothing_with_flags_that_ask_for_no_ipsec() -> None:
    """Where require_ipsec closes what a wider policy leaves unencrypted, a name may add IPsec in any mode."""
    assert weaker_flags(choice(IkeMode.AGGRESSIVE, pfs=False), choice(IkeMode.V2, required=False)) == ""
    assert weaker_flags(choice(IkeMode.AGGRESSIVE), choice(IkeMode.V2))
