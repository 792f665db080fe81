"""Under whose identities each secret is loaded, and which keys wait without being loaded."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.decide.derive import Deriver, derive
from iscsi_ipsec.core.decide.lookup import Lookup
from tests.support.values import (
    SOURCE,
    TARGET,
    derived,
    group,
    identity,
    managed,
    per_id,
    record,
    serves,
    world,
)

# -- secrets that connections use


def test_with_owners_gives_a_served_secret_to_the_initiator_alone() -> None:
    desired = derived(serves(), per_id("10.0.0.5"), per_id("db1.example.com"))
    assert {e.owners for e in desired.secrets} == {(identity("10.0.0.5"),), (identity("db1.example.com"),)}


def test_with_owners_lets_each_of_two_local_ids_reach_a_remote_with_its_own_key() -> None:
    # charon ranks the match on the other id first: a secret owned by the remote alone is as good as any pair's
    desired = derived(
        per_id("10.0.0.1", "one", portals=["10.0.0.20"]),
        group(),
        per_id("10.0.1.1", "two"),
        record("10.0.0.20"),
        record("10.0.0.21"),
        record("10.0.0.20", net_ifacename="ens4"),
        sources={("10.0.0.20", "ens4"): "10.0.1.1"},
    )
    for connection in desired.connections:
        ranked = [
            ((connection.remote_id in e.owners, connection.local_id in e.owners), e.secret)
            for e in desired.secrets
        ]
        best = max(rank for rank, _ in ranked)
        assert [secret for rank, secret in ranked if rank == best] == [connection.key.secret]


# -- secrets of keys that nothing uses


def test_secrets_load_an_unused_key_under_its_own_identity() -> None:
    desired = managed(per_id(SOURCE), per_id("10.0.0.99"), record())
    assert {e.owners: e.keys for e in desired.secrets} == {
        (identity(SOURCE), identity(TARGET)): (SOURCE,),
        (identity("10.0.0.99"),): ("10.0.0.99",),
    }


def test_secrets_leave_out_an_unused_key_whose_identity_is_a_peers() -> None:
    # charon tries every key that matches either id: this one must not authenticate the target
    desired = managed(per_id(SOURCE), per_id(TARGET), record())
    assert [e.owners for e in desired.secrets] == [(identity(SOURCE), identity(TARGET))]


@pytest.mark.parametrize("end", [TARGET, "10.0.0.21", "10.0.0.22", SOURCE])
def test_secrets_leave_out_an_unused_key_whose_identity_is_an_end_of_any_connection(end: str) -> None:
    named = (per_id("db1", portals=[TARGET]), per_id("db2", portals=["10.0.0.21"]))
    desired = managed(
        *named, group(portals=["10.0.0.22"]), per_id(end, portals=["192.0.2.0/24"]), record(), record("10.0.0.21"),
        record("10.0.0.22"),
    )  # fmt: skip
    assert len(desired.connections) == 3
    assert {e.keys for e in desired.secrets} == {("db1",), ("db2",), ("group",)}


def test_secrets_leave_out_unused_keys_of_one_identity_in_either_case() -> None:
    assert derived(per_id("db1", "one"), per_id("DB1", "two")).secrets == ()


def test_secrets_leave_out_an_unused_group_key() -> None:
    assert derived(group()).secrets == ()


def test_secrets_load_ambiguous_named_keys_without_using_them() -> None:
    desired = derived(per_id("a.example.com"), per_id("b.example.com"), record())
    assert {e.owners for e in desired.secrets} == {(identity("a.example.com"),), (identity("b.example.com"),)}
    assert desired.connections == ()


# -- entries that stay the same objects


@pytest.mark.parametrize("other", [{"secret": Secret(b"another key of db1")}, {"name": "renamed"}])
def test_secrets_give_another_key_of_the_same_identity_another_entry(
    other: dict[str, Any],
) -> None:
    deriver, waiting = Deriver(), per_id("db1")
    for key in (waiting, dataclasses.replace(waiting, **other)):
        lookup = Lookup(world(key))
        assert deriver.derive(lookup) == derive(lookup)


def test_secrets_keep_the_entry_of_an_unused_key() -> None:
    deriver, lookup = Deriver(), Lookup(world(per_id("db1"), per_id("db2")))
    first = deriver.derive(lookup).secrets
    more = Lookup(world(*lookup.world.keys, per_id("db3")), lookup)
    assert [*map(id, first)] == [*map(id, deriver.derive(more).secrets[:2])]
