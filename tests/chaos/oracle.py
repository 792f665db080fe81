"""Computes the expected state from the files on this stage: portals and keys from `tests.support.oracle`, and
from these the contents of charon and `status`. It knows the initiator's role only, and port 3260.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.chaos.texts import Content, KeyText, PolicyText, SettingsText
from tests.support import oracle


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
    """The state that `status` must show for a portal; ``orphaned``: no file covers it any more."""

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

    def covered(self, portal: str) -> bool:
        """Whether a policy, or the portals of a key, name it."""
        return oracle.covered_by(self.plain, (portal, PORT)) != oracle.UNCOVERED

    @property
    def plain(self) -> oracle.World:
        """The same as the oracle of all tests takes it."""
        return oracle.World(
            keys=tuple(
                oracle.KeyFile(
                    name, key.key, (("address" if key.is_address else "name"), key.ident) if key.ident else None,
                    _patterns(key.portals), "" if key.wants_ipsec else oracle.CLEAR,
                )
                for name, (_, key) in self.keys.items()
            ),
            policies=tuple(
                oracle.PolicyFile(
                    name, _patterns(policy.portals), flags=_STRENGTHS[policy.flags.partition(" ")[0]],
                    psk=policy.psk, target_id=policy.target_id,
                )
                for name, policy in self.policies.items()
            ),
            broken=tuple(
                oracle.BrokenFile(name, _patterns(content.portals), isinstance(content, PolicyText))
                for name, content in self.broken
                if isinstance(content, KeyText | PolicyText)
            ),
            sources={portal: source or "" for portal, source in self.sources.items()},
            records=frozenset((address, PORT) for address in self.records),
            held=frozenset(((address, PORT), oracle.INITIATOR) for address in self.held),
            inherited=frozenset((address, PORT) for address in self.inherited),
            require=self.settings.require,
        )  # fmt: skip


PORT = 3260
_STRENGTHS = {
    "": "",
    "clear": oracle.CLEAR,
    "v2": oracle.STRONG,
    "main": oracle.WEAK,
    "aggressive": oracle.WEAK,
}


def _patterns(portals: Iterable[str]) -> tuple[oracle.Pattern, ...]:
    return tuple((portal, PORT) for portal in portals)


@dataclass(slots=True)
class Expected:
    rows: dict[str, Row] = field(default_factory=dict)
    secrets: Counter[Secret] = field(default_factory=Counter)
    world: oracle.World = field(default_factory=oracle.World)

    @property
    def conns(self) -> dict[str, Conn]:
        return {row.conn.name: row.conn for row in self.rows.values() if row.conn}

    @property
    def closed(self) -> frozenset[str]:
        """Portals that the guard must hold one by one."""
        return frozenset(portal for portal, row in self.rows.items() if row.closed)

    def is_closed(self, address: str) -> bool:
        """Whether TCP to this address' port 3260 must not leave unencrypted."""
        row = self.rows.get(address)
        return row.closed if row else oracle.unknown_is_closed(self.world, (address, PORT))


def candidates(world: World) -> frozenset[str]:
    return frozenset(address for address, _ in oracle.known(world.plain))


def decide(world: World) -> Expected:
    expected = Expected(world=world.plain)
    expected.rows = {
        portal: _row(world, portal, verdict)
        for (portal, _), verdict in sorted(oracle.initiator(expected.world).items())
    }
    expected.secrets = _secrets(world, expected.conns)
    return expected


def _row(world: World, portal: str, verdict: oracle.Verdict) -> Row:
    managed = (
        portal in world.held if verdict.rule == "broken" else verdict.rule not in ("left alone", "required")
    )
    if verdict.key is None:
        return Row(managed=managed, closed=verdict.closed, orphaned=verdict.rule == "held")
    policy = oracle.policy_for(world.plain, (portal, PORT), oracle.INITIATOR)
    flags = (world.policies[policy.name].flags if policy else "") or "v2 transport"
    version, _, mode = flags.partition(" ")
    source = world.sources[portal]
    assert source
    conn = Conn(
        name=f"iscsi-ipsec-{portal}-{PORT}",
        source=source,
        portal=portal,
        local_id=verdict.key.id[1] if verdict.key.id else source,
        remote_id=(policy.target_id if policy else "") or portal,
        version="2" if version == "v2" else "1",
        aggressive=version == "aggressive",
        mode=mode.upper(),
        key_name=verdict.key.name,
        key=verdict.key.secret,
    )
    return Row(managed=True, closed=True, conn=conn)


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
