"""IKE identities: whom a key belongs to, and who a peer says it is.

Law: values only; an identity that IKE could not carry cannot be built. strongSwan's syntax is
``core.ike.vici_messages``' business.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass

from iscsi_ipsec.base.addresses import Address, Network, refuse_zone

MAX_ID_BYTES = 255


class IdType(enum.IntEnum):
    """IKE identification types that Windows' iSCSI initiator knows (RFC 2407, 4.6.2.1)."""

    ID_IPV4_ADDR = 1
    ID_FQDN = 2
    ID_USER_FQDN = 3
    ID_IPV6_ADDR = 5


@dataclass(frozen=True, slots=True, order=True)
class IkeId:
    """An IKE identity: exactly this type goes into the identification payload.

    ``text`` is the canonical text: an address as :mod:`ipaddress` prints it,
    a name as written. Build it with :meth:`address`, :meth:`fqdn` or
    :meth:`user_fqdn`, which refuse what does not fit the type.
    """

    type: IdType
    text: str

    @classmethod
    def address(cls, address: Address) -> IkeId:
        """The identity of an IP address; raises :class:`ValueError` for one with a zone."""
        refuse_zone(address)
        kind = IdType.ID_IPV4_ADDR if address.version == 4 else IdType.ID_IPV6_ADDR
        return cls(kind, str(address))

    @classmethod
    def parse(cls, type: IdType, text: str) -> IkeId:
        """Check ``text`` against ``type``; raise :class:`ValueError` saying what is wrong.

        A ``*`` is refused because charon matches it as a wildcard, and so are
        characters that charon's parser gives a meaning of their own.
        """
        if type in (IdType.ID_IPV4_ADDR, IdType.ID_IPV6_ADDR):
            want = ipaddress.IPv4Address if type is IdType.ID_IPV4_ADDR else ipaddress.IPv6Address
            try:
                address = want(text)
            except ValueError:
                version = 4 if type is IdType.ID_IPV4_ADDR else 6
                raise ValueError(f"{text!r} is not an IPv{version} address") from None
            return cls.address(address)
        if not text:
            raise ValueError("the id is empty")
        if len(text.encode()) > MAX_ID_BYTES:
            raise ValueError(f"the id is longer than {MAX_ID_BYTES} bytes")
        if "*" in text or "?" in text:
            raise ValueError("the id holds a wildcard, which would match other identities too")
        if not re.fullmatch(r"[!-~]+", text):
            raise ValueError(
                "the id holds a character that is not printable ASCII without spaces (write a name in its xn-- form)"
            )
        if any(c in text for c in "\"'\\#{}=,"):
            raise ValueError("the id holds one of \" ' \\ # { } = , which no name has")
        if type is IdType.ID_USER_FQDN:
            user, at, host = text.partition("@")
            if not (user and at and host) or "@" in host:
                raise ValueError(f"{text!r} is not of the form user@host")
        elif "@" in text:
            raise ValueError(f"{text!r} has an @: is it an ID_USER_FQDN?")
        elif ":" in text and len(text) == MAX_ID_BYTES:
            # with no room for a prefix, charon would take it for a KEY_ID (see messages.spell_id)
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

    @property
    def match_key(self) -> tuple[IdType, str]:
        """Equal for identities that charon takes for the same (names ignore case)."""
        return (self.type, self.text.lower())

    def __str__(self) -> str:
        return self.text


Peer = IkeId | Network
"""Whom a connection is for: one identity, or all address identities of a network."""
