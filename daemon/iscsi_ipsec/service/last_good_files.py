"""Keeps the last good content of files beyond a restart: the stored content, and the content to store.

Law: decides nothing. If the store cannot be read or written, a restart forgets the content.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from iscsi_ipsec.adapters.state_db import LastGood
from iscsi_ipsec.base.errors import StateUnavailable
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.service.ports import Store


class LastGoodFiles:
    """The stored files that have not been read since the start; files that were read are in memory, and only need storing."""

    def __init__(self, store: Store | None, state_dir: str) -> None:
        self._store, self._state_dir = store, state_dir
        self._stored: dict[str, LastGood] | None = None
        self._unsaved: dict[str, LastGood] = {}
        self._forgotten: set[str] = set()
        self._renewals = store.renewals if store else 0
        self._all_again = False

    def load(self) -> bool:
        """Read the store at the first call; return whether this was the first call."""
        if self._stored is not None:
            return False
        self._stored = {}
        if self._store is not None:
            with contextlib.suppress(StateUnavailable):  # reported by save()
                self._stored = dict(self._store.all_last_good())
        return True

    def was_lost(self) -> bool:
        """Whether the database was begun anew since it was last stored to as a whole."""
        return self._store is not None and self._store.renewals != self._renewals

    def store_all_again(self) -> None:
        """From now on :meth:`keep` also stores files again that were stored before."""
        if self._store is not None:
            self._renewals, self._all_again = self._store.renewals, True

    def get(self, path: str) -> LastGood | None:
        """The stored content of a file that has not been read since the start."""
        return (self._stored or {}).get(path)

    def of_kind(self, kind: str) -> Mapping[str, LastGood]:
        """All of one kind, by path."""
        return {path: last for path, last in (self._stored or {}).items() if last.kind == kind}

    def keep(self, last: LastGood) -> None:
        """A file was read and is good: store it, unless it is stored already."""
        # from now on it is in memory, and thousands of texts need not be
        if (self._stored or {}).pop(last.path, None) != last or self._all_again:
            self._unsaved[last.path] = last
        self._forgotten.discard(last.path)

    def forget(self, path: str) -> None:
        """The file is gone on purpose."""
        self._unsaved.pop(path, None)
        (self._stored or {}).pop(path, None)
        self._forgotten.add(path)

    def save(self) -> Problem | None:
        """Write new good content to the store; return a problem where it cannot be written."""
        if self._store is None or not (self._unsaved or self._forgotten):
            return None
        try:
            self._store.put_last_good(self._unsaved.values())
            self._store.drop_last_good(self._forgotten)
        except StateUnavailable as err:
            return Problem(
                code="state-unsaved",
                message=f"the last good files cannot be kept for a restart: {err}",
                hint=f"check space and rights of {self._state_dir}",
            )
        self._unsaved.clear()
        self._forgotten.clear()
        return None
