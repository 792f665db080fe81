"""The state database: its content, its access rights, and its recovery from damage."""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import iscsi_ipsec
from iscsi_ipsec.adapters.files import FileStat
from iscsi_ipsec.adapters.state_db import UNREADABLE_VERSION, LastGood, ManagedRecord, Store, database
from iscsi_ipsec.base.errors import ConfigError, StateUnavailable
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.secret import Secret

PACKAGES = str(Path(iscsi_ipsec.__file__).parents[1])


def good(path: str = "/etc/a.toml", raw: bytes = b"text", key: bytes | None = None) -> LastGood:
    return LastGood(
        path=path, kind="psk", raw=Secret(raw), key=None if key is None else Secret(key), signature="1:2:3:4"
    )


def managed(address: str = "10.0.0.20", **changes: object) -> ManagedRecord:
    fields = {"role": Role.INITIATOR, "since": 1_700_000_000, "why": "db1.toml"} | changes
    return ManagedRecord(portal=Portal(ipaddress.ip_address(address)), **fields)  # type: ignore[arg-type]  # test data


@pytest.fixture
def path(tmp_path: Path) -> str:
    return f"{tmp_path}/state/state.db"


@pytest.fixture
def store(path: str) -> Iterator[Store]:
    opened = Store(path)
    yield opened
    opened.close()


def mode(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_the_database_and_its_folder_are_the_owners_alone_whatever_the_umask(path: str) -> None:
    old = os.umask(0)
    try:
        store = Store(path)
        store.put_last_good([good()])
        store.digest_key()
    finally:
        os.umask(old)
    folder = os.path.dirname(path)
    assert mode(folder) == 0o700
    assert {name: mode(f"{folder}/{name}") for name in os.listdir(folder)} == dict.fromkeys(
        os.listdir(folder), 0o600
    )
    store.close()


def test_a_database_that_was_readable_by_others_is_closed_to_them(path: str, store: Store) -> None:
    os.chmod(path, 0o644)
    Store(path).close()
    assert mode(path) == 0o600


def test_a_state_folder_that_others_may_write_is_refused_with_the_command(path: str, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(ConfigError) as caught:
        Store(path)
    assert caught.value.problems[0].hint == f"chmod 700 {tmp_path}/state"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away")
def test_a_state_folder_of_somebody_else_is_refused_with_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "his state"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, -1)
    with pytest.raises(ConfigError) as caught:
        Store(str(folder / "state.db"))
    assert caught.value.problems[0].hint == f"chown root: '{folder}'"
    assert os.listdir(folder) == []


def test_last_good_files_survive_a_restart(path: str, store: Store) -> None:
    one, two = good("/etc/a.toml", b"\0\xff", b"key\n"), good("/etc/b.toml", b"", None)
    store.put_last_good([one, two])
    store.close()
    again = Store(path)
    assert again.all_last_good() == {"/etc/a.toml": one, "/etc/b.toml": two}
    assert again.all_last_good().get("/etc/a.toml") == one
    assert again.all_last_good().get("/etc/none.toml") is None
    again.close()


def test_an_empty_key_is_distinguished_from_none(store: Store) -> None:
    store.put_last_good([good(key=b"")])
    kept = store.all_last_good().get("/etc/a.toml")
    assert kept is not None
    assert kept.key == Secret(b"")


def test_a_changed_file_replaces_and_a_dropped_one_is_forgotten(store: Store) -> None:
    store.put_last_good([good(raw=b"old"), good("/etc/b.toml")])
    store.put_last_good([good(raw=b"new")])
    store.drop_last_good(["/etc/b.toml", "/etc/never-there.toml"])
    assert store.all_last_good() == {"/etc/a.toml": good(raw=b"new")}


def test_a_stored_row_is_not_written_again(path: str, store: Store) -> None:
    files = [good(key=b"k"), good("/etc/b.toml", raw=b"x" * 60_000)]
    store.put_last_good(files)
    store.set_managed([managed()])
    os.utime(path, ns=(0, 0))
    store.put_last_good(files)
    store.set_managed([managed()])
    assert os.stat(path).st_mtime_ns == 0
    store.set_managed([managed(why="other.toml")])
    assert os.stat(path).st_mtime_ns != 0


@pytest.mark.parametrize("end", ["replaced", "dropped"])
def test_an_old_key_is_not_left_in_any_file(path: str, store: Store, end: str) -> None:
    store.put_last_good([good(raw=b"old-secret-" * 1000, key=b"old-secret-key")])
    if end == "replaced":
        store.put_last_good([good(raw=b"new")])
    else:
        store.drop_last_good(["/etc/a.toml"])
    for name in os.listdir(os.path.dirname(path)):
        assert b"old-secret" not in Path(os.path.dirname(path), name).read_bytes(), name


def test_ten_thousand_files_are_stored_all_or_none(store: Store) -> None:
    begin = time.monotonic()
    store.put_last_good(good(f"/etc/{n}.toml", b"x" * 200) for n in range(10_000))
    assert time.monotonic() - begin < 10
    assert len(store.all_last_good()) == 10_000

    def breaks_off() -> Iterator[LastGood]:
        yield good("/etc/new.toml")
        raise KeyError

    with pytest.raises(KeyError):
        store.put_last_good(breaks_off())
    assert store.all_last_good().get("/etc/new.toml") is None


def test_no_key_shows_in_a_repr(store: Store) -> None:
    store.put_last_good([good(raw=b"topsecret", key=b"topsecret")])
    assert "topsecret" not in repr(store.all_last_good()) + repr(store)


def test_managed_portals_survive_a_restart(path: str, store: Store) -> None:
    records = [managed(), managed("fd00::20", role=Role.TARGET, why="")]
    store.set_managed(records)
    store.close()
    again = Store(path)
    assert again.managed() == {(record.portal, record.role): record for record in records}
    again.close()


def test_a_portal_is_remembered_in_each_role_and_dropped_in_both(path: str, store: Store) -> None:
    both = [managed(role=Role.INITIATOR), managed(role=Role.TARGET, why="other.toml")]
    for record in both:
        store.set_managed([record])
    store.close()
    again = Store(path)
    assert again.managed() == {(record.portal, record.role): record for record in both}
    again.drop_managed([both[0].portal])
    assert not again.managed()
    again.close()


def old_database(path: str, version: int) -> None:
    """A database as an older release left it."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            "CREATE TABLE last_good (path TEXT PRIMARY KEY, kind TEXT NOT NULL, raw BLOB NOT NULL, key BLOB,"
            " signature TEXT NOT NULL, previous BLOB);"
            "CREATE TABLE managed (portal TEXT PRIMARY KEY, role TEXT NOT NULL, since INTEGER NOT NULL,"
            " why TEXT NOT NULL) WITHOUT ROWID;"
            "INSERT INTO managed VALUES ('10.0.0.20:3260', 'initiator', 1, '/etc/iscsi-ipsec/psk.d/group.toml');"
            "INSERT INTO managed VALUES ('10.0.0.250:3260', 'target', 2, '/etc/iscsi-ipsec/portal.d/us.toml');"
        )
        db.execute(f"PRAGMA user_version = {version}")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_portals_of_an_older_release_are_inherited_with_their_role(path: str, version: int) -> None:
    old_database(path, version)
    expected = {
        "10.0.0.20:3260": (Role.INITIATOR, True),
        "10.0.0.250:3260": (Role.TARGET, True),
    }
    reader = Store(path, read_only=True)
    assert {str(p): (role, r.inherited) for (p, role), r in reader.managed().items()} == expected
    reader.close()
    store = Store(path)
    assert {str(p): (role, r.inherited) for (p, role), r in store.managed().items()} == expected
    covered = [dataclasses.replace(record, inherited=False) for record in store.managed().values()]
    store.set_managed(covered)
    store.close()
    again = Store(path)
    assert not any(record.inherited for record in again.managed().values())
    again.close()


def test_an_older_release_that_comes_back_knows_the_portals_and_what_it_adds_is_taken_over(
    path: str, store: Store
) -> None:
    store.set_managed([managed(), managed(role=Role.TARGET)])
    store.close()
    with closing(sqlite3.connect(path)) as older:
        assert older.execute("SELECT portal, role FROM managed").fetchall() == [
            ("10.0.0.20:3260", "initiator")
        ]
        older.execute("INSERT INTO managed VALUES ('10.0.0.21:3260', 'initiator', 1, 'db1.toml')")
        older.commit()
    again = Store(path)
    assert {(str(p), role, r.inherited) for (p, role), r in again.managed().items()} == {
        ("10.0.0.20:3260", Role.INITIATOR, False),
        ("10.0.0.20:3260", Role.TARGET, False),
        ("10.0.0.21:3260", Role.INITIATOR, True),
    }
    again.close()


def test_only_a_drop_forgets_a_managed_portal(store: Store) -> None:
    store.set_managed([managed("10.0.0.20"), managed("10.0.0.21")])
    store.set_managed([managed("10.0.0.21", why="other.toml")])
    store.set_managed([])
    assert {str(p): r.why for (p, _), r in store.managed().items()} == {
        "10.0.0.20:3260": "db1.toml",
        "10.0.0.21:3260": "other.toml",
    }
    store.drop_managed([Portal(ipaddress.ip_address("10.0.0.20"))])
    assert [str(p) for p, _ in store.managed()] == ["10.0.0.21:3260"]


def test_names_are_kept_with_their_addresses_and_replaced_as_a_whole(path: str, store: Store) -> None:
    four, six = ipaddress.ip_address("10.0.0.20"), ipaddress.ip_address("fd00::20")
    assert store.names() == {}
    store.set_names({"san-a.example.com": (four, six), "san-b.example.com": (four,)})
    store.close()
    again = Store(path)
    assert again.names() == {"san-a.example.com": (four, six), "san-b.example.com": (four,)}
    again.set_names({"san-b.example.com": (six,)})
    assert again.names() == {"san-b.example.com": (six,)}
    again.set_names({})
    assert again.names() == {}
    again.close()


def test_an_address_with_a_zone_that_was_kept_is_passed_over(path: str, store: Store) -> None:
    store.set_names({"san": (ipaddress.ip_address("fd00::20%x"), ipaddress.ip_address("10.0.0.20"))})
    assert store.names() == {"san": (ipaddress.ip_address("10.0.0.20"),)}


def test_a_database_of_the_first_release_gets_a_place_for_names(path: str, store: Store) -> None:
    store.put_last_good([good()])
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE names")
        db.execute("PRAGMA user_version = 1")
    db.close()
    again = Store(path)
    again.set_names({"san": (ipaddress.ip_address("10.0.0.20"),)})
    assert list(again.names()) == ["san"]
    assert again.all_last_good().get("/etc/a.toml") == good()
    again.close()


# --- reqids -----------------------------------------------------------------


def test_reqids_outlive_the_process_and_may_change(path: str, store: Store) -> None:
    store.set_reqids({"a": 1224736769, "b": 1224736770})
    store.close()
    again = Store(path)
    assert again.reqids() == {"a": 1224736769, "b": 1224736770}
    again.set_reqids({"c": 1224736770})
    assert again.reqids() == {"a": 1224736769, "c": 1224736770}, "no two have one reqid"
    again.close()


def test_a_database_of_an_earlier_release_gets_a_place_for_reqids(path: str, store: Store) -> None:
    store.put_last_good([good()])
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE reqids")
        db.execute("PRAGMA user_version = 3")
    db.close()
    reader = Store(path, read_only=True)
    assert reader.reqids() == {}
    reader.close()
    again = Store(path)
    again.set_reqids({"a": 1224736769})
    assert again.reqids() == {"a": 1224736769}
    assert again.all_last_good().get("/etc/a.toml") == good()
    again.close()


# --- digest key -------------------------------------------------------------


def test_the_digest_key_is_made_once_and_outlives_the_database(path: str, store: Store) -> None:
    key = store.digest_key()
    assert len(key) == 32
    store.close()
    os.unlink(path)
    again = Store(path)
    assert again.digest_key() == again.digest_key() == key
    again.close()


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 33])
def test_a_digest_key_of_another_length_is_made_anew(path: str, store: Store, damage: bytes) -> None:
    Path(os.path.dirname(path), "digest.key").write_bytes(damage)
    key = store.digest_key()
    assert len(key) == 32
    assert store.digest_key() == key


def test_two_hosts_have_different_digest_keys(tmp_path: Path) -> None:
    one, two = Store(f"{tmp_path}/1/s.db"), Store(f"{tmp_path}/2/s.db")
    assert one.digest_key() != two.digest_key()
    one.close()
    two.close()


# --- damage -----------------------------------------------------------------


@pytest.mark.parametrize("garbage", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_database_is_moved_aside_and_begun_anew(path: str, garbage: bytes) -> None:
    os.mkdir(os.path.dirname(path), 0o700)
    Path(path).write_bytes(garbage)
    store = Store(path)
    (problem,) = store.problems
    assert (problem.code, problem.file) == ("state-damaged", path)
    assert Path(path + ".broken").read_bytes() == garbage
    assert f"rm {path}.broken" in problem.hint
    store.put_last_good([good()])
    store.close()
    again = Store(path)
    assert again.problems == ()
    assert again.all_last_good().get("/etc/a.toml") == good()
    again.close()


def test_damage_inside_is_found_at_the_next_start(path: str, store: Store) -> None:
    store.put_last_good(good(f"/etc/{n}.toml", b"x" * 500) for n in range(100))
    store.close()
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)
    again = Store(path)
    assert [p.code for p in again.problems] == ["state-damaged"]
    assert again.all_last_good() == {}
    again.close()


def test_damage_while_running_is_healed_and_the_write_done(path: str, store: Store) -> None:
    store.put_last_good(good(f"/etc/{n}.toml", b"x" * 500) for n in range(100))
    with open(path, "r+b") as file:
        file.write(b"\xff" * os.path.getsize(path))
    store.put_last_good([good("/etc/new.toml")])
    assert [p.code for p in store.problems] == ["state-damaged"]
    assert list(store.all_last_good()) == ["/etc/new.toml"]
    os.unlink(f"{path}.broken")  # as its hint says
    assert store.problems == ()


KILLED = """
import os, signal, sys
from iscsi_ipsec.adapters.state_db import Store
store = Store(sys.argv[1])
db = store._connection
db.execute("PRAGMA cache_size = 1")  # pages reach the file before the commit
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE last_good SET raw = zeroblob(500)")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_database_that_was_removed_while_running_is_put_back_as_it_was(path: str, store: Store) -> None:
    store.put_last_good([good()])
    store.set_managed([managed()])
    os.unlink(path)
    store.repair()
    assert mode(path) == 0o600
    assert store.renewals == 0
    store.set_managed([managed("10.0.0.21")])
    with closing(Store(path)) as again:
        assert set(again.all_last_good()) == {"/etc/a.toml"}
        assert len(again.managed()) == 2
        assert not again.fresh


@pytest.mark.parametrize("content", [b"", b"no database at all " * 500], ids=["cut", "garbage"])
def test_a_database_spoiled_while_running_is_begun_anew_before_anybody_writes(
    path: str, store: Store, content: bytes
) -> None:
    store.set_managed([managed()])
    Path(path).write_bytes(content)
    store.repair()
    assert store.renewals == 1
    assert store.fresh
    store.set_managed([managed()])
    with closing(Store(path)) as again:
        assert len(again.managed()) == 1


def test_a_database_that_is_whole_is_left_alone(path: str, store: Store) -> None:
    store.set_managed([managed()])
    before = FileStat.at(path)  # without the time at which it was read
    store.repair()
    assert FileStat.at(path) == before
    assert store.renewals == 0


def test_an_empty_file_in_the_databases_place_is_a_fresh_one(path: str) -> None:
    def is_fresh() -> bool:
        with closing(Store(path)) as store:
            return store.fresh

    assert is_fresh()
    assert not is_fresh()
    Path(path).write_bytes(b"")
    assert is_fresh()


def test_a_kill_in_mid_write_leaves_the_earlier_state(path: str, store: Store) -> None:
    items = [good(f"/etc/{n}.toml", b"x" * 500) for n in range(100)]
    store.put_last_good(items)
    store.close()
    subprocess.run(
        [sys.executable, "-c", KILLED, path], env={**os.environ, "PYTHONPATH": PACKAGES}, timeout=60
    )
    assert os.path.getsize(f"{path}-journal") > 0
    assert mode(f"{path}-journal") == 0o600
    again = Store(path)
    assert again.problems == ()
    assert again.all_last_good() == {item.path: item for item in items}
    again.close()


def test_a_link_in_the_databases_place_is_not_followed(path: str, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "victim").write_bytes(b"")
    (tmp_path / "victim").chmod(0o644)
    os.symlink(tmp_path / "victim", path)
    with pytest.raises(StateUnavailable):
        Store(path)
    assert mode(f"{tmp_path}/victim") == 0o644


def test_a_database_of_a_newer_release_is_used_and_keeps_its_version(path: str, store: Store) -> None:
    store.put_last_good([good()])
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 7")
        db.execute("ALTER TABLE managed ADD COLUMN novelty TEXT NOT NULL DEFAULT ''")
    db.close()
    again = Store(path)
    again.set_managed([managed()])
    assert again.all_last_good().get("/etc/a.toml") == good()
    again.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (7,)
    db.close()


def test_a_database_in_a_form_of_the_future_is_refused_with_a_sentence_and_left_alone(
    path: str, store: Store
) -> None:
    store.put_last_good([good()])
    store.close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {UNREADABLE_VERSION}")
        db.execute("DROP TABLE managed")  # "no such table" is damage in a database of our own
    db.close()
    before = Path(path).read_bytes()
    sentence = r"a newer version of iscsi-ipsecd wrote it, in a form \(100\) that this one cannot read"
    for read_only in (False, True):
        with pytest.raises(StateUnavailable, match=sentence):
            Store(path, read_only=read_only)
    in_memory = Store(path, or_memory=True)
    assert in_memory.fresh
    in_memory.set_managed([managed()])
    assert in_memory.managed()
    with pytest.raises(StateUnavailable, match=sentence):
        in_memory.repair()
    assert in_memory.managed(), "what is in memory stays there"
    in_memory.close()
    assert Path(path).read_bytes() == before
    assert not Path(f"{path}.broken").exists()


# --- readers, locks, full disks ---------------------------------------------


def test_a_reader_sees_the_state_makes_nothing_and_cannot_write(
    path: str, tmp_path: Path, store: Store
) -> None:
    store.put_last_good([good()])
    reader = Store(path, read_only=True)
    assert reader.all_last_good().get("/etc/a.toml") == good()
    with pytest.raises(StateUnavailable):
        reader.put_last_good([good("/etc/b.toml")])
    with pytest.raises(StateUnavailable):
        reader.digest_key()
    reader.close()
    with pytest.raises(StateUnavailable):
        Store(f"{tmp_path}/none/state.db", read_only=True)
    assert not (tmp_path / "none").exists()


def test_a_reader_leaves_a_damaged_database_alone(path: str) -> None:
    os.mkdir(os.path.dirname(path), 0o700)
    Path(path).write_bytes(b"garbage" * 1000)
    with pytest.raises(StateUnavailable):
        Store(path, read_only=True)
    assert os.listdir(os.path.dirname(path)) == ["state.db"]


def test_a_locked_database_is_unavailable_and_not_damaged(
    path: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_last_good([good()])
    monkeypatch.setattr("iscsi_ipsec.adapters.state_db.database._BUSY_SECONDS", 0.05)
    impatient = Store(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StateUnavailable, match="locked"):
        impatient.put_last_good([good(raw=b"new")])
    other.execute("ROLLBACK")
    other.close()
    impatient.put_last_good([good(raw=b"newer")])
    assert store.all_last_good().get("/etc/a.toml") == good(raw=b"newer")
    assert impatient.problems == ()
    impatient.close()


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    with pytest.raises(StateUnavailable, match="closed"):
        store.managed()


FILL = """
import sys
from iscsi_ipsec.adapters.state_db import LastGood, Store
from iscsi_ipsec.base.errors import StateUnavailable
from iscsi_ipsec.base.secret import Secret

def item(n, raw):
    return LastGood(path=str(n), kind="psk", raw=Secret(raw), key=None, signature="")

store = Store(sys.argv[1] + "/state/state.db")
store.put_last_good([item(0, b"old")])
try:
    store.put_last_good([item(n, b"x" * 60_000) for n in range(20)])
except StateUnavailable as err:
    print(err)
print(list(store.all_last_good()), store.all_last_good().get("0").raw.reveal(), store.problems)
store.put_last_good([item(0, b"new")])
print(store.all_last_good().get("0").raw.reveal())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_is_unavailable_and_keeps_the_stored_state(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=256k tmpfs "$1" || exit 77; exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), sys.executable, FILL],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": PACKAGES},
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("may not mount here")
    assert done.returncode == 0, done.stderr
    full, kept, new = done.stdout.splitlines()
    assert full.endswith("database or disk is full")
    assert kept == "['0'] b'old' ()"
    assert new == "b'new'"


def test_a_database_of_the_first_release_is_read_and_takes_previous_keys(path: str, store: Store) -> None:
    store.put_last_good([good()])
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE last_good DROP COLUMN previous")
        db.execute("PRAGMA user_version = 1")
    db.close()
    reader = Store(path, read_only=True)
    assert reader.all_last_good().get("/etc/a.toml") == good()
    reader.close()
    again = Store(path)
    assert again.all_last_good().get("/etc/a.toml") == good()
    with_previous = dataclasses.replace(good(), previous=Secret(b"the key before"))
    again.put_last_good([with_previous])
    assert again.all_last_good().get("/etc/a.toml") == with_previous
    again.close()


# --- a disk that cannot be written at the start ---------------------------------


@pytest.fixture
def on_disk(path: str, store: Store) -> str:
    """A database with a file, a portal, a name and a digest key."""
    store.put_last_good([good()])
    store.set_managed([managed()])
    store.set_names({"san.example.com": (ipaddress.ip_address("10.0.0.20"),)})
    store.digest_key()
    store.close()
    return path


def refusing_to_open(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The file system gives to read, and refuses every way of opening to write."""
    really = os.open

    def refused(path: str, flags: int, *more: int, **named: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(code, os.strerror(code))
        return really(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refused)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EPERM, errno.ENOSPC, errno.EACCES])
def test_a_read_only_disk_gives_its_content_and_each_repair_reports_it(
    on_disk: str, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    before = Store(on_disk)
    expected = (
        dict(before.all_last_good()),
        dict(before.managed()),
        dict(before.names()),
        before.digest_key(),
    )
    before.close()
    refusing_to_open(monkeypatch, code)
    with pytest.raises(StateUnavailable):
        Store(on_disk)
    store = Store(on_disk, or_memory=True)
    found = (dict(store.all_last_good()), dict(store.managed()), dict(store.names()), store.digest_key())
    assert found == expected
    assert not store.fresh
    for _ in range(2):
        with pytest.raises(StateUnavailable, match=os.strerror(code)):
            store.repair()
    store.close()


def test_rows_kept_in_memory_are_on_disk_as_soon_as_it_can_be_written(on_disk: str) -> None:
    with pytest.MonkeyPatch.context() as read_only:
        refusing_to_open(read_only, errno.EROFS)
        store = Store(on_disk, or_memory=True)
        store.put_last_good([good("/etc/b.toml")])
        store.drop_last_good([good().path])
    store.repair()
    assert store.renewals == 1
    store.close()
    again = Store(on_disk)
    assert set(again.all_last_good()) == {"/etc/b.toml"}
    assert len(again.managed()) == 1
    again.close()


def failing(_path: str) -> sqlite3.Connection:
    raise OSError("permission denied")


def test_rows_that_could_not_be_read_at_the_start_are_kept_when_the_disk_is_back(on_disk: str) -> None:
    with pytest.MonkeyPatch.context() as unreadable:
        refusing_to_open(unreadable, errno.EACCES)
        unreadable.setattr(database, "_open_to_read", failing)
        store = Store(on_disk, or_memory=True)
        assert store.fresh
        store.put_last_good([good("/etc/b.toml")])
    store.repair()
    assert set(store.all_last_good()) == {good().path, "/etc/b.toml"}
    assert len(store.managed()) == 1
    store.close()


def test_without_a_digest_key_on_disk_one_is_made_for_this_run(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing_to_open(monkeypatch, errno.EROFS)
    store = Store(path, or_memory=True)
    assert store.digest_key() == store.digest_key()
    assert len(store.digest_key()) == 32
    store.close()


def test_a_link_in_the_databases_place_is_not_read_either(path: str, tmp_path: Path, on_disk: str) -> None:
    os.replace(on_disk, tmp_path / "elsewhere.db")
    os.symlink(tmp_path / "elsewhere.db", path)
    store = Store(path, or_memory=True)
    assert store.fresh
    assert dict(store.managed()) == {}
    store.close()
