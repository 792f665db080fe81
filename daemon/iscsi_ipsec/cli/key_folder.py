"""Lists the key files of one instance, and decides which files may be written beside them.

Law: a file is only written where the daemon will take it: into a folder that
only root can change, under a name that no other file hides, for an identity
that no other file already has for the same portals.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container
from dataclasses import dataclass
from functools import cached_property

from iscsi_ipsec.adapters import files
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.identity import IkeId
from iscsi_ipsec.base.portal import patterns_overlap
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, not_permitted
from iscsi_ipsec.core.config.key_file import KeyDraft, parse_key_file
from iscsi_ipsec.core.config.writer import description_of
from iscsi_ipsec.service.paths import Paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A key file in force."""

    draft: KeyDraft
    description: str
    persistent: bool


class Shelf:
    """The key files of one instance. ``runtime``: new files go where they last until the next boot."""

    def __init__(self, paths: Paths, *, runtime: bool = False) -> None:
        self.paths = paths
        self.persistent_folder, self.runtime_folder = paths.psk_folders
        self.folder = self.runtime_folder if runtime else self.persistent_folder
        self.problems: tuple[Problem, ...] = ()

    def path_of(self, name: str) -> str:
        """Where the file of this name is or will be."""
        return f"{self.folder}/{name}{files.SUFFIX}"

    def at(self, name: str) -> Stored | None:
        """The file that is to be replaced; :class:`ConfigError` where it is broken."""
        path = self.path_of(name)
        require_access(self.folder, os.R_OK | os.X_OK)
        if not os.path.lexists(path):
            return None
        if os.path.islink(path):
            raise CommandError(Exit.PROBLEMS, f"{path} is a link", "remove it first")
        return self._read(path, name)

    def _read(self, path: str, name: str) -> Stored:
        text = files.decode_config(files.read_config(path, private=True), path)
        return Stored(
            draft=parse_key_file(text, path, name),
            description=description_of(text, path),
            persistent=os.path.dirname(path) == self.persistent_folder,
        )

    @cached_property
    def stored(self) -> tuple[Stored, ...]:
        """All key files in force, by name; the problems of others are added to ``problems``."""
        for folder in self.paths.psk_folders:
            require_access(folder, os.R_OK | os.X_OK)
        found = files.find_config(self.paths.psk_folders)
        stored, problems = [], list(found.problems)
        for file in found.files:
            try:
                stored.append(self._read(file.path, file.name))
            except ConfigError as err:
                problems.extend(err.problems)
        self.problems = tuple(problems)
        return tuple(stored)

    @cached_property
    def _by_owner(self) -> dict[IkeId | None, list[KeyDraft]]:
        owners: dict[IkeId | None, list[KeyDraft]] = {}
        for draft in (stored.draft for stored in self.stored):
            owners.setdefault(draft.id, []).append(draft)
        return owners

    def refuse_conflict(self, draft: KeyDraft, but: Container[str] = ()) -> None:
        """:class:`CommandError` where the file would be hidden, or another file already has its identity.

        ``but``: files that policies name, which may have the same identity since the policy chooses.
        """
        hider = f"{self.persistent_folder}/{draft.name}{files.SUFFIX}"
        if self.folder == self.runtime_folder and os.path.lexists(hider):
            raise CommandError(
                Exit.PROBLEMS, f"{hider} would hide it", "leave out --runtime, or remove that file first"
            )
        mine = draft.id
        for other in self._by_owner.get(mine, ()):
            if (
                other.name != draft.name
                and other.name not in but
                and patterns_overlap(other.portals, draft.portals)
            ):
                whose = str(draft.id) if draft.id else "the group"
                raise CommandError(
                    Exit.PROBLEMS, f"{other.path} already has a key of {whose}",
                    f"put the new key into that file (NAME: {other.name}), or remove it, or give both different portals",
                )  # fmt: skip


def require_access(path: str, what: int) -> None:
    """:class:`CommandError` where the caller lacks this right to something that exists."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return
    except PermissionError as err:
        raise not_permitted(path) from err
    if not os.access(path, what, effective_ids=True):
        may_read = os.access(path, what & ~os.W_OK, effective_ids=True)
        raise not_permitted(path, "write to" if may_read else "read")


def make_folder(folder: str) -> None:
    """Make a folder for keys, if it is missing, and refuse one that others could change."""
    if not os.path.isdir(folder):
        os.makedirs(os.path.dirname(folder), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, mode=0o700)
    files.check_folder(folder, strict=True)
    require_access(folder, os.R_OK | os.W_OK | os.X_OK)


def make_portal_folder(folder: str) -> None:
    """Make a folder for policies, if it is missing, and refuse one that others could change."""
    os.makedirs(folder, mode=0o755, exist_ok=True)
    files.check_folder(folder, strict=True)
    require_access(folder, os.W_OK | os.X_OK)


def checked_name(name: str) -> str:
    """A key file's name as given, without ``.toml``; :class:`CommandError` where it is not a file name."""
    name = name.removesuffix(files.SUFFIX)
    if name.startswith(".") or "/" in name or not name.isprintable() or len(name.encode()) > 200:
        raise CommandError(
            Exit.USAGE, "NAME must be a file name without folder that does not begin with a dot"
        )
    return name
