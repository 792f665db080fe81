"""The nouns of the program, as frozen types that cannot be built wrong.

Law: values only. No I/O, no strongSwan spelling (``core.ike.vici_messages`` does that),
no defaults that decide anything.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from iscsi_ipsec.base.printable import printable
from iscsi_ipsec.base.secret import Secret

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ISCSI_PORT = 3260
"""The registered port of iSCSI targets (RFC 7143, section 4.1)."""

MAX_ID_BYTES = 255
MAX_KEY_FILE_BYTES = 64 * 1024


class IdType(enum.IntEnum):
    """IKE identification types that Windows' iSCSI initiator knows (RFC 2407, 4.6.2.1)."""

    ID_IPV4_ADDR = 1
    ID_FQDN = 2
    ID_USER_FQDN = 3
    ID_IPV6_ADDR = 5


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


def _refuse_zone(address: Address) -> None:
    if has_zone(address):
        raise ValueError(f"{str(address)!r} has a zone, which neither an identity nor a portal can carry")


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
        _refuse_zone(address)
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


@dataclass(frozen=True, slots=True)
class Portal:
    """An iSCSI portal by address: one IP address without a zone, and one TCP port."""

    address: Address
    port: int = ISCSI_PORT

    def __post_init__(self) -> None:
        _refuse_zone(self.address)

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"

    @property
    def sort_key(self) -> tuple[int, int, int]:
        """Orders IPv4 before IPv6, then by address and port."""
        return (self.address.version, int(self.address), self.port)


@dataclass(frozen=True, slots=True, order=True)
class NamedPortal:
    """A portal whose address is a name that DNS must resolve."""

    host: str
    port: int = ISCSI_PORT

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PortalRange:
    """All portals of a network on one port (a single address is a /32 or /128)."""

    network: Network
    port: int = ISCSI_PORT

    def contains(self, portal: Portal) -> bool:
        """Whether the portal's address and port fall into this range."""
        return (
            portal.port == self.port
            and portal.address.version == self.network.version
            and portal.address in self.network
        )

    @property
    def single(self) -> Portal | None:
        """The one portal of a full-length prefix, else None."""
        if self.network.prefixlen == self.network.max_prefixlen:
            return Portal(self.network.network_address, self.port)
        return None

    def __str__(self) -> str:
        if self.single:
            return str(self.single)
        host = f"[{self.network}]" if self.network.version == 6 else str(self.network)
        return f"{host}:{self.port}"


PortalPattern = PortalRange | NamedPortal

Peer = IkeId | Network
"""Whom a connection is for: one identity, or all address identities of a network."""


_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")


def parse_portal_pattern(text: str) -> PortalPattern:
    """Parse ``10.0.0.20``, ``10.0.0.0/24``, ``10.0.0.20:3260``, ``[fd00::20]:3260``, ``fd00::20``, ``name[:port]``.

    Raises :class:`ValueError` with what is wrong and an example of what is right.
    """
    text = text.strip()
    host, port = text, ISCSI_PORT
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not a portal (write an IPv6 one as [fd00::20]:3260)")
        if "/" in rest:
            raise ValueError(f"{text!r}: write the prefix inside the brackets, [fd00::/64]:3260")
        port = _parse_port(rest[1:], text) if rest else ISCSI_PORT
    elif text.count(":") == 1:
        host, _, rest = text.partition(":")
        port = _parse_port(rest, text)
    try:
        network = ipaddress.ip_network(host, strict=True)
    except ValueError as err:
        if "host bits" in str(err):
            fixed = ipaddress.ip_network(host, strict=False)
            raise ValueError(f"{text!r} has bits set behind the prefix (did you mean {fixed}?)") from None
        network = None
    if network is not None:
        single = network.prefixlen == network.max_prefixlen
        if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped:
            if not single:
                raise ValueError(f"{text!r} is a network of IPv4-mapped addresses; write it as IPv4")
            network = ipaddress.ip_network(network.network_address.ipv4_mapped)
        if single and (network.is_unspecified or network.is_multicast):
            raise ValueError(f"{text!r} is not the address of a host")
        if "%" in host:
            raise ValueError(f"{text!r} has a zone; link-local portals cannot be protected by address")
        return PortalRange(network, port)
    if not _HOST.fullmatch(host) or len(host) > 253 or re.fullmatch(r"[0-9.]+", host):
        raise ValueError(
            f"{text!r} is neither an address, a network nor a host name (10.0.0.20, 10.0.0.0/24, [fd00::20]:3260, san.example.com)"
        )
    return NamedPortal(host.rstrip(".").lower(), port)


def _parse_port(text: str, whole: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise ValueError(f"{whole!r}: the port must be 1 to 65535")
    return int(text)


def parse_portal(text: str) -> Portal:
    """Parse one portal given by address (see :func:`parse_portal_pattern`)."""
    pattern = parse_portal_pattern(text)
    if isinstance(pattern, PortalRange) and pattern.single:
        return pattern.single
    raise ValueError(f"{text!r} is not the address of one portal")


class Severity(enum.StrEnum):
    """How much a problem matters: an error keeps something from working, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing an admin should know: where, what is wrong, what to do.

    ``code`` is stable and short (``bad-id``, ``wrong-key``); ``line`` counts
    from 1, 0 means the whole file; ``portal`` names the portal it concerns.
    No text in it ever holds a key, nor what a terminal would obey: others' names may be quoted in it.
    """

    code: str
    message: str
    hint: str = ""
    file: str = ""
    line: int = 0
    portal: str = ""
    severity: Severity = Severity.ERROR

    def __post_init__(self) -> None:
        for name in ("message", "hint", "file", "portal"):
            object.__setattr__(self, name, printable(getattr(self, name)))

    def __str__(self) -> str:
        where = (
            f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        )
        if not where and self.portal:
            where = f"{self.portal}: "
        return f"{where}{self.message}" + (f" ({self.hint})" if self.hint else "")


class IkeMode(enum.StrEnum):
    """How phase 1 runs; the values are what ``status`` shows."""

    V2 = "IKEv2"
    MAIN = "IKEv1 main"
    AGGRESSIVE = "IKEv1 aggressive"


class EspMode(enum.StrEnum):
    """ESP encapsulation; the values are strongSwan's."""

    TRANSPORT = "transport"
    TUNNEL = "tunnel"


class Role(enum.StrEnum):
    """Which end of the iSCSI connection this host is."""

    INITIATOR = "initiator"
    TARGET = "target"


class Start(enum.StrEnum):
    """When an SA is negotiated: at the first packet, or at once and kept."""

    TRAP = "trap"
    START = "start"


@dataclass(frozen=True, slots=True, kw_only=True)
class IpsecChoice:
    """What a set of ISCSI_SECURITY_FLAGS asks for (``core.config.security_flags`` makes these)."""

    required: bool
    ike: IkeMode
    esp: EspMode | None
    pfs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousKey:
    """The key before this one, which is valid beside it until then (a time with its zone)."""

    secret: Secret
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PerIdKey:
    """A key that belongs to one identity (Windows' SetPresharedKeyForId).

    ``name`` is the file name without ``.toml``; ``portals`` empty means
    everywhere; ``choice`` None means that the flags were not specified;
    ``previous`` is there while the key is being rotated.
    """

    name: str
    path: str
    id: IkeId
    secret: Secret
    choice: IpsecChoice | None
    portals: tuple[PortalPattern, ...] = ()
    previous: PreviousKey | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupKey:
    """The default key of identities without one (SetGroupPresharedKey)."""

    name: str
    path: str
    secret: Secret
    choice: IpsecChoice | None
    portals: tuple[PortalPattern, ...] = ()
    previous: PreviousKey | None = None


Key = PerIdKey | GroupKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """strongSwan settings that a policy, a preset or the defaults may set; None: not set here.

    Times are in seconds.
    """

    ike_proposals: tuple[str, ...] | None = None
    esp_proposals: tuple[str, ...] | None = None
    ike_rekey_time: int | None = None
    esp_rekey_time: int | None = None
    dpd_delay: int | None = None
    dpd_timeout: int | None = None
    replay_window: int | None = None
    start: Start | None = None

    def over(self, below: Tuning) -> Tuning:
        """This one where it says something, else ``below``."""
        if self == _SILENT:
            return below
        if below == _SILENT:
            return self
        return Tuning(
            **{
                name: mine if (mine := getattr(self, name)) is not None else getattr(below, name)
                for name in Tuning.__dataclass_fields__
            }
        )


_SILENT = Tuning()


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalPolicy:
    """What one file of ``portal.d/`` says about the portals it names.

    ``initiators``: who may come in with the group key (target role only).
    """

    name: str
    path: str
    patterns: tuple[PortalPattern, ...]
    role: Role = Role.INITIATOR
    choice: IpsecChoice | None = None
    psk: str | None = None
    target_id: IkeId | None = None
    initiators: tuple[Peer, ...] = ()
    tunnel_outer_remote: Address | None = None
    tunnel_outer_local: Address | None = None
    preset: str | None = None
    tuning: Tuning = Tuning()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """What we read of an open-iscsi node or discovery record (never its CHAP secrets).

    ``host`` is an address or a name; ``net_ifacename`` the interface that
    open-iscsi binds the socket to, empty for none.
    """

    host: str
    port: int
    target: str = ""
    startup: str = ""
    iface: str = ""
    net_ifacename: str = ""
    hwaddress: str = ""
    transport: str = "tcp"
    path: str = ""

    @property
    def is_discovery(self) -> bool:
        """A discovery portal rather than a node."""
        return not self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class IscsiSession:
    """A live iSCSI connection's 4-tuple as the kernel tells it.

    ``remote`` is where the TCP connection really goes; ``persistent`` what
    the node record said (a login redirect makes them differ).
    """

    sid: int
    target: str
    state: str
    iface: str
    local_address: Address | None
    local_port: int
    remote: Portal
    persistent: Portal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One TCP connection: its 4-tuple."""

    local: Portal
    remote: Portal

    def __str__(self) -> str:
        return f"{self.local} to {self.remote}"


def sorted_portals(portals: Iterable[Portal]) -> tuple[Portal, ...]:
    """Portals in a stable order: IPv4 before IPv6, then by number."""
    return tuple(sorted(portals, key=lambda p: p.sort_key))
