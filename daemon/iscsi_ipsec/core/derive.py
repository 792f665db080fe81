"""From what the files, open-iscsi and the kernel say to what must be in charon and nftables.

Law: :func:`derive` is a function of :class:`World` alone. Which key a portal
uses is decided in ``core.keychoice`` and nowhere else; charon is never left
to choose: a secret reaches it only as "this local id towards that remote
id", because charon's own ranking (get_shared in credential_manager.c) puts
the match on the other id before one's own.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import is_not
from typing import Literal

from iscsi_ipsec.base.model import (
    GroupKey,
    IdType,
    IkeId,
    IkeMode,
    Key,
    NodeRecord,
    Peer,
    PerIdKey,
    PortalPattern,
    PortalPolicy,
    PortalRange,
    Problem,
    Role,
    Severity,
    sorted_portals,
)
from iscsi_ipsec.base.same import Same
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.broken import BrokenFile
from iscsi_ipsec.core.desired import Connection, Contest, Desired, PortalView, Rotation, SecretEntry
from iscsi_ipsec.core.initiator import initiator_view
from iscsi_ipsec.core.keychoice import pick_choice
from iscsi_ipsec.core.networks import without
from iscsi_ipsec.core.settings import Settings
from iscsi_ipsec.core.target import target_views
from iscsi_ipsec.core.world import Lookup, Seat


def derive(lookup: Lookup) -> Desired:
    """Decide everything about every portal. Pure; the same world gives the same outcome."""
    return Deriver().derive(lookup)


class Deriver:
    """:func:`derive` again and again: what would be equal to what was derived last is the very same, and made once.

    A view of a portal as an initiator is made anew when anything that :func:`initiator_view` looks
    at differs (:meth:`_asked`); all keys count where any may be chosen, one where the policy names it.
    """

    def __init__(self) -> None:
        self._common: tuple[object, ...] = ()
        self._choosable: tuple[object, ...] = ()
        self._views: dict[Seat, tuple[tuple[object, ...], PortalView]] = {}
        self._decided = Same(_decide)
        self._secrets = Secrets()

    def derive(self, lookup: Lookup) -> Desired:
        """As :func:`derive`."""
        world, ours = lookup.world, self._initiator_views(lookup)
        served = target_views(lookup, tuple(v.connection for v in ours if v.connection))
        decided, owned = self._decided.of(
            (*ours, *served), world.settings, world.policies, world.broken, world.records, world.lagging
        )
        return dataclasses.replace(decided, secrets=self._secrets.of(world.keys, owned, decided.rotations))

    def _initiator_views(self, lookup: Lookup) -> list[PortalView]:
        world = lookup.world
        common = (
            world.settings, world.broken, world.names, world.local_addresses,
            world.user_space_esp, world.fast_aes, lookup.unresolved,
        )  # fmt: skip
        choosable = (lookup.named, lookup.groups, lookup.by_address)
        # compared once here; for each portal it is then enough that they are the same objects
        if common != self._common:
            self._common, self._views = common, {}
        self._choosable = self._choosable if choosable == self._choosable else choosable
        before, self._views = self._views, {}
        for seat, origins in lookup.candidates.items():
            asked = self._asked(lookup, seat, origins)
            known = before.get(seat)
            if known is None or any(map(is_not, known[0], asked)):
                known = asked, initiator_view(lookup, seat, origins)
            self._views[seat] = known
        return [view for _, view in self._views.values()]

    def _asked(self, lookup: Lookup, seat: Seat, origins: tuple[str, ...]) -> tuple[object, ...]:
        world, portal = lookup.world, seat.portal
        policy = lookup.policy_for(portal, Role.INITIATOR)
        outer = policy.tunnel_outer_remote if policy else None
        return (
            origins,
            policy,
            lookup.key_by_name.get(policy.psk) if policy and policy.psk is not None else self._choosable,
            world.sources.get((portal.address, seat.oif)),
            world.sources.get((outer, seat.oif)) if outer else None,
            (portal, Role.INITIATOR) in world.held,
        )


_Owned = tuple[tuple[Connection, tuple[Peer, ...]], ...]
"""Connections with the owners of their secrets."""


def _decide(
    views: tuple[PortalView, ...],
    settings: Settings,
    policies: tuple[PortalPolicy, ...],
    broken: tuple[BrokenFile, ...],
    records: tuple[NodeRecord, ...],
    lagging: Mapping[Contest, bool],
) -> tuple[Desired, _Owned]:
    """Everything but the secrets, and what they are made of."""
    views = tuple(_share_connections(_refuse_crossed(_refuse_shared_pairs(views))))
    connections = tuple({v.connection.name: v.connection for v in views if v.connection}.values())
    owned = tuple(_owners(connections))
    closed = _networks(settings, policies, broken, closed=True)
    wide = _networks(settings, policies, broken, closed=False)
    problems = [v.problem for v in views if v.problem]
    problems.extend(_warnings(views))
    problems.extend(_link_local_problems(records))
    desired = Desired(
        portals=views,
        connections=connections,
        secrets=(),
        rotations=_rotations(lagging, owned),
        guarded=sorted_portals({v.seat.portal for v in views if v.closed and v.role is Role.INITIATOR}),
        served=sorted_portals({v.seat.portal for v in views if v.closed and v.role is Role.TARGET}),
        networks=closed,
        opened=_opened(views, closed, wide),
        problems=tuple(dict.fromkeys(problems)),
    )
    return desired, owned


EVERYWHERE = (PortalRange(ipaddress.IPv4Network("0.0.0.0/0")), PortalRange(ipaddress.IPv6Network("::/0")))


def _networks(
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


def _opened(
    views: Iterable[PortalView], closed: tuple[PortalRange, ...], wide: Iterable[PortalRange]
) -> tuple[PortalRange, ...]:
    """What may be reached in clear although it lies in a closed network: the narrower policy decides."""
    opened = [
        PortalRange(ipaddress.ip_network(view.seat.portal.address), view.seat.portal.port)
        for view in views
        if not view.closed and view.choice and view.role is Role.INITIATOR
    ]
    for clear in wide:
        holes = [
            c.network
            for c in closed
            if c.port == clear.port and c.network.prefixlen >= clear.network.prefixlen
        ]
        opened += [PortalRange(piece, clear.port) for piece in without(clear.network, holes)]
    return tuple(opened)


def _refuse_shared_pairs(views: tuple[PortalView, ...]) -> list[PortalView]:
    """Close portals whose connections have the same two ids but different keys.

    IKE knows no ports and no portals: towards one pair of ids charon would
    take either key. The two keys of a rotation are meant so, and one key.
    """
    keys: dict[tuple[Peer, ...], dict[Secret, str]] = {}
    for view in views:
        if view.connection:
            key = view.connection.key
            keys.setdefault(view.connection.pair, {}).setdefault(key.secret, key.path)

    def why(connection: Connection) -> tuple[str, str] | None:
        paths = sorted(keys[connection.pair].values())
        if len(paths) == 1:
            return None
        pair = f"{connection.local_id} and {connection.remote_id}"
        message = f"different keys apply between {pair}: {', '.join(paths)}"
        return message, "let one key serve all portals of that target, or give them different target_id"

    return _refuse(views, why)


def _refuse_crossed(views: list[PortalView]) -> list[PortalView]:
    """Close portals whose key would let their target pose as another one.

    A secret must name the local id where other identities of this host have
    another key for the target. If that local id has other keys for other targets,
    an IKEv2 peer could prove itself to be one of them with this one (:func:`_owners`).
    """
    connections = [v.connection for v in views if v.connection and v.role is Role.INITIATOR]
    of_remote = _valid_keys(connections, "remote_id")
    v2 = _valid_keys((c for c in connections if c.ike is IkeMode.V2), "local_id")

    def why(connection: Connection) -> tuple[str, str] | None:
        crossed = (
            connection.role is Role.INITIATOR
            and len(of_remote[connection.remote_id]) > 1
            and v2.get(connection.local_id, set()) - {_valid(connection.key)}
        )
        if not crossed:
            return None
        message = (
            f"{connection.local_id} has other keys for other targets, and {connection.remote_id} another"
            " key for another identity of this host: that target could pose as the others"
        )
        return message, "give the target one key for all identities of this host, or this host one identity"

    return _refuse(views, why)


def _refuse(
    views: Iterable[PortalView], why: Callable[[Connection], tuple[str, str] | None]
) -> list[PortalView]:
    """The views, without the connections for which there is a reason: what is wrong, and what to do."""
    return [
        _without_connection(view, *told) if view.connection and (told := why(view.connection)) else view
        for view in views
    ]


def _without_connection(view: PortalView, message: str, hint: str) -> PortalView:
    problem = Problem(code="ambiguous-key", message=message, hint=hint, portal=str(view.seat.portal))
    reasons = (*view.reasons, f"{message}: the portal stays closed")
    return dataclasses.replace(view, connection=None, problem=problem, reasons=reasons)


def _share_connections(views: list[PortalView]) -> list[PortalView]:
    """One connection for bindings of a portal that differ in nothing but the interface's name.

    The traps of two would have the same selectors, and charon can only hold one.
    """
    count = Counter(view.seat.portal for view in views if view.role is Role.INITIATOR)
    first: dict[Connection, Connection] = {}
    shared = []
    for view in views:
        connection = view.connection
        if connection is None or view.role is not Role.INITIATOR or count[view.seat.portal] == 1:
            shared.append(view)
            continue
        unnamed = dataclasses.replace(connection, name="", seat=Seat(view.seat.portal))
        shared.append(dataclasses.replace(view, connection=first.setdefault(unnamed, connection)))
    return shared


def _owners(connections: tuple[Connection, ...]) -> Iterator[tuple[Connection, tuple[Peer, ...]]]:
    """Each connection with the owners of its secret.

    Both ends' ids, so that nothing else in charon outranks it; but where one
    local id has several keys and the remote id only one, the remote id alone:
    an IKEv2 peer is believed with any key that matches either id, so one
    target's key would do for the others.
    """
    of_local, of_remote = _valid_keys(connections, "local_id"), _valid_keys(connections, "remote_id")
    for connection in connections:
        crowded = len(of_local[connection.local_id]) > 1
        alone = len(of_remote[connection.remote_id]) == 1
        yield connection, (connection.remote_id,) if crowded and alone else connection.pair


def _valid_keys(
    connections: Iterable[Connection], end: Literal["local_id", "remote_id"]
) -> dict[Peer, set[tuple[Secret, ...]]]:
    """The different keys under which each local (or remote) id is an end of a connection."""
    keys: dict[Peer, set[tuple[Secret, ...]]] = {}
    for connection in connections:
        keys.setdefault(getattr(connection, end), set()).add(_valid(connection.key))
    return keys


def _valid(key: Key) -> tuple[Secret, ...]:
    """The key, and the previous one while it is valid beside it."""
    return (key.secret, key.previous.secret) if key.previous else (key.secret,)


def _rotations(known: Mapping[Contest, bool], owned: _Owned) -> tuple[Rotation, ...]:
    """The owners with two valid keys, and which of the two goes first.

    An initiator shows the new key unless it has learned that the far end does
    not have it; a target the previous one, which all have in the beginning.
    """
    groups: dict[tuple[Peer, ...], list[Connection]] = {}
    for connection, owners in owned:
        groups.setdefault(owners, []).append(connection)
    rotations = []
    for owners, connections in groups.items():
        staged = min((c.key for c in connections if c.key.previous), key=lambda k: k.path, default=None)
        if staged and staged.previous:
            rotation = Rotation(
                owners=owners, secret=staged.secret, previous=staged.previous,
                keys=tuple(sorted({c.key.name for c in connections})),
                lagging=connections[0].role is Role.TARGET,
                connections=tuple(connections),
            )  # fmt: skip
            lagging = known.get(rotation.contest, rotation.lagging)
            rotations.append(dataclasses.replace(rotation, lagging=lagging))
    return tuple(rotations)


def _link_local_problems(records: Iterable[NodeRecord]) -> Iterable[Problem]:
    for record in records:
        if "%" in record.host:
            yield Problem(
                code="link-local",
                message=f"the link-local portal {record.host} cannot be protected",
                hint="give the target a global or unique local address",
                file=record.path,
            )


class Secrets:
    """One entry per pair of ids that is in use (two in a rotation), and one for each key that waits for a use.

    A key that no connection uses is loaded under its own id, so that charon
    holds it ready; but only if that id is no end of any of our connections
    and no other file has it. Otherwise an IKEv2 peer could prove itself with
    that key, since charon tries every key that matches either id.

    Remembers the entries: what would be equal is the very same.
    """

    def __init__(self) -> None:
        self._in_use = Same(_used_secrets)
        self._entries: dict[SecretEntry, SecretEntry] = {}
        self._waiting: dict[int, tuple[tuple[IdType, str], SecretEntry]] = {}

    def of(
        self, keys: tuple[Key, ...], owned: _Owned, rotations: tuple[Rotation, ...]
    ) -> tuple[SecretEntry, ...]:
        """Return the entries for these keys and connections."""
        used, ends = self._in_use.of(owned, rotations)
        self._entries = {entry: self._entries.get(entry, entry) for entry in used}
        waiting = [self._of_key(key) for key in keys if isinstance(key, PerIdKey)]
        self._waiting = {id(entry.owners[0]): (match, entry) for match, entry in waiting}
        count = Counter(match for match, _ in waiting)
        # nobody else has these owners, so there is nothing to unite them with
        alone = (entry for match, entry in waiting if count[match] == 1 and match not in ends)
        return (*self._entries.values(), *alone)

    def _of_key(self, key: PerIdKey) -> tuple[tuple[IdType, str], SecretEntry]:
        known = self._waiting.get(id(key.id))  # the very same id, since the entry keeps it alive
        if known and known[1].secret is key.secret and known[1].keys == (key.name,):
            return known
        return key.id.match_key, SecretEntry(owners=(key.id,), secret=key.secret, keys=(key.name,))


def _used_secrets(
    owned: _Owned, rotations: tuple[Rotation, ...]
) -> tuple[tuple[SecretEntry, ...], frozenset[tuple[IdType, str]]]:
    """The secrets of connections, and all ids at either end of one."""
    entries: dict[tuple[tuple[Peer, ...], Secret], SecretEntry] = {}

    def add(owners: tuple[Peer, ...], key: Key) -> None:
        at = (owners, key.secret)
        old = entries.get(at)
        names = tuple(sorted({key.name, *(old.keys if old else ())}))
        entries[at] = SecretEntry(owners=owners, secret=key.secret, keys=names)

    staged = {rotation.owners for rotation in rotations}
    for rotation in rotations:
        first, behind = rotation.in_order
        for secret, over in ((behind, None), (first, behind)):
            entries[rotation.owners, secret] = SecretEntry(
                owners=rotation.owners, secret=secret, keys=rotation.keys, over=over
            )
    ends = set()
    for connection, owners in owned:
        if owners not in staged:
            add(owners, connection.key)
        ends |= {
            end.match_key for end in (connection.local_id, connection.remote_id) if isinstance(end, IkeId)
        }
    return tuple(entries.values()), frozenset(ends)


def _warnings(views: tuple[PortalView, ...]) -> Iterable[Problem]:
    """Warnings about keys as such: aggressive mode, group keys in use."""
    used = {v.key_path: v for v in views if v.connection}
    for path, view in sorted(used.items()):
        key = view.connection.key if view.connection else None
        if isinstance(key, GroupKey):
            yield Problem(
                code="group-key-in-use",
                message="a group key is in use: whoever has it can pose as the target (RFC 3723, 5.8.3)",
                hint="give each initiator a key of its own",
                file=path,
                severity=Severity.WARNING,
            )
    for view in views:
        if view.connection and view.connection.ike is IkeMode.AGGRESSIVE:
            yield Problem(
                code="aggressive-mode",
                message="aggressive mode with a pre-shared key lets a listener guess the key offline",
                hint="use IKEv2 (leave out both mode flags) where the target can",
                file=view.policy or view.key_path,
                severity=Severity.WARNING,
            )
