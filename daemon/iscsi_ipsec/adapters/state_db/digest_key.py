"""``digest.key``: 32 random bytes, made once, in a file of their own beside the database.

Names in charon are made of it, so a damaged database must not change it. A key of another length is replaced,
which costs one reload of everything.
"""

from __future__ import annotations

import contextlib
import os
import secrets

DIGEST_KEY_BYTES = 32


def read_digest_key(path: str) -> bytes | None:
    """The key; None where there is no key, or only one of another length. Raises :class:`OSError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        data = os.read(fd, DIGEST_KEY_BYTES + 1)
    finally:
        os.close(fd)
    return data if len(data) == DIGEST_KEY_BYTES else None


def make_digest_key(path: str) -> bytes:
    """Written beside and renamed: a crash leaves either no key or a whole one."""
    data = secrets.token_bytes(DIGEST_KEY_BYTES)
    folder, name = os.path.split(path)
    temp = os.path.join(folder, f".{name}.{secrets.token_hex(8)}")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise
    return data
