"""Reads the part of ``stat`` by which a changed file is recognised.

Law: opens nothing.
"""

from __future__ import annotations

import os
import stat
from operator import attrgetter
from typing import NamedTuple

_FIELDS = attrgetter(
    "st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns", "st_mode", "st_uid", "st_gid"
)


class FileStat(NamedTuple):
    """The part of ``struct stat`` that shows whether a file was changed; times in nanoseconds."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    uid: int
    gid: int

    @classmethod
    def from_stat(cls, st: os.stat_result) -> FileStat:
        """Take the fields from :func:`os.stat`'s result."""
        return cls._make(_FIELDS(st))

    @classmethod
    def at(cls, path: str) -> FileStat | None:
        """The fields of the file at a path, behind links; None where it cannot be read."""
        try:
            return cls.from_stat(os.stat(path))
        except OSError:
            return None

    @classmethod
    def none(cls) -> FileStat:
        """Equal to that of no file."""
        return cls(0, 0, 0, 0, 0, 0, 0, 0)

    @property
    def signature(self) -> str:
        """``dev:ino:size:mtime_ns``: differs when the content does (see :meth:`settled`)."""
        return f"{self.dev}:{self.ino}:{self.size}:{self.mtime_ns}"

    def settled(self, now_ns: int, granularity_ns: int = 20_000_000) -> bool:
        """Whether a later write must give another ``stat``.

        Kernel time stamps move in ticks (4 ms at CONFIG_HZ=250, 10 ms at 100): a second write of
        the same size within the tick of the first leaves no trace. The change time counts, which
        every write moves and nobody can set. ``now_ns`` is :func:`time.time_ns`, taken after the
        ``stat`` and before the file is read.
        """
        return not 0 <= now_ns - self.ctime_ns < granularity_ns


def stat_config(path: str) -> FileStat:
    """Of what a link leads to (its content is what changes), of the link itself if that is nothing.

    The link's own change counts as well: its owner decides whether it is followed.
    Raises :class:`OSError` where there is nothing.
    """
    own = FileStat.from_stat(os.lstat(path))
    if not stat.S_ISLNK(own.mode):
        return own
    try:
        led_to = FileStat.from_stat(os.stat(path))
    except OSError:
        return own
    return led_to._replace(ctime_ns=max(led_to.ctime_ns, own.ctime_ns))


def device_of(folder: str) -> int:
    """The file system on which a folder lies; 0 where there is none."""
    try:
        return os.stat(folder).st_dev
    except OSError:
        return 0
