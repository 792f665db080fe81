"""Decides in which networks unknown portals stay closed, and which addresses are exempt.

Law: pure; the guard's rules for networks follow from this and from nothing else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from iscsi_ipsec.base.keys import Key
from iscsi_ipsec.base.networks import subtract
from iscsi_ipsec.base.policy import PortalPolicy, Role
from iscsi_ipsec.base.portal import EVERYWHERE, PortalPattern, PortalRange
from iscsi_ipsec.core.config.invalid_files import BrokenFile
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.desired import PortalView
from iscsi_ipsec.core.decide.setting_precedence import pick_choice


def closed_networks(
    settings: Settings, policies: Iterable[PortalPolicy], broken: Iterable[BrokenFile], keys: Iterable[Key]
) -> tuple[PortalRange, ...]:
    """The networks in which portals that nobody has named yet stay closed:

    networks of policies and of keys' own ``portals``, those of files with mistakes, and everywhere if IPsec is required.
    """
    if settings.require_ipsec:
        return EVERYWHERE
    by_keys = [
        pattern
        for key in keys
        for pattern in key.portals
        if _is_network(pattern) and pick_choice(settings, None, key, []).required
    ]
    named = (*_by_policies(settings, policies, broken, required=True), *by_keys)
    return tuple(dict.fromkeys(pattern for pattern in named if isinstance(pattern, PortalRange)))


def clear_exceptions(
    settings: Settings,
    policies: Iterable[PortalPolicy],
    broken: Iterable[BrokenFile],
    views: Iterable[PortalView],
) -> tuple[PortalRange, ...]:
    """The exceptions in closed networks that may be reached unencrypted: the narrower policy decides, and a policy takes precedence over keys."""
    exceptions = [
        PortalRange(ipaddress.ip_network(view.binding.portal.address), view.binding.portal.port)
        for view in views
        if not view.closed and view.choice and view.role is Role.INITIATOR
    ]
    if settings.require_ipsec:
        return tuple(exceptions)
    policies, broken = tuple(policies), tuple(broken)
    closed = _by_policies(settings, policies, broken, required=True)
    for clear in _by_policies(settings, policies, (), required=False):
        holes = [
            c.network
            for c in closed
            if c.port == clear.port and c.network.prefixlen >= clear.network.prefixlen
        ]
        exceptions += [PortalRange(piece, clear.port) for piece in subtract(clear.network, holes)]
    return tuple(exceptions)


def _by_policies(
    settings: Settings, policies: Iterable[PortalPolicy], broken: Iterable[BrokenFile], *, required: bool
) -> list[PortalRange]:
    """The networks of policies that require IPsec, or of those that don't; a file with a mistake counts as one that does."""
    named = [
        pattern
        for policy in policies
        if policy.role is Role.INITIATOR
        for pattern in policy.patterns
        if _is_network(pattern) and pick_choice(settings, policy, None, []).required is required
    ]
    for file in broken:
        if file.role is Role.INITIATOR:
            named += filter(_is_network, file.patterns)
    return [pattern for pattern in named if isinstance(pattern, PortalRange)]


def _is_network(pattern: PortalPattern) -> bool:
    return isinstance(pattern, PortalRange) and not pattern.single
