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
    folder, name = os.path.split(path)
    temp = f".{secrets.token_hex(8)}.tmp"  # not made of the name, which may already be 255 bytes long
    try:
        # everything happens relative to one descriptor: if somebody exchanges the folder meanwhile, the two are not mixed
        dir_fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                _write_new(temp, mode, dir_fd, data)
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


def _write_new(name: str, mode: int, dir_fd: int, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=dir_fd)
    try:
        _write_all(fd, data)
        os.fchmod(fd, mode)  # only now, and whatever the umask: while half-written it is ours alone
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
