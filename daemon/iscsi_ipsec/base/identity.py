"""IKE identities: a key's owner, and the identity that a peer claims.

Law: values only; an identity that IKE could not carry, or that more than one host could have, cannot be
built. ``core.ike.vici_messages`` encodes identities for charon.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass, field

from iscsi_ipsec.base.addresses import Address, Network, parse_literal, refuse_zone, why_not_of_one_host

MAX_ID_BYTES = 255

_SWANCTL_PREFIX = re.compile(
    r"(?:ipv[46](?:net|range)?|rfc822|email|userfqdn|fqdn|dns|asn1[dg]n|xmppaddr|keyid):", re.IGNORECASE
)
"""Prefixes that make strongSwan read the rest as another type (create_from_string_with_prefix_type, identification.c)."""

_MEANINGFUL = "\"'\\#{}=,"
"""Characters to which charon's parsers of identities and lists give a meaning of their own."""


class IdType(enum.IntEnum):
    """IKE identification types that Windows' iSCSI initiator knows (RFC 2407, 4.6.2.1)."""

    ID_IPV4_ADDR = 1
    ID_FQDN = 2
    ID_USER_FQDN = 3
    ID_IPV6_ADDR = 5


@dataclass(frozen=True, slots=True, order=True)
class IkeId:
    """An IKE identity: exactly this type goes into the identification payload.

    Compares and hashes as charon compares identities: names without regard to case
    (equals_strcasecmp in identification.c). ``text`` is as written, and is what is sent and
    shown; an address as :mod:`ipaddress` prints it. Build it with :meth:`address`,
    :meth:`parse` or :meth:`from_bytes`, which refuse what does not fit the type, and whatever
    more than one host could have.
    """

    type: IdType
    text: str = field(compare=False)
    folded: str = field(init=False, repr=False)
    """The text by which identities are compared."""

    def __post_init__(self) -> None:
        lowered = self.text.lower()
        # most names are lower case, and a second copy of thousands would cost memory
        object.__setattr__(self, "folded", self.text if lowered == self.text else lowered)

    @classmethod
    def address(cls, address: Address) -> IkeId:
        """The identity of an IP address; raises :class:`ValueError` for one that no single host can have."""
        refuse_zone(address)
        if why := why_not_of_one_host(address):
            raise ValueError(f"{str(address)!r} {why}")
        kind = IdType.ID_IPV4_ADDR if address.version == 4 else IdType.ID_IPV6_ADDR
        return cls(kind, str(address))

    @classmethod
    def parse(cls, type: IdType, text: str) -> IkeId:
        """Check ``text`` against ``type``; raise :class:`ValueError` saying what is wrong and what to write."""
        if type in (IdType.ID_IPV4_ADDR, IdType.ID_IPV6_ADDR):
            return cls.address(_parse_address(type, text))
        _check_name(text)
        if type is IdType.ID_USER_FQDN:
            user, at, host = text.partition("@")
            if not (user and at and host) or "@" in host:
                raise ValueError(f"{text!r} is not of the form user@host")
        elif text.startswith("@"):
            raise ValueError(f"{text!r} begins with an @: write the name alone, {text.lstrip('@')!r}")
        elif "@" in text:
            raise ValueError(f"{text!r} has an @: is it an ID_USER_FQDN?")
        elif ":" in text and len(text) == MAX_ID_BYTES:
            # with no room for a prefix, charon would take it for a KEY_ID (see vici_messages.encode_id)
            raise ValueError(f"an id of {MAX_ID_BYTES} bytes cannot hold a colon")
        return cls(type, text)

    @classmethod
    def from_bytes(cls, type: IdType, data: bytes) -> IkeId:
        """Build from the identification payload's bytes (4 or 16 for addresses)."""
        if type is IdType.ID_IPV4_ADDR:
            if len(data) != 4:
                raise ValueError(f"an ID_IPV4_ADDR has 4 bytes, not {len(data)}")
            return cls.address(ipaddress.IPv4Address(data))
        if type is IdType.ID_IPV6_ADDR:
            if len(data) != 16:
                raise ValueError(f"an ID_IPV6_ADDR has 16 bytes, not {len(data)}")
            return cls.address(ipaddress.IPv6Address(data))
        try:
            return cls.parse(type, data.decode("ascii"))
        except UnicodeDecodeError:
            raise ValueError("the id's bytes are not ASCII") from None

    @property
    def is_address(self) -> bool:
        """Whether the type is one of the two address types."""
        return self.type in (IdType.ID_IPV4_ADDR, IdType.ID_IPV6_ADDR)

    def __str__(self) -> str:
        return self.text


def _parse_address(type: IdType, text: str) -> Address:
    version, want = (4, ipaddress.IPv4Address) if type is IdType.ID_IPV4_ADDR else (6, ipaddress.IPv6Address)
    try:
        return want(text)
    except ValueError:
        pass
    if prefix := _SWANCTL_PREFIX.match(text):
        raise ValueError(f"{text!r} begins with {prefix[0]!r}: write the address alone")
    alone = text.partition("/")[0]
    if alone != text and parse_literal(alone):
        raise ValueError(f"{text!r} has a prefix length, but one host has one address: write {alone}")
    raise ValueError(f"{text!r} is not an IPv{version} address")


def _check_name(text: str) -> None:
    """Refuse a text that cannot be the name of one host or user, or that charon would read as another name."""
    if not text:
        raise ValueError("the id is empty")
    if len(text.encode()) > MAX_ID_BYTES:
        raise ValueError(f"the id is longer than {MAX_ID_BYTES} bytes")
    if "*" in text or "?" in text:
        raise ValueError(
            "the id holds a wildcard, which would match other identities too: write the name of one host"
        )
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError(
            "the id holds a character that is not printable ASCII without spaces (write a name in its xn-- form)"
        )
    if prefix := _SWANCTL_PREFIX.match(text):
        raise ValueError(
            f"the id begins with {prefix[0]!r}, which is strongSwan's way to give a type: write the name alone, {text[prefix.end() :]!r}"
        )
    if text.startswith("%"):
        raise ValueError("the id begins with %, which stands for anybody: write the name of one host")
    if any(c in text for c in _MEANINGFUL):
        raise ValueError("the id holds one of \" ' \\ # { } = , which no name has")
    if text.endswith("."):
        raise ValueError(
            f"the id ends in a dot, which makes it another identity: write {text.rstrip('.')!r}"
            if text.strip(".") else f"{text!r} is not a name"
        )  # fmt: skip
    host = text.rpartition("@")[2]
    if (address := parse_literal(host)) and (why := why_not_of_one_host(address)):
        raise ValueError(f"{host!r} {why}")
    if _is_network(host):
        raise ValueError(f"{host!r} is a network or range, not the name of one host")


def _is_network(text: str) -> bool:
    """Whether it is an address with a prefix length or mask, or two addresses."""
    alone, slash, _ = text.partition("/")
    low, dash, high = text.partition("-")
    return bool((slash and parse_literal(alone)) or (dash and parse_literal(low) and parse_literal(high)))


Peer = IkeId | Network
"""The identities that a connection is for: one identity, or all address identities of a network."""
