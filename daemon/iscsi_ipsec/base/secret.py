"""The type of every key. A ``Secret`` has one way out: :meth:`Secret.reveal`.

Law: nothing here formats, compares with ``==`` on plain text in a way that
leaks timing, logs, or pickles a key.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn, final


@final
class Secret:
    """Key bytes that cannot be printed, logged or pickled by accident.

    ``repr``, ``str`` and ``format`` all give ``<secret>``; the length is not
    shown either. Equality is constant-time, so a ``Secret`` may live in frozen
    dataclasses that are compared.
    """

    __slots__ = ("__data",)

    def __init__(self, data: bytes) -> None:
        if not isinstance(data, bytes):
            raise TypeError("a Secret is made of bytes")
        self.__data = data

    def reveal(self) -> bytes:
        """Return the key bytes. Call it only where the bytes leave for charon or the state store."""
        return self.__data

    def keyed_digest(self, key: bytes, *context: bytes) -> str:
        """Return 64 bits of HMAC-SHA-256 over ``context`` and the key, as 16 hex digits.

        Each part is length-prefixed, so ``(b"ab", b"c")`` and ``(b"a", b"bc")``
        differ. Safe to show: without ``key`` it reveals nothing about a weak secret, unlike a bare hash.
        """
        mac = hmac.new(key, digestmod=hashlib.sha256)
        for part in (*context, self.__data):
            mac.update(len(part).to_bytes(8, "big"))
            mac.update(part)
        return mac.hexdigest()[:16]

    def starts_with(self, prefix: bytes) -> bool:
        """Whether the key begins with these public bytes."""
        return self.__data.startswith(prefix)

    def __len__(self) -> int:
        return len(self.__data)

    def __bool__(self) -> bool:
        return bool(self.__data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self.__data, other.reveal())

    def __hash__(self) -> int:
        # bytes hashing is salted per process; the value never leaves it
        return hash((Secret, self.__data))

    def __repr__(self) -> str:
        return "<secret>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "<secret>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied")
