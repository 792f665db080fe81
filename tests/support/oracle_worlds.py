"""Random worlds for the oracle, weighted so that every rule decides often, and the same as the core's values."""

from __future__ import annotations

import dataclasses
import ipaddress
import random

from iscsi_ipsec.base.iscsi import NodeRecord
from iscsi_ipsec.base.policy import IkeMode, IpsecChoice, Role
from iscsi_ipsec.base.portal import Portal as CorePortal
from iscsi_ipsec.base.portal import PortalPattern, parse_portal_patterns
from iscsi_ipsec.core.config import fields
from iscsi_ipsec.core.config.invalid_files import BrokenFile as CoreBroken
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide import world as core
from tests.support import values
from tests.support.oracle import (
    CLEAR,
    INITIATOR,
    STRONG,
    TARGET,
    WEAK,
    BrokenFile,
    KeyFile,
    Pattern,
    PolicyFile,
    Portal,
    World,
)

HERE = ("10.0.0.1", "10.0.1.1")
ADDRESSES = ("10.0.0.20", "10.0.0.21", "10.0.1.20", "10.9.9.9")
SERVED = "10.0.0.250"
UNIVERSE: tuple[Portal, ...] = tuple(
    (a, p) for a in (*ADDRESSES, "10.0.0.77", "172.16.0.1") for p in (3260, 3261)
)
PATTERNS: tuple[Pattern, ...] = (
    ("10.0.0.20", 3260), ("10.0.0.20", 3260), ("10.0.0.20", 3261), ("10.0.0.21", 3260), ("10.0.0.0/24", 3260),
    ("10.0.0.0/16", 3260), ("10.0.1.0/24", 3260), ("san.lab", 3260), ("san.lab", 3260), ("gone.lab", 3260), ("any", 3260),
)  # fmt: skip
IDS = (
    ("address", "10.0.0.1"), ("address", "10.0.0.1"), ("address", "10.0.1.1"), ("name", "db1"), ("name", "DB1"),
    ("name", "db2"), ("address", "10.0.0.9"), ("address", "10.0.0.20"),
)  # fmt: skip
FLAGS = ("", "", "", "", STRONG, WEAK, CLEAR)
CHOICES = {
    "": None,
    STRONG: IpsecChoice(required=True, ike=IkeMode.V2, esp=None, pfs=True),
    WEAK: IpsecChoice(required=True, ike=IkeMode.AGGRESSIVE, esp=None, pfs=True),
    CLEAR: IpsecChoice(required=False, ike=IkeMode.V2, esp=None, pfs=True),
}


def random_world(rng: random.Random) -> World:
    def some(pool: tuple[Pattern, ...], most: int, none: float = 0.0) -> tuple[Pattern, ...]:
        return () if rng.random() < none else tuple(rng.sample(sorted(set(pool)), rng.randint(1, most)))

    def chance(percent: int) -> bool:
        return rng.random() * 100 < percent

    keys = [
        KeyFile(
            name, f"secret {rng.randint(1, 3)}", rng.choice(IDS), some(PATTERNS, 2, 0.6), rng.choice(FLAGS)
        )
        for name in rng.sample(("k1", "k2", "k3"), rng.choice((0, 1, 1, 1, 2, 2, 3)))
    ]
    keys += [
        KeyFile(name, f"secret {name}", None, some(PATTERNS, 2, 0.6), rng.choice(FLAGS))
        for name in rng.sample(("g1", "g2"), rng.choice((0, 0, 1, 1, 1, 2)))
    ]
    policies = [
        PolicyFile(
            name, some(PATTERNS, 2), INITIATOR, rng.choice(FLAGS),
            psk=rng.choice(("k1", "g1", "k2", "missing")) if chance(26) else "",
            target_id=rng.choice(("san", "SAN")) if chance(25) else "",
        )
        for name in rng.sample(("a", "b", "c"), rng.choice((0, 0, 1, 1, 1, 2, 3)))
    ]  # fmt: skip
    if chance(40):
        policies.append(
            PolicyFile(
                "t", tuple(rng.sample(((SERVED, 3260), ("10.0.0.1", 3260), ("10.0.1.0/24", 3260)), rng.choice((1, 1, 2)))),
                TARGET, rng.choice(FLAGS), psk=rng.choice(("k1", "g1")) if chance(15) else "",
                target_id="me" if chance(30) else "",
                initiators=rng.choice(((), ("db1", "db3"), ("10.0.0.0/28", "db2"), ("10.0.0.0/28",))),
            )
        )  # fmt: skip
    broken = []
    if chance(25):
        is_policy = chance(60)
        role = TARGET if is_policy and chance(20) else INITIATOR
        pool = ((SERVED, 3260),) if role == TARGET else PATTERNS
        broken.append(BrokenFile(rng.choice(("0", "b", "z")), some(pool, 1), is_policy, role))
    keys, policies = _with_identities_that_meet(rng, keys, policies)
    names: dict[str, tuple[str, ...]] = {name: () for name in ("san.lab", "gone.lab") if chance(15)}
    if chance(60):
        names["san.lab"] = ("10.0.0.20",) if chance(60) else ("10.0.0.21", "10.9.9.9")
    route = rng.choice(HERE)
    return World(
        keys=tuple(keys),
        policies=tuple(policies),
        broken=tuple(broken),
        names=names,
        sources={a: "" if chance(10) else route if chance(80) else rng.choice(HERE) for a in (*ADDRESSES, "10.0.0.250", *HERE)},
        local=frozenset({*HERE, SERVED, *(["10.0.0.21"] if chance(5) else [])}),
        records=frozenset(rng.sample(UNIVERSE[:8], rng.randint(0, 3))),
        held=frozenset(
            {(p, INITIATOR) for p in rng.sample(UNIVERSE[:8], rng.choice((0, 0, 1, 2)))}
            | ({((SERVED, 3260), TARGET)} if chance(10) else set())
        ),
        inherited=frozenset(rng.sample(UNIVERSE[:8], 4)) if chance(25) else frozenset(),
        require=chance(12),
        default=rng.choice(FLAGS) if chance(45) else "",
    )  # fmt: skip


def _with_identities_that_meet(
    rng: random.Random, keys: list[KeyFile], policies: list[PolicyFile]
) -> tuple[list[KeyFile], list[PolicyFile]]:
    """Now and then what chance alone seldom makes: two keys between two identities, a target that could pose as another, a name beside an address."""
    luck = rng.random()
    first = KeyFile("k1", "secret 1", ("name", "db1"), (("10.0.0.20", 3260),))
    policy = PolicyFile(
        "a", (("10.0.0.20", 3260), ("10.0.0.20", 3261), ("10.0.0.21", 3260)), flags=rng.choice(("", STRONG))
    )
    if luck < 0.03:
        second = KeyFile("k2", "secret 2", ("name", rng.choice(("db1", "DB1"))), (("10.0.0.20", 3261),))
        return [first, second], [policy]
    if luck < 0.07:
        second = KeyFile("k2", "secret 2", ("address", HERE[0]), (("10.0.0.20", 3261),))
        return [first, second, KeyFile("k3", "secret 3", ("name", "db1"), (("10.0.0.21", 3260),))], [policy]
    if luck < 0.13:
        return [first, KeyFile("k2", "secret 2", ("name", "db2"), (("san.lab", 3260),))], policies
    return keys, policies


def _patterns(portals: tuple[Pattern, ...]) -> tuple[PortalPattern, ...]:
    return tuple(
        found
        for text, port in portals
        for found in parse_portal_patterns(text if text == "any" else f"{text}:{port}")
    )


def core_portal(portal: Portal) -> CorePortal:
    return CorePortal(ipaddress.ip_address(portal[0]), portal[1])


def core_world(of: World) -> core.World:
    """The same for the code under test."""
    keys = [
        dataclasses.replace(
            values.per_id(fields.guess_id(k.id[1]), k.name, secret=k.secret.encode(), flags=CHOICES[k.flags])
            if k.id
            else values.group(k.name, secret=k.secret.encode(), flags=CHOICES[k.flags]),
            portals=_patterns(k.portals),
        )
        for k in of.keys
    ]
    policies = [
        dataclasses.replace(
            values.policy(
                name=p.name, role=Role(p.role), flags=CHOICES[p.flags], psk=p.psk or None,
                target_id=fields.guess_id(p.target_id) if p.target_id else None,
                initiators=tuple(ipaddress.ip_network(i) if "/" in i else fields.guess_id(i) for i in p.initiators),
            ),
            patterns=_patterns(p.portals),
        )
        for p in of.policies
    ]  # fmt: skip
    broken = tuple(
        CoreBroken(
            path=f"{'portal.d' if b.is_policy else 'psk.d'}/{b.name}.toml", role=Role(b.role), is_policy=b.is_policy,
            patterns=_patterns(b.portals),
        )
        for b in of.broken
    )  # fmt: skip
    return core.World(
        settings=Settings(require_ipsec=of.require, default_choice=CHOICES[of.default]),
        keys=tuple(keys),
        policies=tuple(policies),
        broken=broken,
        records=tuple(
            NodeRecord(host=a, port=p, path=f"nodes/{a},{p}", target="iqn.x:y") for a, p in sorted(of.records)
        ),
        names={name: tuple(map(ipaddress.ip_address, found)) for name, found in of.names.items()},
        sources={
            (ipaddress.ip_address(a), ""): ipaddress.ip_address(s) if s else None
            for a, s in of.sources.items()
        },
        local_addresses=frozenset(map(ipaddress.ip_address, of.local)),
        previously_managed=frozenset((core_portal(p), Role(role)) for p, role in of.held),
        inherited=frozenset(map(core_portal, of.inherited)),
    )
