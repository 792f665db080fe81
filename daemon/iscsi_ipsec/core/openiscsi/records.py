"""Parses one record of open-iscsi's database.

Law: pure text in, values out. Only the keys in ``_NODE_KEYS`` and its
siblings are ever split from their values, so that a CHAP password never becomes a value in this program. Names of keys: open-iscsi ``usr/idbm_fields.h``.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from iscsi_ipsec.base.iscsi import NodeRecord
from iscsi_ipsec.base.portal import ISCSI_PORT

_NODE_KEYS = frozenset(
    {
        "node.name",
        "node.startup",
        "node.conn[0].address",
        "node.conn[0].port",
        "iface.iscsi_ifacename",
        "iface.net_ifacename",
        "iface.hwaddress",
        "iface.transport_name",
    }
)
# An iSNS record spells its server's address discovery.sendtargets.* as well (usr/idbm_fields.h,
# DISC_ISNS_ADDR); only discovery.type distinguishes them. The discovery.isns.* spelling is older.
_DISCOVERY_KEYS = frozenset(
    {
        "discovery.type",
        "discovery.startup",
        "discovery.sendtargets.address",
        "discovery.sendtargets.port",
        "discovery.isns.address",
        "discovery.isns.port",
    }
)
_KEYS = _NODE_KEYS | _DISCOVERY_KEYS

_BEGIN = "# BEGIN RECORD"
_END = "# END RECORD"
_MAX_HOST = 1025
"""NI_MAXHOST, the size of open-iscsi's address field with its final NUL (``usr/config.h``)."""


@dataclass(frozen=True, slots=True)
class Torn:
    """A record that is not complete: iscsiadm writes in place, and we read in between."""

    path: str


@dataclass(frozen=True, slots=True)
class NotForUs:
    """A complete record that names no iSCSI portal; ``malformed`` when it should have."""

    path: str
    reason: str
    malformed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IfaceRecord:
    """The part of ``ifaces/<name>`` that decides which interface a socket is bound to."""

    net_ifacename: str = ""
    hwaddress: str = ""
    transport: str = ""


def parse_record(text: str, path: str) -> NodeRecord | Torn | NotForUs:
    """Read a node record, or a discovery record (``st_config``, ``isns_config``).

    ``path`` is only carried along. A host that is an address comes out in
    canonical form, an IPv4-mapped one as the IPv4 address that TCP will use.
    An iSNS server is :class:`NotForUs`: it speaks iSNS, not iSCSI; a portal
    policy that names it with its port protects it.
    """
    fields = _fields(text, _KEYS)
    if fields is None:
        return Torn(path)
    if target := fields.get("node.name", ""):
        host, port = fields.get("node.conn[0].address", ""), fields.get("node.conn[0].port", "")
    elif fields.get("discovery.type") == "isns" or "discovery.isns.address" in fields:
        return NotForUs(path, "an iSNS server is not an iSCSI portal")
    elif "discovery.sendtargets.address" in fields:
        host, port = fields["discovery.sendtargets.address"], fields.get("discovery.sendtargets.port", "")
    else:
        return NotForUs(path, "neither a node nor a discovery record", malformed=True)
    host = canonical_host(host)
    if not host or len(host) >= _MAX_HOST or not host.isprintable() or " " in host:
        return NotForUs(path, "no usable address in the record", malformed=True)
    number = _port(port)
    if number is None:
        return NotForUs(path, "no usable port in the record", malformed=True)
    return NodeRecord(
        host=host,
        port=number,
        target=target,
        startup=fields.get("node.startup") or fields.get("discovery.startup", ""),
        iface=fields.get("iface.iscsi_ifacename", ""),
        net_ifacename=fields.get("iface.net_ifacename", ""),
        hwaddress=fields.get("iface.hwaddress", ""),
        transport=fields.get("iface.transport_name") or "tcp",
        path=path,
    )


def parse_iface(text: str, path: str) -> IfaceRecord | Torn:
    """Read ``ifaces/<name>``."""
    fields = _fields(text, _NODE_KEYS)
    if fields is None:
        return Torn(path)
    return IfaceRecord(
        net_ifacename=fields.get("iface.net_ifacename", ""),
        hwaddress=fields.get("iface.hwaddress", ""),
        transport=fields.get("iface.transport_name", ""),
    )


def canonical_host(host: str) -> str:
    """An address as :mod:`ipaddress` prints it, a name in lower case without the final dot."""
    host = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.rstrip(".").lower()
    # a socket to ::ffff:10.0.0.20 sends IPv4 packets, which a policy for IPv6 would not see
    mapped = address.ipv4_mapped if address.version == 6 else None
    return str(mapped or address)


def _fields(text: str, keys: frozenset[str]) -> dict[str, str] | None:
    """The allowed keys between BEGIN and END; None when either line is missing.

    A later line beats an earlier one, as in open-iscsi's own reader.
    """
    found: dict[str, str] = {}
    begun = False
    for line in text.split("\n"):
        if line.startswith(_BEGIN):
            begun = True
        elif begun and line.rstrip() == _END:
            return found
        elif begun:
            # the key is compared before the value is taken: a password never gets a name here
            key = line[: line.find("=")].strip()
            if key in keys:
                value = line.partition("=")[2].strip()
                found[key] = "" if value == "<empty>" else value
    return None


def _port(text: str) -> int | None:
    if not text:
        return ISCSI_PORT
    # by length too: int() raises at more than 4,300 digits
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or not 1 <= int(text) <= 65535:
        return None
    return int(text)
