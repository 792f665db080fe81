"""Decides where portals that no file names one by one stay closed, and which of them are exempt.

Law: pure; the guard's rules for networks follow from this and from nothing else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from iscsi_ipsec.base.networks import subtract
from iscsi_ipsec.base.policy import PortalPolicy, Role
from iscsi_ipsec.base.portal import PortalPattern, PortalRange
from iscsi_ipsec.core.config.invalid_files import BrokenFile
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.desired import PortalView
from iscsi_ipsec.core.decide.setting_precedence import pick_choice

EVERYWHERE = (PortalRange(ipaddress.IPv4Network("0.0.0.0/0")), PortalRange(ipaddress.IPv6Network("::/0")))


def closed_networks(
    settings: Settings, policies: Iterable[PortalPolicy], broken: Iterable[BrokenFile], *, closed: bool
) -> tuple[PortalRange, ...]:
    """Where portals that nobody has named yet stay closed (or may be reached in clear).

    Networks of policies; everywhere, and nothing open, if IPsec is required.
    """
    if settings.require_ipsec:
        return EVERYWHERE if closed else ()
    named = [
        pattern
        for policy in policies
        if policy.role is Role.INITIATOR
        for pattern in policy.patterns
        if _is_network(pattern) and pick_choice(settings, policy, None, []).required is closed
    ]
    for file in broken:
        if file.role is Role.INITIATOR and file.is_policy and closed:
            named += filter(_is_network, file.patterns)
    return tuple(pattern for pattern in named if isinstance(pattern, PortalRange))


def _is_network(pattern: PortalPattern) -> bool:
    return isinstance(pattern, PortalRange) and not pattern.single


def clear_exceptions(
    views: Iterable[PortalView], closed: tuple[PortalRange, ...], wide: Iterable[PortalRange]
) -> tuple[PortalRange, ...]:
    """What may be reached in clear although it lies in a closed network: the narrower policy decides."""
    exceptions = [
        PortalRange(ipaddress.ip_network(view.binding.portal.address), view.binding.portal.port)
        for view in views
        if not view.closed and view.choice and view.role is Role.INITIATOR
    ]
    for clear in wide:
        holes = [
            c.network
            for c in closed
            if c.port == clear.port and c.network.prefixlen >= clear.network.prefixlen
        ]
        exceptions += [PortalRange(piece, clear.port) for piece in subtract(clear.network, holes)]
    return tuple(exceptions)
