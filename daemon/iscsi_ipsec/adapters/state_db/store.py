"""The tables of the store: last good files, managed portals, addresses of names, reqids.

Law: rows in, values out. What to keep, and when a portal is released, is the caller's decision.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from iscsi_ipsec.adapters.state_db.database import Database, why
from iscsi_ipsec.adapters.state_db.digest_key import DIGEST_KEY_BYTES, make_digest_key, read_digest_key
from iscsi_ipsec.base.addresses import Address, parse_address
from iscsi_ipsec.base.errors import StateUnavailable
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.portal import Portal, parse_portal
from iscsi_ipsec.base.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class LastGood:
    """A file that parsed: its whole text, and the bytes of the key files it named, if any.

    ``kind`` is ``psk``, ``portal`` or ``settings``; ``signature`` is the
    :attr:`~iscsi_ipsec.adapters.files.FileStat.signature` it had.
    """

    path: str
    kind: str
    raw: Secret
    key: Secret | None
    signature: str
    previous: Secret | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedRecord:
    """A portal that was managed: since when (unix time, seconds) and by which file then.

    ``inherited``: by a version in which a key without ``portals`` managed every portal, and
    no file has covered it since.
    """

    portal: Portal
    role: Role
    since: int
    why: str
    inherited: bool = False


class Store(Database):
    """The daemon's memory. Every method raises :class:`StateUnavailable` as those of the database do."""

    _digest_key: bytes | None = None

    # --- last good files ---------------------------------------------------

    def all_last_good(self) -> Mapping[str, LastGood]:
        """Every stored file by its path."""
        rows = self.run(lambda db: db.execute(self._select()).fetchall())
        return MappingProxyType({row[0]: _last_good(row) for row in rows})

    def put_last_good(self, items: Iterable[LastGood]) -> None:
        """Store or replace the items, all or none. An item that is stored already costs no write."""
        rows = [
            (i.path, i.kind, i.raw.reveal(), _bytes(i.key), i.signature, _bytes(i.previous)) for i in items
        ]
        # SQLite keeps a page clean whose row is overwritten by an equal one (btree.c, btreeOverwriteContent),
        # and a commit without dirty pages touches no disk
        self.write(
            "INSERT INTO last_good (path, kind, raw, key, signature, previous) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (path) DO UPDATE SET"
            " kind = excluded.kind, raw = excluded.raw, key = excluded.key, signature = excluded.signature,"
            " previous = excluded.previous",
            rows,
        )

    def _select(self) -> str:
        if self.has_previous:
            return "SELECT path, kind, raw, key, signature, previous FROM last_good"
        return "SELECT path, kind, raw, key, signature, NULL FROM last_good"  # read only, of an older program

    def drop_last_good(self, paths: Iterable[str]) -> None:
        """Forget the files; their bytes in the database are overwritten."""
        self.write("DELETE FROM last_good WHERE path = ?", [(path,) for path in paths])

    # --- managed portals ---------------------------------------------------

    def managed(self) -> Mapping[tuple[Portal, Role], ManagedRecord]:
        """Every portal that was managed and not dropped since, for each role of this host."""
        sql = "SELECT portal, role, since, why, inherited FROM managed_roles"
        if not self.has_roles:  # read only, of an older program
            sql = "SELECT portal, role, since, why, 1 FROM managed"
        rows = self.run(lambda db: db.execute(sql).fetchall())
        records = [
            ManagedRecord(portal=parse_portal(p), role=Role(r), since=s, why=w, inherited=bool(i))
            for p, r, s, w, i in rows
        ]
        return MappingProxyType({(record.portal, record.role): record for record in records})

    def set_managed(self, records: Iterable[ManagedRecord]) -> None:
        """Store or replace the records, all or none. Others stay: only :meth:`drop_managed` forgets."""
        rows = [(str(r.portal), r.role.value, r.since, r.why, int(r.inherited)) for r in records]
        self.write(
            "INSERT INTO managed_roles (portal, role, since, why, inherited) VALUES (?1, ?2, ?3, ?4, ?5)"
            " ON CONFLICT (portal, role) DO UPDATE SET"
            " since = excluded.since, why = excluded.why, inherited = excluded.inherited",
            rows,
            # for an older program, should it come back
            "INSERT OR IGNORE INTO managed (portal, role, since, why) SELECT ?1, ?2, ?3, ?4 WHERE ?5 >= 0",
        )

    def drop_managed(self, portals: Iterable[Portal]) -> None:
        """Forget the portals in both roles."""
        rows = [(str(portal),) for portal in portals]
        self.write("DELETE FROM managed_roles WHERE portal = ?", rows, "DELETE FROM managed WHERE portal = ?")

    # --- names -------------------------------------------------------------

    def names(self) -> Mapping[str, tuple[Address, ...]]:
        """Every stored name with the addresses it had last."""
        rows = self.run(lambda db: db.execute("SELECT name, addresses FROM names").fetchall())
        # 0.1.0 kept an address with a zone if it was answered one
        return MappingProxyType(
            {name: tuple(filter(None, map(parse_address, found.split()))) for name, found in rows}
        )

    def set_names(self, names: Mapping[str, tuple[Address, ...]]) -> None:
        """Store these names, and forget all others."""
        rows = [(name, " ".join(map(str, addresses))) for name, addresses in names.items()]
        self.write("INSERT INTO names (name, addresses) VALUES (?, ?)", rows, first="DELETE FROM names")

    # --- reqids ------------------------------------------------------------

    def reqids(self) -> Mapping[str, int]:
        """Every connection's reqid in the kernel, those of connections that are gone included."""
        try:
            rows = self.run(lambda db: db.execute("SELECT connection, reqid FROM reqids").fetchall())
        except StateUnavailable:
            if self.read_only:  # of an older program, perhaps
                return {}
            raise
        return MappingProxyType(dict(rows))

    def set_reqids(self, reqids: Mapping[str, int]) -> None:
        """Store or replace them, all or none; others stay, but for one that has the same reqid."""
        self.write("INSERT OR REPLACE INTO reqids (connection, reqid) VALUES (?, ?)", list(reqids.items()))

    # --- digest key --------------------------------------------------------

    def digest_key(self) -> bytes:
        """The key of names in charon, made once; where the disk cannot be written, one for this run only."""
        path = os.path.join(os.path.dirname(self.path), "digest.key")
        try:
            if key := read_digest_key(path):
                return key
            if self.read_only:
                raise StateUnavailable(path, "no digest key has been made yet")
            return make_digest_key(path)
        except OSError as err:
            if self.in_memory is not None:  # the next start makes another, and loads everything again
                self._digest_key = self._digest_key or secrets.token_bytes(DIGEST_KEY_BYTES)
                return self._digest_key
            raise StateUnavailable(path, why(err)) from err


def _last_good(row: tuple[str, str, bytes, bytes | None, str, bytes | None]) -> LastGood:
    path, kind, raw, key, signature, previous = row
    return LastGood(
        path=path,
        kind=kind,
        raw=Secret(raw),
        key=_secret(key),
        signature=signature,
        previous=_secret(previous),
    )


def _secret(data: bytes | None) -> Secret | None:
    return None if data is None else Secret(data)


def _bytes(secret: Secret | None) -> bytes | None:
    return None if secret is None else secret.reveal()
