"""The decisions of ``core`` against those of a second opinion (``tests.support.oracle``), in many random worlds.

``ORACLE_WORLDS=100000`` (``make oracle``) is the full count; the share of worlds in which each rule
decided is printed, and no rule may decide in fewer than one world of a hundred.
"""

from __future__ import annotations

import ipaddress
import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from iscsi_ipsec.base.identity import IkeId
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.core.decide.derive import derive
from iscsi_ipsec.core.decide.desired import Connection, Desired
from iscsi_ipsec.core.decide.lookup import Lookup
from tests.support import oracle
from tests.support.oracle_worlds import UNIVERSE, core_portal, core_world, random_world

WORLDS = int(os.environ.get("ORACLE_WORLDS", "1500"))
ENOUGH = 1000  # worlds, below which a rule may be missed, or fall under its share, by chance
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
        "policy: the narrower", "policy: the first name of equals", "policy: before a file with a mistake",
        "flags: the policy's before the key's", "flags: the key's before the default's", "flags: the policy's before the default's",
        "key: psk before another", "key: source address before a name", "key: source address before the group's",
        "key: only name before the group's", "key: an address before a name in it",
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


def precedences(world: oracle.World, portal: oracle.Portal, verdict: oracle.Verdict) -> Iterator[str]:
    """The winners that had a rival here."""
    policy, role = oracle.policy_for(world, portal, oracle.INITIATOR), oracle.INITIATOR
    ranks = [oracle.rank(world, p.portals, portal) for p in world.policies if p.role == role]
    rivals = sorted((rank for rank in ranks if rank != oracle.NOWHERE), reverse=True)[:2]
    if len(rivals) == 2:
        yield "policy: the narrower" if rivals[0] != rivals[1] else "policy: the first name of equals"
    broken = [
        b for b in world.broken if b.role == role and oracle.rank(world, b.portals, portal) != oracle.NOWHERE
    ]
    if policy and broken and not oracle.broken_decides(world, portal, role, policy):
        yield "policy: before a file with a mistake"
    if not (key := verdict.key):
        return
    if policy and policy.flags and key.flags not in ("", policy.flags):
        yield "flags: the policy's before the key's"
    used = (policy.flags if policy else "") or key.flags
    if used and world.default not in ("", used):
        yield f"flags: the {'policy' if policy and policy.flags else 'key'}'s before the default's"
    others = [k for k in world.keys if k is not key and oracle.applies(world, k, portal)]
    if verdict.rule == "psk" and others:
        yield "key: psk before another"
    if verdict.rule in ("source address", "only name"):
        for kind, shown in (("name", "a name"), ("group", "the group's")):
            if kind != key.kind and any(k.kind == kind for k in others):
                yield f"key: {verdict.rule} before {shown}"
    aside = (k for k in world.keys if k.kind == key.kind and k not in others and k is not key)
    if any(oracle.rank(world, k.portals, portal) == oracle.BY_NAME for k in aside):
        yield "key: an address before a name in it"


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
            reached |= set(precedences(world, portal, verdict))
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
    if WORLDS >= ENOUGH:
        assert set(rules) >= EVERY_RULE, EVERY_RULE - set(rules)
        assert min(rules[rule] for rule in EVERY_RULE) * 100 >= WORLDS, rules
