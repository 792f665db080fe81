"""Checks single files for ``check``: as the daemon would if they lie on its search path, else by content.

Law: offline; every mistake of a file is found, whatever its file mode. Credentials are not read: they may be
readable to the service alone.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime

from iscsi_ipsec.adapters import files
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.keys import MAX_KEY_FILE_BYTES, Key
from iscsi_ipsec.base.policy import PortalPolicy
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, not_permitted
from iscsi_ipsec.core.config.invalid_files import BrokenFile, read_broken
from iscsi_ipsec.core.config.key_file import (
    KeyDraft,
    KeyFileRef,
    KeySource,
    empty_key_problem,
    parse_key_file,
    placeholder_problem,
    previous_over_problem,
    same_key_problem,
    weak_key_problem,
)
from iscsi_ipsec.core.config.lint import lint
from iscsi_ipsec.core.config.portal_file import parse_portal_file
from iscsi_ipsec.core.config.settings import Settings, parse_settings
from iscsi_ipsec.core.config.toml_reader import KeyLines
from iscsi_ipsec.service.paths import Paths

_KEY_WORDS = (
    "id", "id_type", "id_hex", "group", "key", "key_hex", "key_base64", "key_file", "key_credential", "previous_until",
)  # fmt: skip
_MAY_BE_READ = {"bad-mode", "bad-owner", "bad-folder", "hard-link", "symlink"}
"""Refusals that say nothing about the content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A file's problems, and its content where it could be read. ``broken``: the portals that a file with a mistake means."""

    path: str
    problems: tuple[Problem, ...] = ()
    value: Settings | PortalPolicy | Key | None = None
    broken: tuple[BrokenFile, ...] = ()
    lines: KeyLines = field(default_factory=lambda: KeyLines(""))


class FileCheck:
    """Checks files of one instance."""

    def __init__(self, paths: Paths) -> None:
        self._folders = {*paths.psk_folders, *paths.portal_folders, paths.config_dir}

    def judge(self, path: str) -> Judged:
        """Check one file; its folder or its content shows its kind."""
        name = os.path.basename(path).removesuffix(files.SUFFIX)
        folder = os.path.dirname(os.path.abspath(path))
        trusted = folder in self._folders
        problems: list[Problem] = []
        try:
            text = self._text(
                path, private=os.path.basename(folder) == "psk.d", trusted=trusted, problems=problems
            )
            kind = _kind(name, os.path.basename(folder), text)
            if kind == "psk" and trusted and not problems:
                files.read_config(path, private=True)  # now it is known to be one
        except ConfigError as err:
            return Judged(path=path, problems=(*problems, *err.problems))
        value: Settings | PortalPolicy | Key | None = None
        try:
            if kind == "settings":
                value = parse_settings(text, path, problems)
            elif kind == "portal":
                value = parse_portal_file(text, path, name, problems)
            else:
                value = _checked_key(parse_key_file(text, path, name, problems), problems, trusted=trusted)
            if kind != "settings":
                problems += lint(text, path)
        except ConfigError as err:
            problems += err.problems
        wrong = any(problem.severity is Severity.ERROR for problem in problems)
        return Judged(
            path=path, problems=tuple(problems), value=None if wrong and kind != "settings" else value,
            broken=read_broken(kind, text, path) if wrong else (), lines=KeyLines(text),
        )  # fmt: skip

    def _text(self, path: str, *, private: bool, trusted: bool, problems: list[Problem]) -> str:
        if not trusted:
            return files.decode_config(_read(path), path)
        try:
            return files.decode_config(files.read_config(path, private=private), path)
        except ConfigError as err:
            if any(problem.code not in _MAY_BE_READ for problem in err.problems):
                raise
            problems += err.problems
        return files.decode_config(_read(path), path)


def _read(path: str) -> bytes:
    """A file's bytes, whoever owns it: it is only checked, not put in force."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _problem("not-regular", path, "not a regular file")
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except PermissionError as err:
        raise not_permitted(path) from err
    except OSError as err:
        raise CommandError(Exit.USAGE, f"cannot read {path}: {err.strerror}") from err
    if len(data) > MAX_KEY_FILE_BYTES:
        raise _problem("too-large", path, f"larger than {MAX_KEY_FILE_BYTES // 1024} KiB")
    return data


def _problem(code: str, path: str, message: str) -> ConfigError:
    return ConfigError((Problem(code=code, file=path, message=message),))


def _kind(name: str, folder: str, text: str) -> str:
    if name == "iscsi-ipsecd":
        return "settings"
    if folder in ("psk.d", "portal.d"):
        return folder.removesuffix(".d")
    words = {line.partition("=")[0].strip() for line in text.splitlines()}
    return "portal" if words.isdisjoint(_KEY_WORDS) else "psk"


def _checked_key(draft: KeyDraft, problems: list[Problem], *, trusted: bool) -> Key:
    """The key, with bytes of the file's name where they are not read: two such keys differ."""
    key = _fetched(draft, draft.source, draft.key_line, problems, trusted=trusted)
    if key is not None:
        found = (
            empty_key_problem(draft)
            if not key
            else placeholder_problem(draft, key) or weak_key_problem(draft, key)
        )
        problems += [found] if found else []
    previous = None
    if draft.previous:
        previous = _fetched(draft, draft.previous.source, draft.previous_line, problems, trusted=trusted)
        if previous is not None and not previous:
            problems.append(empty_key_problem(draft, previous=True))
        elif previous is not None and previous == key:
            problems.append(same_key_problem(draft))
        if draft.previous.until <= datetime.now(UTC):
            problems.append(previous_over_problem(draft.path, draft.previous_line, draft.previous.until))
    return draft.with_secret(key or Secret(draft.path.encode()), previous)


def _fetched(
    draft: KeyDraft, source: KeySource, line: int, problems: list[Problem], *, trusted: bool
) -> Secret | None:
    """The key of this source; None for a credential, and where the key's file cannot be read."""
    match source:
        case Secret() as secret:
            return secret
        case KeyFileRef(path=beside):
            folder = os.path.dirname(os.path.abspath(draft.path))
            try:
                if trusted:
                    return files.read_key_file(beside, folder)
                return Secret(_read(os.path.join(folder, beside)).removesuffix(b"\n"))
            except ConfigError as err:
                # reported for the file that names it
                problems += [
                    Problem(
                        code=p.code, message=f"{p.file}: {p.message}", hint=p.hint, file=draft.path, line=line
                    )
                    for p in err.problems
                ]  # fmt: skip
            except CommandError as err:
                problems.append(
                    Problem(code="unreadable", message=err.message, hint=err.hint, file=draft.path, line=line)
                )
    return None
