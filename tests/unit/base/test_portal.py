"""Portals and the patterns that name them: every form that is read, and each mistake with what would be right."""

from __future__ import annotations

import ipaddress
import re

import pytest

from iscsi_ipsec.base.identity import IkeId
from iscsi_ipsec.base.portal import Portal, PortalRange, parse_portal, parse_portal_pattern, sorted_portals

ZONED = "fd00::1%x . 3260 } } ; flush ruleset #"


def test_portal_and_ike_id_refuse_an_address_with_a_zone() -> None:
    reported = re.escape(f"{ZONED!r} has a zone, which neither an identity nor a portal can carry")
    for make in (Portal, IkeId.address):
        with pytest.raises(ValueError, match=f"^{reported}$"):
            make(ipaddress.ip_address(ZONED))


# -- patterns


LONGEST = f"{'a.' * 126}a"
"""The longest name: 253 characters."""


NEITHER = "is neither an address, a network nor a host name (10.0.0.20, 10.0.0.0/24, [fd00::20]:3260, san.example.com)"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("10.0.0.20", "10.0.0.20:3260"),
        ("10.0.0.20/32", "10.0.0.20:3260"),
        (" 10.0.0.20:1 ", "10.0.0.20:1"),
        ("fd00::20", "[fd00::20]:3260"),
        ("FD00:0::20", "[fd00::20]:3260"),
        ("[fd00::20]", "[fd00::20]:3260"),
        ("fd00::/64", "[fd00::/64]:3260"),
        ("[fd00::/64]:1", "[fd00::/64]:1"),
        ("0.0.0.0/0", "0.0.0.0/0:3260"),
        ("san.example.com.", "san.example.com:3260"),
        ("_iscsi.san", "_iscsi.san:3260"),
        ("SAN-X.:65535", "san-x:65535"),
        (LONGEST, f"{LONGEST}:3260"),
    ],
)
def test_parse_portal_pattern_reads_every_form(text: str, printed: str) -> None:
    assert str(parse_portal_pattern(text)) == printed


@pytest.mark.parametrize(
    ("texts", "reported"),
    [
        (["", "10.0.0", "1", "10.0.0.0/33", "-san", "a..b", "a" * 64, "san/24", "san example", "10.0.0.20:3260:1x", f"{LONGEST}b"], NEITHER),
        (["[10.0.0.20", "[fd00::20", "[fd00::20]3260", "[fd00::20]/64"], "is not a portal (write an IPv6 one as [fd00::20]:3260)"),
        (["[fd00::]:3260/64"], ": write the prefix inside the brackets, [fd00::/64]:3260"),
        ([":", "10.0.0.20:", "10.0.0.20:x", "10.0.0.20:١", "10.0.0.20:0", "10.0.0.20:65536", "[fd00::20]:3260]"], ": the port must be 1 to 65535"),
        (["0.0.0.0", "::"], "stands for any address: write the address of one host"),  # noqa: S104  # what must be refused
        (["224.0.0.1", "[ff02::1]:3260"], "is a multicast address: write the address of one host"),
        (["255.255.255.255"], "is the broadcast address: write the address of one host"),
        (["10.0.0.1/8"], "has bits set behind the prefix (did you mean 10.0.0.0/8?)"),
        (["[fd00::1/64]:1"], "has bits set behind the prefix (did you mean fd00::/64?)"),
        (["::ffff:10.0.0.0/120"], "is a network of IPv4-mapped addresses; write it as IPv4"),
        (["fe80::1%eth0", "[fe80::1%eth0]:3260"], "has a zone; link-local portals cannot be protected by address"),
    ],
)  # fmt: skip
def test_parse_portal_pattern_says_what_would_be_right(texts: list[str], reported: str) -> None:
    for text in texts:
        with pytest.raises(ValueError, match=r".") as caught:
            parse_portal_pattern(text)
        assert str(caught.value) == f"{text!r}{'' if reported[0] == ':' else ' '}{reported}"


def test_parse_portal_refuses_networks_and_names() -> None:
    assert str(parse_portal("fd00::20")) == "[fd00::20]:3260"
    for text in ("10.0.0.0/24", "san.example.com"):
        with pytest.raises(ValueError, match="not the address of one portal"):
            parse_portal(text)


# -- values


def test_portal_range_contains_portals_of_its_network_and_port_only() -> None:
    range_ = parse_portal_pattern("10.0.0.0/24")
    assert isinstance(range_, PortalRange)
    inside = {text: range_.contains(parse_portal(text)) for text in ("10.0.0.0", "10.0.0.255", "10.0.1.0", "10.0.0.1:3261", "::a00:1")}  # fmt: skip
    assert inside == {"10.0.0.0": True, "10.0.0.255": True, "10.0.1.0": False, "10.0.0.1:3261": False, "::a00:1": False}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "single"), [("10.0.0.1/32", True), ("fd00::1", True), ("10.0.0.0/31", False)]
)
def test_single_is_the_one_portal_of_a_full_length_prefix(text: str, *, single: bool) -> None:
    range_ = parse_portal_pattern(text)
    assert isinstance(range_, PortalRange)
    assert range_.single == (parse_portal(text) if single else None)


def test_sorted_portals_orders_by_version_address_and_port_as_numbers() -> None:
    texts = ["10.0.0.3:3260", "10.0.0.20:3260", "10.0.0.20:10000", "[fd00::2]:3260", "[fd00::10]:3260"]
    assert [*map(str, sorted_portals(map(parse_portal, reversed(texts))))] == texts
