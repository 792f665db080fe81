"""Reads a file whole, without following a link out of its folder and without blocking.

Law: an open file is checked again by its descriptor, and a file that changes meanwhile is read again.
"""

from __future__ import annotations

import errno
import os

from iscsi_ipsec.adapters.files.stats import FileStat
from iscsi_ipsec.adapters.files.trust import check_file, final_path, problem_of, refuse, strerror, too_large
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.keys import MAX_KEY_FILE_BYTES
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.base.secret import Secret

_ATTEMPTS = 5
"""How often a file that changes while we read it is read again before we leave it to the next wakeup."""


def read_config(path: str, *, private: bool, checked: dict[str, str] | None = None) -> bytes:
    """Read a file of at most 64 KiB that only root or our own user can have written.

    ``private``: it holds or names a key, so nobody else may read it either
    and it has no second name. ``checked``: folders that were found safe a moment
    ago, with where they really are; grows as files are read. Raises
    :class:`ConfigError` with one problem, whose hint is the command that fixes it.
    """
    return _read(final_path(path, {} if checked is None else checked), path, private=private)


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


def _read(real: str, path: str, *, private: bool) -> bytes:
    for _ in range(_ATTEMPTS):
        try:
            # NONBLOCK and NOCTTY: a FIFO or terminal put here must neither stop us nor become ours
            fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as err:
            if err.errno == errno.ENOENT:
                refuse("missing", path, "no such file")
            if err.errno == errno.ENXIO:  # a socket
                refuse("not-regular", path, "not a regular file")
            refuse("unreadable", path, f"cannot open: {strerror(err)}")
        try:
            before = os.fstat(fd)
            check_file(path, before, private=private)
            data = _read_all(fd)
            after = os.fstat(fd)
        except OSError as err:
            refuse("unreadable", path, f"cannot read: {strerror(err)}")
        finally:
            os.close(fd)
        if len(data) > MAX_KEY_FILE_BYTES:
            too_large(path)
        if len(data) == after.st_size and _unchanged(before, after):
            return data
    raise problem_of(
        "unstable", path, "the file changes while it is read", "write a new file and rename it into place"
    )


def _unchanged(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether nobody wrote to the file; that another was renamed into its place changes its ctime only."""
    was, now = FileStat.from_stat(before), FileStat.from_stat(after)
    return was == now or (after.st_nlink == 0 and was._replace(ctime_ns=now.ctime_ns) == now)


def _read_all(fd: int) -> bytes:
    """At most one byte more than allowed, so that a file that grows meanwhile is noticed."""
    chunks: list[bytes] = []
    left = MAX_KEY_FILE_BYTES + 1
    while left and (chunk := os.read(fd, left)):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)
