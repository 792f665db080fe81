"""Remembers the source addresses towards portals, as the kernel's routes give them.

Law: answers are cached, since each takes half a millisecond. They are asked for again when routes, addresses
or links changed (:class:`RouteMonitor` wakes), after a start and after a reload. In case a change was missed,
each regular pass also renews the oldest sixteenth of the answers, at least :data:`AT_LEAST`, so a missed
change is found within sixteen regular passes. Where the kernel does not answer, the last answer stays in
force, and the other questions are still asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from iscsi_ipsec.adapters.netlink import RouteMonitor
from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.errors import KernelUnavailable
from iscsi_ipsec.base.iscsi import IscsiSession
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.service.pass_schedule import RELOAD, ROUTES, START
from iscsi_ipsec.service.ports import Routing
from iscsi_ipsec.service.problems import kernel_problem

ANEW = frozenset({RouteMonitor.reason, START, RELOAD})
"""Wakeups after which all answers are outdated."""

AT_LEAST = 32
"""At least so many answers, or all of them, are renewed in each regular pass."""

Question = tuple[Address, str]
"""An address, and the interface that the socket is bound to (empty: none)."""


class SourceAddresses:
    """Asks and remembers; of the thread that made ``routes``.

    ``unanswered`` are the questions of the last look-up to which the kernel has never given an answer:
    whether there is a route is unknown.
    """

    def __init__(self, routes: Routing) -> None:
        self._routes = routes
        self._known: dict[Question, Address | None] = {}
        self._doubtful: set[Question] = set()
        self._answered: tuple[object, ...] = ()
        self._answers: Mapping[Question, Address | None] = {}
        self.unanswered: frozenset[Question] = frozenset()

    def forget(self, reasons: frozenset[str]) -> None:
        """Mark the answers that these wakeups may have changed as outdated."""
        if reasons & ANEW:
            self._doubtful.update(self._known)
        elif ROUTES in reasons:
            # the oldest come first: an answer that is asked again goes to the end
            self._doubtful.update(islice(self._known, max(AT_LEAST, -(-len(self._known) // 16))))

    def lookup(
        self,
        wanted: frozenset[Question],
        problems: list[Problem],
        local: frozenset[Address] = frozenset(),
        sessions: tuple[IscsiSession, ...] = (),
    ) -> Mapping[Question, Address | None]:
        """For each question the source address; None where there is no route.

        The same mapping as long as it says the same. Of a session whose source address is still
        one of this host's (``local``) the address stays, although the kernel now prefers another: its TCP connection
        cannot move, and the kernel prefers a new one each day where IPv6 privacy extensions are in use.
        """
        asked = (wanted, local, sessions)
        if asked == self._answered and not self._doubtful and not self.unanswered:
            return self._answers
        self._known = {at: source for at, source in self._known.items() if at in wanted}
        self._doubtful &= wanted
        in_use = {(s.remote.address, s.local_address) for s in sessions if s.local_address in local}
        failed: dict[str, Problem] = {}
        for at in (wanted - self._known.keys()) | self._doubtful:
            try:
                source = self._routes.source_for(*at)
            except KernelUnavailable as err:
                failed[str(err)] = kernel_problem(err)
                self._doubtful.add(at)
                continue
            self._doubtful.discard(at)
            before = self._known.pop(at, None)
            self._known[at] = before if source and (at[0], before) in in_use else source
        problems.extend(failed.values())
        self.unanswered = wanted - self._known.keys()
        self._answered = asked
        if self._known != self._answers:
            self._answers = dict(self._known)
        return self._answers
