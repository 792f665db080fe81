"""Subtracting networks from networks is exact, in both IP versions."""

from __future__ import annotations

import ipaddress

import pytest

from iscsi_ipsec.base.networks import subtract


@pytest.mark.parametrize(
    ("whole", "holes", "left"),
    [
        ("10.0.0.0/24", ["10.0.0.0/16"], []),
        ("fd00::/64", ["fd00::/16"], []),
        ("10.0.0.0/31", ["10.0.0.1/32"], ["10.0.0.0/32"]),
        ("fd00::/127", ["fd00::1/128"], ["fd00::/128"]),
        ("10.0.0.0/30", ["10.0.0.1/32"], ["10.0.0.0/32", "10.0.0.2/31"]),
        ("fd00::/126", ["fd00::1/128"], ["fd00::/128", "fd00::2/127"]),
        ("10.0.0.0/24", ["192.0.2.0/24"], ["10.0.0.0/24"]),
        ("fd00::/64", ["fd01::/64"], ["fd00::/64"]),
        ("10.0.0.0/24", ["fd00::/64"], ["10.0.0.0/24"]),
    ],
)
def test_subtract_leaves_exactly_the_rest_of_the_network(
    whole: str, holes: list[str], left: list[str]
) -> None:
    found = subtract(ipaddress.ip_network(whole), [ipaddress.ip_network(hole) for hole in holes])
    assert [str(network) for network in found] == left
