"""Parses netlink framing: messages in a datagram, attributes in a message.

Law: pure, takes any bytes, and stops quietly at a cut message. Layouts:
include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator

NETLINK_ROUTE, NETLINK_XFRM, NETLINK_NETFILTER = 0, 6, 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300

HEADER = struct.Struct("=IHHII")
"""Length with the header, type, flags, sequence number, port id."""
ATTRIBUTE = struct.Struct("=HH")
"""Length with these two, type."""


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The (type, flags, sequence number, payload) of each whole message."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        if length < HEADER.size or offset + length > len(data):
            return
        yield kind, flags, sequence, data[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The (type, value) of each whole attribute."""
    offset = 0
    while offset + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < ATTRIBUTE.size or offset + length > len(data):
            return
        yield kind & 0x3FFF, data[offset + ATTRIBUTE.size : offset + length]  # the two high bits are flags
        offset += (length + 3) & ~3


def error_code(payload: bytes) -> int:
    """The errno at the start of NLMSG_ERROR and NLMSG_DONE; 0 for none."""
    return -int.from_bytes(payload[:4], sys.byteorder, signed=True)
