"""Indexes one world for the questions that are asked about each portal.

Law: an index only. The decisions are made in ``policy_choice``, ``key_choice`` and ``known_portals``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.core.decide.key_choice import KeyIndex
from iscsi_ipsec.core.decide.known_portals import candidates, wanted_sources
from iscsi_ipsec.core.decide.policy_choice import PolicyMatch
from iscsi_ipsec.core.decide.world import PortalBinding, World


class Lookup:
    """``before``: the index of an earlier world; its parts are reused where their inputs did not change."""

    def __init__(self, world: World, before: Lookup | None = None) -> None:
        self.world = world
        self.keys = KeyIndex(world)
        self.policies: PolicyMatch
        self.candidates: Mapping[PortalBinding, tuple[str, ...]]
        self.wanted_sources: frozenset[tuple[Address, str]]
        if before and _portals_from(before.world) == _portals_from(world):
            self.policies = before.policies
            self.candidates, self.wanted_sources = before.candidates, before.wanted_sources
        else:
            self.policies = PolicyMatch(world)
            self.candidates = candidates(world)
            self.wanted_sources = wanted_sources(self.candidates, self.policies, world)
        self.portals_by_name: frozenset[Portal] = self.policies.portals_by_name | self.keys.portals_by_name
        self._literal: tuple[KeyIndex, PolicyMatch] | None = None

    def without_names(self) -> Lookup:
        """This index as if DNS had no answer for the names that files hold (``name_limits``)."""
        if self._literal is None:
            self._literal = KeyIndex(self.world, by_name=False), PolicyMatch(self.world, by_name=False)
        same = copy.copy(self)
        same.keys, same.policies = self._literal
        same.portals_by_name = frozenset()
        return same

    def with_sources(self, world: World) -> Lookup:
        """This index for a world that differs only in ``sources``."""
        same = copy.copy(self)
        same.world = world
        return same


def _portals_from(world: World) -> tuple[object, ...]:
    """Everything that the index of keys and policies depends on."""
    return (
        world.records, world.policies, world.broken, world.names, world.sessions, world.previously_managed,
        world.local_addresses, [key.portals for key in world.keys if key.portals],
    )  # fmt: skip
