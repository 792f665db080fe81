"""The memory of reqids: given once, stored as soon as the disk allows, and kept when it does not."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.decide.reqids import FIRST
from iscsi_ipsec.service.connection_reqids import ConnectionReqids
from tests.support.fakes import NO_BUFFERS, READ_ONLY, FakeClock, FakeStore, FakeXfrm
from tests.support.values import SOURCE, address, kernel_policy, portal

GIVEN = {"iscsi-ipsec-10.0.0.20-3260": FIRST + 9}


@pytest.fixture
def store() -> FakeStore:
    return FakeStore(FakeClock())


@pytest.fixture
def xfrm() -> FakeXfrm:
    return FakeXfrm(FakeClock())


def test_what_was_kept_is_known_after_a_restart(store: FakeStore, xfrm: FakeXfrm) -> None:
    ConnectionReqids(store, xfrm).keep(GIVEN, [])
    assert ConnectionReqids(store, xfrm).known == GIVEN


def test_what_is_known_is_not_written_again(store: FakeStore, xfrm: FakeXfrm) -> None:
    reqids = ConnectionReqids(store, xfrm)
    reqids.keep(GIVEN, [])
    reqids.keep(dict(GIVEN), [])
    assert store.calls["set_reqids"] == 1


def test_what_cannot_be_stored_is_known_reported_and_stored_later(store: FakeStore, xfrm: FakeXfrm) -> None:
    problems: list[Problem] = []
    reqids = ConnectionReqids(store, xfrm)
    store.fail(READ_ONLY, "set_reqids", "reqids")
    reqids.keep(GIVEN, problems)
    assert [problem.code for problem in problems] == ["state-unsaved"]
    assert reqids.known == GIVEN
    store.recover()
    reqids.keep(GIVEN, problems)
    assert store.numbers == GIVEN


def test_a_database_that_began_empty_gets_them_all_again(store: FakeStore, xfrm: FakeXfrm) -> None:
    reqids = ConnectionReqids(store, xfrm)
    reqids.keep(GIVEN, [])
    store.numbers, store.renewals = {}, 1
    reqids.keep(GIVEN, [])
    assert store.numbers == GIVEN


def test_a_store_that_cannot_be_read_at_the_start_costs_no_reqid(store: FakeStore, xfrm: FakeXfrm) -> None:
    store.fail(READ_ONLY, "reqids")
    assert ConnectionReqids(store, xfrm).known == {}


def test_reqids_of_others_are_seen_at_the_start(store: FakeStore, xfrm: FakeXfrm) -> None:
    xfrm.policies_now = (kernel_policy(address(SOURCE), portal(), FIRST + 3, proto=0),)
    assert ConnectionReqids(store, xfrm).foreign == {FIRST + 3}
    xfrm.fail(NO_BUFFERS, "policies")
    assert ConnectionReqids(store, xfrm).foreign == frozenset()
