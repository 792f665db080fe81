"""The guard as nftables text: table ``inet iscsi_ipsec``, and nothing else.

A packet of a guarded portal's TCP port that is not inside IPsec is dropped,
in both directions, whatever charon or this program is doing. ``rt ipsec`` asks
on output whether the route has an xfrm state, ``meta ipsec`` on input whether
the packet came out of one (nft(8)).

Law: pure text. The text replaces the table as a whole in one transaction and
may be loaded any number of times.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping

from iscsi_ipsec.base.addresses import Network
from iscsi_ipsec.base.networks import merged
from iscsi_ipsec.base.portal import Portal, PortalRange

FAMILY, TABLE = "inet", "iscsi_ipsec"
PRIORITY = -150
"""Before the usual filter chains (0), behind connection tracking (-200)."""

SETS = ("open4", "open6", "portals4", "portals6", "served4", "served6")
"""Exceptions from networks; remote portals; portals of this host.

Networks are rules and no set: a set of intervals of two fields (nft_set_pipapo.c)
takes its elements over only after the transaction's rules are in force, so that at each
loading packets found it empty (some of 300 loadings let a SYN through).
"""

HOLDING = ("portals4", "portals6", "served4", "served6")
"""The sets whose elements are single portals that are held closed."""

_SET = re.compile(r"set (portals[46]|served[46]) \{[^{}]*elements = \{([^{}]*)\}")

_HEAD = """\
# Made by iscsi-ipsecd; loaded at boot by iscsi-ipsec-guard.service.
# Portals in these sets are reached inside IPsec or not at all.
"""


def guard_table(
    guarded: Iterable[Portal],
    local_portals: Iterable[Portal],
    devices: Iterable[str] = (),
    *,
    networks: Iterable[PortalRange] = (),
    clear_exceptions: Iterable[PortalRange] = (),
) -> str:
    """The text of the table.

    ``guarded`` are remote portals, ``local_portals`` local ones. ``networks`` hold
    portals that nobody has named yet (the very first discovery), but for those
    in ``clear_exceptions``. Traffic through one of ``devices`` counts as protected:
    user-space ESP (kernel-libipsec) shows to the kernel as a TUN device only.
    """
    elements: dict[str, list[str]] = {name: [] for name in SETS}
    for kind, portals in (("portals", guarded), ("served", local_portals)):
        for portal in sorted(set(portals), key=lambda p: p.sort_key):
            elements[f"{kind}{portal.address.version}"].append(f"{portal.address} . {portal.port}")
    for network, port in _by_port(clear_exceptions):
        elements[f"open{network.version}"].append(f"{network} . {port}")
    lines = [_HEAD, f"table {FAMILY} {TABLE}", f"delete table {FAMILY} {TABLE}", f"table {FAMILY} {TABLE} {{"]
    for name in SETS:
        lines += [f"\tset {name} {{", f"\t\ttype ipv{name[-1]}_addr . inet_service"]
        if name.startswith("open"):
            lines.append("\t\tflags interval")
        if elements[name]:
            lines.append("\t\telements = { " + ", ".join(elements[name]) + " }")
        lines.append("\t}")
    # packets to oneself never leave the host
    local, closed = ("lo", *devices), tuple(_by_port(networks))
    lines += _chain(
        "output", "oifname", local, ("daddr", "dport"), ("saddr", "sport"), closed, "rt ipsec missing"
    )
    lines += _chain(
        "input", "iifname", local, ("saddr", "sport"), ("daddr", "dport"), closed, "meta ipsec missing"
    )
    lines.append("}")
    return "\n".join(lines) + "\n"


def _by_port(ranges: Iterable[PortalRange]) -> Iterator[tuple[Network, int]]:
    """Networks and ports without overlaps: nftables refuses intervals that overlap."""
    networks: dict[int, list[Network]] = {}
    for portal_range in ranges:
        networks.setdefault(portal_range.port, []).append(portal_range.network)
    for port in sorted(networks):
        for network in merged(networks[port]):
            yield network, port


def held_portals(sets: Mapping[str, frozenset[Portal]]) -> frozenset[Portal]:
    """The single portals that a table with these sets holds closed."""
    return frozenset(portal for name in HOLDING for portal in sets.get(name, ()))


def parse_elements(text: str) -> tuple[tuple[Portal, ...], tuple[Portal, ...]]:
    """The remote and the served portals of a text made by :func:`guard_table`; what cannot be read is passed over."""
    found: dict[str, list[Portal]] = {name: [] for name in HOLDING}
    for name, elements in _SET.findall(text):
        for element in elements.split(","):
            address, _, port = element.strip().rpartition(" . ")
            with contextlib.suppress(ValueError):
                if 0 < int(port) < 65536:
                    found[name].append(Portal(ipaddress.ip_address(address), int(port)))
    return (*found["portals4"], *found["portals6"]), (*found["served4"], *found["served6"])


def _chain(
    hook: str,
    direction: str,
    devices: tuple[str, ...],
    remote: tuple[str, str],
    own: tuple[str, str],
    networks: tuple[tuple[Network, int], ...],
    missing: str,
) -> list[str]:
    """One base chain; ``remote`` and ``own`` are the packet's fields of a remote portal and of one of ours."""
    names = ", ".join(f'"{device}"' for device in devices)
    address, port = remote
    lines = [
        f"\tchain {hook} {{",
        f"\t\ttype filter hook {hook} priority {PRIORITY}; policy accept;",
        f"\t\t{direction} {{ {names} }} accept",
    ]
    for family, version in (("ip", 4), ("ip6", 6)):
        lines += [
            f"\t\t{family} {address} . tcp {port} @portals{version} {missing} counter drop",
            f"\t\t{family} {own[0]} . tcp {own[1]} @served{version} {missing} counter drop",
            f"\t\t{family} {address} . tcp {port} @open{version} accept",
        ]
        for network, at in networks:
            if network.version == version:
                # nft refuses a network of all addresses
                inside = (
                    f"{family} {address} {network}" if network.prefixlen else f"meta nfproto ipv{version}"
                )
                lines.append(f"\t\t{inside} tcp {port} {at} {missing} counter drop")
    lines.append("\t}")
    return lines
