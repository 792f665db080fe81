"""The daemon on the state of an older release, in which a key without portals managed every portal."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from iscsi_ipsec.adapters.state_db import UNREADABLE_VERSION
from tests.support.admin import (
    PORTAL,
    ROW,
    group_file,
    known_to_open_iscsi,
    our_connections,
    wait_for_connection,
)
from tests.support.ike import KEY_GROUP
from tests.support.netlab import Charon, Daemon, wait_until


def older_state(daemon: Daemon) -> None:
    """The state that release 0.1.0 left on a host with one group key and one record."""
    daemon.state.mkdir(mode=0o700, exist_ok=True)
    with closing(sqlite3.connect(daemon.state / "state.db")) as db:
        db.executescript(
            "CREATE TABLE last_good (path TEXT PRIMARY KEY, kind TEXT NOT NULL, raw BLOB NOT NULL, key BLOB,"
            " signature TEXT NOT NULL);"
            "CREATE TABLE managed (portal TEXT PRIMARY KEY, role TEXT NOT NULL, since INTEGER NOT NULL,"
            " why TEXT NOT NULL) WITHOUT ROWID;"
            "CREATE TABLE names (name TEXT PRIMARY KEY, addresses TEXT NOT NULL) WITHOUT ROWID;"
            "PRAGMA user_version = 2;"
        )
        db.execute("INSERT INTO managed VALUES (?, 'initiator', 1, 'psk.d/group.toml')", (ROW,))
        db.commit()
    (daemon.state / "state.db").chmod(0o600)


@pytest.mark.parametrize("upgraded", [True, False], ids=["upgraded", "new"])
def test_a_key_without_portals_keeps_what_an_older_release_managed_and_manages_nothing_new(
    charon: Charon, daemon: Daemon, upgraded: bool
) -> None:
    if upgraded:
        older_state(daemon)
    known_to_open_iscsi(daemon)
    daemon.put_key("group", group_file(KEY_GROUP))
    daemon.start()
    if not upgraded:
        wait_until(lambda: daemon.row(ROW)["problem"], "the row is there", detail=daemon.tail)
        row = daemon.row(ROW)
        assert (row["managed"], row["closed"], row["problem"]["code"]) == (False, False, "not-protected")
        assert f'portals = ["{ROW}"]' in row["problem"]["hint"]
        assert not our_connections(charon)
        return
    wait_for_connection(charon, daemon)
    assert any("unrestricted" in p["code"] for p in daemon.status()["problems"])
    daemon.kill()
    daemon.start()
    wait_for_connection(charon, daemon)
    assert daemon.row(ROW)["closed"]
    # the line of the hint, and from then on the portal is like any other
    daemon.put_portal("san", f'portals = ["{PORTAL}"]\n')
    wait_until(
        lambda: not any("unrestricted" in p["code"] for p in daemon.status()["problems"]),
        "the warning is solved",
        detail=daemon.tail,
    )
    assert our_connections(charon)
    (daemon.portal / "san.toml").unlink()
    wait_until(
        lambda: daemon.row(ROW)["problem"] and daemon.row(ROW)["problem"]["code"] == "orphaned",
        "no file covers it any more",
        detail=daemon.tail,
    )
    assert daemon.row(ROW)["closed"]


def test_a_state_of_a_newer_release_in_an_unknown_form_is_named_and_left_alone_and_nothing_opens(
    managed: Daemon,
) -> None:
    daemon = managed
    daemon.terminate()
    with closing(sqlite3.connect(daemon.state / "state.db")) as db:
        db.executescript(
            f"DROP TABLE managed_roles; DROP TABLE managed; PRAGMA user_version = {UNREADABLE_VERSION};"
        )
    before = (daemon.state / "state.db").read_bytes()
    (daemon.portal / "san.toml").unlink()  # only what is remembered closes the portal now
    daemon.start()
    problem = wait_until(
        lambda: [p for p in daemon.status()["problems"] if p["code"] == "state-unsaved"],
        "the state is named",
        detail=daemon.tail,
    )[0]
    assert "a newer version of iscsi-ipsecd wrote it" in problem["message"]
    daemon.settle()
    assert daemon.row(ROW)["closed"], "the guard's file says so"
    assert daemon.cli("status").rc == 1
    assert (daemon.state / "state.db").read_bytes() == before
    assert not (daemon.state / "state.db.broken").exists()
    refused = daemon.cli("plan")
    assert refused.rc == 5
    assert "a newer version of iscsi-ipsecd wrote it" in refused.err
