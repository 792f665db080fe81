"""Checks who could have changed or read a file: folders, links, owners, modes.

Law: only root, or our own user, may be able to. Anything else is refused with one problem, whose hint is the
command that fixes it.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections import deque
from typing import NoReturn

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.keys import MAX_KEY_FILE_BYTES
from iscsi_ipsec.base.problem import Problem

_MAX_LINKS = 40
"""As the kernel's own limit (path_resolution(7))."""


def check_folder(folder: str, *, strict: bool = False) -> str:
    """Walk to ``folder`` and return it without links; every part must be safe from other users.

    A folder that others may write is accepted when it is sticky, as /tmp is: each file in it is then checked
    by its owner. ``strict`` refuses even that for
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
                target = _read_link(path, st, path, links)
                current = "/" if target.startswith("/") else current
                parts.extendleft(reversed(_parts(target)))
                continue
        except FileNotFoundError:
            raise
        except OSError as err:
            refuse("unreadable", path, f"cannot look at the folder: {strerror(err)}")
        if not stat.S_ISDIR(st.st_mode):
            refuse("bad-folder", path, "not a folder")
        _check_one_folder(path, st, strict=strict and not parts)
        current = path
    return current


def _check_one_folder(path: str, st: os.stat_result, *, strict: bool) -> None:
    if not is_ours(st.st_uid):
        refuse(
            "bad-folder",
            path,
            f"the folder belongs to {_user(st.st_uid)}, who could exchange its files",
            _chown(path),
        )
    if st.st_mode & 0o022 and (strict or not st.st_mode & stat.S_ISVTX):
        refuse(
            "bad-folder",
            path,
            f"users other than its owner may write to the folder (mode {_mode(st)})",
            f"chmod go-w {shlex.quote(path)}",
        )


def final_path(path: str, checked: dict[str, str]) -> str:
    """Where the file really is: itself, or what a link inside the same folder leads to.

    Kubernetes mounts ``db1.toml -> ..data/db1.toml``, ``..data -> ..2026_01_01``:
    each part is relative, goes down only, and is checked like a folder.
    """
    if "\0" in path:  # TOML can write one; the kernel would read the name up to it
        refuse("bad-name", path.replace("\0", "\\0"), "a file's name cannot hold a NUL")
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
                target = _read_link(step, st, path, links)
                below = _parts(target)
                if target.startswith("/") or ".." in below or not below:
                    refuse(
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
        refuse("missing", path, "no such file")
    except OSError as err:
        refuse("unreadable", path, f"cannot read: {strerror(err)}")


def _read_link(link: str, st: os.stat_result, shown: str, links: int) -> str:
    """Where a link leads to, the last of so many; a refusal names the path ``shown``."""
    if links > _MAX_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    _check_owner(shown, st, "the link", link=True)
    return os.readlink(link)


def check_file(path: str, st: os.stat_result, *, private: bool) -> None:
    """Refuse an open file that others could have written, or (``private``) read."""
    if not stat.S_ISREG(st.st_mode):
        refuse("not-regular", path, "not a regular file")
    _check_owner(path, st, "the file")
    if private and st.st_mode & 0o077:
        refuse(
            "bad-mode",
            path,
            f"users other than its owner may read or write the file (mode {_mode(st)})",
            f"chmod 600 {shlex.quote(path)}",
        )
    if st.st_mode & 0o022:
        refuse(
            "bad-mode",
            path,
            f"users other than its owner may write the file (mode {_mode(st)})",
            f"chmod 644 {shlex.quote(path)}",
        )
    if private and st.st_nlink > 1:
        quoted = shlex.quote(path)
        refuse(
            "hard-link",
            path,
            f"the file has {st.st_nlink} names: the key may lie open under another",
            f"find the others with: find / -xdev -samefile {quoted}",
        )
    if st.st_size > MAX_KEY_FILE_BYTES:
        too_large(path)


def _check_owner(path: str, st: os.stat_result, what: str, *, link: bool = False) -> None:
    if not is_ours(st.st_uid):
        refuse("bad-owner", path, f"{what} belongs to {_user(st.st_uid)}", _chown(path, link=link))


def is_ours(uid: int) -> bool:
    """Whether a user is root, or the one that this program runs as."""
    return uid in (0, os.geteuid())


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def problem_of(code: str, path: str, message: str, hint: str = "") -> ConfigError:
    """Return the error with one problem."""
    return ConfigError((Problem(code=code, file=path, message=message, hint=hint),))


def refuse(code: str, path: str, message: str, hint: str = "") -> NoReturn:
    """Raise the error with one problem."""
    raise problem_of(code, path, message, hint)


def too_large(path: str) -> NoReturn:
    """Refuse a file beyond the limit."""
    refuse(
        "too-large", path, f"larger than {MAX_KEY_FILE_BYTES // 1024} KiB", "split it into one file per key"
    )


def _chown(path: str, *, link: bool = False) -> str:
    return f"chown {'-h ' if link else ''}root: {shlex.quote(path)}"


def _user(uid: int) -> str:
    """The user's number only: a name needs NSS, which may not answer while the network is down."""
    return f"user {uid}"


def _mode(st: os.stat_result) -> str:
    return f"{stat.S_IMODE(st.st_mode):04o}"


def strerror(err: OSError) -> str:
    """Return the system's words for an error, without the path."""
    return os.strerror(err.errno) if err.errno else type(err).__name__
