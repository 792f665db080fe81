"""Subtracts and merges IP networks."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from iscsi_ipsec.base.addresses import Network


def subtract(network: Network, holes: Iterable[Network]) -> Iterator[Network]:
    """The network as networks that leave out every hole, in order of address."""
    pieces: list[Network] = [network]
    for hole in holes:
        pieces = [left for piece in pieces for left in _cut(piece, hole)]
    yield from sorted(pieces)


def _cut(piece: Network, hole: Network) -> Iterable[Network]:
    # mypy cannot see that both have one version, hence the two branches
    if isinstance(piece, ipaddress.IPv4Network) and isinstance(hole, ipaddress.IPv4Network):
        if piece.subnet_of(hole):
            return []
        return piece.address_exclude(hole) if hole.subnet_of(piece) else [piece]
    if isinstance(piece, ipaddress.IPv6Network) and isinstance(hole, ipaddress.IPv6Network):
        if piece.subnet_of(hole):
            return []
        return piece.address_exclude(hole) if hole.subnet_of(piece) else [piece]
    return [piece]


def merged(networks: Iterable[Network]) -> Iterator[Network]:
    """The networks of one IP version without overlaps, as few as can be."""
    networks = list(networks)
    yield from ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv4Network))
    yield from ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv6Network))
