"""Parses settings of Windows' iSCSI initiator: scripts, WMI objects, the registry, iSNS.

Law: pure. These parsers know the formats; :mod:`~iscsi_ipsec.core.windows.values` converts the values in
them, and its rules hold here too: no word of the input is repeated in a message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from iscsi_ipsec.base.identity import IdType
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.windows import powershell_script
from iscsi_ipsec.core.windows.iscsicli_script import Command, commands
from iscsi_ipsec.core.windows.values import (
    FoundKey,
    FoundPortal,
    Harvest,
    NotTakenError,
    Rules,
    address_of,
    flags_of,
    id_type_of,
    identity_of,
    key_of,
    number_of,
    portal_of,
    take_flags,
)
from iscsi_ipsec.core.windows.wrapped_calls import calls, program

REQUIRE_IPSEC = 0x1
"""ISCSI_LOGIN_FLAG_REQUIRE_IPSEC."""


def parse(text: str, file: str, rules: Rules) -> Harvest:
    """Detect the kind of input, and parse it."""
    kind = kind_of(text)
    harvest = Harvest(file)
    KINDS[kind](text, rules, harvest)
    return harvest


def kind_of(text: str) -> str:
    """The name in :data:`KINDS` of the format that the text has most clearly."""
    stripped = text.lstrip()
    if stripped.startswith(("Windows Registry Editor", "REGEDIT4")) or "DefaultSecurityBitmap" in text:
        return "reg"
    if stripped.startswith(("{", "[")):
        return "json"
    rows = [row for _, row in _isns_rows(text)]
    if rows and all(_ISNS_ROW.fullmatch(row) for row in rows):
        return "isns"
    return "powershell" if powershell_script.LOOKS_LIKE.search(text) else "iscsicli"


# -- iscsicli


def parse_script(text: str, rules: Rules, harvest: Harvest) -> None:
    """A script that calls iscsicli, or commands typed into iscsicli itself."""
    _take_commands(commands(text), rules, harvest)


def parse_powershell(text: str, rules: Rules, harvest: Harvest) -> None:
    """A script in PowerShell, which has other quotes."""
    _take_commands(powershell_script.commands(text), rules, harvest)


def _take_commands(found: Iterable[Command], rules: Rules, harvest: Harvest) -> None:
    for command, note in (call for one in found for call in calls(one)):
        words = list(command.words)
        if program(words[0]) == "iscsicli":
            words.pop(0)
        name = words[0].lower() if words else ""
        handler = _COMMANDS.get(name)
        if handler is None:
            if not words and command.doubt:
                harvest.error(command.line, command.doubt)
            continue
        try:
            if command.doubt:
                raise NotTakenError(command.doubt)
            if any(len(word) > 1 and word[0] == word[-1] == "'" for word in words):
                raise NotTakenError("its quotes are PowerShell's: read it with --format powershell")
            handler(command, words[1:], rules, harvest)
            if note:
                harvest.warn(command.line, f"{_NAMES[name]}: {note}")
        except NotTakenError as err:
            harvest.error(command.line, f"{_NAMES[name]}: {err}")


def _need(words: Sequence[str], count: int, names: str) -> None:
    if len(words) < count:
        raise NotTakenError(f"expected {count} arguments ({names}), got {len(words)}")


def _persists(word: str) -> bool:
    if re.search(r"[()'{}]", word):  # iscsicli takes any word, but nobody means this one
        raise NotTakenError("its last argument (<Persist>) holds a bracket or a quote: write t, f or *")
    return word == "*" or word[:1].lower() == "t"


def _psk(command: Command, words: Sequence[str], rules: Rules, harvest: Harvest) -> None:
    _need(words, 7, "<Initiator> <Port> <SecurityFlags> <IdType> <Id> <Key> <Persist>")
    _, _, flags, kind, owner, key, persist = words[:7]
    choice = take_flags(flags_of(flags), command.line, harvest)
    identity = identity_of(id_type_of(kind), owner)
    secret = Secret(key_of(key, command.line, rules, harvest))
    harvest.keys.append(
        FoundKey(line=command.line, id=identity, secret=secret, choice=choice, persistent=_persists(persist))
    )


def _group(command: Command, words: Sequence[str], rules: Rules, harvest: Harvest) -> None:
    _need(words, 2, "<Key> <Persist>")
    data = key_of(words[0], command.line, rules, harvest) + (b"\0" if rules.group_nul else b"")
    harvest.keys.append(
        FoundKey(line=command.line, id=None, secret=Secret(data), persistent=_persists(words[1]))
    )


def _tunnel(command: Command, words: Sequence[str], rules: Rules, harvest: Harvest) -> None:
    del rules
    _need(words, 5, "<Initiator> <InitiatorPort> <DestAddr> <TunnelAddr> <Persist>")
    if words[2] == "*":
        raise NotTakenError("an outer address for all destinations is not supported; name the portals")
    if words[3] == "*":
        raise NotTakenError("there is no outer address (iscsicli then sets none)")
    harvest.portals.append(
        FoundPortal(
            line=command.line, portal=portal_of(words[2], "*"), outer=address_of(words[3]),
            persistent=_persists(words[4]),
        )
    )  # fmt: skip


def _login(
    address: int, flags: int, key: int | None,
    command: Command, words: Sequence[str], rules: Rules, harvest: Harvest,
) -> None:  # fmt: skip
    """A command that has these words, counted from 0: address (and socket), flags (and login flags), key."""
    required = bool(flags_of(_word(words, flags + 1)) & REQUIRE_IPSEC)
    psk = "*" if key is None else _word(words, key)
    choice = take_flags(flags_of(_word(words, flags)), command.line, harvest)
    if not choice and not required and psk == "*":
        return  # says nothing about IPsec
    if _word(words, address) == "*":
        raise NotTakenError("its flags or key are not for one particular portal; name the portal's address")
    portal = portal_of(words[address], _word(words, address + 1))
    if required and choice and not choice.required:
        raise NotTakenError("the login flags require IPsec, the security flags switch it off")
    if choice or required:
        harvest.portals.append(FoundPortal(line=command.line, portal=portal, choice=choice))
    if psk != "*":
        secret = Secret(key_of(psk, command.line, rules, harvest))
        harvest.keys.append(FoundKey(line=command.line, id=None, secret=secret, portal=portal))


def _word(words: Sequence[str], at: int) -> str:
    """Words that are left out at the end mean what ``*`` means."""
    return words[at] if at < len(words) else "*"


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
    "addtargetportal": partial(_login, 0, 4, None),
    "logintarget": partial(_login, 2, 6, 16),
    "persistentlogintarget": partial(_login, 2, 6, 16),
    "addconnection": partial(_login, 3, 5, 15),
}


# -- WMI objects

_TELLING = {"idtype", "targetportal", "portaladdress"}


def parse_json(text: str, rules: Rules, harvest: Harvest) -> None:
    """Parse the output of ``Get-CimInstance ... | ConvertTo-Json``: one object, a list of them, or objects in objects.

    Known are MSiSCSIInitiator_IKEPresharedKeyAuthenticationInfo and what has
    a portal and SecurityFlags (PersistentLoginClass, SendTargetPortalClass).
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as err:
        line = err.lineno if isinstance(err, json.JSONDecodeError) else 0
        harvest.error(line, "this is not JSON, or nested too deeply")
        return
    key_lines = _lines_of(text, "IdType")
    flag_lines = _lines_of(text, "TargetPortal|PortalAddress")
    known = [item for item in _objects(document) if _TELLING & item.keys()]
    for item in known:
        if "idtype" in item:
            line, taker = next(key_lines, 0), _wmi_key
        else:
            line, taker = next(flag_lines, 0), _wmi_portal
        try:
            taker(item, line, rules, harvest)
        except NotTakenError as err:
            harvest.error(line, str(err))
    if not known:
        harvest.error(0, "no object in it is of a class with keys or portals")


def _objects(value: object) -> Iterable[Mapping[str, Any]]:
    """Every object, an outer one before those in it, with lower-case names (PowerShell ignores case)."""
    ahead = [value]  # no recursion: json.loads takes as many levels as Python has frames
    while ahead:
        value = ahead.pop()
        if isinstance(value, dict):
            yield {name.lower(): member for name, member in value.items()}
            ahead += reversed(value.values())
        elif isinstance(value, list):
            ahead += reversed(value)


def _lines_of(text: str, name: str) -> Iterator[int]:
    """The lines on which a member of this name stands, in order; JSON keeps none."""
    line, counted = 1, 0
    for found in re.finditer(rf'"(?:{name})"\s*:', text, re.IGNORECASE):
        line += text.count("\n", counted, found.start())
        counted = found.start()
        yield line


def _wmi_key(item: Mapping[str, Any], line: int, rules: Rules, harvest: Harvest) -> None:
    method = item.get("authmethod", 1)
    if method not in (1, "1", "IKE_PRESHARED_KEY_METHOD"):
        raise NotTakenError("the authentication method is not the pre-shared key (1)")
    kind = item["idtype"]
    if isinstance(kind, bool) or not isinstance(kind, int | str):
        raise NotTakenError("IdType is neither a number nor a name")
    owner, key = _bytes(item.get("id"), "Id"), _bytes(item.get("key"), "Key")
    if not key:
        raise NotTakenError(
            "there is no Key in it: Windows never gives one back, so it must be added by hand"
        )
    if isinstance(key, str):
        key = key_of(key, line, rules, harvest)
    if isinstance(owner, bytes) and id_type_of(kind) in (IdType.ID_FQDN, IdType.ID_USER_FQDN):
        owner = owner.removesuffix(b"\0")
    identity = identity_of(id_type_of(kind), owner)
    choice = take_flags(_json_number(item.get("securityflags", 0)), line, harvest)
    harvest.keys.append(FoundKey(line=line, id=identity, secret=Secret(key), choice=choice))


def _wmi_portal(item: Mapping[str, Any], line: int, rules: Rules, harvest: Harvest) -> None:
    del rules
    choice = take_flags(_json_number(item.get("securityflags", 0)), line, harvest)
    if not choice:
        return
    inner = item.get("targetportal")
    place = {name.lower(): member for name, member in inner.items()} if isinstance(inner, dict) else item
    address = place.get("address", place.get("portaladdress"))
    port = place.get("port", place.get("socket", place.get("portalport", "*")))
    portal = portal_of(str(address), str(port))
    harvest.portals.append(FoundPortal(line=line, portal=portal, choice=choice))


def _json_number(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        return number_of(value, "value of SecurityFlags")
    raise NotTakenError("SecurityFlags is no number")


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
    raise NotTakenError(f"{name} is no list of bytes")


# -- the registry, iSNS

_REGISTRY = re.compile(r'\s*"?DefaultSecurityBitmap"?\s*(?:=|\s+REG_DWORD\s+|:)(.*)', re.IGNORECASE)
_ISNS_ROW = re.compile(r"(\S+?)(?:\s*[,;]\s*|\s+)(0[xX][0-9A-Fa-f]+|[0-9]+)")


def parse_registry(text: str, rules: Rules, harvest: Harvest) -> None:
    """DefaultSecurityBitmap of a .reg export (``=dword:00000027``) or of ``reg query`` (``REG_DWORD 0x27``)."""
    del rules
    found = [(number, match) for number, line in _lines(text) if (match := _REGISTRY.fullmatch(line))]
    for number, match in found:
        value = match[1].strip(" \t\r,").lower()  # a comma follows in PowerShell's JSON
        take_default(f"0x{value[6:]}" if value.startswith("dword:") else value, number, harvest)
    if not found:
        harvest.error(0, "DefaultSecurityBitmap is not in it")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """With their numbers, as an editor counts them; splitlines() cuts at more characters."""
    return enumerate(text.split("\n"), 1)


def take_default(text: str, line: int, harvest: Harvest) -> None:
    """A DefaultSecurityBitmap."""
    try:
        harvest.default = take_flags(number_of(text, "DefaultSecurityBitmap"), line, harvest)
    except NotTakenError as err:
        harvest.error(line, str(err))


def parse_isns(text: str, rules: Rules, harvest: Harvest) -> None:
    """Rows of a portal and its Portal Security Bitmap (tag 27): ``10.0.0.20:3260 0x27``; ``#`` begins a comment."""
    del rules
    for number, row in _isns_rows(text):
        try:
            match = _ISNS_ROW.fullmatch(row)
            if not match:
                raise NotTakenError("not a portal and a bitmap")
            portal = portal_of(match[1], "*")
            choice = take_flags(number_of(match[2], "bitmap"), number, harvest)
            if choice:
                harvest.portals.append(FoundPortal(line=number, portal=portal, choice=choice))
        except NotTakenError as err:
            harvest.error(number, str(err))


def _isns_rows(text: str) -> Iterator[tuple[int, str]]:
    for number, line in _lines(text):
        if row := line.partition("#")[0].strip():
            yield number, row


KINDS: Mapping[str, Callable[[str, Rules, Harvest], None]] = {
    "iscsicli": parse_script,
    "powershell": parse_powershell,
    "json": parse_json,
    "reg": parse_registry,
    "isns": parse_isns,
}
"""The parsers by the kind of their input."""
