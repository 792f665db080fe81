"""Parses one file and fetches the keys that it holds or names.

Law: the caller has checked that the file may be read; the files that it names are checked in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from iscsi_ipsec.adapters import credentials, files
from iscsi_ipsec.adapters.files import FileStat
from iscsi_ipsec.adapters.state_db import LastGood
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.policy import PortalPolicy
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.key_file import (
    CredentialRef,
    KeyDraft,
    KeyFileRef,
    KeySource,
    empty_key_problem,
    parse_key_file,
    placeholder_problem,
    same_key_problem,
    weak_key_problem,
)
from iscsi_ipsec.core.config.portal_file import parse_portal_file
from iscsi_ipsec.core.config.settings import Settings, parse_settings


@dataclass(frozen=True, slots=True)
class KeyOrigin:
    """Another file that a key comes from: where it was found, and its ``stat`` from before it was read.

    What is written while it is read then differs from this ``stat``, and is read in the next pass.
    """

    ref: KeyFileRef | CredentialRef
    folder: str
    """Of the file that names it."""
    path: str
    """Empty where there is none."""
    stat: FileStat | None

    @classmethod
    def find(cls, ref: KeyFileRef | CredentialRef, folder: str) -> KeyOrigin:
        """Look for the file, as it is now."""
        if isinstance(ref, CredentialRef):
            path = credentials.locate_credential(ref.name)
        else:
            path = os.path.join(folder, ref.path)
        return cls(ref, folder, path, FileStat.at(path) if path else None)

    @property
    def is_current(self) -> bool:
        """Whether the file is still in its place, unchanged, and no stronger store has the credential now."""
        return KeyOrigin.find(self.ref, self.folder) == self

    @property
    def folders(self) -> tuple[str, ...]:
        """All that have to be watched for it."""
        if isinstance(self.ref, CredentialRef):
            return credentials.credential_folders()
        return (os.path.dirname(self.path),)


Decrypt = Callable[[str, str, "FileStat | None", str], Secret]
"""From a credential's name, its file, that file's ``stat`` and the file that asks for it to its bytes."""


def _decrypt_now(name: str, path: str, _stat: FileStat | None, asked_by: str) -> Secret:
    return credentials.decrypt_credential(name, path, asked_by)


Draft = Settings | PortalPolicy | KeyDraft
"""The content of a file's text alone."""


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file. The last good state keeps ``key`` and ``previous`` beside its text."""

    value: object
    key: Secret | None = None
    previous: Secret | None = None
    warnings: tuple[Problem, ...] = ()


def parse_draft(kind: str, path: str, name: str, text: str, warnings: list[Problem] | None = None) -> Draft:
    """Parse a file of one kind (settings, portal, psk), without its keys; raises :class:`ConfigError`."""
    if kind == "settings":
        return parse_settings(text, path, warnings)
    if kind == "portal":
        return parse_portal_file(text, path, name, warnings)
    return parse_key_file(text, path, name, warnings)


def find_origins(draft: Draft) -> tuple[KeyOrigin, ...]:
    """The other files that a draft's keys come from, before any of them is read."""
    if not isinstance(draft, KeyDraft):
        return ()
    sources = (draft.source, draft.previous.source if draft.previous else None)
    folder = os.path.dirname(draft.path)
    return tuple(KeyOrigin.find(s, folder) for s in sources if isinstance(s, KeyFileRef | CredentialRef))


def with_keys(draft: Draft, origins: tuple[KeyOrigin, ...], decrypt: Decrypt | None = None) -> Content:
    """Read a draft's keys from where they were found; raises :class:`ConfigError`.

    Without ``decrypt`` a credential is decrypted here and now, which may take seconds.
    """
    decrypt = decrypt or _decrypt_now
    if not isinstance(draft, KeyDraft):
        return Content(draft)
    secret, kept = _fetch_key(draft, draft.source, origins, decrypt)
    if not secret:
        raise ConfigError((empty_key_problem(draft),))
    if sample := placeholder_problem(draft, secret):
        raise ConfigError((sample,))
    previous, previous_kept = None, None
    if draft.previous:
        previous, previous_kept = _fetch_key(draft, draft.previous.source, origins, decrypt)
        if not previous:
            raise ConfigError((empty_key_problem(draft, previous=True),))
    warnings = (weak_key_problem(draft, secret), same_key_problem(draft) if previous == secret else None)
    value = draft.with_secret(secret, previous)
    return Content(value, kept, previous_kept, tuple(p for p in warnings if p))


def revive(kind: str, path: str, name: str, last: LastGood) -> object | None:
    """Parse stored content again; None where the present rules refuse it."""
    try:
        text = last.raw.reveal().decode()
        draft = parse_draft(kind, path, name, text)
        if not isinstance(draft, KeyDraft):
            return draft
        secret = draft.source if isinstance(draft.source, Secret) else last.key
        before = draft.previous.source if draft.previous else None
        previous = before if isinstance(before, Secret) else last.previous
        return draft.with_secret(secret, previous) if secret else None
    except (ConfigError, UnicodeDecodeError):
        return None


def _fetch_key(
    draft: KeyDraft, source: KeySource, origins: tuple[KeyOrigin, ...], decrypt: Decrypt
) -> tuple[Secret, Secret | None]:
    """The key of this source, and the bytes to keep in the store.

    A credential's key is not kept: it may be encrypted at rest, and the store is not.
    """
    if isinstance(source, Secret):
        return source, None
    origin = next(origin for origin in origins if origin.ref == source)
    secret = read_origin(origin, draft.path, decrypt)
    return secret, secret if isinstance(source, KeyFileRef) else None


def read_origin(origin: KeyOrigin, asked_by: str, decrypt: Decrypt) -> Secret:
    """The key's bytes; :class:`ConfigError` where they cannot be read."""
    match origin.ref:
        case KeyFileRef(path=path):
            return files.read_key_file(path, origin.folder)
        case CredentialRef(name=name):
            if not origin.path:
                raise credentials.missing_credential(name, asked_by)
            if credentials.is_encrypted(origin.path):
                return decrypt(name, origin.path, origin.stat, asked_by)
            return files.read_key_file(origin.path, os.path.dirname(origin.path))
