"""What must follow from the files: a second opinion, written from the manual and not from the code.

It knows the initiator's role only, port 3260, and the settings that `texts` can spell.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.chaos.texts import Content, KeyText, PolicyText, SettingsText


@dataclass(frozen=True, slots=True, kw_only=True)
class Conn:
    """A connection that charon must hold."""

    name: str
    source: str
    portal: str
    local_id: str
    remote_id: str
    version: str
    aggressive: bool
    mode: str
    key_name: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What `status` must say of a portal; ``orphaned``: no file covers it any more."""

    managed: bool
    closed: bool
    conn: Conn | None = None
    orphaned: bool = False


@dataclass(frozen=True, slots=True)
class Secret:
    """A key that charon must hold, and for whom."""

    owners: tuple[str, ...]
    key: str


@dataclass(slots=True)
class World:
    """All that the outcome depends on."""

    keys: Mapping[str, tuple[str, KeyText]]
    policies: Mapping[str, PolicyText]
    settings: SettingsText
    records: frozenset[str]
    held: frozenset[str]
    sources: Mapping[str, str | None]
    broken: list[tuple[str, Content]] = field(default_factory=list)
    inherited: frozenset[str] = frozenset()
    """Portals that are only known from the guard's file: a key without portals keeps them."""

    @property
    def broken_policies(self) -> list[PolicyText]:
        return [content for _, content in self.broken if isinstance(content, PolicyText)]

    def covered(self, portal: str) -> bool:
        """Whether a policy, or the portals of a key, name it."""
        keys = (key for _, key in self.keys.values())
        return policy_for(self.policies, portal) is not None or any(
            _rank(k.portals, portal) >= 0 for k in keys
        )

    def closed_by_mistake(self, portal: str) -> bool:
        """Whether a file with a mistake names this portal, and no good one does more narrowly."""
        good = min(
            (
                (-_rank(p.portals, portal), n)
                for n, p in self.policies.items()
                if _rank(p.portals, portal) >= 0
            ),
            default=None,
        )
        of_keys = max((_rank(key.portals, portal) for _, key in self.keys.values()), default=-1)
        for name, content in self.broken:
            if not isinstance(content, KeyText | PolicyText) or _rank(content.portals, portal) < 0:
                continue
            rank = _rank(content.portals, portal)
            if isinstance(content, PolicyText) and (good is None or (-rank, name) < good):
                return True
            if isinstance(content, KeyText) and rank > (-good[0] if good else of_keys):
                return True
        return False


@dataclass(slots=True)
class Expected:
    rows: dict[str, Row] = field(default_factory=dict)
    secrets: Counter[Secret] = field(default_factory=Counter)
    nets: dict[str, bool] = field(default_factory=dict)
    require: bool = False

    @property
    def conns(self) -> dict[str, Conn]:
        return {row.conn.name: row.conn for row in self.rows.values() if row.conn}

    @property
    def closed(self) -> frozenset[str]:
        """Portals that the guard must hold one by one."""
        return frozenset(portal for portal, row in self.rows.items() if row.closed)

    def is_closed(self, address: str) -> bool:
        """Whether TCP to this address' port 3260 must not leave in clear."""
        if address in self.rows:
            row = self.rows[address]
            if row.closed or row.managed:
                return row.closed
        if self.require:
            return True
        return closed_by_networks(self.nets, address)


class _RefusedError(Exception):
    """The files contradict each other: the portal is managed, closed, and has no connection."""


def candidates(world: World) -> frozenset[str]:
    mistaken = [content for _, content in world.broken if isinstance(content, KeyText | PolicyText)]
    files = (*world.policies.values(), *(key for _, key in world.keys.values()), *mistaken)
    named = {p for file in files for p in file.portals if "/" not in p}
    return world.records | named | world.held


def decide(world: World) -> Expected:
    expected = Expected(require=world.settings.require, nets=_networks(world))
    rows = {portal: _row(world, portal) for portal in sorted(candidates(world))}
    # IKE knows no portals: one pair of identities has one key
    keys_of: dict[tuple[str, str], set[str]] = {}
    for row in rows.values():
        if row.conn:
            keys_of.setdefault((row.conn.local_id, row.conn.remote_id), set()).add(row.conn.key)
    for portal, row in rows.items():
        if row.conn and len(keys_of[row.conn.local_id, row.conn.remote_id]) > 1:
            rows[portal] = Row(managed=True, closed=True)
    expected.rows = rows
    expected.secrets = _secrets(world, expected.conns)
    return expected


def _row(world: World, portal: str) -> Row:
    policy, named = policy_for(world.policies, portal), None
    covered, mistaken = world.covered(portal), world.closed_by_mistake(portal)
    if covered or world.settings.require or portal in world.inherited:
        try:
            named = _key_for(world, portal, policy)
        except _RefusedError:
            return Row(managed=True, closed=True)
    if not covered and named is None:
        if mistaken:
            return Row(managed=portal in world.held, closed=True)
        if portal in world.held:
            return Row(managed=True, closed=True, orphaned=True)
        return Row(managed=False, closed=world.settings.require)
    key = world.keys[named][1] if named else None
    flags = policy.flags if policy else ""
    if not flags and key is not None and not key.wants_ipsec:
        flags = "clear"
    if flags == "clear":
        if mistaken:
            return Row(managed=portal in world.held, closed=True)
        return Row(managed=True, closed=world.settings.require)
    source = world.sources[portal]
    if named is None or key is None or source is None:
        return Row(managed=True, closed=True)
    version, _, mode = (flags or "v2 transport").partition(" ")
    conn = Conn(
        name=f"iscsi-ipsec-{portal}-3260",
        source=source,
        portal=portal,
        local_id=key.ident or source,
        remote_id=(policy.target_id if policy else "") or portal,
        version="2" if version == "v2" else "1",
        aggressive=version == "aggressive",
        mode=mode.upper(),
        key_name=named,
        key=key.key,
    )
    return Row(managed=True, closed=True, conn=conn)


def _key_for(world: World, portal: str, policy: PolicyText | None) -> str | None:
    """The manual's rules, in their order."""

    def serves(key: KeyText) -> bool:
        return not key.portals or any(_matches(pattern, portal) for pattern in key.portals)

    if policy and policy.psk:
        if policy.psk not in world.keys or not serves(world.keys[policy.psk][1]):
            raise _RefusedError
        return policy.psk
    useful = {name: key for name, (_, key) in world.keys.items() if serves(key)}
    source = world.sources[portal]
    if source is None and any(key.is_address for key in useful.values()):
        raise _RefusedError
    ranks = (
        [n for n, k in useful.items() if k.is_address and k.ident == source],
        [n for n, k in useful.items() if k.ident and not k.is_address],
        [n for n, k in useful.items() if not k.ident],
    )
    for rank in ranks:
        if len(rank) > 1:
            raise _RefusedError
        if rank:
            return rank[0]
    return None


def policy_for(policies: Mapping[str, PolicyText], portal: str) -> PolicyText | None:
    """The most specific pattern wins; of equals the first file by name."""
    found: list[tuple[int, str]] = []
    for name, policy in policies.items():
        for pattern in policy.portals:
            if _matches(pattern, portal):
                found.append((-ipaddress.ip_network(pattern).prefixlen, name))
    return policies[min(found)[1]] if found else None


def _rank(patterns: tuple[str, ...], portal: str) -> int:
    """The longest prefix of the patterns that name the portal, -1 for none."""
    return max((ipaddress.ip_network(p).prefixlen for p in patterns if _matches(p, portal)), default=-1)


def _matches(pattern: str, portal: str) -> bool:
    network, address = ipaddress.ip_network(pattern), ipaddress.ip_address(portal)
    return network.version == address.version and address in network


def _networks(world: World) -> dict[str, bool]:
    """Networks of policies, and whether what lies in them and was never named is closed."""
    networks = {p: True for policy in world.broken_policies for p in policy.portals if "/" in p}
    for policy in world.policies.values():
        for pattern in policy.portals:
            if "/" in pattern:
                networks[pattern] = networks.get(pattern, False) or policy.flags != "clear"
    return networks


def closed_by_networks(networks: Mapping[str, bool], address: str) -> bool:
    inside = [
        (ipaddress.ip_network(n).prefixlen, closed) for n, closed in networks.items() if _matches(n, address)
    ]
    return max(inside)[1] if inside else False


def _secrets(world: World, conns: Mapping[str, Conn]) -> Counter[Secret]:
    """Owners: both ends; the remote end alone where one local identity has several keys and the remote one only one.

    A key that nothing uses waits under its own identity, unless that is an end of a connection
    or another such key has the same one.
    """
    of_local: dict[str, set[str]] = {}
    of_remote: dict[str, set[str]] = {}
    for conn in conns.values():
        of_local.setdefault(conn.local_id, set()).add(conn.key)
        of_remote.setdefault(conn.remote_id, set()).add(conn.key)
    secrets = set()
    for conn in conns.values():
        alone = len(of_local[conn.local_id]) > 1 and len(of_remote[conn.remote_id]) == 1
        owners = (conn.remote_id,) if alone else (conn.local_id, conn.remote_id)
        secrets.add(Secret(owners, conn.key))
    ends = of_local.keys() | of_remote.keys()
    waiting = [key for _, key in world.keys.values() if key.ident and key.ident not in ends]
    idents = Counter(key.ident for key in waiting)
    secrets |= {Secret((key.ident,), key.key) for key in waiting if idents[key.ident] == 1}
    return Counter(secrets)
