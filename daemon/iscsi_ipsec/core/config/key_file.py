"""Parses key files (``psk.d/*.toml``): text in, a key or all of its problems out.

A key file says whose key it is and where the key's bytes are. They may be in
another file or a credential, so parsing ends in a draft;
:meth:`KeyDraft.with_secret` makes the key. An absent ``id`` never makes a
group key, and a group key never has an id.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from datetime import datetime

from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.keys import GroupKey, Key, PerIdKey, PreviousKey
from iscsi_ipsec.base.policy import IpsecChoice
from iscsi_ipsec.base.portal import PortalPattern
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config import fields
from iscsi_ipsec.core.config.toml_reader import KeyLines, Source, parse_toml

KNOWN_KEYS = (
    "id_type", "id", "id_hex", "group", "key", "key_hex", "key_base64", "key_file", "key_credential",
    "security_flags", "auth_method", "portals", "description", "previous_key", "previous_key_hex",
    "previous_key_base64", "previous_key_file", "previous_key_credential", "previous_until",
)  # fmt: skip
_KEY_SOURCES = ("key", "key_hex", "key_base64", "key_file", "key_credential")
_NO_LINES = KeyLines("")
_PREVIOUS = "previous_"
_PREVIOUS_SOURCES = tuple(_PREVIOUS + key for key in _KEY_SOURCES)

PLACEHOLDER = b"CHANGE-ME"
"""The keys in the sample files begin with this."""

_PLACEHOLDERS = tuple(
    form.encode()
    for word in ("change-me", "changeme", "change_me", "change me")
    for form in (word, word.upper(), word.capitalize())
)
"""Spellings of the placeholder that people write into their own templates."""

WEAK_KEY_BYTES = 16
"""Shorter keys are warned about: fewer than 128 bits even if they were random (RFC 3723, 5.8.3)."""


@dataclass(frozen=True, slots=True)
class KeyFileRef:
    """The key's bytes are in this file, relative to the key file's folder."""

    path: str


@dataclass(frozen=True, slots=True)
class CredentialRef:
    """The key's bytes are in this systemd credential."""

    name: str


KeySource = Secret | KeyFileRef | CredentialRef


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousDraft:
    """The previous key: where its bytes are, and until when it is valid."""

    source: KeySource
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDraft:
    """A checked key file whose keys may still have to be fetched. ``id`` None: a group key."""

    name: str
    path: str
    id: IkeId | None
    source: KeySource
    choice: IpsecChoice | None
    portals: tuple[PortalPattern, ...]
    previous: PreviousDraft | None = None
    lines: KeyLines = field(default=_NO_LINES, compare=False, repr=False)

    def with_secret(self, secret: Secret, previous: Secret | None = None) -> Key:
        """The finished key; with the previous key where the file has one that differs."""
        before = None
        if self.previous and previous and previous != secret:
            before = PreviousKey(secret=previous, until=self.previous.until)
        if self.id is None:
            return GroupKey(
                name=self.name, path=self.path, secret=secret, choice=self.choice, portals=self.portals,
                previous=before,
            )  # fmt: skip
        return PerIdKey(
            name=self.name, path=self.path, id=self.id, secret=secret, choice=self.choice,
            portals=self.portals, previous=before,
        )  # fmt: skip

    @property
    def key_line(self) -> int:
        """The line that holds or names the key."""
        return self._first_line(_KEY_SOURCES)

    @property
    def previous_line(self) -> int:
        """The line that holds or names the previous key, 0 without one."""
        return self._first_line(_PREVIOUS_SOURCES) if self.previous else 0

    def _first_line(self, keys: tuple[str, ...]) -> int:
        return next((line for key in keys if (line := self.lines.line_of(key))), 0)


def parse_key_file(text: str, path: str, name: str, warnings: list[Problem] | None = None) -> KeyDraft:
    """Parse and check a whole key file; raise :class:`ConfigError` with every problem in it.

    Warnings are added to ``warnings``.
    """
    source = parse_toml(text, path)
    source.refuse_unknown(KNOWN_KEYS)
    identity = _parse_owner(source)
    key = _parse_key(source, _KEY_SOURCES)
    previous = _parse_previous(source)
    _check_auth_method(source)
    source.text("description")
    choice = fields.parse_choice(source)
    portals = fields.parse_portals(source) or ()
    source.raise_if_wrong(warnings)
    assert key is not None  # every way to None has noted an error
    return KeyDraft(
        name=name, path=path, id=identity, source=key, choice=choice, portals=portals, previous=previous,
        lines=source.lines,
    )  # fmt: skip


def weak_key_problem(draft: KeyDraft, secret: Secret) -> Problem | None:
    """The warning that a key is too short to resist guessing, or None."""
    if len(secret) >= WEAK_KEY_BYTES:
        return None
    return Problem(
        code="weak-key",
        message=f"the key is shorter than {WEAK_KEY_BYTES} bytes and can be guessed",
        hint="make a random one, e.g. with: openssl rand -base64 32",
        file=draft.path,
        line=draft.key_line,
        severity=Severity.WARNING,
    )


def placeholder_problem(draft: KeyDraft, secret: Secret) -> Problem | None:
    """The error that the key is still the sample's, which everybody knows; or None."""
    if not any(map(secret.starts_with, _PLACEHOLDERS)):
        return None
    return Problem(
        code="placeholder-key",
        message="the key is still the sample's",
        hint="make one of your own, e.g. with: openssl rand -base64 32",
        file=draft.path,
        line=draft.key_line,
    )


def empty_key_problem(draft: KeyDraft, *, previous: bool = False) -> Problem:
    """The error that a key file or credential holds no bytes."""
    return Problem(
        code="empty-key",
        message="the previous key is empty" if previous else "the key is empty",
        hint="write the key into it",
        file=draft.path,
        line=draft.previous_line if previous else draft.key_line,
    )


def same_key_problem(draft: KeyDraft) -> Problem:
    """The warning that both keys are the same, so that nothing is being rotated."""
    return Problem(
        code="same-key",
        message="the previous key is the same as the key",
        hint="put the new key into key, or remove the lines that begin with previous_",
        file=draft.path,
        line=draft.previous_line,
        severity=Severity.WARNING,
    )


def previous_over_problem(path: str, line: int, until: datetime) -> Problem:
    """The warning that the time of the previous key is over."""
    return Problem(
        code="previous-key-over",
        message=f"the previous key is no longer used, since {moment_text(until)}",
        hint="remove the lines that begin with previous_",
        file=path,
        line=line,
        severity=Severity.WARNING,
    )


def moment_text(moment: datetime) -> str:
    """A moment of UTC as a key file has it."""
    return moment.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _parse_owner(source: Source) -> IkeId | None:
    group = source.truth("group")
    has_id = "id" in source.data or "id_hex" in source.data
    if group is False:
        source.problem("group", "bad-group", "group can only be true", "leave the line out for a per-ID key")
    if group:
        for key in ("id", "id_hex", "id_type"):
            if key in source.data:
                source.problem(
                    key, "group-with-id", f"a group key has no {key}", "leave out either group or the id"
                )
        return None
    if not has_id:
        source.problem(
            "id", "no-id", "neither an id nor group = true",
            'say whose key it is: id_type = "ID_FQDN" and id = "host.example.com", or group = true',
        )  # fmt: skip
    kind = fields.parse_id_type(source, "id_type")
    if kind is None and "id_type" not in source.data and has_id:
        source.problem(
            "id", "no-id-type", "id_type is missing", "one of " + ", ".join(t.name for t in IdType)
        )
    if "id" in source.data and "id_hex" in source.data:
        source.problem("id_hex", "two-ids", "both id and id_hex are set", "keep one of them")
        return None
    text, raw = source.text("id"), source.text("id_hex")
    if kind is None or (text is None and raw is None):
        return None
    key = "id" if text is not None else "id_hex"
    try:
        if text is not None:
            identity = IkeId.parse(kind, text)
        else:
            identity = IkeId.from_bytes(kind, bytes.fromhex((raw or "").removeprefix("0x")))
    except ValueError as err:
        reason = "not hexadecimal" if "fromhex" in str(err) else str(err)
        source.problem(key, "bad-id", f"{key} does not fit {kind.name}: {reason}")
        return None
    fields.warn_of_address_like(source, "id", identity)
    return identity


def _parse_previous(source: Source) -> PreviousDraft | None:
    """The previous key with its end; each needs the other."""
    until = source.moment("previous_until")
    given = [key for key in _PREVIOUS_SOURCES if key in source.data]
    if not given and "previous_until" not in source.data:
        return None
    if given and "previous_until" not in source.data:
        source.problem(
            given[0], "no-end", "the previous key has no end",
            "say until when both keys are valid, e.g. previous_until = 2026-12-01T00:00:00Z",
        )  # fmt: skip
    key = _parse_key(source, _PREVIOUS_SOURCES)
    return PreviousDraft(source=key, until=until) if key is not None and until is not None else None


def _parse_key(source: Source, sources: tuple[str, ...]) -> KeySource | None:
    given = [key for key in sources if key in source.data]
    if not given:
        what = "the key" if sources is _KEY_SOURCES else "the previous key"
        source.problem(sources[0], "no-key", f"{what} is missing", "set exactly one of " + ", ".join(sources))
        return None
    if len(given) > 1:
        source.problem(
            given[1], "two-keys", f"both {given[0]} and {given[1]} are set", "keep exactly one of them"
        )
        return None
    field = given[0]
    text = source.text(field)
    if text is None:
        return None
    if not text:
        source.problem(field, "empty-key", f"{field} is empty", "write the key, or remove the file")
        return None
    # the value never goes into a message: it is, or may be, a key
    match field.removeprefix(_PREVIOUS):
        case "key":
            return Secret(text.encode())
        case "key_hex":
            digits = text.removeprefix("0x").replace(":", "").replace(" ", "")
            try:
                return Secret(bytes.fromhex(digits))
            except ValueError:
                source.problem(field, "bad-hex", f"{field} is not an even number of hexadecimal digits")
        case "key_base64":
            try:
                return Secret(base64.b64decode(text, validate=True))
            except (binascii.Error, ValueError):
                source.problem(field, "bad-base64", f"{field} is not base64")
        case "key_file":
            if "\0" in text:
                source.problem(field, "bad-path", f"{field} holds a NUL character")
                return None
            return KeyFileRef(text)
        case _:
            if "/" in text or "\0" in text or text in (".", ".."):
                source.problem(field, "bad-credential", f"{field} is a credential's name, without a path")
                return None
            return CredentialRef(text)
    return None


def _check_auth_method(source: Source) -> None:
    method = source.data.get("auth_method")
    if method is None or method == "preshared_key" or (method == 1 and not isinstance(method, bool)):
        return
    source.problem("auth_method", "bad-auth-method", 'auth_method can only be "preshared_key" (or 1)')
