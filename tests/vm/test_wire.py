"""The recorder's eyes: it names frames by what a passive listener would see.

These need no VM; they are here because everything else here believes them.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from tests.vm.wire import parse

NEAR, FAR = IPv4Address("10.32.60.10"), IPv4Address("10.32.60.20")
NEAR6, FAR6 = IPv6Address("fd00:3260::10"), IPv6Address("fd00:3260::20")
TCP, UDP, ESP, FRAGMENT, DESTINATION_OPTIONS = 6, 17, 50, 44, 60
TO_PORTAL = struct.pack(">HH", 40000, 3260) + bytes(16)


def ipv4(protocol: int, payload: bytes, *, fragment: int = 0) -> bytes:
    """Build a frame; `fragment` is the offset in units of eight bytes."""
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, fragment, 64, protocol, 0)
    return bytes(12) + b"\x08\x00" + head + NEAR.packed + FAR.packed + payload


def ipv6(next_header: int, payload: bytes) -> bytes:
    """Build a frame; extension headers are part of the payload."""
    head = struct.pack(">IHBB", 6 << 28, len(payload), next_header, 64)
    return bytes(12) + b"\x86\xdd" + head + NEAR6.packed + FAR6.packed + payload


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (ipv4(TCP, TO_PORTAL), "tcp/3260"),
        (ipv6(TCP, TO_PORTAL), "tcp/3260"),
        (ipv6(DESTINATION_OPTIONS, bytes([TCP, 0]) + bytes(6) + TO_PORTAL), "tcp/3260"),
        (ipv6(FRAGMENT, bytes([TCP, 0, 0, 1]) + bytes(4) + TO_PORTAL), "tcp/3260"),
        (ipv4(TCP, TO_PORTAL, fragment=8), "tcp/fragment"),
        (ipv6(FRAGMENT, bytes([TCP, 0, 0, 8]) + bytes(4) + TO_PORTAL), "tcp/fragment"),
        (ipv4(ESP, bytes(40)), "esp"),
        (ipv6(ESP, bytes(40)), "esp"),
        (ipv4(UDP, struct.pack(">HHHH", 500, 500, 8, 0) + bytes(28)), "udp/500"),
        (ipv4(UDP, struct.pack(">HHHH", 4500, 4500, 8, 0) + bytes(32)), "udp/4500"),
        (ipv4(UDP, struct.pack(">HHHH", 4500, 4500, 8, 0) + b"\xff"), "udp/4500"),
        (ipv4(UDP, struct.pack(">HHHH", 4500, 4500, 8, 0) + b"\xc1" * 32), "esp-in-udp"),
        (bytes(12) + b"\x08\x06" + bytes(28), "arp"),
    ],
)
def test_a_frame_is_named_by_its_outermost_headers(frame: bytes, kind: str) -> None:
    """Misnaming clear text as something else would hide a leak."""
    assert parse(frame).kind == kind


@pytest.mark.parametrize("fragment", [0, 8])
def test_a_frame_of_tcp_is_tcp_even_if_its_ports_are_hidden(fragment: int) -> None:
    """A fragment without ports must still count as a possible leak."""
    frame = parse(ipv4(TCP, TO_PORTAL, fragment=fragment))

    assert (frame.protocol, frame.source, frame.destination) == (TCP, str(NEAR), str(FAR))
