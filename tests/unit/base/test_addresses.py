"""Addresses: which texts are one, which of them a single host can have."""

from __future__ import annotations

import ipaddress

import pytest

from iscsi_ipsec.base.addresses import host_address, is_of_one_host, parse_address, refuse_zone


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.20", "10.0.0.20"),
        ("FD00:0::20", "fd00::20"),
        ("::ffff:10.0.0.20", "10.0.0.20"),  # what TCP connects to
        ("fe80::1%eth0", None),
        ("san.example.com", None),
        ("10.0.0.0/24", None),
        ("", None),
    ],
)
def test_parse_address_takes_addresses_without_a_zone_only(text: str, address: str | None) -> None:
    found = parse_address(text)
    assert (str(found) if found else None) == address


@pytest.mark.parametrize("text", ["10.0.0.20", "fd00::20", "fe80::1", "255.255.255.254"])
def test_host_address_takes_a_unicast_address(text: str) -> None:
    assert host_address(text) == ipaddress.ip_address(text)


def test_host_address_takes_an_ipv4_address_written_as_ipv6() -> None:
    assert str(host_address("::ffff:10.0.0.20")) == "10.0.0.20"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("san-x", "not an IP address"),
        *((text, "not the unicast address of one host") for text in ("0.0.0.0", "255.255.255.255", "::", "224.0.0.1", "ff02::1", "fe80::1%eth0")),  # noqa: S104  # what must be refused
    ],
)  # fmt: skip
def test_host_address_says_why_not_without_repeating_the_text(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}$"):
        host_address(text)


def test_is_of_one_host_refuses_zone_multicast_unspecified_broadcast_and_mapped() -> None:
    texts = ("10.0.0.20", "fe80::1", "fe80::1%eth0", "224.0.0.1", "::", "255.255.255.255", "::ffff:10.0.0.5")
    assert [is_of_one_host(ipaddress.ip_address(text)) for text in texts] == [True, True] + [False] * 5


def test_refuse_zone_names_the_address() -> None:
    refuse_zone(ipaddress.ip_address("fe80::1"))
    with pytest.raises(ValueError, match=r"^'fe80::1%eth0' has a zone"):
        refuse_zone(ipaddress.ip_address("fe80::1%eth0"))
