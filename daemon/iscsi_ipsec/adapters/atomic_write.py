"""Writes files atomically: no reader ever sees half a file, and others can never read a key in the temp file.

Law: temp file in the same folder, fsync, rename, fsync of the folder. On any
error the old file is untouched and the temp file is gone. Names of temp files
begin with a dot, which the watcher and :func:`~iscsi_ipsec.adapters.files.find_config` pass over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Sequence

from iscsi_ipsec.base.errors import NotPermitted, StateUnavailable


def write_private(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a file that holds or names a key, or that is for root only."""
    write_atomic(path, data, mode)


def write_atomic(path: str, data: bytes, mode: int) -> None:
    """Replace ``path`` by ``data`` as a whole; its folder must exist.

    A link at ``path`` is replaced, not followed. Raises :class:`NotPermitted`
    when we lack the right, :class:`StateUnavailable` for everything else (disk
    full, read-only, no such folder).
    """
    _replace(path, mode, lambda fd: _write_all(fd, data))


class Part:
    """A piece of a :class:`RewrittenFile`, which keeps its text once it is written."""

    __slots__ = ("length", "offset", "text")

    def __init__(self, text: bytes) -> None:
        self.text: bytes | None = text
        self.length, self.offset = len(text), 0


class RewrittenFile:
    """A file that is replaced again and again by one of mostly the same parts.

    The kernel copies them from the last one, which is kept open: megabytes of text need not be held in memory.
    """

    def __init__(self, path: str, mode: int = 0o600) -> None:
        self._path, self._mode = path, mode
        self._last = -1
        self._stamp: tuple[int, ...] = ()

    @property
    def is_intact(self) -> bool:
        """Whether the last file is as it was written. If not, no part of it may be written again."""
        return self._last >= 0 and _stamp(self._last) == self._stamp

    def write(self, parts: Sequence[Part]) -> None:
        """Replace the file by these parts. Raises as :func:`write_atomic` does, and then no part has changed."""
        new = -1

        def fill(fd: int) -> None:
            nonlocal new
            for part in parts:
                if part.text is None:
                    _copy(self._last, part.offset, part.length, fd)
                else:
                    _write_all(fd, part.text)
            new = os.dup(fd)

        try:
            _replace(self._path, self._mode, fill)
        except BaseException:
            if new >= 0:
                os.close(new)
            raise
        self.close()
        self._last, self._stamp = new, _stamp(new)
        offset = 0
        for part in parts:
            part.text, part.offset = None, offset
            offset += part.length

    def close(self) -> None:
        """Let go of the last file; safe to call twice."""
        if self._last >= 0:
            os.close(self._last)
        self._last = -1


def _stamp(fd: int) -> tuple[int, ...]:
    st = os.fstat(fd)
    return (st.st_size, st.st_mtime_ns, st.st_ctime_ns)


def _replace(path: str, mode: int, fill: Callable[[int], None]) -> None:
    """Have a new file filled and put in place of ``path``."""
    folder, name = os.path.split(path)
    temp = f".{secrets.token_hex(8)}.tmp"  # not made of the name, which may already be 255 bytes long
    try:
        # everything happens relative to one descriptor: a folder that is exchanged meanwhile cannot mix two
        dir_fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                _write_new(temp, mode, dir_fd, fill)
                os.rename(temp, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temp, dir_fd=dir_fd)
                raise
            os.fsync(dir_fd)
        finally:
            os.close(dir_fd)
    except OSError as err:
        if err.errno in (errno.EACCES, errno.EPERM):
            raise NotPermitted(f"cannot write {path}: {err.strerror}") from err
        raise StateUnavailable(path, err.strerror or type(err).__name__) from err


def _write_new(name: str, mode: int, dir_fd: int, fill: Callable[[int], None]) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=dir_fd)
    try:
        fill(fd)
        os.fchmod(fd, mode)  # only now, and whatever the umask: while half-written it is ours alone
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _copy(source: int, offset: int, length: int, fd: int) -> None:
    end = offset + length
    while offset < end:
        copied = os.sendfile(fd, source, offset, end - offset)
        if not copied:
            raise OSError(errno.EIO, "the last file was cut short")
        offset += copied
