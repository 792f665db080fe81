"""Writes keys and portal policies as TOML that ``key_file`` and ``portal_file`` read back.

Law: pure, and exact: parsing a text that was made here gives the same values back. A :class:`Secret` leaves
only through :func:`make_key_text`; :func:`shown_key_text` makes the text for the screen.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import fields

from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.policy import IpsecChoice, PortalPolicy, Role
from iscsi_ipsec.base.portal import PortalPattern, portal_texts
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.key_file import CredentialRef, KeyDraft, KeyFileRef, KeySource, moment_text
from iscsi_ipsec.core.config.security_flags import encode, flag_names
from iscsi_ipsec.core.config.toml_reader import parse_toml

GROUP_NAME = "group"
"""The default file name of a group key."""

_MAX_STEM = 180
"""Characters of an id that a file name takes over; 255 bytes is what file systems take for all of it."""

_HEX_LIMIT = 64
"""Longer binary keys are written in base64, which is shorter than hexadecimal."""

_PLAIN = re.compile(r"[a-z0-9_][a-z0-9._@-]*")
_DIGESTED = re.compile(r".*-[0-9a-f]{16}")


def make_key_text(draft: KeyDraft, description: str = "") -> str:
    """The text of a key file, with the key in it."""
    return "".join(f"{line}\n" for line in _key_lines(draft, description, _source_line))


def shown_key_text(draft: KeyDraft, description: str = "") -> str:
    """The text of a key file for people: without the key."""
    return "".join(f"{line}\n" for line in _key_lines(draft, description, _shown_source_line))


def _shown_source_line(source: KeySource, prefix: str) -> str:
    if not isinstance(source, Secret):
        return _source_line(source, prefix)
    return "# the previous key is not shown" if prefix else "# the key is not shown"


def _key_lines(
    draft: KeyDraft, description: str, source_line: Callable[[KeySource, str], str]
) -> Iterable[str]:
    if description:
        yield f"description = {quote(description)}"
    if draft.id is None:
        yield "group = true"
    else:
        yield f"id_type = {quote(draft.id.type.name)}"
        yield f"id = {quote(draft.id.text)}"
    yield source_line(draft.source, "")
    if draft.previous:
        yield source_line(draft.previous.source, "previous_")
        yield f"previous_until = {moment_text(draft.previous.until)}"
    yield from _flags_line(draft.choice)
    yield from _portals_line(draft.portals)


def _source_line(source: KeySource, prefix: str) -> str:
    match source:
        case KeyFileRef(path=path):
            return f"{prefix}key_file = {quote(path)}"
        case CredentialRef(name=name):
            return f"{prefix}key_credential = {quote(name)}"
        case _:
            return prefix + _secret_line(source)


def _secret_line(secret: Secret) -> str:
    data = secret.reveal()
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if text and text.isprintable():
        return f"key = {quote(text)}"
    if len(data) <= _HEX_LIMIT:
        return f"key_hex = {quote(data.hex())}"
    return f"key_base64 = {quote(base64.b64encode(data).decode())}"


def make_portal_text(policy: PortalPolicy, description: str = "") -> str:
    """The text of a portal policy."""
    return "".join(f"{line}\n" for line in _portal_lines(policy, description))


def _portal_lines(policy: PortalPolicy, description: str) -> Iterable[str]:
    if description:
        yield f"description = {quote(description)}"
    yield from _portals_line(policy.patterns)
    if policy.role is not Role.INITIATOR:
        yield f"role = {quote(policy.role.value)}"
    yield from _flags_line(policy.choice)
    for key, text in (
        ("psk", policy.psk),
        ("target_id_type", policy.target_id.type.name if policy.target_id else None),
        ("target_id", policy.target_id.text if policy.target_id else None),
        ("tunnel_outer_remote", policy.tunnel_outer_remote),
        ("tunnel_outer_local", policy.tunnel_outer_local),
        ("preset", policy.preset),
    ):
        if text is not None:
            yield f"{key} = {quote(str(text))}"
    if policy.initiators:
        yield f"initiators = {_list(str(peer) for peer in policy.initiators)}"
    for field in fields(policy.tuning):
        value = getattr(policy.tuning, field.name)
        if isinstance(value, tuple):
            yield f"{field.name} = {_list(value)}"
        elif value is not None:
            yield f"{field.name} = {value if isinstance(value, int) else quote(str(value))}"


def flags_text(choice: IpsecChoice) -> str:
    """A choice as the value of ``security_flags``."""
    return _list(flag_names(encode(choice)))


def _flags_line(choice: IpsecChoice | None) -> Iterable[str]:
    if choice is not None:
        yield f"security_flags = {flags_text(choice)}"


def _portals_line(patterns: tuple[PortalPattern, ...]) -> Iterable[str]:
    if patterns:
        yield f"portals = {_list(portal_texts(patterns))}"


def _list(texts: Iterable[str]) -> str:
    return f"[{', '.join(quote(text) for text in texts)}]"


def quote(text: str) -> str:
    """A text as a TOML basic string, with unprintable characters escaped."""
    return '"' + "".join(_escaped(c) for c in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def description_of(text: str, path: str) -> str:
    """The ``description`` of a file that has been parsed before."""
    return parse_toml(text, path).text("description") or ""


def file_name(id: IkeId | None) -> str:
    """The name of the file (without ``.toml``) that a key of this identity gets; another identity, another name.

    An id may hold ``/``, ``:`` and 255 characters, and names ignore case. An
    id that makes a plain name keeps it; any other gets 64 bits of a digest
    of type and text behind what is left of it, and no plain name looks so.
    """
    if id is None:
        return GROUP_NAME
    kind, text = id.type, id.folded
    plain = (
        _PLAIN.fullmatch(text)
        and len(text) <= _MAX_STEM
        and text != GROUP_NAME
        and not text.endswith(".toml")
        and not _DIGESTED.fullmatch(text)
        and (kind is IdType.ID_IPV4_ADDR or not _is_address(text))
    )
    if plain:
        return text
    digest = hashlib.sha256(f"{kind.value}:{text}".encode()).hexdigest()[:16]
    stem = re.sub(r"[^a-z0-9._@-]+", "-", text[:_MAX_STEM]).strip(".-")
    return f"{stem or 'id'}-{digest}"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
