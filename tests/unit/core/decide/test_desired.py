"""Properties of a decision's values: owners of a secret, order of two keys, a refusal as a problem."""

from __future__ import annotations

import dataclasses

import pytest

from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.decide.desired import Refused, Rotation
from tests.support.values import connection, identity, portal, previous


def test_pair_has_both_ids_on_the_initiator_and_only_the_peers_on_the_target() -> None:
    ours = dataclasses.replace(connection(), local_id=identity("db1"), remote_id=identity("san"))
    assert ours.pair == (identity("db1"), identity("san"))
    assert dataclasses.replace(ours, role=Role.TARGET).pair == (identity("san"),)


@pytest.mark.parametrize("previous_first", [False, True])
def test_in_order_gives_the_key_that_is_presented_and_then_the_other(previous_first: bool) -> None:
    new, before = Secret(b"the new key"), previous(b"the previous key")
    rotation = Rotation(
        owners=(identity("db1"),), secret=new, previous=before, keys=("db1",), previous_key_first=previous_first,
        connections=(),
    )  # fmt: skip
    assert rotation.in_order == ((before.secret, new) if previous_first else (new, before.secret))
    assert rotation.rotation_id == ((identity("db1"),), new, before.secret)


def test_refused_becomes_the_problem_of_its_portal() -> None:
    refusal = Refused("no-key", "no key applies", "add one", "portal.d/san.toml")
    assert refusal.problem(portal("[fd00::20]:3261")) == Problem(
        code="no-key",
        message="no key applies",
        hint="add one",
        file="portal.d/san.toml",
        portal="[fd00::20]:3261",
    )
