"""Changes of keys: the output before the change, the copy of the replaced key, and ``psk undo``."""

from __future__ import annotations

import json
import shlex
import stat
import subprocess
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from iscsi_ipsec.cli import confirm
from tests.cli.conftest import Answer, Instance
from tests.support.reported import write_session

KEY, OTHER, THIRD = b"a key of twenty bytes", b"another key of 20 bytes", b"a third key of 20 bytes"
ROW = "10.0.0.20:3260"


def row(instance: Instance, *, used: str | None = "current", **more: Any) -> dict[str, Any]:
    """A portal of the status whose SA was authenticated by this key of db1."""
    sa = {"key": used, "age": 24, "bytes_in": 900, "bytes_out": 900} if used else None
    return {
        "portal": ROW, "role": "initiator", "key": "db1", "key_file": str(instance.psk / "db1.toml"),
        "managed": True, "closed": True, "ready": True, "identity": "db1", "sa": sa, "problem": None,
    } | more  # fmt: skip


def report(instance: Instance, *rows: dict[str, Any]) -> None:
    instance.close()
    keys = [{"name": "db1", "in_use": bool(rows)}]
    instance.pretend_daemon(
        {
            "schema": 1,
            "pid": 1,
            "generation": 1,
            "portals": list(rows),
            "keys": keys,
            "files": [],
            "problems": [],
        }
    )


@pytest.fixture
def live(instance: Instance) -> Instance:
    """One key, with an SA and a session that use it."""
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    report(instance, row(instance))
    write_session(instance.root / "sys", 7, "10.0.0.20")
    return instance


def run(instance: Instance, *words: str, stdin: bytes | None = None) -> Answer:
    return instance.run(*words, f"--sysfs-dir={instance.root}/sys", stdin=stdin)


def previous_of(instance: Instance) -> str:
    lines = instance.key("db1").splitlines()
    return next((line.split('"')[1] for line in lines if line.startswith("previous_key ")), "")


CUTS = [("set", "db1", "--stdin"), ("set", "--id", "db1", "--generate"), ("remove", "db1")]


@pytest.mark.parametrize("words", CUTS, ids=" ".join)
def test_a_key_that_an_sa_uses_is_shown_and_not_touched_without_a_yes(
    live: Instance, words: tuple[str, ...]
) -> None:
    before = live.key("db1")
    answer = run(live, "psk", *words, stdin=OTHER)
    assert answer.code == 1
    assert f"{ROW}: an SA of 24s, 1.8K, 1 iSCSI session" in answer.err
    assert "session 7, iqn.2026-01.com.example:disk: sdx, 0B/s now" in answer.err
    assert "--yes" in answer.err
    assert live.key("db1") == before
    assert live.copies() == set()


def test_sas_that_a_stopped_daemon_left_are_shown_too(live: Instance) -> None:
    live.close()
    (live.root / "run/daemon.lock").unlink()
    answer = run(live, "psk", "remove", "db1")
    assert answer.code == 1
    assert ROW in answer.err


@pytest.mark.parametrize("words", CUTS, ids=" ".join)
def test_a_dry_run_shows_the_same_and_changes_nothing(live: Instance, words: tuple[str, ...]) -> None:
    before = live.key("db1")
    answer = run(live, "psk", *words, "--dry-run", stdin=OTHER)
    assert answer.code == 0
    assert ROW in answer.err
    assert "nothing was changed" in answer.out
    assert (live.key("db1"), live.copies()) == (before, set())


@pytest.mark.parametrize(("typed", "gone"), [("y\n", True), ("yes\n", True), ("n\n", False), ("", False)])
def test_on_a_terminal_only_a_yes_goes_on(
    live: Instance, monkeypatch: pytest.MonkeyPatch, typed: str, gone: bool
) -> None:
    monkeypatch.setattr(confirm, "has_terminal", lambda: True)
    answer = run(live, "psk", "remove", "db1", stdin=typed.encode())
    assert "Go on? [y/N]" in answer.err
    assert answer.code == (0 if gone else 1)
    assert (live.psk / "db1.toml").exists() is not gone


def test_a_key_that_nothing_uses_is_replaced_without_a_question(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    report(instance, row(instance, used=None))
    assert run(instance, "psk", "set", "db1", "--stdin", stdin=OTHER).code == 0


def test_a_replaced_key_stays_valid_for_a_day(live: Instance) -> None:
    assert run(live, "psk", "set", "db1", "--yes", "--stdin", stdin=OTHER).code == 0
    (got,) = live.json("psk", "get", "db1")
    left = datetime.fromisoformat(got["previous_until"]) - datetime.now(UTC)
    assert timedelta(hours=23) < left <= timedelta(days=1)
    assert previous_of(live) == KEY.decode()


def test_the_readmes_first_example_typed_again_and_again_keeps_the_live_key(live: Instance) -> None:
    again = ("psk", "set", "--id", "db1", "--generate", "--yes")
    assert run(live, *again).code == 0
    report(live, row(live, used="previous"))  # the far end has the first key only
    for _ in range(3):
        assert run(live, *again).code == 0
        assert previous_of(live) == KEY.decode()


def test_with_two_valid_keys_and_no_sa_no_third_one_pushes_one_out(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    instance.fine("psk", "set", "db1", "--stdin", stdin=OTHER)
    before = instance.key("db1")
    answer = instance.run("psk", "set", "db1", "--stdin", stdin=THIRD)
    assert answer.code == 1
    assert "psk undo db1" in answer.err
    assert instance.key("db1") == before
    instance.fine("psk", "set", "db1", "--keep-previous", "2d", "--stdin", stdin=THIRD)
    assert previous_of(instance) == OTHER.decode()


def test_the_same_key_again_begins_no_rotation(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    before = instance.key("db1")
    instance.fine("psk", "set", "db1", "--stdin", stdin=KEY)
    assert instance.key("db1") == before


def test_undo_brings_back_the_replaced_file_and_a_second_undo_the_newer_one(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--description", "x", "--stdin", stdin=KEY)
    first = instance.key("db1")
    instance.fine("psk", "set", "db1", "--stdin", stdin=OTHER)
    second = instance.key("db1")
    instance.fine("psk", "undo", "db1")
    assert instance.key("db1") == first
    instance.fine("psk", "undo")
    assert instance.key("db1") == second


def test_undo_brings_back_a_removed_key_with_its_comments(instance: Instance) -> None:
    text = '# of rack 7\nid_type = "ID_FQDN"\nid = "db1"\nkey = "a key of twenty bytes"\n'
    path = instance.put(instance.psk / "db1.toml", text)
    instance.fine("psk", "remove", "db1")
    assert not path.exists()
    instance.fine("psk", "undo")
    assert path.read_text() == text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert instance.copies() == set()


def test_undo_asks_where_an_sa_uses_the_key_of_now(live: Instance) -> None:
    run(live, "psk", "set", "db1", "--yes", "--stdin", stdin=OTHER)
    before = live.key("db1")
    assert run(live, "psk", "undo", "db1").code == 1
    assert live.key("db1") == before
    assert run(live, "psk", "undo", "db1", "--yes").code == 0


def test_a_copy_is_roots_alone_and_a_revoked_key_leaves_none(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    instance.fine("psk", "set", "db1", "--stdin", stdin=OTHER)
    (copy,) = instance.copies()
    assert stat.S_IMODE((instance.root / copy).stat().st_mode) == 0o600
    assert stat.S_IMODE((instance.root / copy).parent.stat().st_mode) == 0o700
    instance.fine("psk", "set", "db1", "--revoke", "--stdin", stdin=THIRD)
    assert instance.copies() == set()
    assert previous_of(instance) == ""
    assert instance.run("psk", "undo").code == 1
    instance.fine("psk", "remove", "db1", "--revoke")
    assert instance.copies() == set()


def test_a_key_of_this_boot_leaves_no_copy_on_disk(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--runtime", "--stdin", stdin=KEY)
    instance.fine("psk", "remove", "db1")
    assert instance.copies() == {"run/replaced/db1.toml.json"}


def test_after_a_day_a_copy_is_gone(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    instance.fine("psk", "remove", "db1")
    (copy,) = (instance.root / name for name in instance.copies())
    record = json.loads(copy.read_text())
    copy.write_text(json.dumps(record | {"time": time.time() - 86401}))
    answer = instance.run("psk", "undo")
    assert answer.code == 1
    assert "within the last day" in answer.err
    assert instance.copies() == set()


def test_the_next_change_of_any_key_deletes_copies_whose_day_is_over(instance: Instance) -> None:
    for name in ("db1", "db2"):
        instance.fine("psk", "set", "--id", name, "--stdin", stdin=KEY)
    instance.fine("psk", "remove", "db1")
    (copy,) = (instance.root / name for name in instance.copies())
    record = json.loads(copy.read_text())
    copy.write_text(json.dumps(record | {"time": time.time() - 86401}))
    instance.fine("psk", "remove", "db2")
    assert instance.copies() == {"lib/replaced/db2.toml.json"}


def test_a_group_key_can_be_brought_back_too(instance: Instance) -> None:
    instance.fine("group-psk", "set", "--stdin", stdin=KEY)
    before = instance.key("group")
    instance.fine("group-psk", "remove")
    instance.fine("psk", "undo", "group")
    assert instance.key("group") == before


def test_portals_that_a_new_key_would_close_are_shown_first(instance: Instance) -> None:
    report(instance, row(instance, used=None, key=None, key_file=None, managed=False, closed=False))
    write_session(instance.root / "sys", 7, "10.0.0.20")
    words = ("psk", "set", "--id", "db2", "--portal", "10.0.0.0/24", "--stdin")
    answer = run(instance, *words, stdin=KEY)
    assert answer.code == 1
    assert "open now, and closed" in answer.err
    assert ROW in answer.err
    assert instance.files() == {"run/daemon.lock", "run/status.json"} | {
        str(path.relative_to(instance.root)) for path in (instance.root / "sys").rglob("*") if path.is_file()
    }
    assert run(instance, *words, "--yes", stdin=KEY).code == 0


# -- keys from Windows' editors


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (KEY + b"\r\n", ""),
        (b"\xef\xbb\xbf" + KEY + b"\r\n", "byte order mark"),
        (KEY.decode().encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + f"{KEY.decode()}\r\n".encode("utf-16-be"), "UTF-16"),
    ],
)
def test_line_ends_and_marks_of_windows_editors_are_not_part_of_the_key(
    instance: Instance, data: bytes, said: str
) -> None:
    answer = instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=data)
    assert f'key = "{KEY.decode()}"' in instance.key("db1")
    assert said in answer.err
    assert bool(said) == ("warning" in answer.err)


@pytest.mark.parametrize(
    ("data", "said"), [(KEY + b"\0", "NUL"), (b" " + KEY, "blank"), (KEY + b"\t\n", "blank")]
)
def test_key_bytes_that_look_like_a_mistake_are_warned_about(
    instance: Instance, data: bytes, said: str
) -> None:
    answer = instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=data)
    assert said in answer.err


def test_a_random_key_that_begins_like_a_mark_stays_as_it_is(instance: Instance) -> None:
    for data in (b"\xff\xfe" + bytes(range(1, 31)), b"\xef\xbb\xbf" + bytes(range(128, 160))):
        instance.fine("psk", "set", "--id", "db1", "--revoke", "--stdin", stdin=data)
        assert f'key_hex = "{data.hex()}"' in instance.key("db1")


def test_the_guessed_type_and_the_way_to_read_a_generated_key_are_shown(instance: Instance) -> None:
    answer = instance.fine("psk", "set", "--id", "db1", "--generate")
    assert "for db1 (ID_FQDN)" in answer.out
    line = next(line for line in answer.out.splitlines() if "read it once" in line)
    command = line.split("with: ")[1].split("   ")[0]
    shown = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True).stdout
    assert f"key = {shown}" in instance.key("db1")


# -- undo beside other changes


def test_undo_does_not_bring_back_a_second_key_of_an_identity(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    instance.fine("psk", "remove", "db1")
    instance.fine("psk", "set", "new", "--id", "DB1", "--stdin", stdin=OTHER)
    before, copies = instance.key("new"), instance.copies()
    answer = instance.run("psk", "undo")
    assert answer.code == 1
    assert "new.toml already has a key of" in answer.err
    assert not (instance.psk / "db1.toml").exists()
    assert (instance.key("new"), instance.copies()) == (before, copies)


def test_undo_replaces_a_file_that_was_broken_since(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    first = instance.key("db1")
    instance.fine("psk", "set", "db1", "--stdin", stdin=OTHER)
    instance.put(instance.psk / "db1.toml", 'id = "db1"\nkey = "a key of twenty byt')
    instance.fine("psk", "undo", "db1")
    assert instance.key("db1") == first


def test_a_removed_mask_is_not_offered_for_undo(instance: Instance) -> None:
    instance.psk.mkdir(mode=0o700, parents=True)
    (instance.psk / "db1.toml").symlink_to("/dev/null")
    answer = instance.fine("psk", "remove", "--name", "db1")
    assert "undo" not in answer.out
    assert not (instance.psk / "db1.toml").is_symlink()
