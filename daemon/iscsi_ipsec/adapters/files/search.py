"""Lists the files of the search path, and which file hides which.

Law: opens no file; one ``stat`` for each, and nothing anew that is as it was.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple

from iscsi_ipsec.adapters.files.stats import FileStat, packed, stat_config
from iscsi_ipsec.adapters.files.trust import check_folder, is_ours, strerror
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.problem import Problem

SUFFIX = ".toml"


class FoundFile(NamedTuple):
    """A file on the search path that no other hides; nothing is said about its content or rights."""

    path: str
    name: str
    stat: FileStat


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the search path holds.

    ``masked`` are links to /dev/null; ``missing`` folders that do not exist;
    ``unusable`` folders whose content could not be listed or is not to be
    trusted (``problems`` says why): their known files should stay.
    """

    files: tuple[FoundFile, ...] = ()
    masked: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def find_config(
    folders: Sequence[str],
    remembered: Callable[[str], Iterable[str]] = lambda _: (),
    unmounted: Collection[str] = (),
) -> Found:
    """List ``*.toml`` in ``folders``, the first folder first; of files of one name the first wins.

    ``remembered`` has the names that a folder had; where it is missing or unusable, these go on hiding files
    in weaker folders.
    ``unmounted`` folders count as missing: what is there is only where they were.

    Names that begin with a dot are no configuration. Opens no file, so that
    10,000 of them cost one ``stat`` each. What is not a regular file is listed
    too, so that it hides what is below and :func:`read_config` can refuse it.
    """
    return ConfigSearch(folders).find({folder: tuple(remembered(folder)) for folder in folders}, unmounted)


class ConfigSearch:
    """:func:`find_config` again and again: as long as nothing differs, the very same :class:`Found`."""

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = folders
        self._listings: dict[str, dict[str, FileStat] | OSError | ConfigError] = {}
        self._hidden: dict[str, Sequence[str]] = {}
        self._found: Found | None = None

    def find(
        self, remembered: Mapping[str, Sequence[str]] = MappingProxyType({}), unmounted: Collection[str] = ()
    ) -> Found:
        """Look at every folder and every file in them, with one ``stat`` each.

        ``remembered``: for each folder the names that it had; this and ``unmounted`` are as in
        :func:`find_config`.
        """
        changes = [self._look_at(folder, folder in unmounted) for folder in self._folders]
        lost = (f for f in self._folders if not isinstance(self._listings[f], dict))
        hidden = {folder: remembered.get(folder, ()) for folder in lost}
        found = self._found
        if found is None or None in changes or hidden != self._hidden:
            self._hidden = hidden
            found = self._arranged({file.path: file for file in found.files} if found else {})
        elif any(changes):
            new = {path: now for stats in changes if stats for path, now in stats.items()}
            files = (FoundFile(f.path, f.name, new[f.path]) if f.path in new else f for f in found.files)
            found = replace(found, files=tuple(files))
        self._found = found
        return found

    def _look_at(self, folder: str, unmounted: bool) -> dict[str, FileStat] | None:
        """List one folder; what differs from the last time, None if that is more than what ``stat`` says of files."""
        before = self._listings.get(folder)
        known = before if isinstance(before, dict) else {}
        listing: dict[str, FileStat] | OSError | ConfigError
        differs: dict[str, FileStat] | None
        try:
            if unmounted:
                raise FileNotFoundError(folder)
            check_folder(folder)
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                listing, differs = _listing(folder, fd, known)
            finally:
                os.close(fd)
        except (OSError, ConfigError) as err:
            # a traceback would keep the frames of this pass, and they the one before, for ever
            listing, differs = err.with_traceback(None), {} if str(before) == str(err) else None
        self._listings[folder] = listing
        return differs if isinstance(before, type(listing)) else None

    def _arranged(self, known: dict[str, FoundFile]) -> Found:
        files: dict[str, FoundFile | None] = {}
        masked: list[str] = []
        missing: list[str] = []
        unusable: list[str] = []
        problems: list[Problem] = []
        for folder in self._folders:
            listing = self._listings[folder]
            for name in self._hidden.get(folder, ()):
                files.setdefault(name, None)
            if isinstance(listing, FileNotFoundError):
                missing.append(folder)
            elif isinstance(listing, ConfigError):
                unusable.append(folder)
                problems.extend(listing.problems)
            elif isinstance(listing, OSError):
                unusable.append(folder)
                problems.append(
                    Problem(
                        code="unreadable", file=folder, message=f"cannot list the folder: {strerror(listing)}"
                    )
                )
            else:
                for file in sorted(listing):
                    name, path = file[: -len(SUFFIX)], f"{folder}/{file}"
                    if not file.isprintable():  # surrogates of names that are not UTF-8, control characters
                        problems.append(_bad_name(folder, file))
                    elif name in files:
                        continue
                    elif stat.S_ISCHR(listing[file].mode) and _is_mask(path):
                        masked.append(path)
                        files[name] = None
                    else:
                        seen = known.get(path)
                        same = seen is not None and seen.stat is listing[file]
                        files[name] = seen if same else FoundFile(path, name, listing[file])
        return Found(
            files=tuple(sorted((f for f in files.values() if f), key=attrgetter("name"))),
            masked=tuple(masked),
            missing=tuple(missing),
            unusable=tuple(unusable),
            problems=tuple(problems),
        )


def _listing(
    folder: str, fd: int, known: dict[str, FileStat]
) -> tuple[dict[str, FileStat], dict[str, FileStat] | None]:
    """The configuration files of an open folder, and what differs from what is known.

    That is None if it is more than the ``stat`` of files that were regular and are.
    """
    names = list(filter(_is_config_name, os.listdir(fd)))
    found = dict(_stats(folder, fd, names))
    if found == known:
        return known, {}
    # what does not differ is the very same value
    get = known.get
    listing = {name: before if (before := get(name)) == now else FileStat(now) for name, now in found.items()}
    if listing.keys() != known.keys():
        return listing, None
    new = {name: now for name, now in listing.items() if now is not known[name]}
    if not all(stat.S_ISREG(now.mode) and stat.S_ISREG(known[name].mode) for name, now in new.items()):
        return listing, None
    return listing, {f"{folder}/{name}": now for name, now in new.items()}


def _stats(folder: str, fd: int, names: list[str]) -> Iterable[tuple[str, bytes]]:
    """The ``stat`` of these files, with nothing done in Python for each of thousands unless it has to be."""
    look = partial(os.stat, dir_fd=fd, follow_symlinks=False)
    try:
        stats, modes = packed(map(look, names))
    except OSError:  # one is gone since the listing
        return _stats_one_by_one(folder, names)
    if any(map(stat.S_ISLNK, modes)):
        return _stats_one_by_one(folder, names)
    return zip(names, stats, strict=True)


def _stats_one_by_one(folder: str, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """The same where links have to be followed, and what is gone left to the next wakeup."""
    for name in names:
        with contextlib.suppress(OSError):
            yield name, stat_config(os.path.join(folder, name))


def has_config(folder: str) -> bool:
    """Whether a folder has any configuration file, or one that hides another."""
    try:
        return any(map(_is_config_name, os.listdir(folder)))
    except OSError:
        return False


def _bad_name(folder: str, file: str) -> Problem:
    return Problem(
        code="bad-name",
        file=os.path.join(folder, ascii(file)[1:-1]),
        message="the file's name is not printable UTF-8",
        hint="rename it",
    )


def _is_config_name(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".") and name != SUFFIX


def _is_mask(path: str) -> bool:
    """Whether a name that leads to a device is a trusted link to /dev/null."""
    try:
        own = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISLNK(own.st_mode) and os.path.realpath(path) == "/dev/null" and is_ours(own.st_uid)
