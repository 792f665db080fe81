"""Assigns each connection its reqid, which links its policies and SAs in the kernel and which the guard checks.

Law: pure. A reqid depends on the connection's name (portal, and interface or peer) alone,
so a changed key, mode or setting keeps it, and so does a lost state folder: the one that the
name hashes to, or the next that is free. Those in ``known`` were given out before and stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from iscsi_ipsec.base.xfrm import KernelPolicy

IPPROTO_TCP = 6

FIRST, COUNT = 0x49000000, 1 << 24
"""The first of our reqids, and their number: far above charon's own, which count from 1, and the kernel's and Libreswan's, which count from 0x4000."""


def is_ours(reqid: int) -> bool:
    """Whether the reqid lies in our range."""
    return FIRST <= reqid < FIRST + COUNT


def assign_reqids(
    names: Iterable[str], known: Mapping[str, int], foreign: frozenset[int] = frozenset()
) -> dict[str, int]:
    """A reqid for each name, different from all others' and from what others use in the kernel (``foreign``)."""
    assigned = {name: reqid for name, reqid in known.items() if reqid not in foreign}
    taken = {*assigned.values(), *foreign}
    wanted = list(names)
    for name in wanted:
        if name not in assigned:
            reqid = FIRST + int.from_bytes(hashlib.sha256(name.encode()).digest()[:3]) % COUNT
            while reqid in taken:
                reqid = FIRST + (reqid - FIRST + 1) % COUNT
            assigned[name] = reqid
            taken.add(reqid)
    return {name: assigned[name] for name in wanted}


def foreign_reqids(policies: Iterable[KernelPolicy]) -> frozenset[int]:
    """Reqids in our range whose policies another program made: our own policies are all for one TCP port at one end."""
    return frozenset(
        p.reqid
        for p in policies
        if is_ours(p.reqid) and not (p.proto == IPPROTO_TCP and 0xFFFF in (p.sport_mask, p.dport_mask))
    )
