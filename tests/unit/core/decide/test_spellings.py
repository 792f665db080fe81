"""One identity in two spellings: IKE takes both for one, and each is sent as it is written."""

from __future__ import annotations

import dataclasses

import pytest

from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.core.decide.derive import Deriver, derive
from iscsi_ipsec.core.decide.desired import Desired
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.world import World
from tests.support.values import (
    TARGET,
    derived,
    encoded,
    group,
    identity,
    per_id,
    policy,
    serves,
    view_of,
    world,
)

SPELLINGS = [("db1.example.com", "DB1.example.com"), ("admin@db1.lab", "Admin@DB1.lab")]


def codes(desired: Desired) -> set[str | None]:
    return {view.problem.code if view.problem else None for view in desired.portals}


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_derive_refuses_two_keys_of_one_identity_in_two_spellings_as_initiator(one: str, other: str) -> None:
    desired = derived(
        per_id(one, "one", portals=[TARGET]),
        per_id(other, "other", portals=[f"{TARGET}:3261"]),
        policy(TARGET, f"{TARGET}:3261", target_id=identity("san")),
    )
    assert codes(desired) == {"ambiguous-key"}
    assert desired.connections == ()
    assert desired.secrets == ()


def test_derive_refuses_two_keys_for_two_spellings_of_the_targets_identity() -> None:
    desired = derived(
        per_id("db1", "one", portals=[TARGET]),
        per_id("DB1", "other", portals=["10.0.0.21"]),
        policy(TARGET, name="a", target_id=identity("SAN")),
        policy("10.0.0.21", name="b", target_id=identity("san")),
    )
    assert codes(desired) == {"ambiguous-key"}


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_derive_refuses_two_keys_of_one_identity_in_two_spellings_as_target(one: str, other: str) -> None:
    desired = derived(per_id(one, "one"), per_id(other, "other"), serves())
    assert codes(desired) == {"ambiguous-key"}


def test_one_key_for_two_spellings_of_an_initiator_is_one_connection() -> None:
    desired = derived(per_id("DB1", "one"), group(), serves(initiators=(identity("db1"),)))
    assert [c.key.name for c in desired.connections] == ["one"]


def of(id: str, target_id: str = "san") -> World:
    return world(per_id(id, "one"), policy(target_id=identity(target_id)), serves(name="z"))


@pytest.mark.parametrize("other", [of("DB1"), of("db1", "SAN")], ids=["id", "target_id"])
def test_deriver_sends_an_identity_whose_case_changed_as_it_is_written_now(other: World) -> None:
    deriver = Deriver()
    lookup = Lookup(of("db1"))
    deriver.derive(lookup)
    lookup = Lookup(other, lookup)
    now = deriver.derive(lookup)
    assert [c.message for c in encoded(now)[1]] == [c.message for c in encoded(derive(Lookup(other)))[1]]
    assert [c.message for c in encoded(now)[1]] != [c.message for c in encoded(derive(Lookup(of("db1"))))[1]]


def test_connections_that_differ_in_the_case_of_an_identity_are_two() -> None:
    (connection,) = derived(per_id("db1"), policy()).connections
    upper = dataclasses.replace(connection, local_id=IkeId.parse(IdType.ID_FQDN, "DB1"))
    assert upper.local_id == connection.local_id
    assert upper != connection


def test_a_secret_has_one_name_in_every_spelling_of_its_owners() -> None:
    """So that charon is not sent it again where another file of the pair is the first."""
    (lower,), _ = encoded(derived(per_id("db1", "one", secret=b"k"), policy(target_id=identity("san"))))
    (upper,), _ = encoded(derived(per_id("DB1", "one", secret=b"k"), policy(target_id=identity("SAN"))))
    assert (lower.id, lower.owners) == (upper.id, upper.owners)
    assert view_of(derived(per_id("DB1", "one"), policy())).identity == identity("db1")
