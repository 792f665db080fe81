"""iSCSI portals, and the patterns by which files name them.

Law: values only.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from iscsi_ipsec.base.addresses import Address, Network, refuse_zone, why_not_of_one_host

ISCSI_PORT = 3260
"""The registered port of iSCSI targets (RFC 7143, section 4.1)."""


@dataclass(frozen=True, slots=True)
class Portal:
    """An iSCSI portal by address: one IP address without a zone, and one TCP port."""

    address: Address
    port: int = ISCSI_PORT

    def __post_init__(self) -> None:
        refuse_zone(self.address)

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"

    @property
    def sort_key(self) -> tuple[int, int, int]:
        """Orders IPv4 before IPv6, then by address and port."""
        return (self.address.version, int(self.address), self.port)


@dataclass(frozen=True, slots=True, order=True)
class NamedPortal:
    """A portal whose address is a name that DNS must resolve."""

    host: str
    port: int = ISCSI_PORT

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PortalRange:
    """All portals of a network on one port (a single address is a /32 or /128)."""

    network: Network
    port: int = ISCSI_PORT

    def contains(self, portal: Portal) -> bool:
        """Whether the portal's address and port fall into this range."""
        return (
            portal.port == self.port
            and portal.address.version == self.network.version
            and portal.address in self.network
        )

    @property
    def single(self) -> Portal | None:
        """The one portal of a full-length prefix, else None."""
        if self.network.prefixlen == self.network.max_prefixlen:
            return Portal(self.network.network_address, self.port)
        return None

    def __str__(self) -> str:
        if self.single:
            return str(self.single)
        host = f"[{self.network}]" if self.network.version == 6 else str(self.network)
        return f"{host}:{self.port}"


PortalPattern = PortalRange | NamedPortal


_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")


def parse_portal_pattern(text: str) -> PortalPattern:
    """Parse ``10.0.0.20``, ``10.0.0.0/24``, ``10.0.0.20:3260``, ``[fd00::20]:3260``, ``fd00::20``, ``name[:port]``.

    Raises :class:`ValueError` with what is wrong and an example of what is right.
    """
    text = text.strip()
    host, port = text, ISCSI_PORT
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not a portal (write an IPv6 one as [fd00::20]:3260)")
        if "/" in rest:
            raise ValueError(f"{text!r}: write the prefix inside the brackets, [fd00::/64]:3260")
        port = _parse_port(rest[1:], text) if rest else ISCSI_PORT
    elif text.count(":") == 1:
        host, _, rest = text.partition(":")
        port = _parse_port(rest, text)
    try:
        network = ipaddress.ip_network(host, strict=True)
    except ValueError as err:
        if "host bits" in str(err):
            fixed = ipaddress.ip_network(host, strict=False)
            raise ValueError(f"{text!r} has bits set behind the prefix (did you mean {fixed}?)") from None
        network = None
    if network is not None:
        single = network.prefixlen == network.max_prefixlen
        if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped:
            if not single:
                raise ValueError(f"{text!r} is a network of IPv4-mapped addresses; write it as IPv4")
            network = ipaddress.ip_network(network.network_address.ipv4_mapped)
        if single and (why := why_not_of_one_host(network.network_address)):
            raise ValueError(f"{text!r} {why}")
        if "%" in host:
            raise ValueError(f"{text!r} has a zone; link-local portals cannot be protected by address")
        return PortalRange(network, port)
    if not _HOST.fullmatch(host) or len(host) > 253 or re.fullmatch(r"[0-9.]+", host):
        raise ValueError(
            f"{text!r} is neither an address, a network nor a host name (10.0.0.20, 10.0.0.0/24, [fd00::20]:3260, san.example.com)"
        )
    return NamedPortal(host.rstrip(".").lower(), port)


def patterns_overlap(one: tuple[PortalPattern, ...], other: tuple[PortalPattern, ...]) -> bool:
    """Whether two keys may be meant for one portal; a key without portals is for all, names could be any address."""
    if not one or not other:
        return True
    for a, b in itertools.product(one, other):
        if not isinstance(a, PortalRange) or not isinstance(b, PortalRange):
            if a == b:
                return True
        elif a.port == b.port and a.network.version == b.network.version and a.network.overlaps(b.network):
            return True
    return False


def refuse_misread(text: str) -> None:
    """:class:`ValueError` for texts that people write as a portal and that would be read as something else."""
    bare = text.strip()
    if "://" in bare:
        raise ValueError(f"{text!r} is a URL: write its address, and a port where it is not 3260")
    if re.match(r"(?:iqn\.|eui\.|naa\.)", bare, re.IGNORECASE):
        raise ValueError(f"{text!r} is the name of a target: a portal is its address")
    if re.search(r",[0-9]+$", bare):
        raise ValueError(f"{text!r}: leave out the comma and the portal group that iscsiadm shows behind it")
    if re.fullmatch(r"[0-9.]+\s*-\s*[0-9.]+", bare):
        raise ValueError(f"{text!r} is a range: write the networks that it is made of, or each address")
    address = bare.removeprefix("[").partition("]")[0].partition("/")[0]
    try:
        parsed = ipaddress.ip_address(address if address.count(":") != 1 else address.partition(":")[0])
    except ValueError:
        return
    if parsed.version == 6 and parsed.is_link_local and "%" not in bare:
        raise ValueError(
            f"{text!r} is a link-local address, which cannot be protected: give the portal another one"
        )
    if parsed == ipaddress.IPv4Address("255.255.255.255"):
        raise ValueError(f"{text!r} is the broadcast address: no portal has it")


ANYWHERE = "any"
"""The reserved word for all portals on the registered port."""

EVERYWHERE = (PortalRange(ipaddress.IPv4Network("0.0.0.0/0")), PortalRange(ipaddress.IPv6Network("::/0")))


def parse_portal_patterns(text: str) -> tuple[PortalPattern, ...]:
    """Parse one entry of ``portals``: as :func:`parse_portal_pattern`, or ``any`` for all portals on port 3260."""
    word = text.strip()
    if word == ANYWHERE:
        return EVERYWHERE
    pattern = parse_portal_pattern(text)
    if isinstance(pattern, NamedPortal) and pattern.host == ANYWHERE:
        raise ValueError(f'{word!r} is no portal (write "any" for all portals on port {ISCSI_PORT})')
    return (pattern,)


def portal_texts(patterns: Iterable[PortalPattern]) -> tuple[str, ...]:
    """The patterns as entries of ``portals``."""
    listed = tuple(patterns)
    if set(EVERYWHERE) <= set(listed):
        return (ANYWHERE, *(str(pattern) for pattern in listed if pattern not in EVERYWHERE))
    return tuple(map(str, listed))


def _parse_port(text: str, whole: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise ValueError(f"{whole!r}: the port must be 1 to 65535")
    return int(text)


def parse_portal(text: str) -> Portal:
    """Parse one portal given by address (see :func:`parse_portal_pattern`)."""
    pattern = parse_portal_pattern(text)
    if isinstance(pattern, PortalRange) and pattern.single:
        return pattern.single
    raise ValueError(f"{text!r} is not the address of one portal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One TCP connection: its 4-tuple."""

    local: Portal
    remote: Portal

    def __str__(self) -> str:
        return f"{self.local} to {self.remote}"


def sorted_portals(portals: Iterable[Portal]) -> tuple[Portal, ...]:
    """Portals in a stable order: IPv4 before IPv6, then by number."""
    return tuple(sorted(portals, key=lambda p: p.sort_key))
