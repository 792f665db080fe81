"""Parses one file and fetches the keys that it holds or names.

Law: whether the file may be read at all has been found out before; the files that it names are
read no less carefully.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from iscsi_ipsec.adapters import credentials, files
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
class Content:
    """What a file says. ``raw`` is its text; ``key`` and ``previous`` are what the last good state has to keep beside it.

    ``beside``: the other files that keys came from. ``previous_line``: where the file names a previous key.
    """

    value: object
    raw: Secret
    key: Secret | None = None
    previous: Secret | None = None
    warnings: tuple[Problem, ...] = ()
    beside: tuple[str, ...] = ()
    previous_line: int = 0


def parse_content(kind: str, path: str, name: str, raw: Secret, text: str) -> Content:
    """Parse a file of one kind (settings, portal, psk) and fetch its keys; raises :class:`ConfigError`."""
    warnings: list[Problem] = []
    draft = _parsed(kind, path, name, text, warnings)
    if not isinstance(draft, KeyDraft):
        return Content(draft, raw, warnings=tuple(warnings))
    secret, kept, beside = _fetch_key(draft, draft.source)
    if not secret:
        raise ConfigError((empty_key_problem(draft),))
    if sample := placeholder_problem(draft, secret):
        raise ConfigError((sample,))
    previous, previous_kept, also = None, None, ""
    if draft.previous:
        previous, previous_kept, also = _fetch_key(draft, draft.previous.source)
        if not previous:
            raise ConfigError((empty_key_problem(draft, previous=True),))
    also_wrong = (weak_key_problem(draft, secret), same_key_problem(draft) if previous == secret else None)
    warnings += [p for p in also_wrong if p]
    return Content(
        draft.with_secret(secret, previous), raw, kept, previous_kept, tuple(warnings),
        tuple(path for path in (beside, also) if path), draft.previous_line,
    )  # fmt: skip


def revive(kind: str, path: str, name: str, last: LastGood) -> object | None:
    """Parse stored content again; None where today's rules refuse it."""
    try:
        text = last.raw.reveal().decode()
        draft = _parsed(kind, path, name, text)
        if not isinstance(draft, KeyDraft):
            return draft
        secret = draft.source if isinstance(draft.source, Secret) else last.key
        before = draft.previous.source if draft.previous else None
        previous = before if isinstance(before, Secret) else last.previous
        return draft.with_secret(secret, previous) if secret else None
    except (ConfigError, UnicodeDecodeError):
        return None


def _parsed(
    kind: str, path: str, name: str, text: str, warnings: list[Problem] | None = None
) -> Settings | PortalPolicy | KeyDraft:
    """What the text alone says."""
    if kind == "settings":
        return parse_settings(text, path, warnings)
    if kind == "portal":
        return parse_portal_file(text, path, name, warnings)
    return parse_key_file(text, path, name, warnings)


def _fetch_key(draft: KeyDraft, source: KeySource) -> tuple[Secret, Secret | None, str]:
    """The key of this source, what of it to keep in the store, and the other file it came from.

    A credential's key is not kept: it may be encrypted at rest, and the store is not.
    """
    match source:
        case KeyFileRef(path=path):
            folder = os.path.dirname(draft.path)
            secret = files.read_key_file(path, folder)
            return secret, secret, os.path.join(folder, path)
        case CredentialRef(name=name):
            at = credentials.locate_credential(name)
            if not at:
                raise credentials.missing_credential(name, draft.path)
            if credentials.is_encrypted(at):
                return credentials.decrypt_credential(name, at, draft.path), None, at
            return files.read_key_file(at, os.path.dirname(at)), None, at
        case Secret() as secret:
            return secret, None, ""
