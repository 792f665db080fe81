"""Remembers the source addresses towards portals, as the kernel's routes give them.

Law: an answer is remembered, since each takes half a millisecond. It is asked again when routes,
addresses or links changed (:class:`RouteMonitor` wakes), after a start and a reload; and
whatever happened unheard, a regular look asks the oldest answers again, a sixteenth of them but
at least :data:`AT_LEAST`: what was missed is healed by the sixteenth.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from iscsi_ipsec.adapters.netlink import RouteMonitor
from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.errors import KernelUnavailable
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.service.ports import Routing
from iscsi_ipsec.service.problems import kernel_problem
from iscsi_ipsec.service.resync_schedule import RELOAD, ROUTES, START

ANEW = frozenset({RouteMonitor.reason, START, RELOAD})
"""Wakeups after which no answer is believed."""

AT_LEAST = 32
"""So many answers, or all of them, are asked again at each regular look."""


class SourceAddresses:
    """Asks and remembers; of the thread that made ``routes``."""

    def __init__(self, routes: Routing) -> None:
        self._routes = routes
        self._known: dict[tuple[Address, str], Address | None] = {}
        self._answered: tuple[object, Mapping[tuple[Address, str], Address | None]] = None, {}
        self._forgot = False

    def forget(self, reasons: frozenset[str]) -> None:
        """Drop the answers that these wakeups make doubtful."""
        self._forgot = self._forgot or bool(reasons & ANEW) or ROUTES in reasons
        if reasons & ANEW:
            self._known.clear()
        elif ROUTES in reasons:
            # the oldest come first: an answer that is asked again goes to the end
            for at in tuple(islice(self._known, max(AT_LEAST, -(-len(self._known) // 16)))):
                del self._known[at]

    def lookup(
        self, wanted: frozenset[tuple[Address, str]], problems: list[Problem]
    ) -> Mapping[tuple[Address, str], Address | None]:
        """For each address and interface the source address; None where it cannot be reached.

        The very same mapping as long as it says the same.
        """
        if wanted is self._answered[0] and not self._forgot:
            return self._answered[1]
        self._known = {at: source for at, source in self._known.items() if at in wanted}
        try:
            for address, oif in wanted - self._known.keys():
                self._known[address, oif] = self._routes.source_for(address, oif)
            self._forgot = False
        except KernelUnavailable as err:
            self._forgot = True
            problems.append(kernel_problem(err))
        before = self._answered[1]
        self._answered = wanted, before if self._known == before else dict(self._known)
        return self._answered[1]
