"""Assigns each secret its owner identities in charon; loads unused keys ready for use.

Law: pure. charon ranks the match on the other end's id before one's own (get_shared in
credential_manager.c) and an IKEv2 peer is believed with any key that matches either id; so no key is loaded
under an id for which charon would accept it in place of the chosen one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from iscsi_ipsec.base.identity import IkeId, Peer
from iscsi_ipsec.base.keys import Key, PerIdKey
from iscsi_ipsec.base.memo import Memo
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.decide.desired import Connection, Rotation, RotationId, SecretEntry

Owned = tuple[tuple[Connection, tuple[Peer, ...]], ...]
"""Connections with the owners of their secrets."""


def with_owners(connections: tuple[Connection, ...]) -> Iterator[tuple[Connection, tuple[Peer, ...]]]:
    """Return each connection with the owners of its secret.

    Both ends' ids, so that nothing else in charon outranks it; but where one
    local id has several keys and the remote id only one, the remote id alone:
    an IKEv2 peer is believed with any key that matches either id, so one
    target's key would do for the others.
    """
    of_local, of_remote = valid_keys(connections, "local_id"), valid_keys(connections, "remote_id")
    for connection in connections:
        crowded = len(of_local[connection.local_id]) > 1
        alone = len(of_remote[connection.remote_id]) == 1
        yield connection, (connection.remote_id,) if crowded and alone else connection.pair


def valid_keys(
    connections: Iterable[Connection], end: Literal["local_id", "remote_id"]
) -> dict[Peer, set[tuple[Secret, ...]]]:
    """For each local (or remote) id the different keys of its connections."""
    keys: dict[Peer, set[tuple[Secret, ...]]] = {}
    for connection in connections:
        keys.setdefault(getattr(connection, end), set()).add(accepted_secrets(connection.key))
    return keys


def accepted_secrets(key: Key) -> tuple[Secret, ...]:
    """The key, and the previous one while it is valid beside it."""
    return (key.secret, key.previous.secret) if key.previous else (key.secret,)


def rotations_of(known: Mapping[RotationId, bool], owned: Owned) -> tuple[Rotation, ...]:
    """The owners with two valid keys, and which of the two takes precedence.

    An initiator presents the new key unless it has learned that the far end does not have it; a target
    presents the previous one, which all initiators have at first.
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
                previous_key_first=connections[0].role is Role.TARGET,
                connections=tuple(connections),
            )  # fmt: skip
            previous_key_first = known.get(rotation.rotation_id, rotation.previous_key_first)
            rotations.append(dataclasses.replace(rotation, previous_key_first=previous_key_first))
    return tuple(rotations)


class Secrets:
    """One entry per pair of ids that is in use (two in a rotation), and one for each key that is not used yet.

    A key that no connection uses is loaded under its own id, so that charon
    holds it ready; but only if that id is no end of any of our connections
    and no other file has it. Otherwise an IKEv2 peer could prove itself with
    that key, since charon tries every key that matches either id.

    Remembers the entries, and returns the same objects for those that did not change.
    """

    def __init__(self) -> None:
        self._in_use = Memo(self._used)
        self._entries: dict[SecretEntry, SecretEntry] = {}
        self._waiting: tuple[SecretEntry, ...] = ()

    def entries(
        self, keys: tuple[Key, ...], owned: Owned, rotations: tuple[Rotation, ...]
    ) -> tuple[SecretEntry, ...]:
        """Return the entries for these keys and connections."""
        used, ends = self._in_use(owned, rotations)
        known = {entry.keys: entry for entry in self._waiting}
        own = tuple(key for key in keys if isinstance(key, PerIdKey))
        self._waiting = tuple(_waiting(key, known) for key in own)
        count = Counter(key.id for key in own)
        # nobody else has these owners, so there is nothing to unite them with
        alone = (
            entry
            for key, entry in zip(own, self._waiting, strict=True)
            if count[key.id] == 1 and key.id not in ends
        )
        return (*used, *alone)

    def _used(
        self, owned: Owned, rotations: tuple[Rotation, ...]
    ) -> tuple[tuple[SecretEntry, ...], frozenset[IkeId]]:
        entries, ends = _used_secrets(owned, rotations)
        self._entries = {entry: self._entries.get(entry, entry) for entry in entries}
        return tuple(self._entries.values()), ends


def _waiting(key: PerIdKey, known: Mapping[tuple[str, ...], SecretEntry]) -> SecretEntry:
    """A key's entry under its own id; ``known`` are those there were, by their key's name."""
    entry = known.get((key.name,))
    if entry and (entry.owners, entry.secret) == ((key.id,), key.secret):  # tuples compare identities first
        return entry
    return SecretEntry(owners=(key.id,), secret=key.secret, keys=(key.name,))


def _used_secrets(
    owned: Owned, rotations: tuple[Rotation, ...]
) -> tuple[tuple[SecretEntry, ...], frozenset[IkeId]]:
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
    ends: set[IkeId] = set()
    for connection, owners in owned:
        if owners not in staged:
            add(owners, connection.key)
        ends |= {end for end in (connection.local_id, connection.remote_id) if isinstance(end, IkeId)}
    return tuple(entries.values()), frozenset(ends)
