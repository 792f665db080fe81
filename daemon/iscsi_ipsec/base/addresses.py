"""IP addresses and networks as every layer means them: of one host, without a zone.

Law: values only. No I/O, and no default that decides anything.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_address(host: str) -> Address | None:
    """The address that a text is; None for a name, and for one with a zone, which no policy can hold."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return None if has_zone(address) else address.ipv4_mapped or address
    return address


def has_zone(address: Address) -> bool:
    """Whether it names a link as well. Python takes any text for that, and addresses become text that others read."""
    return getattr(address, "scope_id", None) is not None


def is_of_one_host(address: Address) -> bool:
    """Whether it is a unicast address without a zone."""
    return not (has_zone(address) or address.is_multicast or address.is_unspecified)


def host_address(text: str) -> Address:
    """The unicast address of one host; :class:`ValueError` says what the text is instead, without repeating it."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("not an IP address") from None
    if not is_of_one_host(address):
        raise ValueError("not the unicast address of one host")
    return address


def refuse_zone(address: Address) -> None:
    if has_zone(address):
        raise ValueError(f"{str(address)!r} has a zone, which neither an identity nor a portal can carry")
