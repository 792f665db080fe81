"""The decisions of ``core`` against those of a second opinion (``tests.support.oracle``), in many random worlds.

``ORACLE_WORLDS=100000`` (``make oracle``) is the full count; the share of worlds in which each rule
decided is printed, and no rule may decide in fewer than one world of a hundred.
"""

from __future__ import annotations

import ipaddress
import os
import random
from collections import Counter

import pytest

from iscsi_ipsec.base.identity import IkeId
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.core.decide.derive import derive
from iscsi_ipsec.core.decide.desired import Connection, Desired
from iscsi_ipsec.core.decide.lookup import Lookup
from tests.support import oracle
from tests.support.oracle_worlds import UNIVERSE, core_portal, core_world, random_world

WORLDS = int(os.environ.get("ORACLE_WORLDS", "1500"))
SEED = int(os.environ.get("ORACLE_SEED", "20261130"))
PROBES = tuple(
    oracle.folded(kind, text)
    for kind, text in (("name", "db1"), ("name", "db2"), ("name", "db3"), ("address", "10.0.0.1"), ("address", "10.0.1.1"),
                       ("address", "10.0.0.5"), ("address", "10.0.0.9"), ("address", "10.0.0.20"))
)  # fmt: skip

EVERY_RULE = frozenset(
    (
        "psk", "source address", "only name", "group", "no key", "no route", "inherited", "held", "broken", "required",
        "clear", "left alone", "name overruled", "unknown: closed", "unknown: open",
        "refused: ambiguous", "refused: no route", "refused: unresolved", "refused: psk missing", "refused: psk not for it",
        "refused: one pair, two keys", "refused: target could pose as another",
        *(f"covered by the {how} in a {file}" for how in ("address", "name", "network", "any") for file in ("policy", "key")),
        "served: own key", "served: group", "served: group and own key", "served: nobody", "served: held", "served: broken",
        "served: refused: our identity is an initiator's", "served: refused: two group keys",
    )
)  # fmt: skip
"""Each decides in at least one world of a hundred."""


def is_closed(desired: Desired, portal: oracle.Portal) -> bool:
    """Whether the guard lets nothing of this portal pass unencrypted: alone, or by its network."""
    at = core_portal(portal)
    if at in desired.guarded:
        return True
    in_network = any(network.contains(at) for network in desired.networks)
    return in_network and not any(network.contains(at) for network in desired.clear_exceptions)


def knows_as(identity: str, connection: Connection) -> bool:
    """Whether the connection of a served portal is for this identity."""
    peer = connection.remote_id
    kind, _, text = identity.partition(":")
    if isinstance(peer, IkeId):
        return identity == oracle.folded("address" if peer.is_address else "name", peer.text)
    return kind == "address" and ipaddress.ip_address(text) in peer


def compare(world: oracle.World, rules: Counter[str]) -> None:
    desired = derive(Lookup(core_world(world)))
    reached: set[str] = set()
    verdicts = oracle.initiator(world)
    by_portal = {c.binding.portal: c for c in desired.connections if c.role is Role.INITIATOR}
    for portal in {*UNIVERSE, *verdicts}:
        verdict = verdicts.get(portal)
        closed = verdict.closed if verdict else oracle.unknown_is_closed(world, portal)
        if verdict:
            reached.add(oracle.covered_by(world, portal))
        reached.add(verdict.rule if verdict else f"unknown: {'closed' if closed else 'open'}")
        assert is_closed(desired, portal) is closed, (portal, verdict)
        connection = by_portal.get(core_portal(portal))
        used = connection.key.name if connection else None
        wanted = verdict.key.name if verdict and verdict.key else None
        assert used == wanted, (portal, verdict)
    for portal, served in oracle.target(world, PROBES).items():
        reached.add(f"served: {served.rule}")
        at = core_portal(portal)
        assert (at in desired.local_portals) is served.closed, (portal, served)
        mine = [c for c in desired.connections if c.role is Role.TARGET and c.binding.portal == at]
        for identity in PROBES:
            found = {c.key.name for c in mine if knows_as(identity, c)}
            key = served.keys.get(identity)
            assert found == ({key.name} if key else set()), (portal, identity, served)
    rules.update(reached)


@pytest.mark.timeout(120 + WORLDS // 20)
def test_derive_closes_and_chooses_keys_as_the_oracle_does() -> None:
    rng, rules = random.Random(SEED), Counter[str]()  # noqa: S311  # no secret
    for number in range(WORLDS):
        world = random_world(rng)
        try:
            compare(world, rules)
        except AssertionError as err:
            raise AssertionError(f"world {number} of seed {SEED}: {err}\n{world}") from err
    for rule, count in rules.most_common():
        print(f"{100 * count / WORLDS:6.2f} %  {rule}")  # the shares
    assert set(rules) >= EVERY_RULE, EVERY_RULE - set(rules)
    assert min(rules[rule] for rule in EVERY_RULE) * 100 >= WORLDS, rules
