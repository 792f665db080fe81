"""Reads the admin's files: the content in force of each, and the problems of any.

Law: a file that cannot be used never makes things worse. Its last good
content stays in force, the other files go on, and a problem says what to do.
A file whose ``stat`` is as it was is not opened again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import NamedTuple, Protocol, TypeVar

from iscsi_ipsec.adapters import files
from iscsi_ipsec.adapters.files import FileStat, FoundFile
from iscsi_ipsec.adapters.state_db import LastGood
from iscsi_ipsec.base.errors import ConfigError, StateUnavailable
from iscsi_ipsec.base.keys import GroupKey, Key, PerIdKey
from iscsi_ipsec.base.policy import PortalPolicy
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.invalid_files import (
    BrokenFile,
    BrokenSettings,
    read_broken,
    read_broken_settings,
)
from iscsi_ipsec.core.config.key_file import KeyDraft, previous_over_problem
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.policy_match import beyond
from iscsi_ipsec.core.decide.setting_precedence import settings_in_force
from iscsi_ipsec.service.config_content import KeyOrigin, find_origins, parse_draft, revive, with_keys
from iscsi_ipsec.service.decryption import Decryption
from iscsi_ipsec.service.paths import Paths
from iscsi_ipsec.service.ports import Store

T = TypeVar("T")


class FileRow(Protocol):
    """A file as ``status`` lists it; ``state``: ok, last-good, refused or masked. A row whose content differs is another object."""

    @property
    def path(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def signature(self) -> str:
        """Differs when the content does; empty for a masked file."""
        ...


class _MaskedFile(NamedTuple):
    path: str
    kind: str
    state: str = "masked"
    signature: str = ""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _More:
    """Attributes that few files have. ``origins``: the other files that its keys came from; ``previous_line``: where it names a previous key."""

    problems: tuple[Problem, ...] = ()
    origins: tuple[KeyOrigin, ...] = ()
    previous_line: int = 0
    broken: tuple[BrokenFile, ...] = ()
    settings: BrokenSettings | None = None

    @property
    def closing(self) -> tuple[object, ...]:
        """The parts of a file with a mistake that close portals."""
        return (self.broken, self.settings)


_NO_MORE = _More()


@dataclass(slots=True, eq=False)
class _Entry:
    """The knowledge about one file.

    ``value`` None: no good content was ever read. It is the file's status row too, so the attributes of the
    row never change.
    """

    file: FoundFile
    kind: str
    value: object | None
    settled: bool
    state: str
    more: _More = _NO_MORE

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def signature(self) -> str:
        return self.file.stat.signature

    @property
    def at_rest(self) -> bool:
        """Whether only a changed ``stat`` can mean that the file must be read again."""
        return self.state == "ok" and self.settled and not self.more.origins


@dataclass(slots=True)
class _Kind:
    """The files of one kind.

    ``restless`` are those that are looked at though their ``stat`` is as it was; ``hiding``
    masks and refused files: nothing of them is in force, and nothing of weaker ones of their
    name; ``remembered`` for each folder the names that it had; ``devices`` the file systems on
    which folders lay: an empty one in place of another is only where it was mounted.
    """

    name: str
    folders: Sequence[str]
    entries: dict[str, _Entry] = field(default_factory=dict)
    found: files.Found | None = None
    restless: tuple[FoundFile, ...] = ()
    hiding: tuple[str, ...] = ()
    remembered: dict[str, list[str]] = field(default_factory=dict)
    devices: dict[str, int] = field(default_factory=dict)
    rows: tuple[FileRow, ...] = ()
    problems: tuple[Problem, ...] = ()


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
        self._paths, self._store, self._clock, self._decryption = paths, store, clock, decryption
        self._settings = _Kind("settings", (paths.config_dir,))
        self._keys, self._policies = _Kind("psk", paths.psk_folders), _Kind("portal", paths.portal_folders)
        self._searches = {
            kind.name: files.ConfigSearch(kind.folders) for kind in (self._keys, self._policies)
        }
        self._stored: dict[str, LastGood] | None = None
        self._unsaved: dict[str, LastGood] = {}
        self._forgotten: set[str] = set()
        self._checked: dict[str, str] = {}
        self._generation = 0
        self._renewals = store.renewals if store else 0
        self._renewed = False
        self._over: frozenset[str] = frozenset()
        self._folders: tuple[FileStat | None, ...] = ()
        self._inventory: ConfigFiles | None = None
        self.opened = 0

    def read(self, *, all_files: bool = True) -> ConfigFiles:
        """The content in force. Never raises because of a file's content.

        Not ``all_files``: nothing called that a file changed. Then files are looked at only if
        their folders are not as they were, or something of them is not at rest.
        """
        folders = tuple(map(FileStat.at, self._watched_folders()))  # before what is in them
        if not (all_files or self._renewed_store()) and self._inventory and folders == self._folders:
            kinds = (self._settings, self._keys, self._policies)
            if not any(kind.restless or kind.found is None or kind.found.unusable for kind in kinds):
                return self._in_force(self._inventory)
        self._folders = folders
        self._recall()
        if self._store is not None and self._renewed_store():
            self._renewals, self._renewed = self._store.renewals, True
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
        if self._stored is None:
            self._stored = self._load_store()
            for kind in (self._settings, self._keys, self._policies):
                self._remember(kind)

    def _settings_in_force(self) -> Settings:
        entry = next(iter(self._settings.entries.values()), None)
        good = entry.value if entry and isinstance(entry.value, Settings) else Settings()
        return settings_in_force(good, entry.more.settings if entry else None)

    def _renewed_store(self) -> bool:
        return self._store is not None and self._store.renewals != self._renewals

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
        """Open every file at the next :meth:`read`, also those whose ``stat`` is as it was."""
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
        if self._store is None or not (self._unsaved or self._forgotten):
            return None
        try:
            self._store.put_last_good(self._unsaved.values())
            self._store.drop_last_good(self._forgotten)
        except StateUnavailable as err:
            return Problem(
                code="state-unsaved",
                message=f"the last good files cannot be kept for a restart: {err}",
                hint=f"check space and rights of {self._paths.state_dir}",
            )
        self._unsaved.clear()
        self._forgotten.clear()
        return None

    # -- one kind of file

    def _find(self, kind: _Kind) -> files.Found:
        unmounted = set()
        for folder in kind.folders:
            device = files.device_of(folder)
            if kind.devices.get(folder, device) != device and not files.has_config(folder):
                unmounted.add(folder)
            elif device:
                kind.devices[folder] = device
        return self._searches[kind.name].find(kind.remembered, unmounted)

    def _refresh(self, kind: _Kind, found: files.Found) -> bool:
        """Read what is new or may be; whether anything differs from before."""
        if found == kind.found and all(
            self._is_current(kind.entries[file.path], file) for file in kind.restless
        ):
            return False
        old = kind.entries
        new: dict[str, _Entry] = {}
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
        stored = {path for path, last in (self._stored or {}).items() if last.kind == kind.name}
        for path in (old.keys() | stored) - new.keys():
            self._forget(path)
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
            *(_MaskedFile(path, kind.name) for path in found.masked),
        )
        if others or stored:
            self._remember(kind)
        return True

    def _remember(self, kind: _Kind) -> None:
        """A folder that cannot be read goes on hiding the same files: its files and masks still take precedence over weaker ones."""
        kind.remembered = {}
        names = {file.path: file.name for file in kind.found.files} if kind.found else {}
        stored = (path for path, last in (self._stored or {}).items() if last.kind == kind.name)
        for path in (*kind.entries, *kind.hiding, *stored):
            kind.remembered.setdefault(os.path.dirname(path), []).append(names.get(path) or _name(path))

    def _keep_lost(
        self,
        kind: _Kind,
        found: files.Found,
        masked: Sequence[str],
        new: dict[str, _Entry],
        problems: list[Problem],
    ) -> None:
        """Keep what was in folders that vanished or became unreadable: their content is unknown, not empty."""
        lost = {*found.missing, *found.unusable}
        kept: dict[str, int] = {}
        known = {path: entry for path, entry in kind.entries.items() if os.path.dirname(path) in lost}
        for path, last in (self._stored or {}).items():
            if last.kind == kind.name and os.path.dirname(path) in lost and path not in known:
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
                message=f"the folder vanished; {kept[folder]} of its files stay in force as they were last",
                hint=f"bring it back; if its files are to be forgotten, make it anew: mkdir -m 700 {folder}"
                " (where it was unmounted: restart iscsi-ipsecd)",
            )
            for folder in kind.folders
            if folder in kept and folder in found.missing
        ]

    def _is_current(self, entry: _Entry, file: FoundFile) -> bool:
        if entry.state != "ok" or not entry.settled or entry.file.stat != file.stat:
            return False
        return all(origin.is_current for origin in entry.more.origins)

    def _read_file(self, kind: str, file: FoundFile, old: _Entry | None) -> _Entry:
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
            # from now on it is in memory, and thousands of texts need not be
            if (self._stored or {}).pop(file.path, None) != last or self._renewed:
                self._unsaved[file.path] = last
            self._forgotten.discard(file.path)
        more = _NO_MORE
        previous_line = draft.previous_line if isinstance(draft, KeyDraft) else 0
        if warnings or parsed.warnings or origins or previous_line:
            more = _More(problems=(*warnings, *parsed.warnings), origins=origins, previous_line=previous_line)
        return _Entry(file, kind, parsed.value, settled, "ok", more)

    def _text_of_refused(self, file: FoundFile) -> str:
        """A file that was refused, perhaps since others may read it: which portals it names counts all the same."""
        with contextlib.suppress(ConfigError):
            return files.decode_config(
                files.read_config(file.path, private=False, checked=self._checked), file.path
            )
        return ""

    # -- last good

    def _load_store(self) -> dict[str, LastGood]:
        if self._store is None:
            return {}
        with contextlib.suppress(StateUnavailable):  # reported by save()
            return dict(self._store.all_last_good())
        return {}

    def _from_store(self, kind: str, file: FoundFile, problems: tuple[Problem, ...]) -> _Entry:
        last = (self._stored or {}).get(file.path)
        value = revive(kind, file.path, file.name, last) if last else None
        reported = _as_last_good(problems) if value is not None else problems
        state = "last-good" if value is not None else "refused"
        return _Entry(file, kind, value, False, state, _More(problems=reported))

    def _forget(self, path: str) -> None:
        self._unsaved.pop(path, None)
        if self._stored is not None:
            self._stored.pop(path, None)
        self._forgotten.add(path)


_NO_STAT = FileStat.none()


def _as_last_good(problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
    """The same problems, saying that the last good content is in force."""
    return tuple(replace(p, message=f"{p.message}; its last good content stays in force") for p in problems)


def _contents(entries: dict[str, _Entry]) -> dict[str, tuple[object, ...]]:
    """What of each file is in force, or closes portals."""
    return {path: (entry.value, entry.more.closing) for path, entry in entries.items()}


def _values(kind: _Kind, type_: type[T]) -> tuple[T, ...]:
    return tuple(e.value for e in kind.entries.values() if isinstance(e.value, type_))


def _name(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(files.SUFFIX)


def _find_one(path: str) -> FoundFile | None:
    try:
        return FoundFile(path, _name(path), files.stat_config(path))
    except OSError:
        return None
