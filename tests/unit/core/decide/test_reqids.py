"""Reqids: high, different from all others, and the same whatever happens."""

from __future__ import annotations

import dataclasses
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ipsec.base.policy import EspMode, IkeMode
from iscsi_ipsec.core.decide import reqids
from iscsi_ipsec.core.decide.reqids import COUNT, FIRST, assign_reqids, foreign_reqids
from tests.support.values import (
    SOURCE,
    TARGET,
    address,
    choice,
    derived,
    group,
    kernel_policy,
    per_id,
    policy,
    portal,
    record,
    serves,
)

NAME = "iscsi-ipsec-10.0.0.20-3260"


@given(st.sets(st.text(max_size=20), max_size=30), st.sets(st.integers(FIRST, FIRST + 50)))
def test_assign_reqids_gives_each_name_one_of_its_own_in_the_range(
    names: set[str], foreign: set[int]
) -> None:
    given = assign_reqids(sorted(names), {}, frozenset(foreign))
    assert given.keys() == names
    assert len({*given.values()}) == len(names)
    assert all(FIRST <= reqid < FIRST + COUNT and reqid not in foreign for reqid in given.values())


def test_assign_reqids_keeps_what_was_given_before() -> None:
    assert assign_reqids([NAME], {NAME: FIRST + 5}) == {NAME: FIRST + 5}


def test_assign_reqids_gives_the_same_after_everything_was_forgotten() -> None:
    given = assign_reqids([NAME, "other"], {})
    assert assign_reqids(["other", NAME], {}) == given


def test_assign_reqids_gives_none_that_a_connection_which_is_gone_had() -> None:
    (reqid,) = assign_reqids([NAME], {}).values()
    assert assign_reqids([NAME], {"gone": reqid}) == {NAME: reqid + 1}


def test_assign_reqids_leaves_one_that_others_use() -> None:
    assert assign_reqids([NAME], {NAME: FIRST + 5}, frozenset({FIRST + 5}))[NAME] != FIRST + 5


def test_assign_reqids_finds_the_only_one_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reqids, "COUNT", 4)
    known = {str(number): FIRST + number for number in (0, 2, 3)}
    assert [assign_reqids([name], known)[name] for name in "abcdef"] == [FIRST + 1] * 6


def test_foreign_reqids_are_those_of_policies_that_are_not_for_one_tcp_port() -> None:
    ours = kernel_policy(address(SOURCE), portal(), FIRST + 1)
    served = dataclasses.replace(ours, sport=3260, sport_mask=0xFFFF, dport=0, dport_mask=0, reqid=FIRST + 2)
    site = dataclasses.replace(
        ours, proto=0, dport=0, dport_mask=0, dst=ipaddress.ip_network("10.0.0.0/24"), reqid=FIRST + 3
    )
    low = dataclasses.replace(site, reqid=1)
    assert foreign_reqids([ours, served, site, low]) == {FIRST + 3}


def test_derive_gives_a_connection_the_same_reqid_under_another_key_mode_and_setting() -> None:
    same = [
        derived(per_id(SOURCE), policy(), record()),
        derived(group(), policy(), record()),
        derived(per_id(SOURCE), policy(flags=choice(IkeMode.MAIN, EspMode.TUNNEL)), record()),
    ]
    assert len({desired.reqids[NAME] for desired in same}) == 1


def test_derive_gives_each_interface_and_each_peer_a_reqid_of_its_own() -> None:
    bound = [record(net_ifacename=name) for name in ("eth0", "eth1")]
    sources = {(TARGET, "eth0"): "10.0.0.1", (TARGET, "eth1"): "10.0.0.2"}
    initiator = derived(group(), policy(), *bound, sources=sources)
    assert len(initiator.connections) == len(set(initiator.reqids.values())) == 2
    served = derived(serves(), per_id("10.0.0.5", "a"), per_id("10.0.0.6", "b"))
    assert len(served.connections) == len(set(served.reqids.values())) == 2


def test_derive_admits_no_sa_of_a_portal_without_a_connection() -> None:
    desired = derived(policy(), record())
    assert desired.guarded == (portal(),)
    assert desired.own_sas == frozenset()
