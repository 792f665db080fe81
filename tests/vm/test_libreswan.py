"""Libreswan as the target: the negotiated SA by Libreswan's own report.

3 IKE versions and modes x {transport, tunnel} x {PFS, none}, with identity types and IP versions in
turn; by default 2 of the 12, VM_FULL=1 runs all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.vm import farend, libreswan
from tests.vm.combination import ID_TYPES, IKES, MODES, Combination, log_out, play, rekey
from tests.vm.full import FULL
from tests.vm.machine import Machine
from tests.vm.test_first_session import assert_only_esp
from tests.vm.wire import Wire

WITH_LIBRESWAN = [
    Combination("ID_FQDN", "IKEv2", "transport", True),
    Combination("ID_USER_FQDN", "IKEv1 main", "tunnel", True),
]
if FULL:
    WITH_LIBRESWAN = [
        Combination(ID_TYPES[n % 4], *cell)
        for n, cell in enumerate(itertools.product(IKES, MODES, (True, False)))
    ]


@pytest.fixture(scope="module")
def libreswans(target: Machine) -> Iterator[Machine]:
    """The target with Libreswan in strongSwan's place, insisting on IPsec itself."""
    farend.configure_charon(target, "")
    farend.guard(target)
    yield target
    libreswan.stop(target)
    farend.unguard(target)


@pytest.mark.parametrize("wanted", WITH_LIBRESWAN, ids=str)
def test_a_session_with_libreswan_is_what_libreswan_says_it_is(
    wanted: Combination, ready: Machine, libreswans: Machine, wire: Wire, tables: dict[str, list[str]]
) -> None:
    near_ip, far_ip = (ready.ip6, libreswans.ip6) if wanted.over_ipv6 else (ready.ip, libreswans.ip)
    libreswan.configure(libreswans, ready, wanted)
    mark = wire.mark()

    try:
        row = play(ready, wanted, far_ip)
        seen = libreswan.seen(libreswans)
        if wanted.ike == "IKEv2":
            rekey(ready, row)
        renewed = libreswan.seen(libreswans)
    except AssertionError as error:
        error.add_note(libreswan.said(libreswans))
        raise
    finally:
        log_out(ready, far_ip)

    assert row["protected"] is True
    assert (row["problem"], row["mode"], row["pfs"]) == (None, wanted.mode, wanted.pfs)
    assert (seen.identity_type, seen.identity) == (wanted.id_type, wanted.identity(ready))
    assert (seen.ike, seen.mode) == (wanted.ike, wanted.mode)
    assert seen.bytes > 8 * 4096
    if wanted.ike == "IKEv2":
        assert (renewed.algorithms.count("-") == 2) is wanted.pfs, "the group of the renewed SA"
    else:
        assert bool(row["sa"]["dh_group"]) is wanted.pfs
    assert_only_esp(wire, mark, near_ip, far_ip)
    tables.setdefault("sessions with Libreswan, as it saw them", []).append(
        f"  {seen.identity_type:<13} {seen.ike:<17} {seen.mode:<10} "
        f"{renewed.algorithms:<32} {'IPv6' if wanted.over_ipv6 else 'IPv4'}"
    )
