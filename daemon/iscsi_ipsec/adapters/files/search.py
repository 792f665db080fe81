"""Lists the files of the search path, and which file hides which.

Law: opens no file; one ``stat`` for each, and unchanged values are reused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple

from iscsi_ipsec.adapters.files.stats import FileStat, stat_config
from iscsi_ipsec.adapters.files.trust import check_folder, is_ours, strerror
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.memo import Memo
from iscsi_ipsec.base.problem import Problem

SUFFIX = ".toml"


class FoundFile(NamedTuple):
    """A file on the search path that no other hides; nothing is said about its content or rights."""

    path: str
    name: str
    stat: FileStat


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The files of the search path.

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
    ``unmounted`` folders count as missing: the folder in their place is only their mount point.

    Names that begin with a dot are no configuration. Opens no file, so that
    10,000 of them cost one ``stat`` each. What is not a regular file is listed
    too, so that it hides what is below and :func:`read_config` can refuse it.
    """
    return ConfigSearch(folders).find({folder: tuple(remembered(folder)) for folder in folders}, unmounted)


class _Lost(NamedTuple):
    """A folder that could not be listed; without a problem one that does not exist."""

    problems: tuple[Problem, ...]


class ConfigSearch:
    """:func:`find_config` again and again: what did not differ is not arranged anew."""

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = folders
        self._arrange = Memo(self._arranged)

    def find(
        self, remembered: Mapping[str, Sequence[str]] = MappingProxyType({}), unmounted: Collection[str] = ()
    ) -> Found:
        """Look at every folder and every file in them, with one ``stat`` each.

        ``remembered``: for each folder the names that it had; this and ``unmounted`` are as in
        :func:`find_config`.
        """
        listings = {folder: _listing(folder, folder in unmounted) for folder in self._folders}
        lost = (folder for folder, listing in listings.items() if isinstance(listing, _Lost))
        return self._arrange(listings, {folder: tuple(remembered.get(folder, ())) for folder in lost})

    def _arranged(
        self, listings: dict[str, dict[str, FileStat] | _Lost], hidden: dict[str, tuple[str, ...]]
    ) -> Found:
        files: dict[str, FoundFile | None] = {}
        masked: list[str] = []
        missing: list[str] = []
        unusable: list[str] = []
        problems: list[Problem] = []
        for folder, listing in listings.items():
            for name in hidden.get(folder, ()):
                files.setdefault(name, None)
            if isinstance(listing, _Lost):
                (unusable if listing.problems else missing).append(folder)
                problems.extend(listing.problems)
                continue
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
                    files[name] = FoundFile(path, name, listing[file])
        return Found(
            files=tuple(sorted((f for f in files.values() if f), key=attrgetter("name"))),
            masked=tuple(masked),
            missing=tuple(missing),
            unusable=tuple(unusable),
            problems=tuple(problems),
        )


def _listing(folder: str, unmounted: bool) -> dict[str, FileStat] | _Lost:
    """The configuration files of a folder."""
    if unmounted:
        return _Lost(())
    try:
        check_folder(folder)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return dict(_stats(folder, fd))
        finally:
            os.close(fd)
    except FileNotFoundError:
        return _Lost(())
    except ConfigError as err:
        return _Lost(err.problems)
    except OSError as err:
        message = f"cannot list the folder: {strerror(err)}"
        return _Lost((Problem(code="unreadable", file=folder, message=message),))


def _stats(folder: str, fd: int) -> Iterator[tuple[str, FileStat]]:
    """Of what a link leads to; what is gone since the listing is left to the next wakeup."""
    for name in filter(_is_config_name, os.listdir(fd)):
        try:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            is_link = stat.S_ISLNK(st.st_mode)
            yield name, stat_config(os.path.join(folder, name)) if is_link else FileStat.from_stat(st)
        except OSError:
            continue


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
