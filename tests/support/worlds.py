"""Strategies: worlds in which addresses, names, keys and policies meet often."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from iscsi_ipsec.base.charon_sa import CharonState
from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.keys import Key, PerIdKey
from iscsi_ipsec.base.policy import EspMode, IkeMode, PortalPolicy, Role, Start, Tuning
from iscsi_ipsec.core.config.presets import PRESETS
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.derive import derive
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.world import World
from iscsi_ipsec.core.ike.charon_diff import Operation
from iscsi_ipsec.core.ike.vici_messages import EncodedConnection, EncodedSecret
from tests.support.values import (
    address,
    choice,
    group,
    identity,
    per_id,
    policy,
    previous,
    record,
    session,
    world,
)

CANARY = "canary-5b1e"
"""Every generated key begins with it."""

SOURCES = ("10.0.0.1", "10.0.1.1", "fd00::1")
TARGETS = ("10.0.0.20", "10.0.0.21", "10.0.1.20", "fd00::20")
LOCAL = ("10.0.0.1", "10.0.1.1", "fd00::1", "10.0.0.250", "fd00::250")
PATTERNS = (
    "10.0.0.20", "10.0.0.20:3261", "10.0.0.0/24", "10.0.0.0/16", "10.0.0.21", "[fd00::20]:3260", "fd00::/64",
    "san.example.com", "gone.example.com", "10.0.1.20",
)  # fmt: skip
SERVED = ("10.0.0.250", "10.0.0.250:3261", "fd00::250", "10.0.0.1", "san.example.com")
IDS = (
    *map(identity, (*SOURCES, "10.0.0.20", "10.0.0.9", "db1", "DB1", "db2.example.com", "db1@example.com")),
    IkeId.parse(IdType.ID_FQDN, "10.0.0.1"),
)
INITIATORS = ipaddress.ip_network("10.0.0.0/28")
NAMES = ("db1", "db2", "db3", "group", "more")

choices = st.none() | st.builds(
    choice,
    st.sampled_from(IkeMode),
    st.none() | st.sampled_from(EspMode),
    pfs=st.booleans(),
    required=st.integers(0, 4).map(bool),
)
some_portals = st.just(list[str]()) | st.lists(st.sampled_from(PATTERNS), max_size=2, unique=True)
tunings = st.just(Tuning()) | st.builds(
    Tuning,
    esp_proposals=st.none() | st.sampled_from([("aes256gcm16",), ("aes256gcm16-ecp384",)]),
    ike_rekey_time=st.none() | st.integers(60, 86400),
    dpd_delay=st.none() | st.integers(0, 60),
    start=st.none() | st.sampled_from(Start),
)


@st.composite
def keys(draw: st.DrawFn, name: str) -> Key:
    secret = f"{CANARY}-{name}-{draw(st.integers(0, 1))}".encode()
    portals, flags = draw(some_portals), draw(choices)
    key: Key
    if name in ("group", "more"):
        key = group(name, portals=portals, flags=flags, secret=secret)
    else:
        key = per_id(draw(st.sampled_from(IDS)), name, portals=portals, flags=flags, secret=secret)
    if draw(st.integers(0, 2)) == 0:
        return dataclasses.replace(key, previous=previous(secret + b" before"))
    return key


@st.composite
def policies(draw: st.DrawFn, name: str) -> PortalPolicy:
    more: dict[str, Any] = {
        "psk": draw(st.none() | st.sampled_from((*NAMES, "missing"))),
        "target_id": draw(st.none() | st.sampled_from((identity("san"), identity("10.0.0.20")))),
        "preset": draw(st.none() | st.sampled_from(sorted(PRESETS))),
        "tuning": draw(tunings),
        "flags": draw(choices),
    }
    if draw(st.integers(0, 3)) == 0:
        more["tunnel_outer_remote"] = draw(st.none() | st.just(address("203.0.113.1")))
        more["tunnel_outer_local"] = draw(st.none() | st.just(address("198.51.100.1")))
    role = draw(st.sampled_from([Role.INITIATOR, Role.INITIATOR, Role.TARGET]))
    pool = SERVED if role is Role.TARGET else PATTERNS
    if role is Role.TARGET:
        more["initiators"] = draw(st.sampled_from(((), (identity("db9"),), (INITIATORS, identity("db1")))))
    patterns = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3, unique=True))
    return policy(*patterns, name=name, role=role, **more)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    key_names = draw(st.lists(st.sampled_from(NAMES), max_size=5, unique=True))
    policy_names = draw(st.lists(st.sampled_from(("10-a", "20-b", "30-c")), max_size=3, unique=True))
    hosts = st.sampled_from((*TARGETS, "san.example.com", "gone.example.com"))
    records = draw(
        st.lists(
            st.builds(
                record,
                hosts,
                st.sampled_from((3260, 3260, 3261)),
                net_ifacename=st.sampled_from(("", "", "ens4")),
                target=st.sampled_from(("", "iqn.2024-01.com.example:a")),
                transport=st.sampled_from(("tcp", "tcp", "tcp", "bnx2i")),
            ),
            max_size=4,
        )
    )
    sources: dict[str | tuple[str, str], str | None] = {
        (host, oif): draw(
            st.sampled_from((None, "fd00::1") if ":" in host else (None, "10.0.0.1", "10.0.1.1"))
        )
        for host in (*TARGETS, "203.0.113.1")
        for oif in draw(st.sampled_from(((), ("",), ("", "ens4"))))
    }
    return world(
        *[draw(keys(name)) for name in key_names],
        *[draw(policies(name)) for name in policy_names],
        *records,
        *[session(host, n) for n, host in enumerate(draw(st.lists(st.sampled_from(TARGETS), max_size=2)))],
        sources=sources,
        previously_managed=draw(
            st.lists(
                st.sampled_from([*TARGETS[:3], "10.0.0.77", ("10.0.0.250", Role.TARGET)]),
                max_size=3,
                unique=True,
            )
        ),
        names={"san.example.com": ["10.0.0.20", "fd00::20", "10.0.0.250"]} if draw(st.booleans()) else {},
        local=LOCAL,
        settings=Settings(
            require_ipsec=draw(st.booleans()), default_choice=draw(choices), tuning=draw(tunings)
        ),
        user_space_esp=draw(st.integers(0, 5)) == 0,
        fast_aes=draw(st.booleans()),
    )


@st.composite
def shuffled(draw: st.DrawFn, of: World) -> World:
    """The same world, its files read in another order."""
    return dataclasses.replace(
        of,
        keys=tuple(draw(st.permutations(of.keys))),
        policies=tuple(draw(st.permutations(of.policies))),
        records=tuple(draw(st.permutations(of.records))),
        sessions=tuple(draw(st.permutations(of.sessions))),
    )


@st.composite
def some_turned(draw: st.DrawFn, of: World) -> World:
    """The same world, where some rotations have turned against what their role begins with."""
    rotations = derive(Lookup(of)).rotations
    return dataclasses.replace(of, previous_key_first={r.rotation_id: draw(st.booleans()) for r in rotations})


class ModelCharon:
    """A model of charon's lists of names under our commands; secrets are in the order of loading."""

    def __init__(self, secrets: Mapping[str, object], conns: Mapping[str, frozenset[str]]) -> None:
        self.secrets: dict[str, object] = dict(secrets)
        self.conns: dict[str, frozenset[str]] = dict(conns)

    def observe(self) -> CharonState:
        return CharonState(
            version="5.9.8",
            plugins=frozenset(),
            secrets=frozenset(self.secrets),
            conns=dict(self.conns),
            foreign_conns=0,
        )

    def apply(self, operation: Operation) -> None:
        message: Mapping[str, Any] = operation.message
        match operation.command:
            case "load-shared":
                self.secrets.pop(message["id"], None)
                self.secrets[message["id"]] = (message["owners"], message["data"])
            case "unload-shared":
                del self.secrets[message["id"]]
            case "load-conn":
                ((name, section),) = message.items()
                self.conns[name] = frozenset(section["children"])
            case "unload-conn":
                del self.conns[message["name"]]
            case other:
                raise AssertionError(f"not an iscsi-ipsec command: {other}")


def id_of(key: Key) -> IkeId | None:
    return key.id if isinstance(key, PerIdKey) else None


Spelled = tuple[tuple[EncodedSecret, ...], tuple[EncodedConnection, ...]]
