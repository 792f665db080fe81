"""Opens the SQLite file of the store, upgrades it, runs statements, and repairs it after damage.

Law: knows the tables, but not the meaning of their rows.

Rows of deleted keys are overwritten (``secure_delete``). The journal is
rolled back, not ahead (``TRUNCATE``): WAL would keep old pages, keys among
them, beside the database for as long as it likes, and needs shared memory;
``TRUNCATE`` empties one file that has the database's own mode, and saves the
folder sync that ``DELETE`` costs at each commit.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sqlite3
import stat
from collections.abc import Callable, Sequence
from typing import TypeVar

from iscsi_ipsec.base.errors import ConfigError, StateUnavailable
from iscsi_ipsec.base.problem import Problem, Severity

SCHEMA_VERSION = 4
"""A newer schema may only add: an older program names its columns and goes on working."""
UNREADABLE_VERSION = 100
"""The first number for a schema that does more than add: such a database is refused, and not changed."""

_BUSY_SECONDS = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS last_good (
    path TEXT PRIMARY KEY, kind TEXT NOT NULL, raw BLOB NOT NULL, key BLOB, signature TEXT NOT NULL,
    previous BLOB
);
CREATE TABLE IF NOT EXISTS managed (
    portal TEXT PRIMARY KEY, role TEXT NOT NULL, since INTEGER NOT NULL, why TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS managed_roles (
    portal TEXT NOT NULL, role TEXT NOT NULL, since INTEGER NOT NULL, why TEXT NOT NULL,
    inherited INTEGER NOT NULL, PRIMARY KEY (portal, role)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS names (name TEXT PRIMARY KEY, addresses TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reqids (connection TEXT PRIMARY KEY, reqid INTEGER NOT NULL UNIQUE) WITHOUT ROWID;
"""
# an older program knows a portal in one role, and may have run since: what it managed is taken over at each start
_TAKE_OVER = """
INSERT OR IGNORE INTO managed_roles (portal, role, since, why, inherited)
    SELECT portal, role, since, why, 1 FROM managed
"""
_NOT_TAKEN_OVER = """
SELECT portal, role FROM managed EXCEPT SELECT portal, role FROM managed_roles LIMIT 1
"""
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
T = TypeVar("T")


class Database:
    """SQLite in the state folder, begun anew where it is damaged. One thread only.

    ``problems`` says what was found damaged and begun anew since the start;
    ``renewals`` counts that, so that callers can store the lost rows again.
    ``fresh``: there was no database, or an empty or a damaged one.
    Every method raises :class:`StateUnavailable` when the disk is full,
    read-only or failing; what was stored before is then unchanged.
    """

    def __init__(self, path: str, *, read_only: bool = False, or_memory: bool = False) -> None:
        """Open or make the database at ``path`` (0600, its folder 0700).

        ``read_only``: creates and repairs nothing, for commands that only read. ``or_memory``: where that fails (a disk
        that is read-only or full, a file of another owner), begin in memory with what can be read of it; each
        :meth:`repair` tries again and raises as long as it fails.
        Raises :class:`ConfigError` for a folder that others may write.
        """
        self.path = path
        self._problems: tuple[Problem, ...] = ()
        self.renewals = 0
        self.fresh = False
        self.read_only = read_only
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self.has_previous = self.has_roles = True
        self.in_memory: sqlite3.Connection | None = None
        self._memory_holds_all = False
        try:
            if not read_only:
                self._make_folder()
            self._open_or_begin_anew()
        except (OSError, sqlite3.Error) as err:
            self.close()
            if read_only or not or_memory:
                raise StateUnavailable(path, why(err)) from err
            self._begin_in_memory()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems of the database; they end when the admin has deleted the damaged copy."""
        return self._problems if self._problems and os.path.exists(f"{self.path}.broken") else ()

    def close(self) -> None:
        """Close the database; the object cannot be used after that."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def repair(self) -> None:
        """Begin anew if the database was damaged meanwhile; put it back if it was removed or replaced.

        Costs a ``stat`` and a look at the schema, so it can be called in every pass.
        """
        if self.read_only:
            return
        if self.in_memory is not None:
            self._move_to_disk(self.in_memory)
        self.run(lambda db: db.execute("SELECT 1 FROM managed, last_good LIMIT 0").fetchone())
        if _identity(self.path) != self._identity:
            self._put_back()

    def _begin_in_memory(self) -> None:
        """Work in memory, with all rows that the disk still gives."""
        self._connection = self.in_memory = sqlite3.connect(":memory:", isolation_level=None)
        with contextlib.suppress(OSError, sqlite3.Error):
            with contextlib.closing(_open_to_read(self.path)) as on_disk:
                _refuse_newer(on_disk)
                on_disk.backup(self.in_memory)
            self._memory_holds_all = True
        self._note_columns(self.in_memory)
        self._upgrade(self.in_memory)
        self.fresh = not self._memory_holds_all

    def _move_to_disk(self, memory: sqlite3.Connection) -> None:
        """Store the rows kept in memory, if the disk can be written now: they replace rows that were read from it, and are added to rows that were not."""
        try:
            self._make_folder()
            on_disk = self._open()
            if self._memory_holds_all:
                memory.backup(on_disk)
            else:
                _copy_rows(memory, on_disk)
        except (OSError, ConfigError, sqlite3.Error) as err:
            if self._connection is not memory:
                self.close()
                self._connection = memory
            raise StateUnavailable(self.path, why(err)) from err
        self.in_memory = None
        memory.close()
        self.renewals += 1

    def _put_back(self) -> None:
        """The database file was deleted, but is still open: move its content to a new one."""
        old = self._connection
        assert old is not None
        try:
            self._make_folder()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            self._connection = None
            old.backup(self._open())
        except (OSError, ConfigError, sqlite3.Error) as err:
            if self._connection is not old:
                self.close()
                self._connection = old
            raise StateUnavailable(self.path, why(err)) from err
        old.close()

    def _make_folder(self) -> None:
        folder = os.path.dirname(self.path) or "."
        os.makedirs(folder, mode=0o700, exist_ok=True)
        st = os.stat(folder)
        if st.st_uid not in (0, os.geteuid()):
            raise _bad_folder(folder, f"the state folder belongs to user {st.st_uid}", "chown root:")
        if st.st_mode & 0o022:
            raise _bad_folder(folder, "other users may write to the state folder", "chmod 700")

    def _open_or_begin_anew(self) -> None:
        try:
            self._open()
        except sqlite3.DatabaseError as err:
            if not _is_damage(err) or self.read_only:
                raise
            self._move_aside()
            self._open()

    def _open(self) -> sqlite3.Connection:
        if not self.read_only:
            # made here, so that it has its mode before SQLite writes the first byte
            fd = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
            )
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise OSError("not a regular file")
                os.fchmod(fd, 0o600)
                st = os.fstat(fd)
                self._identity = (st.st_dev, st.st_ino)
            finally:
                os.close(fd)
        elif not os.path.exists(self.path):
            raise OSError("no such file")
        mode = "ro" if self.read_only else "rw"
        db = sqlite3.connect(
            f"file:{_quoted(self.path)}?mode={mode}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
        )
        self._connection = db
        _refuse_newer(db)
        db.execute("PRAGMA temp_store = MEMORY")  # no spill of keys into /var/tmp
        db.execute("PRAGMA cache_size = -256")  # KiB; thousands of rows are written in order, and read once
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != ("ok",):
            damaged = sqlite3.DatabaseError("quick_check failed")
            damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damaged
        self._note_columns(db)
        if self.read_only:
            return db
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA journal_mode = TRUNCATE")
        db.execute("PRAGMA synchronous = FULL")
        self._upgrade(db)
        return db

    def _note_columns(self, db: sqlite3.Connection) -> None:
        """The columns of the tables, which an older program may have made."""
        columns = {row[1] for row in db.execute("PRAGMA table_info(last_good)")}
        self.has_previous = not columns or "previous" in columns
        self.has_roles = bool(db.execute("PRAGMA table_info(managed_roles)").fetchone())

    def _upgrade(self, db: sqlite3.Connection) -> None:
        """Make the tables, or bring those of an older program up to date."""
        (version,) = db.execute("PRAGMA user_version").fetchone()
        self.fresh = version == 0
        if version < SCHEMA_VERSION or not self.has_roles:
            more = "" if self.has_previous else "ALTER TABLE last_good ADD COLUMN previous BLOB;"
            db.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} {more} PRAGMA user_version = {max(version, SCHEMA_VERSION)}; COMMIT;"
            )
            self.has_previous = self.has_roles = True
        if db.execute(_NOT_TAKEN_OVER).fetchone():
            db.execute(_TAKE_OVER)

    def _move_aside(self) -> None:
        self.close()
        self.renewals += 1
        # a journal left behind belongs to the damaged file and must not be rolled into the new one
        for suffix in ("", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path + suffix, f"{self.path}.broken{suffix}")
        self._problems = (
            Problem(
                code="state-damaged",
                file=self.path,
                message=f"the state database was damaged; kept as {self.path}.broken, a new one was made: the last good"
                " content of broken files is forgotten, portals that were held closed stay closed",
                hint=f"look above for portals that no file covers, then: rm {shlex.quote(self.path)}.broken (it holds keys)",
                severity=Severity.ERROR,
            ),
        )

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work``; when the file turns out damaged, begin anew and run it once more."""
        for last in (False, True):
            if self._connection is None:
                raise StateUnavailable(self.path, "closed")
            try:
                return work(self._connection)
            except sqlite3.Error as err:
                if last or self.read_only or not _is_damage(err):
                    raise StateUnavailable(self.path, why(err)) from err
                try:
                    self._move_aside()
                    self._open()
                except (OSError, sqlite3.Error) as again:
                    raise StateUnavailable(self.path, why(again)) from again
        raise AssertionError("unreachable")

    def write(self, sql: str, rows: Sequence[tuple[object, ...]], also: str = "", *, first: str = "") -> None:
        """Run the statements with each of the rows, in one transaction."""
        if not rows and not first:
            return

        def work(db: sqlite3.Connection) -> None:
            db.execute("BEGIN IMMEDIATE")
            try:
                if first:
                    db.execute(first)
                for statement in (sql, also) if also else (sql,):
                    db.executemany(statement, rows)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # a full disk may have rolled back already
                    db.execute("ROLLBACK")
                raise
            # pages of thousands of keys, which are not read again before the next start
            db.execute("PRAGMA shrink_memory")

        self.run(work)


def _refuse_newer(db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version >= UNREADABLE_VERSION:
        raise OSError(
            f"a newer version of iscsi-ipsecd wrote it, in a form ({version}) that this one cannot read:"
            " install that version again, or move the file away"
        )


def _open_to_read(path: str) -> sqlite3.Connection:
    """A database that is only read, also where SQLite cannot make its lock or journal beside it."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise OSError("not a regular file")
    return sqlite3.connect(f"file:{_quoted(path)}?mode=ro&immutable=1", uri=True, isolation_level=None)


def _copy_rows(source: sqlite3.Connection, to: sqlite3.Connection) -> None:
    """Put all rows of one database into another of the same tables."""
    to.execute("BEGIN IMMEDIATE")
    for (table,) in source.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        for row in source.execute(f"SELECT * FROM {table}"):  # noqa: S608  # nosec B608  # names of our own schema
            marks = ", ".join("?" * len(row))
            to.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", row)  # noqa: S608  # nosec B608
    to.execute("COMMIT")


def _quoted(path: str) -> str:
    """An absolute path as SQLite's URIs have it."""
    return os.path.abspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _bad_folder(folder: str, message: str, remedy: str) -> ConfigError:
    hint = f"{remedy} {shlex.quote(folder)}"
    return ConfigError((Problem(code="bad-folder", file=folder, message=message, hint=hint),))


def _is_damage(err: BaseException) -> bool:
    code = getattr(err, "sqlite_errorcode", 0)
    # the low byte is the primary code of an extended one; a file cut to nothing is a database without tables
    return (code & 0xFF) in _DAMAGED or "no such table" in str(err)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        st = os.stat(path)
    except OSError:
        return None
    return (st.st_dev, st.st_ino)


def why(err: Exception) -> str:
    if isinstance(err, OSError):
        return err.strerror or str(err)
    return str(err)
