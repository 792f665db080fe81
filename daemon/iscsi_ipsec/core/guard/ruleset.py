"""The guard as nftables text: table ``inet iscsi_ipsec``, and nothing else.

A packet of a guarded portal's TCP port passes inside one of the portal's own SAs or not
at all, in both directions, whatever charon or this program is doing. An SA is known by its reqid:
``ipsec out reqid`` is that of the state which the route leads into, ``ipsec in reqid`` that
of the state which the packet came out of (nft(8)). Any other ESP is none of the portal's own.

Packets are judged where they begin or end on this host, and where they enter and leave it:
address translation between the two hooks hides nothing, and packets routed for others (guests, containers)
are judged as well.

Law: pure text. The text replaces the table as a whole in one transaction and
may be loaded any number of times.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping

from iscsi_ipsec.base.addresses import Address, Network
from iscsi_ipsec.base.networks import merged
from iscsi_ipsec.base.portal import Portal, PortalRange

FAMILY, TABLE = "inet", "iscsi_ipsec"
PRIORITY = -150
"""Before the usual filter chains (0), behind connection tracking (-200)."""

ROCE_PORT = 4791
"""UDP port of RoCEv2 (IANA)."""

LAST = 300
"""Behind source NAT (100), which may give a packet the address that a policy asks for."""

SETS = ("sas4", "sas6", "open4", "open6", "portals4", "portals6", "served4", "served6")
"""Portals with the reqids of their own SAs; exceptions from networks; remote portals; portals of this host.

Networks are rules and no set: a set of intervals of two fields (nft_set_pipapo.c)
takes its elements over only after the transaction's rules are in force, so that at each
loading packets found it empty (some of 300 loadings let a SYN through).
"""

HOLDING = ("portals4", "portals6", "served4", "served6")
"""The sets whose elements are single portals that are held closed."""

HELD = "ike_held"
"""The set of IKE_SAs, by the initiator's SPI, whose deletes are held back; its elements come and go by themselves."""

_HOLDING_IKE = tuple(
    f"udp sport {port}{marker} @th,{64 + more},64 @{HELD} @th,{208 + more},8 {{ 5, 37 }} drop"
    for port, marker, more in ((500, "", 0), (4500, " @th,64,32 0", 32))
)
"""INFORMATIONAL exchanges, 5 in IKEv1 and 37 in IKEv2 (RFC 7296, 3.1), behind the UDP header; on port 4500 there
are four zero bytes before (RFC 3948, 2.2)."""

_SET = re.compile(r"set (portals[46]|served[46]) \{[^{}]*elements = \{([^{}]*)\}")

_HEAD = """\
# Made by iscsi-ipsecd; loaded at boot by iscsi-ipsec-guard.service.
# Portals in these sets are reached inside their own IPsec SAs or not at all.
"""

_REQIDS = {
    "out": ("ipsec out reqid",),
    # of an SA inside another, ours is the inner one
    "in": ("ipsec in reqid", "ipsec in spnum 1 reqid"),
}


def guard_table(
    guarded: Iterable[Portal],
    local_portals: Iterable[Portal],
    devices: Iterable[str] = (),
    *,
    sas: Iterable[tuple[Portal, int]] = (),
    networks: Iterable[PortalRange] = (),
    clear_exceptions: Iterable[PortalRange] = (),
    forward: bool = True,
    rdma: bool = False,
) -> str:
    """The text of the table.

    ``guarded`` are remote portals, ``local_portals`` local ones; ``sas`` are both with the
    reqids of their own SAs. ``networks`` hold
    portals that nobody has named yet (the very first discovery), but for those
    in ``clear_exceptions``. Traffic through one of ``devices`` counts as protected:
    user-space ESP (kernel-libipsec) shows to the kernel as a TUN device only.
    ``forward``: packets routed for others are judged as well. ``rdma``: RDMA over UDP (RoCEv2, whose port is 4791)
    to and from the portals' addresses is dropped; soft-RoCE sends it through the host's IP stack, outside IPsec.
    """
    guarded, local_portals = frozenset(guarded), frozenset(local_portals)
    elements: dict[str, list[str]] = {name: [] for name in SETS}
    for portal, reqid in sorted(set(sas), key=lambda pair: (pair[0].sort_key, pair[1])):
        elements[f"sas{portal.address.version}"].append(f"{portal.address} . {portal.port} . {reqid}")
    for kind, portals in (("portals", guarded), ("served", local_portals)):
        for portal in sorted(portals, key=lambda p: p.sort_key):
            elements[f"{kind}{portal.address.version}"].append(f"{portal.address} . {portal.port}")
    for network, port in _by_port(clear_exceptions):
        elements[f"open{network.version}"].append(f"{network} . {port}")
    lines = [_HEAD, f"table {FAMILY} {TABLE}", f"delete table {FAMILY} {TABLE}", f"table {FAMILY} {TABLE} {{"]
    for name in SETS:
        family = "ip" if name[-1] == "4" else "ip6"
        lines.append(f"\tset {name} {{")
        if name.startswith("sas"):
            lines.append(f"\t\ttypeof {family} daddr . tcp dport . ipsec out reqid")
        else:
            lines.append(f"\t\ttype ipv{name[-1]}_addr . inet_service")
        if name.startswith("open"):
            lines.append("\t\tflags interval")
        if elements[name]:
            lines.append("\t\telements = { " + ", ".join(elements[name]) + " }")
        lines.append("\t}")
    lines += [f"\tset {HELD} {{", "\t\ttypeof @th,64,64", "\t\tflags timeout", "\t}"]
    addresses = sorted(
        {portal.address for portal in guarded | local_portals}, key=lambda a: (a.version, int(a))
    )
    no_rdma = tuple(_rdma_rules(addresses)) if rdma else ()
    names = ", ".join(f'"{device}"' for device in ("lo", *devices))  # packets to oneself never leave the host
    closed = tuple(_by_port(networks))
    outgoing, incoming = (*_rules("out", closed), *no_rdma), (*_rules("in", closed), *no_rdma)
    leaving, entering = f"oifname {{ {names} }} accept", f"iifname {{ {names} }} accept"
    # a packet that came in by an interface is not this host's own
    routed = () if forward else ("meta iif != 0 accept",)
    lines += _chain("output", PRIORITY, (leaving, *_HOLDING_IKE, *outgoing))
    lines += _chain("postrouting", LAST, (leaving, *routed, *outgoing))
    if forward:
        lines += _chain("prerouting", PRIORITY, (entering, *incoming))
    lines += _chain("input", PRIORITY, (entering, *incoming))
    lines.append("}")
    return "\n".join(lines) + "\n"


def hold_ike(spis: Iterable[str], seconds: int) -> str:
    """A text that has the table hold back the deletes of these IKE_SAs (initiator's SPIs in hex) for a while."""
    elements = ", ".join(f"0x{int(spi, 16):016x} timeout {seconds}s" for spi in sorted(set(spis)))
    return f"add element {FAMILY} {TABLE} {HELD} {{ {elements} }}\n"


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
    """The remote and the served portals of a text made by :func:`guard_table`; unreadable elements are skipped."""
    found: dict[str, list[Portal]] = {name: [] for name in HOLDING}
    for name, elements in _SET.findall(text):
        for element in elements.split(","):
            address, _, port = element.strip().rpartition(" . ")
            with contextlib.suppress(ValueError):
                if 0 < int(port) < 65536:
                    found[name].append(Portal(ipaddress.ip_address(address), int(port)))
    return (*found["portals4"], *found["portals6"]), (*found["served4"], *found["served6"])


def _chain(hook: str, priority: int, rules: Iterable[str]) -> list[str]:
    head = f"type filter hook {hook} priority {priority}; policy accept;"
    return [f"\tchain {hook} {{", *(f"\t\t{line}" for line in (head, *rules)), "\t}"]


def _rules(direction: str, networks: tuple[tuple[Network, int], ...]) -> tuple[str, ...]:
    """The rules for packets that go ``out`` or come ``in``."""
    remote, own = ("daddr", "dport"), ("saddr", "sport")
    if direction == "in":
        remote, own = own, remote
    lines = []
    for family, version in (("ip", 4), ("ip6", 6)):
        theirs, ours = (f"{family} {address} . tcp {port}" for address, port in (remote, own))
        lines += [
            f"{end} . {reqid} @sas{version} accept" for end in (theirs, ours) for reqid in _REQIDS[direction]
        ]
        lines += [
            f"{theirs} @portals{version} counter drop",
            f"{ours} @served{version} counter drop",
            f"{theirs} @open{version} accept",
        ]
        for network, port in networks:
            if network.version == version:
                # nft refuses a network of all addresses
                inside = (
                    f"{family} {remote[0]} {network}" if network.prefixlen else f"meta nfproto ipv{version}"
                )
                lines.append(f"{inside} tcp {remote[1]} {port} counter drop")
    return tuple(lines)


def _rdma_rules(addresses: Iterable[Address]) -> Iterator[str]:
    """The rules that drop RoCEv2, which has the same destination port in both directions."""
    for family, version in (("ip", 4), ("ip6", 6)):
        if some := ", ".join(str(address) for address in addresses if address.version == version):
            for end in ("saddr", "daddr"):
                yield f"{family} {end} {{ {some} }} udp dport {ROCE_PORT} counter drop"
