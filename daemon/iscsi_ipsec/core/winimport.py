"""What Windows' iSCSI initiator was told about IPsec: scripts, WMI objects, the registry, iSNS; as our values.

Law: pure, and discreet: no word of the input is repeated in a message, as
misplaced words may be keys. Every doubt becomes a :class:`Problem` with its
line; an error means that the thing was not taken over.

How flags are taken over (:func:`take_flags`):

* VALID unset: not specified, whatever else is set (RFC 4174, 2.4: "MUST be ignored").
* IKE_IPSEC_ENABLED unset: the other bits mean nothing (RFC 4171, 6.3.9), IPsec is not required.
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

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from iscsi_ipsec.base.model import (
    Address,
    IdType,
    IkeId,
    IpsecChoice,
    Portal,
    Problem,
    Severity,
    parse_portal,
)
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.flags import KNOWN_BITS, SecurityFlags, interpret
from iscsi_ipsec.core.winscript import Command, commands

REQUIRE_IPSEC = 0x1
"""ISCSI_LOGIN_FLAG_REQUIRE_IPSEC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What only the admin knows about the input.

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
    """What is said of a portal: flags, the outer address, or both None (IPsec is required, no more is said)."""

    line: int
    portal: Portal
    choice: IpsecChoice | None = None
    outer: Address | None = None
    persistent: bool = True


@dataclass(slots=True)
class Harvest:
    """All that one input says, in its order."""

    file: str
    keys: list[FoundKey] = field(default_factory=list)
    portals: list[FoundPortal] = field(default_factory=list)
    default: IpsecChoice | None = None
    problems: list[Problem] = field(default_factory=list)

    def error(self, line: int, message: str, hint: str = "") -> None:
        """Note what could not be taken over."""
        self.problems.append(
            Problem(code="not-imported", message=message, hint=hint, file=self.file, line=line)
        )

    def warn(self, line: int, message: str, hint: str = "") -> None:
        """Note what was taken over in another form than it was said."""
        self.problems.append(
            Problem(
                code="imported-otherwise", message=message, hint=hint, file=self.file, line=line,
                severity=Severity.WARNING,
            )
        )  # fmt: skip


class _Bad(ValueError):
    """Something that cannot be taken over; its text is safe to show."""


def parse(text: str, file: str, rules: Rules) -> Harvest:
    """Tell what kind of input it is, and parse it."""
    kind = kind_of(text)
    harvest = Harvest(file)
    KINDS[kind](text, rules, harvest)
    return harvest


def kind_of(text: str) -> str:
    """The name in :data:`KINDS` of what the text most plainly is."""
    stripped = text.lstrip("\ufeff \t\r\n")
    if stripped.startswith(("Windows Registry Editor", "REGEDIT4")) or "DefaultSecurityBitmap" in text:
        return "reg"
    if stripped.startswith(("{", "[")):
        return "json"
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return "isns" if lines and all(_ISNS_ROW.fullmatch(line.strip()) for line in lines) else "iscsicli"


# -- flags, identities, keys


def take_flags(value: int, line: int, harvest: Harvest) -> IpsecChoice | None:
    """The choice that a bitmap of Windows or iSNS means; what had to be decided is noted."""
    if value < 0 or value >> 64:
        raise _Bad("the security flags are no number of 64 bits")
    if value & ~KNOWN_BITS:
        harvest.warn(line, f"the reserved bits 0x{value & ~KNOWN_BITS:x} are dropped (RFC 4171, 6.3.9)")
    flags = SecurityFlags(value & KNOWN_BITS)
    if SecurityFlags.VALID not in flags:
        if flags:
            harvest.warn(line, "VALID is unset: the flags count as not specified (RFC 4174, 2.4)")
        return None
    if SecurityFlags.IKE_IPSEC_ENABLED not in flags:
        harvest.warn(line, "IKE_IPSEC_ENABLED is unset: clear text will be allowed")
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


def _number(text: str, what: str) -> int:
    try:
        # iscsicli reads numbers as C does, but nobody writes octal ones
        return int(text, 16 if text[:2].lower() == "0x" else 10)
    except ValueError:
        raise _Bad(f"the {what} is no number") from None


def _id_type(value: int | str) -> IdType:
    if isinstance(value, str) and value.upper() in IdType.__members__:
        return IdType[value.upper()]
    number = value if isinstance(value, int) else _number(value, "type of the id")
    try:
        return IdType(number)
    except ValueError:
        raise _Bad(
            "the type of the id is none of " + ", ".join(f"{t.value} ({t.name})" for t in IdType)
        ) from None


def _identity(kind: IdType, value: str | bytes) -> IkeId:
    try:
        return IkeId.from_bytes(kind, value) if isinstance(value, bytes) else IkeId.parse(kind, value)
    except ValueError:
        raise _Bad(f"the id does not fit {kind.name}") from None  # not quoted: misplaced, it may be the key


def _key(text: str, line: int, rules: Rules, harvest: Harvest) -> bytes:
    if not text or text == "*":
        raise _Bad("there is no key (iscsicli then sets none)")
    if text[:2].lower() == "0x":
        if rules.hex_keys:
            try:
                return bytes.fromhex(text[2:])
            except ValueError:
                raise _Bad("the key begins with 0x but is not an even number of hexadecimal digits") from None
        harvest.warn(
            line, "the key begins with 0x and is taken literally, as iscsicli does", "--hex-keys decodes it"
        )
    try:
        return text.encode(rules.encoding or "ascii")
    except UnicodeEncodeError:
        pass
    raise _Bad("the key is not ASCII: say the code page of the Windows machine with --encoding, e.g. cp1252")


# -- iscsicli


def parse_script(text: str, rules: Rules, harvest: Harvest) -> None:
    """A script that calls iscsicli, or what is typed into iscsicli itself."""
    for command in commands(text):
        words = list(command.words)
        if re.fullmatch(r"(?:.*[\\/])?iscsicli(?:\.exe)?", words[0], re.IGNORECASE):
            words.pop(0)
        handler = _COMMANDS.get(words[0].lower()) if words else None
        if handler is None:
            continue
        try:
            if command.doubt:
                raise _Bad(command.doubt)
            handler(command, words[1:], rules, harvest)
        except _Bad as err:
            harvest.error(command.line, f"{_NAMES[words[0].lower()]}: {err}")


def _need(words: Sequence[str], count: int, names: str) -> None:
    if len(words) < count:
        raise _Bad(f"{len(words)} of its words are there: {names}")


def _persists(word: str) -> bool:
    return word == "*" or word[:1].lower() == "t"


def _psk(command: Command, words: Sequence[str], rules: Rules, harvest: Harvest) -> None:
    _need(words, 7, "<Initiator> <Port> <SecurityFlags> <IdType> <Id> <Key> <Persist>")
    _, _, flags, kind, owner, key, persist = words[:7]
    choice = take_flags(_flag_word(flags), command.line, harvest)
    identity = _identity(_id_type(kind), owner)
    secret = Secret(_key(key, command.line, rules, harvest))
    harvest.keys.append(
        FoundKey(line=command.line, id=identity, secret=secret, choice=choice, persistent=_persists(persist))
    )


def _group(command: Command, words: Sequence[str], rules: Rules, harvest: Harvest) -> None:
    _need(words, 2, "<Key> <Persist>")
    data = _key(words[0], command.line, rules, harvest) + (b"\0" if rules.group_nul else b"")
    harvest.keys.append(
        FoundKey(line=command.line, id=None, secret=Secret(data), persistent=_persists(words[1]))
    )


def _tunnel(command: Command, words: Sequence[str], rules: Rules, harvest: Harvest) -> None:
    del rules
    _need(words, 5, "<Initiator> <InitiatorPort> <DestAddr> <TunnelAddr> <Persist>")
    if words[2] == "*":
        raise _Bad("an outer address for all destinations has no place here; name the portals")
    if words[3] == "*":
        raise _Bad("there is no outer address (iscsicli then sets none)")
    harvest.portals.append(
        FoundPortal(
            line=command.line, portal=_portal(words[2], "*"), outer=_address(words[3]),
            persistent=_persists(words[4]),
        )
    )  # fmt: skip


def _login(address: int, flags: int, key: int) -> Callable[..., None]:
    """A handler of a command that has these words, counted from 0: address (and socket), flags (and login flags), key."""

    def handle(command: Command, words: Sequence[str], rules: Rules, harvest: Harvest) -> None:
        given = [*words, *["*"] * (max(flags + 2, key + 1) - len(words))]
        value = _flag_word(given[flags])
        required = bool(_flag_word(given[flags + 1]) & REQUIRE_IPSEC)
        psk = given[key] if key else "*"
        if not value & SecurityFlags.VALID and not required and psk == "*":
            return  # says nothing about IPsec
        choice = take_flags(value, command.line, harvest)
        if given[address] == "*":
            raise _Bad("its flags or key are for no certain portal; name the portal's address")
        portal = _portal(given[address], given[address + 1])
        if required and choice and not choice.required:
            raise _Bad("the login flags require IPsec, the security flags switch it off")
        if choice or required:
            harvest.portals.append(FoundPortal(line=command.line, portal=portal, choice=choice))
        if psk != "*":
            secret = Secret(_key(psk, command.line, rules, harvest))
            harvest.keys.append(FoundKey(line=command.line, id=None, secret=secret, portal=portal))

    return handle


_NAMES = {
    name.lower(): name
    for name in (
        "PSKey", "GroupKey", "TunnelAddr", "AddTargetPortal", "LoginTarget", "PersistentLoginTarget", "AddConnection",
    )
}  # fmt: skip
_COMMANDS: dict[str, Callable[[Command, Sequence[str], Rules, Harvest], None]] = {
    "pskey": _psk,
    "groupkey": _group,
    "tunneladdr": _tunnel,
    # a portal of discovery carries no key; it is stored, and so are its flags
    "addtargetportal": _login(0, 4, 0),
    "logintarget": _login(2, 6, 16),
    "persistentlogintarget": _login(2, 6, 16),
    "addconnection": _login(3, 5, 15),
}


def _flag_word(word: str) -> int:
    return 0 if word == "*" else _number(word, "flags word")


def _portal(address: str, port: str) -> Portal:
    try:
        found = parse_portal(address)
    except ValueError:
        raise _Bad("the portal's address is no IP address; resolve the name first") from None
    if port == "*":
        return found
    number = _number(port, "portal's socket")
    if not 0 < number < 65536:
        raise _Bad("the portal's socket is no TCP port")
    return Portal(found.address, number)


def _address(text: str) -> Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise _Bad("the outer address is no IP address") from None
    if "%" in text or address.is_multicast or address.is_unspecified:
        raise _Bad("the outer address is not that of one host")
    return address


# -- WMI objects


def parse_json(text: str, rules: Rules, harvest: Harvest) -> None:
    """What ``Get-CimInstance ... | ConvertTo-Json`` prints: one object, a list of them, or objects in objects.

    Known are MSiSCSIInitiator_IKEPresharedKeyAuthenticationInfo and what has
    a portal and SecurityFlags (PersistentLoginClass, SendTargetPortalClass).
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as err:
        line = err.lineno if isinstance(err, json.JSONDecodeError) else 0
        harvest.error(line, "this is no JSON, or nested too deeply")
        return
    key_lines = _lines_of(text, "IdType")
    flag_lines = _lines_of(text, "TargetPortal|PortalAddress")
    found = 0
    for item in _objects(document):
        if "idtype" in item:
            line, taker = next(key_lines, 0), _wmi_key
        elif "targetportal" in item or "portaladdress" in item:
            line, taker = next(flag_lines, 0), _wmi_portal
        else:
            continue
        found += 1
        try:
            taker(item, line, rules, harvest)
        except _Bad as err:
            harvest.error(line, str(err))
    if not found:
        harvest.error(0, "no object of a class that tells of keys or portals is in it")


def _objects(value: object) -> Iterable[Mapping[str, Any]]:
    """Every object, an outer one before those in it, with lower-case names (PowerShell ignores case)."""
    if isinstance(value, dict):
        yield {name.lower(): member for name, member in value.items()}
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for member in members:
        if isinstance(member, dict | list):
            yield from _objects(member)


def _lines_of(text: str, name: str) -> Iterator[int]:
    """The lines on which a member of this name stands, in order; JSON keeps none."""
    for found in re.finditer(rf'"(?:{name})"\s*:', text, re.IGNORECASE):
        yield text.count("\n", 0, found.start()) + 1


def _wmi_key(item: Mapping[str, Any], line: int, rules: Rules, harvest: Harvest) -> None:
    method = item.get("authmethod", 1)
    if method not in (1, "1", "IKE_PRESHARED_KEY_METHOD"):
        raise _Bad("the authentication method is not the pre-shared key (1)")
    kind = item["idtype"]
    if isinstance(kind, bool) or not isinstance(kind, int | str):
        raise _Bad("IdType is neither a number nor a name")
    owner, key = _bytes(item.get("id"), "Id"), _bytes(item.get("key"), "Key")
    if not key:
        raise _Bad("there is no Key in it: Windows never gives one back, so it must be added by hand")
    if isinstance(key, str):
        key = _key(key, line, rules, harvest)
    if isinstance(owner, bytes) and _id_type(kind) in (IdType.ID_FQDN, IdType.ID_USER_FQDN):
        owner = owner.removesuffix(b"\0")
    identity = _identity(_id_type(kind), owner)
    choice = take_flags(_json_number(item.get("securityflags", 0)), line, harvest)
    harvest.keys.append(FoundKey(line=line, id=identity, secret=Secret(key), choice=choice))


def _wmi_portal(item: Mapping[str, Any], line: int, rules: Rules, harvest: Harvest) -> None:
    del rules
    value = _json_number(item.get("securityflags", 0))
    if not value & SecurityFlags.VALID:
        return
    inner = item.get("targetportal")
    place = {name.lower(): member for name, member in inner.items()} if isinstance(inner, dict) else item
    address = place.get("address", place.get("portaladdress", ""))
    port = place.get("port", place.get("socket", place.get("portalport", "*")))
    portal = _portal(str(address), str(port))
    harvest.portals.append(FoundPortal(line=line, portal=portal, choice=take_flags(value, line, harvest)))


def _json_number(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _number(value, "value of SecurityFlags")
    raise _Bad("SecurityFlags is no number")


def _bytes(value: object, name: str) -> bytes | str:
    """A byte array as PowerShell writes it (a list, or a list as ``value``), or a text as it is."""
    if isinstance(value, dict):
        value = value.get("value")
    if value is None:
        return b""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(b, int) and not isinstance(b, bool) for b in value):
        try:
            return bytes(value)
        except ValueError:
            pass
    raise _Bad(f"{name} is no list of bytes")


# -- the registry, iSNS

_REGISTRY = re.compile(r'\s*"?DefaultSecurityBitmap"?\s*(?:=|\s+REG_DWORD\s+|:)\s*(.*?)\s*', re.IGNORECASE)
_ISNS_ROW = re.compile(r"(\S+?)(?:\s*[,;]\s*|\s+)(0[xX][0-9A-Fa-f]+|[0-9]+)")


def parse_registry(text: str, rules: Rules, harvest: Harvest) -> None:
    """DefaultSecurityBitmap of a .reg export (``=dword:00000027``) or of ``reg query`` (``REG_DWORD 0x27``)."""
    del rules
    found = False
    for number, line in enumerate(text.splitlines(), 1):
        match = _REGISTRY.fullmatch(line)
        if not match:
            continue
        found = True
        value = match[1].lower()
        value = f"0x{value.removeprefix('dword:')}" if value.startswith("dword:") else value
        take_default(value, number, harvest)
    if not found:
        harvest.error(0, "DefaultSecurityBitmap is not in it")


def take_default(text: str, line: int, harvest: Harvest) -> None:
    """A DefaultSecurityBitmap."""
    try:
        harvest.default = take_flags(_number(text, "DefaultSecurityBitmap"), line, harvest)
    except _Bad as err:
        harvest.error(line, str(err))


def parse_isns(text: str, rules: Rules, harvest: Harvest) -> None:
    """Rows of a portal and its Portal Security Bitmap (tag 27): ``10.0.0.20:3260 0x27``; ``#`` begins a comment."""
    del rules
    for number, whole in enumerate(text.splitlines(), 1):
        line = whole.partition("#")[0].strip()
        if not line:
            continue
        try:
            match = _ISNS_ROW.fullmatch(line)
            if not match:
                raise _Bad("not a portal and a bitmap")
            portal = _portal(match[1], "*")
            choice = take_flags(_number(match[2], "bitmap"), number, harvest)
            if choice:
                harvest.portals.append(FoundPortal(line=number, portal=portal, choice=choice))
        except _Bad as err:
            harvest.error(number, str(err))


KINDS: Mapping[str, Callable[[str, Rules, Harvest], None]] = {
    "iscsicli": parse_script,
    "json": parse_json,
    "reg": parse_registry,
    "isns": parse_isns,
}
"""Parsers by what they take."""
