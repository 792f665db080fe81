"""IP addresses and networks as every layer means them: of one host, without a zone.

Law: values only. No I/O, and no default that decides anything.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def parse_address(host: str) -> Address | None:
    """The address that a text is; None for a name, and for an address with a zone, which no policy can hold."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return None if has_zone(address) else address.ipv4_mapped or address
    return address


def has_zone(address: Address) -> bool:
    """Whether the address has a zone. Python accepts any text as a zone, and addresses become text that other programs read."""
    return getattr(address, "scope_id", None) is not None


def parse_literal(text: str) -> Address | None:
    """The address that a text is, of any kind; None for anything else."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def why_not_of_one_host(address: Address) -> str:
    """Says why no single host can have an address, as a predicate; empty for an address that a host can have."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    if mapped:
        return f"is an IPv4 address written as IPv6: write {mapped}"
    if address.is_unspecified:
        return "stands for any address: write the address of one host"
    if address.is_multicast:
        return "is a multicast address: write the address of one host"
    if address == _BROADCAST:
        return "is the broadcast address: write the address of one host"
    return ""


def is_of_one_host(address: Address) -> bool:
    """Whether it is a unicast address without a zone."""
    return not (has_zone(address) or why_not_of_one_host(address))


def host_address(text: str) -> Address:
    """The unicast address of one host; :class:`ValueError` says what the text is instead, without repeating it."""
    address = parse_literal(text)
    if address is None:
        raise ValueError("not an IP address")
    if isinstance(address, ipaddress.IPv6Address) and not has_zone(address):
        address = address.ipv4_mapped or address
    if not is_of_one_host(address):
        raise ValueError("not the unicast address of one host")
    return address


def refuse_zone(address: Address) -> None:
    if has_zone(address):
        raise ValueError(f"{str(address)!r} has a zone, which neither an identity nor a portal can carry")
