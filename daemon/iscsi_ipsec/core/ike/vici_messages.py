"""Encodes secrets and connections as VICI messages, under names that change with their content.

VICI lists names only, never a secret's data. So a secret's id carries a keyed
digest of its owners and data, and a connection's only child carries one of
everything that was set: charon's list of names is then enough to know whether everything wanted is loaded,
also after a restart of either side.

Law: messages hold :class:`Secret` values unopened; only the VICI adapter
reveals them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from iscsi_ipsec.base.identity import IdType, IkeId, Peer
from iscsi_ipsec.base.policy import EspMode, IkeMode, Role
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.key_file import moment_text
from iscsi_ipsec.core.decide.desired import Connection, Rotation, SecretEntry

PREFIX = "iscsi-ipsec-"
"""The prefix of all our names in charon."""

Message = Mapping[str, "str | Secret | Sequence[str] | Message"]

IKE_REKEY_TIME = 4 * 3600
ESP_REKEY_TIME = 3600
DPD_DELAY = 10
DPD_TIMEOUT = 30
REPLAY_WINDOW = 128
"""Packets; charon's 32 drops reordered packets at iSCSI's rates."""

_PREFIXES = {IdType.ID_FQDN: ("fqdn:", "@", ""), IdType.ID_USER_FQDN: ("userfqdn:", "@@", "")}
_MAX_ENCODED = 255
"""``char buf[256]`` in vici_cred.c (5.9.8)."""

_KEY_DIGITS = 8

_REKEY_SPREAD = 600
_OVER_SPREAD = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSecret:
    """A secret ready for ``load-shared``; ``above``: the id of one that must be loaded before it.

    Of secrets that match equally well charon takes the one that was loaded
    last (mem_cred.c inserts first, get_shared takes the first of the best).
    """

    id: str
    entry: SecretEntry
    above: str = ""

    @property
    def owners(self) -> tuple[str, ...]:
        """Encoded on demand, like the message: of 10,000 secrets, few are ever sent again."""
        return tuple(map(_encode_owner, self.entry.owners))

    @property
    def message(self) -> Message:
        """The ``load-shared`` message."""
        return {"id": self.id, "type": "IKE", "data": self.entry.secret, "owners": list(self.owners)}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedConnection:
    """A connection ready for ``load-conn``; ``key_part`` begins the child's name as long as the key is the same.

    ``rotation`` is there while two keys are valid. ``ike_times`` are the IKE SA's ``rekey_time`` and ``over_time`` in seconds.
    """

    name: str
    child: str
    key_part: str
    connection: Connection
    reqid: int
    ike_times: tuple[int, int]
    rotation: EncodedRotation | None = None

    @property
    def message(self) -> Message:
        """The ``load-conn`` message, made when it is asked for."""
        rekey, over = self.ike_times
        ike = {**_ike_settings(self.connection), "rekey_time": f"{rekey}s", "over_time": f"{over}s"}
        return {self.name: {**ike, "children": {self.child: _child_settings(self.connection, self.reqid)}}}

    def with_other_times(self, turn: int) -> EncodedConnection:
        """The connection with another IKE lifetime, which changes with each ``turn``.

        charon begins a negotiation inside an IKE SA whose settings are equal (checkout_by_config), even if that
        is dead. Names do not depend on lifetimes, so charon's list shows this as the wanted version too.
        """
        rekey, over = self.ike_times
        base = self.connection.tuning.ike_rekey_time or IKE_REKEY_TIME
        spread = (rekey - base + 1 + turn % (_REKEY_SPREAD - 1)) % _REKEY_SPREAD
        return replace(self, ike_times=(base + spread, over))


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRotation:
    """Prefixes of the names of a connection's children while two keys are valid.

    Below ``staged`` this host showed the new key, or as a target accepted
    either; below ``previous`` only the previous key was used, below
    ``current`` only the new one (before or after the rotation).
    """

    staged: str
    current: str
    previous: str
    until: str

    @property
    def parts(self) -> frozenset[str]:
        """All that is valid during the rotation."""
        return frozenset({self.staged, self.current, self.previous})


def encode_id(identity: Peer) -> str:
    """The identity in the syntax that charon parses as exactly this type; a network matches its addresses.

    Addresses are bare (``ipv4:`` never matches on 5.9.8); the prefixes keep a
    name that looks like an address, or like a DN, a name (identification.c).
    What is longer than ``_MAX_ENCODED`` charon cuts off without a word where it
    reads a secret's owners, and the secret is then someone else's: long names get
    shorter prefixes. :meth:`IkeId.parse` refuses the few for which none is left.
    """
    if not isinstance(identity, IkeId):
        return str(identity)
    prefixes = _PREFIXES.get(identity.type, ("",))
    return next(prefix for prefix in prefixes if len(prefix + identity.text) <= _MAX_ENCODED) + identity.text


def _encode_owner(owner: Peer) -> str:
    """The owner of a secret as text. charon ignores case, so equal owners get one name, however a file writes them."""
    return encode_id(IkeId(owner.type, owner.folded) if isinstance(owner, IkeId) else owner)


def encode_secret(entry: SecretEntry, digest_key: bytes) -> EncodedSecret:
    """The ``load-shared`` message of an entry."""
    context = [b"secret", *(_encode_owner(owner).encode() for owner in entry.owners)]
    above = ""
    if entry.over is not None:
        # the order is part of the name: it can't be read back
        below = entry.over.keyed_digest(digest_key, *context)
        above, context = PREFIX + below, [*context, b"above", below.encode()]
    secret_id = PREFIX + entry.secret.keyed_digest(digest_key, *context)
    return EncodedSecret(id=secret_id, entry=entry, above=above)


def presented_ids(rotation: Rotation, digest_key: bytes) -> tuple[str, str]:
    """The id of the secret that charon uses first: if that is the new key, and if it is the previous one."""

    def id_of(first: Secret, behind: Secret) -> str:
        entry = SecretEntry(owners=rotation.owners, secret=first, keys=(), over=behind)
        return encode_secret(entry, digest_key).id

    new, old = rotation.secret, rotation.previous.secret
    return id_of(new, old), id_of(old, new)


def encode_connection(
    connection: Connection, reqid: int, digest_key: bytes, rotation: Rotation | None = None
) -> EncodedConnection:
    """The ``load-conn`` message of a connection; ``rotation``: the one its owners are in."""
    names = _encode_rotation(connection, digest_key, rotation) if rotation else None
    if names is None or rotation is None:
        key_part = _key_part(connection, digest_key, connection.key.secret)
    elif rotation.previous_key_first and connection.role is Role.INITIATOR:
        key_part = names.previous
    else:
        key_part = names.staged
    key = key_part[len(PREFIX) : -1]
    rekey = connection.tuning.ike_rekey_time or IKE_REKEY_TIME
    ike_digest = _digest(digest_key, {**_ike_settings(connection), "rekey_time": rekey})[:8]
    # charon reuses an IKE_SA whose settings are equal (checkout_by_config).
    # Lifetimes that follow the digests make a changed key a changed setting, so
    # that the new SA is negotiated beside the old one and not inside it.
    spread = int(key + ike_digest, 16)
    ike_times = (rekey + spread % _REKEY_SPREAD, rekey // 10 + spread // _REKEY_SPREAD % _OVER_SPREAD)
    return EncodedConnection(
        name=connection.name,
        child=f"{key_part}{ike_digest}-{_digest(digest_key, _child_settings(connection, reqid))[:8]}",
        key_part=key_part,
        connection=connection,
        reqid=reqid,
        ike_times=ike_times,
        rotation=names,
    )


def _encode_rotation(connection: Connection, digest_key: bytes, rotation: Rotation) -> EncodedRotation:
    new, old = rotation.secret, rotation.previous.secret
    return EncodedRotation(
        staged=_key_part(connection, digest_key, new, beside=old),
        current=_key_part(connection, digest_key, new),
        previous=_key_part(connection, digest_key, old),
        until=moment_text(rotation.previous.until),
    )


def key_part_of(child: str) -> str:
    """The prefix of the names of all children under the same key, from the name of one."""
    return child[: len(PREFIX) + _KEY_DIGITS + 1]


def _key_part(
    connection: Connection, digest_key: bytes, secret: Secret, *, beside: Secret | None = None
) -> str:
    """The prefix of a child's name under this key; ``beside``: another key that is accepted too."""
    context = [b"key of", connection.name.encode()]
    if beside is not None:
        context += [b"beside", beside.keyed_digest(digest_key, *context).encode()]
    return f"{PREFIX}{secret.keyed_digest(digest_key, *context)[:_KEY_DIGITS]}-"


def _ike_settings(connection: Connection) -> dict[str, str | Sequence[str] | Message]:
    tuning = connection.tuning
    delay = DPD_DELAY if tuning.dpd_delay is None else tuning.dpd_delay
    settings: dict[str, str | Sequence[str] | Message] = {
        "version": "2" if connection.ike is IkeMode.V2 else "1",
        "local_addrs": [str(connection.local_address)],
        "remote_addrs": [str(connection.remote_address) if connection.remote_address else "%any"],
        "proposals": list(connection.ike_proposals),
        "dpd_delay": f"{delay}s",
        # no INITIAL_CONTACT, sent or obeyed: it ends the SAs of the same identities before their
        # successors are up, so other paths lose theirs and a far end without a guard sends unencrypted data
        "unique": "never",
        "local": {"auth": "psk", "id": encode_id(connection.local_id)},
        "remote": {"auth": "psk", "id": encode_id(connection.remote_id)},
    }
    if connection.ike is IkeMode.V2:
        # addresses are pinned by the policy, and MOBIKE would move IKE to port 4500 for nothing
        settings["mobike"] = "no"
    else:
        settings["aggressive"] = "yes" if connection.ike is IkeMode.AGGRESSIVE else "no"
        settings["dpd_timeout"] = f"{tuning.dpd_timeout or DPD_TIMEOUT}s"
    return settings


def _child_settings(connection: Connection, reqid: int) -> Message:
    initiator = connection.role is Role.INITIATOR
    # kernel-libipsec raises no acquires: there the daemon itself initiates
    trap = "trap" if initiator and not connection.user_space_esp else "none"
    tuning = connection.tuning
    window = REPLAY_WINDOW if tuning.replay_window is None else tuning.replay_window
    return {
        "reqid": str(reqid),
        "mode": "tunnel" if connection.esp is EspMode.TUNNEL else "transport",
        "local_ts": [connection.local_ts],
        "remote_ts": [connection.remote_ts],
        "esp_proposals": list(connection.esp_proposals),
        "rekey_time": f"{tuning.esp_rekey_time or ESP_REKEY_TIME}s",
        "replay_window": str(window),
        "start_action": trap,
        "close_action": trap,
        "dpd_action": trap if trap == "trap" else "clear",
    }


def _digest(key: bytes, value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
