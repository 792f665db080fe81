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
from collections.abc import Iterable

from iscsi_ipsec.base.model import Portal

FAMILY, TABLE = "inet", "iscsi_ipsec"
PRIORITY = -150
"""Before the usual filter chains (0), behind connection tracking (-200)."""

SETS = ("portals4", "portals6", "served4", "served6")

_SET = re.compile(r"set (portals[46]|served[46]) \{[^{}]*elements = \{([^{}]*)\}")

_HEAD = """\
# Made by iscsi-ipsecd; loaded at boot by iscsi-ipsec-guard.service.
# Portals in these sets are reached inside IPsec or not at all.
"""


def guard_table(guarded: Iterable[Portal], served: Iterable[Portal], devices: Iterable[str] = ()) -> str:
    """The text of the table.

    ``guarded`` are remote portals, ``served`` local ones. Traffic through one
    of ``devices`` counts as protected: user-space ESP (kernel-libipsec) shows
    to the kernel as a TUN device only.
    """
    guarded, served, devices = tuple(guarded), tuple(served), tuple(devices)
    elements = {
        "portals4": [p for p in guarded if p.address.version == 4],
        "portals6": [p for p in guarded if p.address.version == 6],
        "served4": [p for p in served if p.address.version == 4],
        "served6": [p for p in served if p.address.version == 6],
    }
    lines = [_HEAD, f"table {FAMILY} {TABLE}", f"delete table {FAMILY} {TABLE}", f"table {FAMILY} {TABLE} {{"]
    for name in SETS:
        kind = "ipv4_addr" if name.endswith("4") else "ipv6_addr"
        lines.append(f"\tset {name} {{")
        lines.append(f"\t\ttype {kind} . inet_service")
        if elements[name]:
            ordered = sorted(elements[name], key=lambda p: p.sort_key)
            lines.append("\t\telements = { " + ", ".join(f"{p.address} . {p.port}" for p in ordered) + " }")
        lines.append("\t}")
    lines += _chain("output", "oifname", devices, (
        ("ip daddr . tcp dport @portals4", "rt ipsec missing"), ("ip6 daddr . tcp dport @portals6", "rt ipsec missing"),
        ("ip saddr . tcp sport @served4", "rt ipsec missing"), ("ip6 saddr . tcp sport @served6", "rt ipsec missing"),
    ))  # fmt: skip
    lines += _chain("input", "iifname", devices, (
        ("ip saddr . tcp sport @portals4", "meta ipsec missing"), ("ip6 saddr . tcp sport @portals6", "meta ipsec missing"),
        ("ip daddr . tcp dport @served4", "meta ipsec missing"), ("ip6 daddr . tcp dport @served6", "meta ipsec missing"),
    ))  # fmt: skip
    lines.append("}")
    return "\n".join(lines) + "\n"


def parse_elements(text: str) -> tuple[tuple[Portal, ...], tuple[Portal, ...]]:
    """The remote and the served portals of a text made by :func:`guard_table`; what cannot be read is passed over."""
    found: dict[str, list[Portal]] = {name: [] for name in SETS}
    for name, elements in _SET.findall(text):
        for element in elements.split(","):
            address, _, port = element.strip().rpartition(" . ")
            with contextlib.suppress(ValueError):
                if 0 < int(port) < 65536:
                    found[name].append(Portal(ipaddress.ip_address(address), int(port)))
    return (*found["portals4"], *found["portals6"]), (*found["served4"], *found["served6"])


def _chain(
    hook: str, direction: str, devices: tuple[str, ...], rules: tuple[tuple[str, str], ...]
) -> list[str]:
    lines = [f"\tchain {hook} {{", f"\t\ttype filter hook {hook} priority {PRIORITY}; policy accept;"]
    if devices:
        names = ", ".join(f'"{device}"' for device in devices)
        lines.append(f"\t\t{direction} {{ {names} }} accept")
    lines += [f"\t\t{match} {missing} counter drop" for match, missing in rules]
    lines.append("\t}")
    return lines
