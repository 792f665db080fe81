"""Keeps the reqids of connections, stored before charon and the guard get them.

Law: a connection keeps its reqid. A reqid that cannot be stored is used all the same, and stored when that
works again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from iscsi_ipsec.base.errors import KernelUnavailable, StateUnavailable
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.decide.reqids import foreign_reqids
from iscsi_ipsec.service.ports import Store, Xfrm
from iscsi_ipsec.service.problems import state_problem


class ConnectionReqids:
    """``foreign`` are reqids of our range that others used when we started: no connection gets one of them."""

    def __init__(self, store: Store, xfrm: Xfrm) -> None:
        self._store = store
        self._renewals = store.renewals
        self.known: Mapping[str, int] = {}
        self._unsaved: dict[str, int] = {}
        self._kept: Mapping[str, int] | None = None
        self.foreign: frozenset[int] = frozenset()
        with contextlib.suppress(StateUnavailable):  # the writer of the state folder reports it
            self.known = dict(store.reqids())
        with contextlib.suppress(KernelUnavailable):  # a kernel without XFRM has no reqids
            self.foreign = foreign_reqids(xfrm.policies())

    def keep(self, reqids: Mapping[str, int], problems: list[Problem]) -> None:
        """Remember and store the reqids that connections were given."""
        if reqids != self._kept:
            self._kept = reqids
            if new := {name: reqid for name, reqid in reqids.items() if self.known.get(name) != reqid}:
                self.known = {**self.known, **new}
                self._unsaved |= new
        if self._store.renewals != self._renewals:
            self._renewals, self._unsaved = self._store.renewals, dict(self.known)
        if not self._unsaved:
            return
        try:
            self._store.set_reqids(self._unsaved)
            self._unsaved = {}
        except StateUnavailable as err:
            problems.append(state_problem(err))
