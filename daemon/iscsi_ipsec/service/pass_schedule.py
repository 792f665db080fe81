"""Decides which inputs a pass re-reads (those its wakeups name, and a periodic resync), and when the next pass is due.

Law: a wakeup says what may have changed; an input with notifications (inotify, netlink, charon's log) is read
when one comes. Notifications can be lost, so the regular pass also reads without one: everything while there
is little, one part per pass where there is more, and one part in every other pass where there is much, since
all of it would take longer than a thousandth of the interval. Names of connections and secrets
in charon are compared in every pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

START: Final = "start"
RESYNC: Final = "resync"
"""The regular pass is due."""

RELOAD: Final = "reload"

FILES: Final = "look-files"
ROUTES: Final = "look-routes"
GUARD: Final = "look-guard"
POLICIES: Final = "look-policies"
CHARON: Final = "look-charon"

PARTS: Final = (FILES, CHARON, POLICIES, ROUTES, GUARD)

LITTLE: Final = 500
"""Up to so many files and portals, each regular pass reads all parts."""

MUCH: Final = 5_000
"""With more files and portals, every other regular pass reads no part."""


class ResyncSchedule:
    """The parts that regular passes read in turn."""

    def __init__(self) -> None:
        self._next = 0
        self._looked = False

    def inputs_due(self, reasons: frozenset[str], size: int) -> frozenset[str]:
        """The reasons, with the parts to read if this is a regular pass; ``size``: files and portals."""
        if reasons & {START, RELOAD} or (RESYNC in reasons and size <= LITTLE):
            return reasons.union(PARTS)
        if RESYNC not in reasons:
            return reasons
        if size > MUCH and self._looked:
            self._looked = False
            return reasons
        self._looked = True
        part = PARTS[self._next]
        self._next = (self._next + 1) % len(PARTS)
        return reasons | {part}


CHARON_STARTING_RECHECK = 0.2
"""Seconds until strongSwan's unit is asked again whether it has finished starting."""

CHARON_AWAY_RECHECK = 1.0
"""Seconds until a charon that cannot be reached is tried again."""

AFTER_CHANGE_RECHECK = 2.0
"""Seconds after which a change is compared once more: a late swanctl --load-all makes no event."""

UNRESOLVED_NAME_RECHECK = 6.0
"""Seconds until names without an address are asked for again: portals that they may stand for stay closed meanwhile."""

SLACK = 0.05
"""Seconds by which a pass runs after the due time, so that it finds it due."""


def seconds_until_next_pass(
    resync_interval: float,
    *,
    charon_settled: bool,
    charon_reachable: bool,
    changed: bool,
    unresolved_names: bool,
    due: Iterable[float | None],
) -> float:
    """The longest time that the loop may sleep after a pass if nothing wakes it.

    ``due`` are the seconds until something in particular is due: the next attempt to bring an SA up,
    a cause that becomes an error, the end of a previous key; None: nothing is.
    """
    if not charon_settled:
        return CHARON_STARTING_RECHECK
    limits = [resync_interval]
    if not charon_reachable:
        limits.append(CHARON_AWAY_RECHECK)
    if changed:
        limits.append(AFTER_CHANGE_RECHECK)
    if unresolved_names:
        limits.append(UNRESOLVED_NAME_RECHECK)
    limits += [max(0.0, seconds) + SLACK for seconds in due if seconds is not None]
    return min(limits)
