"""Policies that the kernel has lost: which connections must be loaded again."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import Any

import pytest

from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.xfrm import KernelState
from iscsi_ipsec.core.ike.kernel_drift import lost_traps, missing_sas, orphaned_sas, stranded_sas
from tests.support.values import child_sa, connection, ike_sa, per_id, record
from tests.support.xfrm_values import policy, state

TRAP = connection(per_id("db1.example"), record())
NAME = {TRAP.name}


def test_a_connection_whose_policy_is_there_has_lost_nothing() -> None:
    assert lost_traps([TRAP], [policy("in"), policy("out")]) == set()
    assert lost_traps([TRAP], [policy("out", proto=0)]) == set(), "of every protocol"


@pytest.mark.parametrize(
    "other",
    [
        {"dst": ipaddress.ip_network("10.0.0.21")},
        {"src": ipaddress.ip_network("10.0.0.2")},
        {"dport": 3261},
        {"proto": 17},
        {"restricted": True},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_policy_for_other_packets_does_not_count(other: dict[str, Any]) -> None:
    assert lost_traps([TRAP], [policy("out", **other)]) == NAME


def test_the_policy_of_packets_that_come_is_none_that_asks() -> None:
    assert lost_traps([TRAP], [dataclasses.replace(policy("out"), direction="in")]) == NAME


def test_who_never_had_a_trap_has_lost_none() -> None:
    served = dataclasses.replace(TRAP, role=Role.TARGET)
    assert lost_traps([served, dataclasses.replace(TRAP, user_space_esp=True)], []) == set()


def test_a_selector_of_an_inner_address_is_compared_as_such() -> None:
    inner = dataclasses.replace(TRAP, local_ts="10.9.9.9/32[6]")
    assert lost_traps([inner], [policy("out")]) == NAME
    assert lost_traps([inner], [policy("out", src=ipaddress.ip_network("10.9.9.9"))]) == set()


SERVED = dataclasses.replace(TRAP, role=Role.TARGET)
COME_IN = ike_sa(child_sa("c"), conn=SERVED.name)


def test_a_served_sa_through_which_nothing_can_be_sent_is_stranded() -> None:
    assert stranded_sas([SERVED], [COME_IN], [policy("in"), policy("out", reqid=8)]) == (COME_IN,)


def test_a_served_sa_with_its_policies_is_not() -> None:
    assert stranded_sas([SERVED], [COME_IN], [policy("out")]) == ()


def test_stranded_sas_tells_the_initiators_of_one_connection_apart() -> None:
    one, other = (
        ike_sa(child_sa("c", remote_ts=(f"{end}/32[tcp]",)), unique_id=number, conn=SERVED.name)
        for number, end in enumerate(("10.0.0.20", "10.0.0.21"))
    )
    assert stranded_sas([SERVED], [one, other], [policy("out")]) == (other,)


def test_stranded_sas_goes_by_the_reqid_where_the_selector_is_a_range() -> None:
    ranged = ike_sa(child_sa("c", remote_ts=("10.0.0.20..10.0.0.22[tcp]",)), conn=SERVED.name)
    assert stranded_sas([SERVED], [ranged], [policy("out")]) == ()


@pytest.mark.parametrize("state", ["INSTALLING", "REKEYED", "DELETING"])
def test_an_sa_that_comes_or_goes_may_have_none(state: str) -> None:
    passing = ike_sa(child_sa("c", state=state), conn=SERVED.name)
    assert stranded_sas([SERVED], [passing], []) == ()


def test_what_is_not_served_or_not_in_the_kernel_is_none_of_these() -> None:
    user_space = dataclasses.replace(SERVED, user_space_esp=True)
    assert stranded_sas([TRAP], [COME_IN], []) == stranded_sas([user_space], [COME_IN], []) == ()


ORPHANS = [state("in"), state("out")]


def test_an_sa_of_the_traps_reqid_that_charon_does_not_know_is_orphaned() -> None:
    assert orphaned_sas([TRAP], [], [policy("out")], ORPHANS) == NAME


def test_an_sa_that_charon_carries_is_not() -> None:
    assert orphaned_sas([TRAP], [ike_sa(child_sa("c"), conn=TRAP.name)], [policy("out")], ORPHANS) == set()
    begun = ike_sa(conn=TRAP.name, state="CONNECTING")
    assert orphaned_sas([TRAP], [begun], [policy("out")], ORPHANS) == NAME


@pytest.mark.parametrize(
    "other",
    [{"reqid": 8}, {"dst": ipaddress.ip_address("10.0.0.21")}, {"spi": 0}, {"proto": 51}],
    ids=lambda other: next(iter(other)),
)
def test_what_the_trap_does_not_send_through_is_no_orphan_of_it(other: dict[str, Any]) -> None:
    assert orphaned_sas([TRAP], [], [policy("out")], [state("in"), state("out", **other)]) == set()


def test_without_a_policy_nothing_is_sent_through_an_orphan() -> None:
    assert orphaned_sas([TRAP], [], [], ORPHANS) == set()
    assert orphaned_sas([SERVED], [], [policy("out")], ORPHANS) == set()


BELIEVED = ike_sa(child_sa("c", spi_in="c0ffee0a", spi_out="c0ffee0b"), conn=TRAP.name)
IN, OUT = state("in", spi=0xC0FFEE0A), state("out", spi=0xC0FFEE0B)


@pytest.mark.parametrize("left", [[], [IN], [OUT], [state("in"), state("out")]])
def test_an_sa_that_the_kernel_does_not_have_is_missing(left: list[KernelState]) -> None:
    assert missing_sas([TRAP], [BELIEVED], left) == (BELIEVED,)


def test_an_sa_that_the_kernel_has_is_not() -> None:
    assert missing_sas([TRAP], [BELIEVED], [IN, OUT]) == ()


@pytest.mark.parametrize(
    "more", [{"state": "REKEYED"}, {"state": "INSTALLING"}, {"spi_in": "", "spi_out": ""}]
)
def test_an_sa_that_is_not_installed_is_not_looked_for(more: dict[str, Any]) -> None:
    passing = ike_sa(child_sa("c", **more), conn=TRAP.name)
    assert missing_sas([TRAP], [passing], []) == ()


def test_who_does_esp_itself_or_is_not_ours_is_not_asked_about() -> None:
    assert missing_sas([dataclasses.replace(TRAP, user_space_esp=True)], [BELIEVED], []) == ()
    assert missing_sas([], [BELIEVED], []) == ()
