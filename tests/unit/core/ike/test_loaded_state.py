"""Desired connections paired with the contents of charon: which connections are loaded, and what sa_lifecycle gets of them."""

from __future__ import annotations

import dataclasses

import pytest

from iscsi_ipsec.base.policy import Role, Start, Tuning
from iscsi_ipsec.core.ike.loaded_state import earlier_reqids, loaded_connections, sa_targets
from iscsi_ipsec.core.ike.sa_lifecycle import SaTarget
from tests.support.values import (
    SOURCE,
    address,
    charon_state,
    child_sa,
    connection,
    encoded,
    group,
    ike_sa,
    managed,
    per_id,
    policy,
    portal,
    previous,
    record,
    serves,
)

# -- loaded

# db1 has a key of its own towards each of two targets, so that each secret is the target's alone; the group key's
# is of a pair; the initiator's is the initiator's; 10.0.0.99's key waits
WANTED = managed(
    per_id("db1", "one", portals=["10.0.0.20"]),
    per_id("db1", "two", portals=["10.0.0.21"]),
    group(portals=["10.0.0.22"]),
    policy("10.0.0.22", psk="group"),
    per_id("db7", portals=["10.0.0.250"]),
    serves("10.0.0.250"),
    per_id("10.0.0.99", portals=["192.0.2.1"]),
    record("10.0.0.20"),
    record("10.0.0.21"),
    local=[SOURCE, "10.0.0.250"],
)
SECRETS, CONNECTIONS = encoded(WANTED)
ALL = {c.name for c in CONNECTIONS}
(SERVED,) = (c.name for c in WANTED.connections if c.role is Role.TARGET)
CHILDREN = {c.name: [c.child] for c in CONNECTIONS}
HELD = charon_state((s.id for s in SECRETS), CHILDREN)


def named(*hosts: str) -> set[str]:
    return {f"iscsi-ipsec-{host}-3260" for host in hosts}


def test_what_charon_holds_as_it_shall_be_with_its_secret_is_loaded() -> None:
    assert {*named("10.0.0.20", "10.0.0.21", "10.0.0.22"), SERVED} == ALL
    assert loaded_connections(WANTED, SECRETS, CONNECTIONS, HELD) == ALL


def test_a_connection_with_other_children_than_its_own_is_not_loaded() -> None:
    (name,) = named("10.0.0.21")
    others = {n: children for n, children in CHILDREN.items() if n != name}
    for found in (
        others, {**others, name: []}, {**others, name: ["another"]}, {**others, name: [*CHILDREN[name], "another"]},
    ):  # fmt: skip
        state = charon_state((s.id for s in SECRETS), found)
        assert loaded_connections(WANTED, SECRETS, CONNECTIONS, state) == ALL - {name}


@pytest.mark.parametrize(
    ("key", "without"),
    [
        ("one", named("10.0.0.20")),
        ("two", named("10.0.0.21")),
        ("group", named("10.0.0.22")),
        ("db7", {SERVED}),
        ("10.0.0.99", set[str]()),
    ],
)
def test_a_connection_whose_secret_charon_does_not_hold_is_not_loaded(key: str, without: set[str]) -> None:
    ids = [s.id for e, s in zip(WANTED.secrets, SECRETS, strict=True) if e.keys != (key,)]
    assert len(ids) == len(SECRETS) - 1
    state = charon_state(ids, CHILDREN)
    assert loaded_connections(WANTED, SECRETS, CONNECTIONS, state) == ALL - without


def test_nothing_is_loaded_in_a_charon_that_holds_no_secret_or_cannot_list_them() -> None:
    for secrets in (frozenset[str](), None):
        state = dataclasses.replace(HELD, secrets=secrets)
        assert loaded_connections(WANTED, SECRETS, CONNECTIONS, state) == set()


# -- upheld


def test_upkeep_sees_what_charon_holds_and_whether_anything_waits_for_it() -> None:
    start, session, packets, orphan, none, unloaded = hosts = [f"10.0.0.{n}" for n in range(20, 26)]
    desired = managed(
        group(previous=previous()), policy(start, tuning=Tuning(start=Start.START)), *map(record, hosts),
        per_id("db7", portals=["10.0.0.250"]), serves("10.0.0.250"), local=[SOURCE, "10.0.0.250"],
    )  # fmt: skip
    names = {c.name: c for c in encoded(desired)[1]}
    valid = {name: c.rotation.parts for name, c in names.items() if c.rotation}
    assert valid.keys() == named(*hosts) == names.keys() - {SERVED}

    def seen(name: str, *, wanted_now: bool, initiator: bool = True, loaded: bool = True) -> SaTarget:
        return SaTarget(
            name=name, child=names[name].child, key_part=names[name].key_part,
            valid=valid.get(name, frozenset()), initiator=initiator, wanted_now=wanted_now, loaded=loaded,
        )  # fmt: skip

    assert sa_targets(
        desired.connections,
        encoded(desired)[1],
        dict.fromkeys(names.keys() - named(unloaded), frozenset[str]()),
        frozenset({portal(session), portal(f"{none}:3261")}),
        frozenset({address(packets)}),
        frozenset(named(orphan)),
    ) == (
        *(seen(name, wanted_now=True) for name in sorted(named(start, session, packets, orphan))),
        *(seen(name, wanted_now=False) for name in named(none)),
        *(seen(name, wanted_now=False, loaded=False) for name in named(unloaded)),
        seen(SERVED, wanted_now=False, initiator=False),
    )


def test_user_space_esp_is_wanted_always_since_nothing_else_would_ask_for_it() -> None:
    in_kernel = connection(per_id("db1"), record())
    names = encoded(managed(per_id("db1"), record()))[1]
    for each in (in_kernel, dataclasses.replace(in_kernel, user_space_esp=True)):
        (found,) = sa_targets((each,), names, {each.name: frozenset()}, frozenset(), frozenset(), frozenset())
        assert found.wanted_now is each.user_space_esp


# -- SAs of an earlier version


def test_earlier_reqids_are_those_of_sas_that_came_up_before_their_connection_had_one() -> None:
    (one,) = named("10.0.0.20")
    own = WANTED.reqids[one]
    sas = [
        ike_sa(child_sa("c", conn=one, reqid=1), conn=one),
        ike_sa(child_sa("c", conn=one, reqid=own), conn=one),
        ike_sa(child_sa("c", conn=SERVED, reqid=2, state="REKEYING"), conn=SERVED),
        ike_sa(child_sa("c", conn=one, reqid=3, state="DELETING"), conn=one),
        ike_sa(child_sa("c", conn="iscsi-ipsec-gone", reqid=4), conn="iscsi-ipsec-gone"),
    ]
    assert earlier_reqids(WANTED, sas) == {(portal("10.0.0.20"), 1), (portal("10.0.0.250"), 2)}
    assert earlier_reqids(WANTED, []) == set()
