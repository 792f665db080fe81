"""Reading the admin's files without trusting the file system.

Law: nothing here parses what a file says. A file is opened only when every
folder above it can be changed by root (or our own user) alone, without
following a link and without blocking, and what was opened is then checked
again by its descriptor. Writing is :mod:`~iscsi_ipsec.adapters.filewrite`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.model import MAX_KEY_FILE_BYTES, Problem
from iscsi_ipsec.base.secret import Secret

SUFFIX = ".toml"
_MAX_LINKS = 40
"""As the kernel's own limit (path_resolution(7))."""
_ATTEMPTS = 5
"""How often a file that changes while we read it is read again before we leave it to the next wakeup."""


class FileStat(NamedTuple):
    """The part of ``struct stat`` that tells whether a file was changed; times in nanoseconds.

    A tuple, since thousands are compared in each pass.
    """

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    uid: int
    gid: int

    @classmethod
    def of(cls, st: os.stat_result) -> FileStat:
        """Take the fields from :func:`os.stat`'s result."""
        return cls._make(_STAT_FIELDS(st))

    @classmethod
    def at(cls, path: str) -> FileStat | None:
        """Those of what is at a path, behind links; None where nothing can be looked at."""
        try:
            return cls.of(os.stat(path))
        except OSError:
            return None

    @property
    def signature(self) -> str:
        """``dev:ino:size:mtime_ns``: differs when the content does (see :meth:`settled`)."""
        return f"{self.dev}:{self.ino}:{self.size}:{self.mtime_ns}"

    def settled(self, now_ns: int, granularity_ns: int = 20_000_000) -> bool:
        """Whether a later write must give another signature.

        Kernel time stamps move in ticks (4 ms at CONFIG_HZ=250, 10 ms at 100): a second write of
        the same size within the tick of the first leaves no trace. ``now_ns`` is :func:`time.time_ns`.
        """
        return not 0 <= now_ns - self.mtime_ns < granularity_ns


_STAT_FIELDS = attrgetter(
    "st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns", "st_mode", "st_uid", "st_gid"
)  # fmt: skip


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
    trusted (``problems`` says why): what was known of them should stay.
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

    ``remembered`` tells the names that a folder had, which counts where one
    is missing or unusable: they go on hiding what is in weaker folders.
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
        differs = self._found is None
        for folder in self._folders:
            differs |= self._look_at(folder, folder in unmounted)
        lost = (f for f in self._folders if not isinstance(self._listings[f], dict))
        hidden = {folder: remembered.get(folder, ()) for folder in lost}
        differs |= hidden != self._hidden
        self._hidden = hidden
        if self._found is None or differs:
            self._found = self._arranged(
                {file.path: file for file in self._found.files} if self._found else {}
            )
        return self._found

    def _look_at(self, folder: str, unmounted: bool) -> bool:
        """List one folder; whether that gave something else than the last time."""
        before = self._listings.get(folder)
        known = before if isinstance(before, dict) else {}
        listing: dict[str, FileStat] | OSError | ConfigError
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
            listing, differs = err.with_traceback(None), str(before) != str(err)
        self._listings[folder] = listing
        return differs or not isinstance(before, type(listing))

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
                        code="unreadable", file=folder, message=f"cannot list the folder: {_why(listing)}"
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


def _listing(folder: str, fd: int, known: dict[str, FileStat]) -> tuple[dict[str, FileStat], bool]:
    """The configuration files of an open folder, and whether they differ from what is known."""
    names = list(filter(_is_config_name, os.listdir(fd)))
    found = dict(_stats(folder, fd, names))
    if found == known:
        return known, False
    # what does not differ is the very same value
    get = known.get
    return {
        name: before if (before := get(name)) == fields else FileStat._make(fields)
        for name, fields in found.items()
    }, True


def _stats(folder: str, fd: int, names: list[str]) -> Iterable[tuple[str, tuple[int, ...]]]:
    """The ``stat`` of these files, with nothing done in Python for each of thousands unless it has to be."""
    look = partial(os.stat, dir_fd=fd, follow_symlinks=False)
    try:
        stats = list(map(_STAT_FIELDS, map(look, names)))
    except OSError:  # one is gone since the listing
        return _stats_one_by_one(folder, names)
    if any(map(stat.S_ISLNK, {mode for *_, mode, _, _ in stats})):
        return _stats_one_by_one(folder, names)
    return zip(names, stats, strict=True)


def _stats_one_by_one(folder: str, names: list[str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The same where links have to be followed, and what is gone left to the next wakeup."""
    for name in names:
        with contextlib.suppress(OSError):
            yield name, stat_config(os.path.join(folder, name))


def device_of(folder: str) -> int:
    """The file system on which a folder lies; 0 where there is none."""
    try:
        return os.stat(folder).st_dev
    except OSError:
        return 0


def has_config(folder: str) -> bool:
    """Whether a folder has any file of ours, or one that hides ours."""
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


def read_config(path: str, *, private: bool, checked: dict[str, str] | None = None) -> bytes:
    """Read a file of at most 64 KiB that only root or our own user can have written.

    ``private``: it holds or names a key, so nobody else may read it either
    and it has no second name. ``checked``: folders that were found safe a moment
    ago, with where they really are; grows as files are read. Raises
    :class:`ConfigError` with one problem, whose hint is the command that mends it.
    """
    return _read(_final_path(path, {} if checked is None else checked), path, private=private)


def read_key_file(path: str, relative_to: str) -> Secret:
    """Read the file that ``key_file`` names: its bytes as they are, less one trailing newline.

    ``relative_to`` is the file that names it, or that file's folder.
    """
    folder = relative_to if os.path.isdir(relative_to) else os.path.dirname(relative_to)
    data = read_config(os.path.join(folder, path), private=True)
    return Secret(data.removesuffix(b"\n"))


def decode_config(data: bytes, path: str) -> str:
    """Decode a configuration file's bytes; a byte order mark is dropped.

    Raises :class:`ConfigError` with the line of the first byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as err:
        bad = err.start
    # raised out here: as its context, the original would carry the bytes, a key among them
    raise ConfigError(
        (
            Problem(
                code="not-utf8",
                file=path,
                line=data.count(b"\n", 0, bad) + 1,
                message="not UTF-8",
                hint="save the file as UTF-8",
            ),
        )
    )


def check_folder(folder: str, *, strict: bool = False) -> str:
    """Walk to ``folder`` and return it without links; every part must be safe from other users.

    A folder that others may write is let pass when it is sticky, as /tmp is:
    what is in it is then judged by its owner. ``strict`` refuses even that for
    the last one. Raises :class:`ConfigError`, or :class:`FileNotFoundError`.
    """
    current = "/"
    parts = deque(_parts(folder if os.path.isabs(folder) else os.path.join(os.getcwd(), folder)))
    _check_one_folder(current, os.lstat(current), strict=strict and not parts)
    links = 0
    while parts:
        part = parts.popleft()
        if part == "..":
            current = os.path.dirname(current)
            continue
        path = os.path.join(current, part)
        try:
            st = os.lstat(path)
            if stat.S_ISLNK(st.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                _check_owner(path, st, "the link", link=True)
                target = os.readlink(path)
                current = "/" if target.startswith("/") else current
                parts.extendleft(reversed(_parts(target)))
                continue
        except FileNotFoundError:
            raise
        except OSError as err:
            _refuse("unreadable", path, f"cannot look at the folder: {_why(err)}")
        if not stat.S_ISDIR(st.st_mode):
            _refuse("bad-folder", path, "not a folder")
        _check_one_folder(path, st, strict=strict and not parts)
        current = path
    return current


def _check_one_folder(path: str, st: os.stat_result, *, strict: bool) -> None:
    if not _is_ours(st.st_uid):
        _refuse(
            "bad-folder",
            path,
            f"the folder belongs to {_user(st.st_uid)}, who could exchange its files",
            _chown(path),
        )
    if st.st_mode & 0o022 and (strict or not st.st_mode & stat.S_ISVTX):
        _refuse(
            "bad-folder",
            path,
            f"users other than its owner may write to the folder (mode {_mode(st)})",
            f"chmod go-w {shlex.quote(path)}",
        )


def _final_path(path: str, checked: dict[str, str]) -> str:
    """Where the file really is: itself, or what a link inside the same folder leads to.

    Kubernetes mounts ``db1.toml -> ..data/db1.toml``, ``..data -> ..2026_01_01``:
    each part is relative, goes down only, and is checked like a folder.
    """
    if "\0" in path:  # TOML can write one; the kernel would read the name up to it
        _refuse("bad-name", path.replace("\0", "\\0"), "a file's name cannot hold a NUL")
    folder, name = os.path.split(path)
    try:
        folder = checked.get(folder) or checked.setdefault(folder, check_folder(folder or "."))
        parts = deque([name])
        current, links = folder, 0
        while True:
            step = os.path.join(current, parts.popleft())
            st = os.lstat(step)
            if stat.S_ISLNK(st.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                _check_owner(path, st, "the link", link=True)
                target = os.readlink(step)
                below = _parts(target)
                if target.startswith("/") or ".." in below or not below:
                    _refuse(
                        "symlink",
                        path,
                        "a link that leads out of its folder is not followed",
                        "copy the file instead",
                    )
                parts.extendleft(reversed(below))
            elif not parts:
                # the folder that holds the real file must be closed even if sticky: others
                # could otherwise put a file of root's there under a name of their choice
                _check_one_folder(current, os.lstat(current), strict=True)
                return step
            else:
                if not stat.S_ISDIR(st.st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                _check_one_folder(step, st, strict=False)
                current = step
    except FileNotFoundError:
        _refuse("missing", path, "no such file")
    except OSError as err:
        _refuse("unreadable", path, f"cannot read: {_why(err)}")


def _read(real: str, path: str, *, private: bool) -> bytes:
    for _ in range(_ATTEMPTS):
        try:
            # NONBLOCK and NOCTTY: a FIFO or terminal put here must neither stop us nor become ours
            fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as err:
            if err.errno == errno.ENOENT:
                _refuse("missing", path, "no such file")
            if err.errno == errno.ENXIO:  # a socket
                _refuse("not-regular", path, "not a regular file")
            _refuse("unreadable", path, f"cannot open: {_why(err)}")
        try:
            before = os.fstat(fd)
            _check_file(path, before, private=private)
            data = _read_all(fd)
            after = os.fstat(fd)
        except OSError as err:
            _refuse("unreadable", path, f"cannot read: {_why(err)}")
        finally:
            os.close(fd)
        if len(data) > MAX_KEY_FILE_BYTES:
            _too_large(path)
        if FileStat.of(before) == FileStat.of(after) and len(data) == after.st_size:
            return data
    raise _error(
        "unstable", path, "the file changes while it is read", "write a new file and rename it into place"
    )


def _read_all(fd: int) -> bytes:
    """At most one byte more than allowed, so that a file that grows meanwhile is noticed."""
    chunks: list[bytes] = []
    left = MAX_KEY_FILE_BYTES + 1
    while left and (chunk := os.read(fd, left)):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def _check_file(path: str, st: os.stat_result, *, private: bool) -> None:
    if not stat.S_ISREG(st.st_mode):
        _refuse("not-regular", path, "not a regular file")
    _check_owner(path, st, "the file")
    if private and st.st_mode & 0o077:
        _refuse(
            "bad-mode",
            path,
            f"users other than its owner may read or write the file (mode {_mode(st)})",
            f"chmod 600 {shlex.quote(path)}",
        )
    if st.st_mode & 0o022:
        _refuse(
            "bad-mode",
            path,
            f"users other than its owner may write the file (mode {_mode(st)})",
            f"chmod 644 {shlex.quote(path)}",
        )
    if private and st.st_nlink > 1:
        quoted = shlex.quote(path)
        _refuse(
            "hard-link",
            path,
            f"the file has {st.st_nlink} names: the key may lie open under another",
            f"find the others with: find / -xdev -samefile {quoted}",
        )
    if st.st_size > MAX_KEY_FILE_BYTES:
        _too_large(path)


def _check_owner(path: str, st: os.stat_result, what: str, *, link: bool = False) -> None:
    if not _is_ours(st.st_uid):
        _refuse("bad-owner", path, f"{what} belongs to {_user(st.st_uid)}", _chown(path, link=link))


def _is_ours(uid: int) -> bool:
    return uid in (0, os.geteuid())


def _is_config_name(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".") and name != SUFFIX


def _is_mask(path: str) -> bool:
    """Whether what leads to a device is a link of ours to /dev/null."""
    try:
        own = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISLNK(own.st_mode) and os.path.realpath(path) == "/dev/null" and _is_ours(own.st_uid)


def stat_config(path: str) -> FileStat:
    """Of what a link leads to (its content is what changes), of the link itself if that is nothing.

    The link's own change counts as well: its owner decides whether it is followed.
    Raises :class:`OSError` where there is nothing.
    """
    own = FileStat.of(os.lstat(path))
    if not stat.S_ISLNK(own.mode):
        return own
    try:
        led_to = FileStat.of(os.stat(path))
    except OSError:
        return own
    return led_to._replace(ctime_ns=max(led_to.ctime_ns, own.ctime_ns))


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _error(code: str, path: str, message: str, hint: str = "") -> ConfigError:
    return ConfigError((Problem(code=code, file=path, message=message, hint=hint),))


def _refuse(code: str, path: str, message: str, hint: str = "") -> NoReturn:
    raise _error(code, path, message, hint)


def _too_large(path: str) -> NoReturn:
    _refuse(
        "too-large", path, f"larger than {MAX_KEY_FILE_BYTES // 1024} KiB", "split it into one file per key"
    )


def _chown(path: str, *, link: bool = False) -> str:
    return f"chown {'-h ' if link else ''}root: {shlex.quote(path)}"


def _user(uid: int) -> str:
    """The number only: a name would ask NSS, which may be away while the network is."""
    return f"user {uid}"


def _mode(st: os.stat_result) -> str:
    return f"{stat.S_IMODE(st.st_mode):04o}"


def _why(err: OSError) -> str:
    return os.strerror(err.errno) if err.errno else type(err).__name__
