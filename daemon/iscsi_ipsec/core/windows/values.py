"""Turns single values of Windows' settings into our types, with every problem on the way.

Law: pure; no word of the input is repeated in a message, as
misplaced words may be keys. Every doubt becomes a :class:`Problem` with its
line; an error means that the thing was not taken over.

These rules convert flags (:func:`take_flags`):

* VALID unset: not specified, whatever else is set (RFC 4174, 2.4: "MUST be ignored").
* IKE_IPSEC_ENABLED unset: IPsec is not required, and the other bits are ignored (RFC 4171, 6.3.9).
* MAIN and AGGRESSIVE, of which RFC 4174 allows one: main, which is a MUST in
  RFC 3723 where aggressive is a SHOULD, and the only one that Windows' own
  initiator does.
* neither MAIN nor AGGRESSIVE: for RFC 4171 both are disabled, for RFC 4174 it
  is forbidden. Main, as Windows knows no IKEv2 with a pre-shared key; here
  it would mean IKEv2.
* TRANSPORT and TUNNEL, of which RFC 4174 allows one: no preference, as where
  neither is set (RFC 4171).
* Unknown bits are reserved (RFC 4171) and dropped.

Of two keys of one identity the last counts, as each sets it anew; of two sets
of flags for one portal the first, as Windows ignores those of a portal that
already has a policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from iscsi_ipsec.base.addresses import Address, host_address
from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.policy import IpsecChoice
from iscsi_ipsec.base.portal import Portal, parse_portal
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.security_flags import KNOWN_BITS, SecurityFlags, interpret


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Facts about the input that only the admin knows.

    ``hex_keys``: a key that begins with ``0x`` is hexadecimal (iscsicli's help
    says so, iscsicli does not). ``group_nul``: a group key ends in the NUL
    byte that iscsicli sends with it. ``encoding``: the code page of the
    Windows machine, for keys that are not ASCII; empty: refuse those.
    """

    hex_keys: bool = False
    group_nul: bool = False
    encoding: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundKey:
    """A key. ``id`` None: a group key, for ``portal`` alone where that is set."""

    line: int
    id: IkeId | None
    secret: Secret
    choice: IpsecChoice | None = None
    portal: Portal | None = None
    persistent: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPortal:
    """The settings of a portal: flags, the outer address, or both None (IPsec is required, nothing else is set)."""

    line: int
    portal: Portal
    choice: IpsecChoice | None = None
    outer: Address | None = None
    persistent: bool = True
    outer_line: int = 0
    """The line of the outer address, if the settings of the portal come from several lines."""


@dataclass(slots=True)
class Harvest:
    """Everything that one input sets, in its order."""

    file: str
    keys: list[FoundKey] = field(default_factory=list)
    portals: list[FoundPortal] = field(default_factory=list)
    default: IpsecChoice | None = None
    problems: list[Problem] = field(default_factory=list)

    def error(self, line: int, message: str, hint: str = "") -> None:
        """Note a setting that could not be taken over."""
        self.problems.append(
            Problem(code="not-imported", message=message, hint=hint, file=self.file, line=line)
        )

    def warn(self, line: int, message: str, hint: str = "") -> None:
        """Note a setting that was taken over in another form."""
        self.problems.append(
            Problem(
                code="imported-otherwise", message=message, hint=hint, file=self.file, line=line,
                severity=Severity.WARNING,
            )
        )  # fmt: skip


class NotTakenError(ValueError):
    """Something that cannot be taken over; its text is safe to show."""


# -- flags, identities, keys


def take_flags(value: int, line: int, harvest: Harvest) -> IpsecChoice | None:
    """The choice that a bitmap of Windows or iSNS means; each ambiguity is noted."""
    if value < 0 or value >> 64:
        raise NotTakenError("the security flags are no number of 64 bits")
    if value & ~KNOWN_BITS:
        harvest.warn(line, f"the reserved bits 0x{value & ~KNOWN_BITS:x} are dropped (RFC 4171, 6.3.9)")
    flags = SecurityFlags(value & KNOWN_BITS)
    if SecurityFlags.VALID not in flags:
        if flags:
            harvest.warn(line, "VALID is unset: the flags count as not specified (RFC 4174, 2.4)")
        return None
    if SecurityFlags.IKE_IPSEC_ENABLED not in flags:
        harvest.warn(line, "IKE_IPSEC_ENABLED is unset: unencrypted traffic will be allowed")
        return interpret(SecurityFlags.VALID)
    main, aggressive = SecurityFlags.MAIN_MODE_ENABLED, SecurityFlags.AGGRESSIVE_MODE_ENABLED
    transport, tunnel = SecurityFlags.TRANSPORT_MODE_PREFERRED, SecurityFlags.TUNNEL_MODE_PREFERRED
    if main in flags and aggressive in flags:
        harvest.warn(line, "main and aggressive mode are both set (RFC 4174, 2.4 allows one): main is taken")
        flags &= ~aggressive
    if main not in flags and aggressive not in flags:
        harvest.warn(line, "neither main nor aggressive mode is set (RFC 4171: both disabled): main is taken")
        flags |= main
    if transport in flags and tunnel in flags:
        harvest.warn(
            line, "transport and tunnel mode are both set (RFC 4174, 2.4 allows one): neither is preferred"
        )
        flags &= ~(transport | tunnel)
    return interpret(flags)


def number_of(text: str, what: str) -> int:
    try:
        # iscsicli reads numbers as C does, but nobody writes octal ones
        return int(text, 16 if text[:2].lower() == "0x" else 10)
    except ValueError:
        raise NotTakenError(f"the {what} is no number") from None


def id_type_of(value: int | str) -> IdType:
    if isinstance(value, str) and value.upper() in IdType.__members__:
        return IdType[value.upper()]
    number = value if isinstance(value, int) else number_of(value, "type of the id")
    try:
        return IdType(number)
    except ValueError:
        raise NotTakenError(
            "the type of the id is none of " + ", ".join(f"{t.value} ({t.name})" for t in IdType)
        ) from None


def identity_of(kind: IdType, value: str | bytes) -> IkeId:
    try:
        return IkeId.from_bytes(kind, value) if isinstance(value, bytes) else IkeId.parse(kind, value)
    except ValueError:
        raise NotTakenError(
            f"the id does not fit {kind.name}: write the name or address of one host, without prefix or wildcard"
        ) from None  # not quoted: misplaced, it may be the key


def key_of(text: str, line: int, rules: Rules, harvest: Harvest) -> bytes:
    if not text or text == "*":
        raise NotTakenError("there is no key (iscsicli then sets none)")
    if text[:2].lower() == "0x":
        if rules.hex_keys:
            try:
                data = bytes.fromhex(text[2:])
            except ValueError:
                data = b""
            if not data:
                raise NotTakenError("the key begins with 0x but is not an even number of hexadecimal digits")
            return data
        harvest.warn(
            line, "the key begins with 0x and is taken literally, as iscsicli does", "--hex-keys decodes it"
        )
    try:
        return text.encode(rules.encoding or "ascii")
    except UnicodeEncodeError:
        pass
    raise NotTakenError(
        "the key is not ASCII: say the code page of the Windows machine with --encoding, e.g. cp1252"
    )


def flags_of(word: str) -> int:
    return 0 if word == "*" else number_of(word, "flags word")


def portal_of(address: str, port: str) -> Portal:
    try:
        found = parse_portal(address)
    except ValueError:
        raise NotTakenError("the portal's address is no IP address; resolve the name first") from None
    if port == "*":
        return found
    number = number_of(port, "portal's socket")
    if not 0 < number < 65536:
        raise NotTakenError("the portal's socket is no TCP port")
    return Portal(found.address, number)


def address_of(text: str) -> Address:
    try:
        return host_address(text)
    except ValueError as err:
        raise NotTakenError(f"the outer address is {err}") from None
