"""Reads the admin's files: the content in force of each, and the problems of any.

Law: a file that cannot be used never makes things worse. Its last good
content stays in force, the other files go on, and a problem says what to do.
A file whose ``stat`` is unchanged is not opened again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from iscsi_ipsec.adapters import files
from iscsi_ipsec.adapters.files import FileStat, FoundFile
from iscsi_ipsec.adapters.state_db import LastGood
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.keys import GroupKey, Key, PerIdKey
from iscsi_ipsec.base.policy import PortalPolicy
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.invalid_files import (
    BrokenFile,
    read_broken,
    read_broken_settings,
)
from iscsi_ipsec.core.config.key_file import KeyDraft, previous_over_problem
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.policy_choice import beyond
from iscsi_ipsec.core.decide.setting_precedence import settings_in_force
from iscsi_ipsec.service.config_content import find_origins, parse_draft, revive, with_keys
from iscsi_ipsec.service.config_entries import NO_DETAILS, Details, Entry, FileRow, Kind, MaskedFile
from iscsi_ipsec.service.credential_decryption import Decryption
from iscsi_ipsec.service.last_good_files import LastGoodFiles
from iscsi_ipsec.service.paths import Paths
from iscsi_ipsec.service.ports import Store

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFiles:
    """The content of all files together; ``generation`` stays the same as long as the content does.

    ``expires_in``: seconds until the time of a previous key is over, None where there is none.
    """

    generation: int
    settings: Settings
    keys: tuple[Key, ...]
    policies: tuple[PortalPolicy, ...]
    broken: tuple[BrokenFile, ...]
    rows: tuple[FileRow, ...]
    problems: tuple[Problem, ...]
    watched: tuple[str, ...]
    expires_in: float | None = None


class FileReader:
    """Reads the files of one instance; keeps what it read for the next time.

    ``store`` None: snapshot only, remember nothing (the ``plan`` and ``check`` verbs).
    ``opened`` counts the files that were opened, for tests and benchmarks.
    """

    def __init__(
        self,
        paths: Paths,
        store: Store | None,
        *,
        clock: Callable[[], int] = time.time_ns,
        decryption: Decryption | None = None,
    ) -> None:
        """Without ``decryption`` credentials are decrypted where they are read, which may take seconds."""
        self._paths, self._clock, self._decryption = paths, clock, decryption
        self._settings = Kind("settings", (paths.config_dir,))
        self._keys, self._policies = Kind("psk", paths.psk_folders), Kind("portal", paths.portal_folders)
        self._searches = {
            kind.name: files.ConfigSearch(kind.folders) for kind in (self._keys, self._policies)
        }
        self._last_good = LastGoodFiles(store, paths.state_dir)
        self._checked: dict[str, str] = {}
        self._generation = 0
        self._over: frozenset[str] = frozenset()
        self._folders: tuple[FileStat | None, ...] = ()
        self._inventory: ConfigFiles | None = None
        self.opened = 0

    def read(self, *, all_files: bool = True) -> ConfigFiles:
        """The content in force. Never raises because of a file's content.

        Not ``all_files``: nothing called that a file changed. Then files are read only if their folders
        changed, or if one of them is restless.
        """
        folders = tuple(map(FileStat.at, self._watched_folders()))  # before what is in them
        if not (all_files or self._last_good.was_lost()) and self._inventory and folders == self._folders:
            kinds = (self._settings, self._keys, self._policies)
            if not any(kind.restless or kind.found is None or kind.found.unusable for kind in kinds):
                return self._in_force(self._inventory)
        self._folders = folders
        self._recall()
        if self._last_good.was_lost():
            self._last_good.store_all_again()
            self.forget()  # what is good is read and stored again
        self._checked.clear()
        differs = self._refresh(self._settings, self._find_settings())
        for kind in (self._keys, self._policies):
            differs |= self._refresh(kind, self._find(kind))
        if self._inventory is None or differs:
            self._inventory = self._together()
        return self._in_force(self._inventory)

    def read_settings(self) -> Settings:
        """Read the settings file, ahead of all other files."""
        self._recall()
        self._refresh(self._settings, self._find_settings())
        return self._settings_in_force()

    def _recall(self) -> None:
        """Load the last good content, the first time."""
        if self._last_good.load():
            for kind in (self._settings, self._keys, self._policies):
                self._remember(kind)

    def _settings_in_force(self) -> Settings:
        entry = next(iter(self._settings.entries.values()), None)
        good = entry.value if entry and isinstance(entry.value, Settings) else Settings()
        return settings_in_force(good, entry.more.settings if entry else None)

    def _watched_folders(self) -> tuple[str, ...]:
        return (self._paths.config_dir, *self._paths.psk_folders, *self._paths.portal_folders)

    def _find_settings(self) -> files.Found:
        file = _find_one(self._paths.settings_file)
        gone = not file and not os.path.isdir(self._paths.config_dir)
        return files.Found(files=(file,) if file else (), missing=(self._paths.config_dir,) if gone else ())

    def _together(self) -> ConfigFiles:
        """The content of the files, whatever the time is."""
        kinds = (self._settings, self._keys, self._policies)
        beside = {
            folder
            for kind in kinds
            for entry in kind.entries.values()
            for origin in entry.more.origins
            for folder in origin.folders
        }
        return ConfigFiles(
            generation=self._generation,
            settings=self._settings_in_force(),
            keys=(*_values(self._keys, PerIdKey), *_values(self._keys, GroupKey)),
            policies=_values(self._policies, PortalPolicy),
            broken=tuple(file for kind in kinds for e in kind.entries.values() for file in e.more.broken),
            rows=tuple(row for kind in kinds for row in kind.rows),
            problems=tuple(problem for kind in kinds for problem in kind.problems),
            watched=(*self._watched_folders(), *sorted(beside)),
        )

    def _in_force(self, files_say: ConfigFiles) -> ConfigFiles:
        """The content without previous keys whose time is over, and the seconds until the time of the next one is over."""
        staged = {key.path: key.previous.until for key in files_say.keys if key.previous}
        if not staged and not self._over:
            return files_say
        now = datetime.fromtimestamp(self._clock() / 1e9, UTC)
        over = frozenset(path for path, until in staged.items() if until <= now)
        if over != self._over:
            self._over = over
            self._generation += 1
            files_say = self._inventory = replace(files_say, generation=self._generation)
        reported = tuple(
            previous_over_problem(path, self._keys.entries[path].more.previous_line, staged[path])
            for path in sorted(over)
        )
        left = [(until - now).total_seconds() for path, until in staged.items() if path not in over]
        return replace(
            files_say,
            keys=tuple(replace(key, previous=None) if key.path in over else key for key in files_say.keys),
            problems=(*files_say.problems, *reported),
            expires_in=min(left, default=None),
        )

    def forget(self) -> None:
        """Open every file at the next :meth:`read`, also those whose ``stat`` is unchanged."""
        if self._decryption:
            self._decryption.try_failed_again()
        for kind in (self._settings, self._keys, self._policies):
            for entry in kind.entries.values():
                entry.settled = False
            kind.found = None

    def save(self) -> Problem | None:
        """Write new good content to the store; return a problem where it cannot be written.

        Apart from :meth:`read` so that keys reach charon first.
        """
        return self._last_good.save()

    # -- one kind of file

    def _find(self, kind: Kind) -> files.Found:
        unmounted = set()
        for folder in kind.folders:
            device = files.device_of(folder)
            if kind.devices.get(folder, device) != device and not files.has_config(folder):
                unmounted.add(folder)
            elif device:
                kind.devices[folder] = device
        return self._searches[kind.name].find(kind.remembered, unmounted)

    def _refresh(self, kind: Kind, found: files.Found) -> bool:
        """Read files that are new or may have changed; return whether anything differs from before."""
        if found == kind.found and all(
            self._is_current(kind.entries[file.path], file) for file in kind.restless
        ):
            return False
        old = kind.entries
        new: dict[str, Entry] = {}
        problems = list(found.problems)
        for file in found.files:
            entry = old.get(file.path)
            if entry is None or not self._is_current(entry, file):
                entry = self._read_file(kind.name, file, entry)
            new[file.path] = entry
        lost = {*found.missing, *found.unusable}
        masked = (*found.masked, *(path for path in kind.hiding if lost and os.path.dirname(path) in lost))
        if not lost.isdisjoint(kind.remembered):
            self._keep_lost(kind, found, masked, new, problems)
            new = dict(sorted(new.items(), key=lambda item: _name(item[0])))
        stored = self._last_good.of_kind(kind.name).keys()
        for path in (old.keys() | stored) - new.keys():
            self._last_good.forget(path)
        if _contents(old) != _contents(new):
            self._generation += 1
        hiding = (*masked, *(path for path, entry in new.items() if entry.value is None))
        others = old.keys() != new.keys() or hiding != kind.hiding
        kind.hiding = hiding
        kind.found, kind.entries = found, new
        kind.restless = tuple(file for file in found.files if not new[file.path].at_rest)
        kind.problems = (*problems, *(problem for entry in new.values() for problem in entry.more.problems))
        kind.rows = (
            *new.values(),
            *(MaskedFile(path, kind.name) for path in found.masked),
        )
        if others or stored:
            self._remember(kind)
        return True

    def _remember(self, kind: Kind) -> None:
        """A folder that cannot be read goes on hiding the same files: its files and masks still take precedence over weaker ones."""
        kind.remembered = {}
        names = {file.path: file.name for file in kind.found.files} if kind.found else {}
        for path in (*kind.entries, *kind.hiding, *self._last_good.of_kind(kind.name)):
            kind.remembered.setdefault(os.path.dirname(path), []).append(names.get(path) or _name(path))

    def _keep_lost(
        self,
        kind: Kind,
        found: files.Found,
        masked: Sequence[str],
        new: dict[str, Entry],
        problems: list[Problem],
    ) -> None:
        """Keep the files of folders that vanished or became unreadable: their content is unknown, not empty."""
        lost = {*found.missing, *found.unusable}
        kept: dict[str, int] = {}
        known = {path: entry for path, entry in kind.entries.items() if os.path.dirname(path) in lost}
        for path in self._last_good.of_kind(kind.name):
            if os.path.dirname(path) in lost and path not in known:
                known[path] = self._from_store(kind.name, FoundFile(path, _name(path), _NO_STAT), ())
        taken = {_name(path) for path in (*new, *masked)}
        for path, entry in sorted(
            known.items(), key=lambda item: kind.folders.index(os.path.dirname(item[0]))
        ):
            if entry.value is not None and _name(path) not in taken:
                taken.add(_name(path))
                new[path] = replace(
                    entry, settled=False, state="last-good", more=replace(entry.more, problems=())
                )
                kept[os.path.dirname(path)] = kept.get(os.path.dirname(path), 0) + 1
        problems += [
            Problem(
                code="folder-gone",
                file=folder,
                message=f"the folder vanished; {kept[folder]} of its files stay in force with their last content",
                hint=f"bring it back; if its files are to be forgotten, make it anew: mkdir -m 700 {folder}"
                " (where it was unmounted: restart iscsi-ipsecd)",
            )
            for folder in kind.folders
            if folder in kept and folder in found.missing
        ]

    def _is_current(self, entry: Entry, file: FoundFile) -> bool:
        if entry.state != "ok" or not entry.settled or entry.file.stat != file.stat:
            return False
        return all(origin.is_current for origin in entry.more.origins)

    def _read_file(self, kind: str, file: FoundFile, old: Entry | None) -> Entry:
        settled = file.stat.settled(self._clock())
        self.opened += 1
        text, warnings = "", list[Problem]()
        origins = old.more.origins if old else ()
        try:
            raw = files.read_config(file.path, private=kind == "psk", checked=self._checked)
            text = files.decode_config(raw, file.path)
            draft = parse_draft(kind, file.path, file.name, text, warnings)
            origins = find_origins(draft)
            now = self._clock()
            settled = settled and all(o.stat is None or o.stat.settled(now) for o in origins)
            parsed = with_keys(draft, origins, self._decryption)
        except ConfigError as err:
            if old is None or old.value is None:
                entry = self._from_store(kind, file, err.problems)
            else:
                reported = replace(old.more, problems=_as_last_good(err.problems))
                entry = replace(old, file=file, settled=settled, state="last-good", more=reported)
            text = text or self._text_of_refused(file)
            closing = replace(
                entry.more,
                broken=beyond(read_broken(kind, text, file.path), entry.value),
                origins=origins,
                settings=read_broken_settings(text) if kind == self._settings.name else None,
            )
            return replace(entry, more=closing)
        if not file.path.startswith(f"{self._paths.runtime_dir}/"):
            last = LastGood(
                path=file.path,
                kind=kind,
                raw=Secret(raw),
                key=parsed.key,
                previous=parsed.previous,
                signature=file.stat.signature,
            )
            self._last_good.keep(last)
        more = NO_DETAILS
        previous_line = draft.previous_line if isinstance(draft, KeyDraft) else 0
        if warnings or parsed.warnings or origins or previous_line:
            more = Details(
                problems=(*warnings, *parsed.warnings), origins=origins, previous_line=previous_line
            )
        return Entry(file, kind, parsed.value, settled, "ok", more)

    def _text_of_refused(self, file: FoundFile) -> str:
        """A file that was refused, perhaps since others may read it: which portals it names counts all the same."""
        with contextlib.suppress(ConfigError):
            return files.decode_config(
                files.read_config(file.path, private=False, checked=self._checked), file.path
            )
        return ""

    # -- last good

    def _from_store(self, kind: str, file: FoundFile, problems: tuple[Problem, ...]) -> Entry:
        last = self._last_good.get(file.path)
        value = revive(kind, file.path, file.name, last) if last else None
        reported = _as_last_good(problems) if value is not None else problems
        state = "last-good" if value is not None else "refused"
        return Entry(file, kind, value, False, state, Details(problems=reported))


_NO_STAT = FileStat.none()


def _as_last_good(problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
    """The problems, with the addition that the last good content is in force."""
    return tuple(replace(p, message=f"{p.message}; its last good content stays in force") for p in problems)


def _contents(entries: dict[str, Entry]) -> dict[str, tuple[object, ...]]:
    """What of each file is in force, or closes portals."""
    return {path: (entry.value, entry.more.closing) for path, entry in entries.items()}


def _values(kind: Kind, type_: type[T]) -> tuple[T, ...]:
    return tuple(e.value for e in kind.entries.values() if isinstance(e.value, type_))


def _name(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(files.SUFFIX)


def _find_one(path: str) -> FoundFile | None:
    try:
        return FoundFile(path, _name(path), files.stat_config(path))
    except OSError:
        return None
