"""Memoises a function's last result; calls it again when an argument changes.

Law: the arguments are immutable and the result depends on nothing else, so equal arguments give an equal
result. Arguments that are the same objects are equal without a look inside: where nothing changed, comparing
10,000 keys costs as much as comparing one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Memo(Generic[T]):
    """The last result of one function; ``parts`` may be unhashable."""

    __slots__ = ("_make", "_parts", "_value")

    def __init__(self, make: Callable[..., T]) -> None:
        self._make = make
        self._parts: tuple[Any, ...] | None = None
        self._value: T

    def __call__(self, *parts: Any) -> T:
        """The function of these parts, the very same object as long as they are equal."""
        if self._parts is None or self._parts != parts:  # a tuple compares identities first
            self._value = self._make(*parts)
            self._parts = parts
        return self._value
