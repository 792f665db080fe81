"""Reports guests that are bridged to the network of a closed portal: the guard sees none of their packets.

Law: bridges and routes are read when the network or the closed portals changed, not in each pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from iscsi_ipsec.base.errors import KernelUnavailable
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.service.ports import Routing

SHOWN = 3
"""At most so many portals and guests are named; of the rest only the number is shown."""


class BridgedGuests:
    """Remembers the last answer, and the portals that were closed then."""

    def __init__(self, routes: Routing, bridges: Callable[[], Mapping[str, tuple[str, ...]]]) -> None:
        self._routes, self._bridges = routes, bridges
        self._closed: tuple[Portal, ...] | None = None
        self._problems: tuple[Problem, ...] = ()

    def problems(self, closed: tuple[Portal, ...], *, network_changed: bool) -> tuple[Problem, ...]:
        """One warning for each bridge between guests and closed portals."""
        if network_changed or closed != self._closed:
            self._closed = closed
            bridges = self._bridges() if closed else {}
            reached = self._reached(closed) if bridges else {}
            self._problems = tuple(
                _warning(bridge, guests, reached[bridge])
                for bridge, guests in sorted(bridges.items())
                if bridge in reached
            )
        return self._problems

    def _reached(self, portals: Iterable[Portal]) -> dict[str, list[Portal]]:
        """The portals by the device that leads to them; one whose route is unknown is left out."""
        reached: dict[str, list[Portal]] = {}
        for portal in portals:
            try:
                device = self._routes.device_for(portal.address)
            except KernelUnavailable:
                continue
            if device:
                reached.setdefault(device, []).append(portal)
        return reached


def _warning(bridge: str, guests: tuple[str, ...], portals: list[Portal]) -> Problem:
    return Problem(
        code="bridged-guests",
        message=f"{_some(guests)} on the bridge {bridge} can reach {_some(portals)} unencrypted: what is"
        " bridged bypasses the guard",
        hint=f"drop TCP to these portals in a table of nftables' family bridge, or keep guests off {bridge}",
        severity=Severity.WARNING,
    )


def _some(items: Iterable[object]) -> str:
    texts = [str(item) for item in items]
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more} more" if more > 0 else "")
