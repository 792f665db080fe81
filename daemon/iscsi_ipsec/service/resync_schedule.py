"""What a pass looks at: everything that woke it asks for, and what is looked at from time to time.

Law: a wakeup says what may have changed, and what has a messenger of its own (inotify, netlink,
charon's log) is looked at when that calls. Messengers lose messages, so the regular pass looks
unasked: at everything while there is little, at one part after the other where there is more, and in
every other pass where there is much: all of it would take longer than a thousandth of the interval. Names of connections and secrets
in charon are compared in every pass.
"""

from __future__ import annotations

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
"""So many files and portals at most are looked at as a whole in each regular pass."""

MUCH: Final = 5_000
"""With more files and portals, every other regular pass looks at no part."""


class ResyncSchedule:
    """Whose turn it is in regular passes."""

    def __init__(self) -> None:
        self._next = 0
        self._looked = False

    def inputs_due(self, reasons: frozenset[str], size: int) -> frozenset[str]:
        """The reasons with the parts that the regular pass looks at, where it is one; ``size``: files and portals."""
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
