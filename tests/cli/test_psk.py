"""``psk`` and ``group-psk``: files as the daemon wants them, and words that never hold a key."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from iscsi_ipsec.adapters import credentials, files
from iscsi_ipsec.cli import key_input
from tests.cli.conftest import Instance
from tests.support.netlab.waiting import wait_until

KEY = b"a key of twenty bytes"
OTHER = b"another key of 20 bytes"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


def test_a_key_is_written_for_its_owner_alone_in_a_folder_for_root_alone(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1.example.com", "--id-type", "ID_FQDN", "--stdin", stdin=KEY)
    path = instance.psk / "db1.example.com.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.read_text() == f'id_type = "ID_FQDN"\nid = "db1.example.com"\nkey = "{KEY.decode()}"\n'
    assert os.listdir(instance.psk) == [path.name]


def test_flags_portals_and_description_go_into_the_file(instance: Instance) -> None:
    words = (
        "--flags", "0x37", "--portal", "10.0.0.0/24", "--portal", "[fd00::20]:3261", "--description", "first rack",
    )  # fmt: skip
    instance.fine("psk", "set", "--id", "db1", "--stdin", *words, stdin=KEY)
    (row,) = instance.json("psk", "get", "db1")
    assert row["security_flags"] == 0x37
    assert row["portals"] == ["10.0.0.0/24:3260", "[fd00::20]:3261"]
    assert row["description"] == "first rack"


def test_psk_set_says_where_to_name_the_portals_of_a_key_that_manages_none(instance: Instance) -> None:
    words = ("psk", "set", "--id", "db1", "--stdin", "--yes")
    note = instance.run(*words, stdin=KEY).err
    assert "note: a key without portals manages none by itself" in note
    assert str(instance.portal) in note
    assert "note:" not in instance.run(*words, "--portal", "any", stdin=OTHER).err
    assert 'portals = ["any"]' in instance.key("db1")
    assert instance.json("psk", "get", "db1")[0]["portals"] == ["any"]


def test_psk_set_says_nothing_of_portals_where_a_policy_names_some(instance: Instance) -> None:
    instance.portal.mkdir(parents=True, exist_ok=True)
    (instance.portal / "san.toml").write_text('portals = ["10.0.0.20"]\n')
    assert "note:" not in instance.run("psk", "set", "--id", "db1", "--stdin", stdin=KEY).err


def test_flags_by_name_are_the_same_as_by_number(instance: Instance) -> None:
    names = ("VALID", "IKE_IPSEC_ENABLED,main_mode_enabled", "ISCSI_SECURITY_FLAG_TUNNEL_MODE_PREFERRED")
    instance.fine("psk", "set", "db1", "--id", "db1", "--flags", *names, "--stdin", stdin=KEY)
    assert instance.json("psk", "get", "db1")[0]["security_flags"] == 0x47


def test_psk_set_keeps_settings_that_are_not_given_again(instance: Instance) -> None:
    instance.fine(
        "psk", "set", "--id", "db1", "--flags", "0x57", "--portal", "10.0.0.20", "--description", "x",
        "--stdin", stdin=KEY,
    )  # fmt: skip
    before = instance.key("db1")
    instance.fine("psk", "set", "db1", "--revoke", "--stdin", stdin=OTHER)
    assert instance.key("db1") == before.replace(KEY.decode(), OTHER.decode())
    instance.fine("psk", "set", "--id", "DB1", "--flags", "0x37", "--stdin", stdin=KEY)
    (row,) = instance.json("psk", "get", "db1")
    assert (row["security_flags"], row["portals"], row["description"]) == (0x37, ["10.0.0.20:3260"], "x")
    assert row["id"] == "db1"


def test_the_name_may_stand_behind_the_options(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", "rack1", stdin=KEY)
    assert instance.files() == {"etc/psk.d/rack1.toml"}


def test_ids_of_one_text_and_different_types_may_both_exist(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "10.0.0.5", "--id-type", "2", "--stdin", stdin=KEY)
    instance.fine("psk", "set", "--id", "10.0.0.5", "--id-type", "1", "--stdin", stdin=OTHER)
    assert {row["id_type"] for row in instance.json("psk", "get", "10.0.0.5")} == {"ID_FQDN", "ID_IPV4_ADDR"}
    (row,) = instance.json("psk", "get", "10.0.0.5", "--id-type", "ID_FQDN")
    assert row["id_type"] == "ID_FQDN"


def test_without_a_type_an_ids_type_is_guessed(instance: Instance) -> None:
    for text in ("fd00::20", "a@example.com", "10.0.0.5", "host"):
        instance.fine("psk", "set", "--id", text, "--stdin", stdin=KEY)
    assert {row["id"]: row["id_type"] for row in instance.json("psk", "list")} == {
        "fd00::20": "ID_IPV6_ADDR",
        "a@example.com": "ID_USER_FQDN",
        "10.0.0.5": "ID_IPV4_ADDR",
        "host": "ID_FQDN",
    }


def test_an_id_with_slashes_cannot_leave_the_folder(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "../../../x:/y", "--id-type", "ID_FQDN", "--stdin", stdin=KEY)
    (path,) = instance.files()
    assert path.startswith("etc/psk.d/x-y-")
    assert path.count("/") == 2


@pytest.mark.parametrize("name", ["../x", ".x", "a/b", "x" * 201])
def test_a_name_that_is_no_file_name_is_wrong_usage(instance: Instance, name: str) -> None:
    assert instance.run("psk", "set", name, "--id", "db1", "--stdin", stdin=KEY).code == 2
    assert instance.files() == set()


def test_an_identity_that_another_file_has_is_refused_and_that_file_named(instance: Instance) -> None:
    instance.fine("psk", "set", "rack1", "--id", "db1", "--stdin", stdin=KEY)
    answer = instance.run("psk", "set", "--id", "DB1", "--stdin", stdin=OTHER)
    assert answer.code == 1
    assert f"{instance.psk}/rack1.toml" in answer.err
    assert instance.files() == {"etc/psk.d/rack1.toml"}


def test_one_identity_may_have_two_keys_for_different_portals(instance: Instance) -> None:
    instance.fine("psk", "set", "one", "--id", "db1", "--portal", "10.0.0.0/24", "--stdin", stdin=KEY)
    two = ("psk", "set", "two", "--id", "db1", "--stdin")
    assert instance.run(*two, "--portal", "10.0.0.20", stdin=OTHER).code == 1
    instance.fine(*two, "--portal", "10.0.1.20", stdin=OTHER)
    answer = instance.run("psk", "remove", "db1")
    assert answer.code == 1
    assert "one.toml" in answer.err
    assert "two.toml" in answer.err


def test_a_file_of_another_identity_is_not_overwritten(instance: Instance) -> None:
    instance.fine("psk", "set", "x", "--id", "db1", "--stdin", stdin=KEY)
    before = instance.key("x")
    assert instance.run("psk", "set", "x", "--id", "db2", "--stdin", stdin=OTHER).code == 1
    assert instance.run("group-psk", "set", "--name", "x", "--stdin", stdin=OTHER).code == 1
    assert instance.key("x") == before


def test_a_broken_file_is_not_overwritten_but_can_be_removed_by_name(instance: Instance) -> None:
    path = instance.put(instance.psk / "x.toml", 'key = "canary-key"\nid = \n')
    answer = instance.run("psk", "set", "x", "--id", "db1", "--stdin", stdin=KEY)
    assert answer.code == 1
    assert f"{path}:2:" in answer.err
    instance.fine("psk", "remove", "--name", "x")
    assert not path.exists()


def test_a_name_alone_needs_a_file_that_exists(instance: Instance) -> None:
    assert instance.run("psk", "set", "db1", "--stdin", stdin=KEY).code == 1
    assert instance.run("psk", "set", "--stdin", stdin=KEY).code == 2
    assert instance.files() == set()


def test_a_key_until_the_next_boot_goes_to_the_runtime_folder(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--runtime", "--stdin", stdin=KEY)
    assert instance.files() == {"run/psk.d/db1.toml"}
    assert stat.S_IMODE(instance.runtime_psk.stat().st_mode) == 0o700
    assert instance.json("psk", "get", "db1")[0]["persistent"] is False


def test_a_runtime_key_that_a_persistent_file_would_hide_is_refused(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    answer = instance.run("psk", "set", "--id", "db1", "--runtime", "--stdin", stdin=OTHER)
    assert answer.code == 1
    assert f"{instance.psk}/db1.toml would hide it" in answer.err


def test_one_trailing_newline_of_standard_input_is_no_part_of_the_key(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY + b"\n\n")
    assert f'key_hex = "{(KEY + chr(10).encode()).hex()}"' in instance.key("db1")


def test_a_key_comes_from_a_file_and_open_files_are_warned_about(instance: Instance) -> None:
    source = instance.put(instance.root / "key", KEY.decode() + "\n", 0o644)
    answer = instance.fine("psk", "set", "--id", "db1", "--key-file", str(source))
    assert f'key = "{KEY.decode()}"' in instance.key("db1")
    assert "may read" in answer.err
    source.chmod(0o600)
    assert "may read" not in instance.fine("psk", "set", "db1", "--key-file", str(source)).err


def test_a_generated_key_is_random_and_not_shown(instance: Instance) -> None:
    shown = instance.fine("psk", "set", "--id", "db1", "--generate").all
    first = instance.key("db1").split('key = "')[1].split('"')[0]
    assert len(base64.b64decode(first)) == key_input.GENERATED_BYTES
    shown += instance.fine("psk", "set", "db1", "--generate", "48").all
    second = instance.key("db1").split('key = "')[1].split('"')[0]
    assert len(base64.b64decode(second)) == 48
    assert not [key for key in (first, second) if key in shown]


@pytest.mark.parametrize("size", ["15", "1025", "canary"])
def test_a_generated_key_is_never_weak_nor_huge(instance: Instance, size: str) -> None:
    answer = instance.run("psk", "set", "--id", "db1", "--generate", size)
    assert answer.code == 2
    assert "canary" not in answer.all


def test_a_mistyped_option_is_named_and_a_word_that_may_be_a_key_is_not(instance: Instance) -> None:
    answer = instance.run("psk", "set", "--id", "db1", "--genrate=canary")
    assert answer.code == 2
    assert "unknown option --genrate (did you mean --generate?)" in answer.err
    assert "canary" not in answer.all
    assert "canary" not in instance.run("psk", "set", "--id", "db1", "db2", "canary").all


def test_an_empty_and_a_huge_key_are_refused(instance: Instance) -> None:
    assert instance.run("psk", "set", "--id", "db1", "--stdin", stdin=b"\n").code == 2
    assert instance.run("psk", "set", "--id", "db1", "--stdin", stdin=b"x" * 65_500).code == 1
    assert instance.run("psk", "set", "--id", "db1", "--stdin", stdin=b"x" * 70_000).code == 2
    assert instance.files() == set()


def test_a_weak_key_is_warned_about_and_written(instance: Instance) -> None:
    answer = instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=b"short")
    assert "shorter than 16 bytes" in answer.err
    assert 'key = "short"' in instance.key("db1")


def test_without_a_terminal_and_without_a_source_no_key_is_waited_for(instance: Instance) -> None:
    answer = instance.run("psk", "set", "--id", "db1")
    assert answer.code == 2
    assert "--stdin" in answer.err


@pytest.mark.parametrize(("second", "code"), [("the same key twice", 0), ("another", 1)])
def test_a_prompt_asks_twice_without_echo(
    instance: Instance, monkeypatch: pytest.MonkeyPatch, second: str, code: int
) -> None:
    answers = ["the same key twice", second]
    monkeypatch.setattr("getpass.getpass", lambda prompt: answers.pop(0))
    monkeypatch.setattr(key_input, "_has_terminal", lambda: True)
    assert instance.run("psk", "set", "--id", "db1").code == code
    assert (instance.files() == {"etc/psk.d/db1.toml"}) is (code == 0)


def test_no_key_is_found_for_an_unknown_id_but_the_group_key_is_named(instance: Instance) -> None:
    assert instance.run("psk", "get", "nobody").code == 1
    instance.fine("group-psk", "set", "--stdin", stdin=KEY)
    answer = instance.run("psk", "get", "nobody")
    assert answer.code == 1
    assert "group.toml" in answer.err


def test_psk_list_shows_everything_but_keys_and_reports_broken_files(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--flags", "0x37", "--stdin", stdin=KEY)
    instance.fine("group-psk", "set", "--runtime", "--stdin", stdin=OTHER)
    answer = instance.fine("psk", "list")
    assert [line.split()[:2] for line in answer.out.splitlines()[1:]] == [
        ["db1", "db1"],
        ["group", "(group)"],
    ]
    instance.put(instance.psk / "bad.toml", "id = 1\n")
    broken = instance.run("psk", "list")
    assert broken.code == 1
    assert "bad.toml:1:" in broken.err
    assert "db1" in broken.out


def test_removing_takes_the_file_away(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    instance.fine("psk", "set", "--id", "db2", "--runtime", "--stdin", stdin=KEY)
    instance.fine("psk", "remove", "DB1")
    instance.fine("psk", "remove", "db2")
    assert instance.files() == set()
    assert instance.run("psk", "remove", "db1").code == 1
    assert instance.run("psk", "remove").code == 2


def test_a_group_key_has_no_id_and_its_own_verb(instance: Instance) -> None:
    instance.fine("group-psk", "set", "--stdin", stdin=KEY)
    assert instance.key("group").startswith("group = true\n")
    assert instance.run("psk", "remove", "--name", "group").code == 1
    assert instance.run("psk", "set", "group", "--stdin", stdin=OTHER).code == 1
    again = instance.run("group-psk", "set", "--name", "second", "--stdin", stdin=OTHER)
    assert again.code == 1
    assert "group.toml" in again.err
    instance.fine("group-psk", "remove")
    assert instance.files() == set()


def test_the_file_is_never_seen_half_written(instance: Instance) -> None:
    """A reader that looks all the time finds the old text or the new one."""
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    path, seen, stop = instance.psk / "db1.toml", set[str](), threading.Event()

    def observe() -> None:
        while not stop.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=observe)
    reader.start()
    try:
        before = instance.key("db1")
        wait_until(lambda: before in seen, "the reader has begun")
        instance.fine("psk", "set", "db1", "--stdin", stdin=OTHER)
        after = instance.key("db1")
        wait_until(lambda: after in seen, "the new text is read")
    finally:
        stop.set()
        reader.join()
    assert seen == {before, after}


def test_a_folder_that_others_may_write_is_refused(instance: Instance) -> None:
    instance.psk.mkdir(parents=True)
    instance.psk.chmod(0o777)
    answer = instance.run("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    assert answer.code == 1
    assert "chmod" in answer.err
    assert instance.files() == set()


def test_a_link_is_neither_followed_nor_replaced(instance: Instance) -> None:
    instance.psk.mkdir(mode=0o700, parents=True)
    (instance.psk / "db1.toml").symlink_to("/dev/null")
    assert instance.run("psk", "set", "--id", "db1", "--stdin", stdin=KEY).code == 1
    assert (instance.psk / "db1.toml").is_symlink()


@needs_root
@pytest.mark.parametrize(
    "words", [("set", "--id", "db1", "--stdin"), ("get", "x"), ("list",), ("remove", "x")]
)
def test_who_is_not_root_gets_exit_code_5(instance: Instance, words: tuple[str, ...]) -> None:
    instance.fine("psk", "set", "--id", "x", "--stdin", stdin=KEY)
    before = instance.files()
    instance.root.chmod(0o755)
    os.seteuid(65534)
    try:
        answer = instance.run("psk", *words, stdin=OTHER)
    finally:
        os.seteuid(0)
    assert answer.code == 5
    assert instance.files() == before


# -- credentials


@pytest.fixture
def stores(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Stores of the test's own, and a systemd-creds that turns bytes around."""
    folders = (instance.root / "credstore", instance.root / "run-credstore")
    monkeypatch.setattr(credentials, "ENCRYPTED_STORES", tuple(str(folder) for folder in folders))
    tool = instance.put(
        instance.root / "bin/systemd-creds",
        '#!/bin/sh\n[ "$1" = encrypt ] || exit 1\nprintf "%s " "$@" >>"$0.argv"\nexec /usr/bin/rev\n',
        0o755,
    )
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    return folders


def test_an_encrypted_key_is_in_the_store_and_not_in_the_file(
    instance: Instance, stores: tuple[Path, Path]
) -> None:
    instance.fine("psk", "set", "--id", "db1", "--encrypt", "--stdin", stdin=KEY)
    assert 'key_credential = "iscsi-ipsec-db1"' in instance.key("db1")
    kept = stores[0] / "iscsi-ipsec-db1"
    assert kept.read_bytes() == KEY[::-1]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert KEY.decode() not in (instance.root / "bin/systemd-creds.argv").read_text()


def test_an_encrypted_key_stays_encrypted_when_it_is_changed(
    instance: Instance, stores: tuple[Path, Path]
) -> None:
    instance.fine("psk", "set", "--id", "db1", "--encrypt", "--stdin", stdin=KEY)
    instance.fine("psk", "set", "db1", "--revoke", "--stdin", stdin=OTHER)
    assert "key_credential" in instance.key("db1")
    assert (stores[0] / "iscsi-ipsec-db1").read_bytes() == OTHER[::-1]
    instance.fine("psk", "set", "db1", "--no-encrypt", "--revoke", "--stdin", stdin=KEY)
    assert KEY.decode() in instance.key("db1")
    assert not (stores[0] / "iscsi-ipsec-db1").exists()


def test_a_removed_key_leaves_no_credential_behind_but_other_peoples(
    instance: Instance, stores: tuple[Path, Path]
) -> None:
    instance.fine("psk", "set", "--id", "db1", "--runtime", "--encrypt", "--stdin", stdin=KEY)
    assert (stores[1] / "iscsi-ipsec-db1").exists()
    instance.fine("psk", "remove", "db1")
    assert os.listdir(stores[1]) == []
    theirs = instance.put(stores[1] / "theirs", "x")
    instance.put(instance.psk / "db2.toml", 'id_type = "ID_FQDN"\nid = "db2"\nkey_credential = "theirs"\n')
    instance.fine("psk", "remove", "db2")
    assert theirs.exists()


def test_without_systemd_creds_a_key_is_not_written_unencrypted_instead(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(instance.root))
    answer = instance.run("psk", "set", "--id", "db1", "--encrypt", "--stdin", stdin=KEY)
    assert answer.code == 1
    assert "systemd-creds is not installed" in answer.err
    assert instance.files() == set()


# -- waiting


def status_of(instance: Instance, **more: object) -> dict[str, object]:
    path = instance.psk / "db1.toml"
    signature = files.FileStat.from_stat(path.stat()).signature
    return {
        "schema": 1,
        "pid": os.getpid(),
        "generation": 1,
        "charon": {"reachable": True, "settled": True},
        "guard": {"wanted": True, "installed": True},
        "files": [{"path": str(path), "kind": "psk", "state": "ok", "signature": signature}],
        "keys": [{"name": "db1"}],
        "portals": [],
        "problems": [],
    } | more


def test_waiting_without_a_daemon_is_exit_code_3_and_the_file_is_written(instance: Instance) -> None:
    answer = instance.run("psk", "set", "--id", "db1", "--wait", "--stdin", stdin=KEY)
    assert answer.code == 3
    assert KEY.decode() in instance.key("db1")


def test_waiting_ends_at_the_timeout_and_says_what_is_missing(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    instance.pretend_daemon(status_of(instance))
    wait = ("psk", "set", "db1", "--wait", "--timeout", "0.2", "--stdin")
    answer = instance.run(*wait, stdin=OTHER)
    assert answer.code == 1
    assert "has not read the current version of" in answer.err


@pytest.mark.parametrize(
    ("reported", "code", "words"),
    [
        ({}, 0, ""),
        ({"charon": {"reachable": False, "settled": True}}, 4, "charon is unreachable"),
        ({"charon": {"reachable": True, "settled": False}}, 1, "still starting"),
        ({"keys": []}, 1, "is not in force"),
        (
            {"portals": [{"portal": "10.0.0.20:3260", "key": "db1", "key_file": "", "managed": True, "ready": False, "problem": None}]},
            0,
            "",
        ),
        (
            {"portals": [{"portal": "10.0.0.20:3260", "key": "db2", "key_file": "", "managed": True, "ready": False, "problem": None}]},
            0,
            "",
        ),
        ({"problems": [{"code": "charon-refused", "message": "refused it", "portal": None, "file": None}]}, 1, "refused it"),
    ],
)  # fmt: skip
def test_waiting_ends_when_the_daemon_has_read_the_file_and_charon_has_the_key(
    instance: Instance, reported: dict[str, object], code: int, words: str
) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    instance.pretend_daemon(status_of(instance))
    stop = threading.Event()

    def follow() -> None:
        """A daemon that reads each new form of the file at once."""
        while not stop.wait(0.01):
            fresh = instance.root / "run/new"
            instance.put(fresh, json.dumps(status_of(instance, **reported)))
            fresh.replace(instance.root / "run/status.json")

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        answer = instance.run("psk", "set", "db1", "--wait", "--timeout", "0.7", "--stdin", stdin=OTHER)
    finally:
        stop.set()
        follower.join()
    assert answer.code == code, answer.err
    assert words in answer.err


# -- rotation


def previous_until(instance: Instance, ident: str = "db1") -> datetime:
    (row,) = instance.json("psk", "get", ident)
    return datetime.fromisoformat(row["previous_until"])


def test_the_key_that_is_replaced_can_stay_valid_for_a_time(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--flags", "0x37", "--stdin", stdin=KEY)
    begun = datetime.now(UTC).replace(microsecond=0)
    done = instance.fine("psk", "set", "db1", "--keep-previous", "7d", "--stdin", stdin=OTHER)
    assert "the previous key stays valid until" in done.out
    assert f'key = "{OTHER.decode()}"\nprevious_key = "{KEY.decode()}"\n' in instance.key("db1")
    assert begun + timedelta(days=7) <= previous_until(instance) <= datetime.now(UTC) + timedelta(days=7)
    for words in (("get", "db1"), ("list",)):
        reported = instance.fine("psk", *words).out
        assert previous_until(instance).strftime("%Y-%m-%dT%H:%M:%SZ") in reported
        assert KEY.decode() not in reported
    # the next one ends it
    instance.fine("psk", "set", "db1", "--revoke", "--stdin", stdin=b"a third key of 20 bytes")
    assert "previous" not in instance.key("db1")


def test_a_group_key_is_rotated_in_the_same_way(instance: Instance) -> None:
    instance.fine("group-psk", "set", "--stdin", stdin=KEY)
    instance.fine("group-psk", "set", "--keep-previous", "12h", "--stdin", stdin=OTHER)
    assert f'previous_key = "{KEY.decode()}"' in instance.key("group")


@pytest.mark.parametrize("span", ["7", "0d", "1.5h", "7 d", "7y", "-1d", "a word that may be a key"])
def test_an_invalid_span_is_wrong_usage_and_not_repeated(instance: Instance, span: str) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    done = instance.run("psk", "set", "db1", f"--keep-previous={span}", "--stdin", stdin=OTHER)
    assert done.code == 2
    assert "may be a key" not in done.out + done.err
    assert OTHER.decode() not in instance.key("db1")


def test_where_there_is_no_key_yet_none_can_be_kept(instance: Instance) -> None:
    done = instance.run("psk", "set", "--id", "db1", "--keep-previous", "7d", "--stdin", stdin=KEY)
    assert done.code == 1
    assert "no key" in done.err
    assert not (instance.psk / "db1.toml").exists()


def test_an_encrypted_key_that_stays_valid_keeps_its_credential(
    instance: Instance, stores: tuple[Path, Path]
) -> None:
    third = b"a third key of 20 bytes"
    instance.fine("psk", "set", "--id", "db1", "--encrypt", "--stdin", stdin=KEY)
    instance.fine("psk", "set", "db1", "--keep-previous", "7d", "--stdin", stdin=OTHER)
    assert (
        'key_credential = "iscsi-ipsec-db1.2"\nprevious_key_credential = "iscsi-ipsec-db1"'
        in instance.key("db1")
    )
    kept = {path.name: path.read_bytes()[::-1] for path in stores[0].iterdir()}
    assert kept == {"iscsi-ipsec-db1": KEY, "iscsi-ipsec-db1.2": OTHER}
    instance.fine("psk", "set", "db1", "--keep-previous", "7d", "--stdin", stdin=third)
    kept = {path.name: path.read_bytes()[::-1] for path in stores[0].iterdir()}
    assert kept == {"iscsi-ipsec-db1": third, "iscsi-ipsec-db1.2": OTHER}
    instance.fine("psk", "set", "db1", "--revoke", "--stdin", stdin=KEY)
    assert {path.read_bytes()[::-1] for path in stores[0].iterdir()} == {KEY}
    instance.fine("psk", "remove", "db1")
    assert os.listdir(stores[0]) == []


def test_a_new_encrypted_key_does_not_overwrite_the_previous_one_that_the_far_end_still_has(
    instance: Instance, stores: tuple[Path, Path]
) -> None:
    third = b"a third key of 20 bytes"
    instance.fine("psk", "set", "--id", "db1", "--encrypt", "--stdin", stdin=KEY)
    instance.fine("psk", "set", "db1", "--stdin", stdin=OTHER)
    sa = {"key": "previous", "age": 24, "bytes_in": 900, "bytes_out": 900}
    portal = {
        "portal": "10.0.0.20:3260", "role": "initiator", "key": "db1", "managed": True, "closed": True, "ready": True,
        "key_file": str(instance.psk / "db1.toml"), "identity": "db1", "sa": sa, "problem": None,
    }  # fmt: skip
    instance.pretend_daemon(
        {
            "schema": 1,
            "pid": 1,
            "generation": 1,
            "portals": [portal],
            "keys": [{"name": "db1", "in_use": True}],
            "files": [],
            "problems": [],
        }
    )
    instance.fine("psk", "set", "db1", "--yes", "--stdin", stdin=third)
    names = {
        line.split(" = ")[0]: line.split('"')[1]
        for line in instance.key("db1").splitlines()
        if "credential" in line
    }
    kept = {path.name: path.read_bytes()[::-1] for path in stores[0].iterdir()}
    assert kept == {names["key_credential"]: third, names["previous_key_credential"]: KEY}


@pytest.mark.parametrize("more", [(), ("--revoke",)], ids=["kept", "revoked"])
def test_an_encrypted_key_never_takes_the_credential_of_another_key_file(
    instance: Instance, stores: tuple[Path, Path], more: tuple[str, ...]
) -> None:
    third = b"a third key of 20 bytes"
    instance.fine("psk", "set", "--id", "db1", "--encrypt", "--stdin", stdin=KEY)
    instance.fine("psk", "set", "db1", "--stdin", stdin=OTHER)
    instance.fine("psk", "set", "db1.2", "--id", "db2", "--encrypt", "--stdin", stdin=third)
    assert (stores[0] / "iscsi-ipsec-db1.2").read_bytes()[::-1] == OTHER
    shared = instance.key("db1.2").replace('"db2"', '"db3"')
    instance.put(instance.psk / "db3.toml", shared)
    instance.fine("psk", "set", "db3", *more, "--stdin", stdin=KEY)
    named = next(
        line.split('"')[1] for line in instance.key("db1.2").splitlines() if "key_credential" in line
    )
    assert (stores[0] / named).read_bytes()[::-1] == third


def test_removing_a_key_keeps_a_credential_that_a_broken_file_names(
    instance: Instance, stores: tuple[Path, Path]
) -> None:
    instance.fine("psk", "set", "--id", "db1", "--encrypt", "--stdin", stdin=KEY)
    broken = instance.key("db1").replace('"db1"', '"db2"') + "kee = 1\n"
    instance.put(instance.psk / "db2.toml", broken)
    instance.fine("psk", "remove", "db1", "--yes")
    assert (stores[0] / "iscsi-ipsec-db1").read_bytes()[::-1] == KEY
    (instance.psk / "db2.toml").unlink()
    instance.fine("psk", "undo", "db1")
    instance.fine("psk", "remove", "db1", "--yes")
    assert not list(stores[0].iterdir())


def test_undo_overwrites_no_credential_that_another_key_file_has_now(
    instance: Instance, stores: tuple[Path, Path]
) -> None:
    instance.fine("psk", "set", "--id", "db1", "--encrypt", "--stdin", stdin=KEY)
    instance.fine("psk", "remove", "db1", "--yes")
    other = 'id_type = "ID_FQDN"\nid = "db2"\nkey_credential = "iscsi-ipsec-db1"\n'
    instance.put(instance.psk / "db2.toml", other)
    (stores[0] / "iscsi-ipsec-db1").write_bytes(OTHER[::-1])
    answer = instance.run("psk", "undo", "db1")
    assert answer.code == 1
    assert "holds the key of another file" in answer.err
    assert (stores[0] / "iscsi-ipsec-db1").read_bytes()[::-1] == OTHER


def test_an_unencrypted_key_that_is_replaced_by_an_encrypted_one_is_encrypted_too(
    instance: Instance, stores: tuple[Path, Path]
) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=KEY)
    instance.fine("psk", "set", "db1", "--keep-previous", "7d", "--encrypt", "--stdin", stdin=OTHER)
    assert KEY.decode() not in instance.key("db1")
    assert {path.read_bytes()[::-1] for path in stores[0].iterdir()} == {KEY, OTHER}


def test_check_shows_a_previous_key_whose_time_is_over(instance: Instance) -> None:
    text = (
        'id_type = "ID_FQDN"\nid = "db1"\nkey = "a key of twenty bytes"\nprevious_key = "a key of before"\n'
    )
    path = instance.put(instance.psk / "db1.toml", text + "previous_until = 2020-01-01T00:00:00Z\n")
    done = instance.run("check", str(path))
    assert (done.code, "no longer used, since 2020-01-01T00:00:00Z" in done.out) == (0, True)
    assert f"{path}:4:" in done.out


@pytest.mark.parametrize(
    "text", ["10.20.1.256", "10.0.0.5:3260", "10.0.0.0/24", "../../etc/passwd", "fqdn:db1", "*.lab", "db1.", "0.0.0.0"]  # noqa: S104  # what must be refused
)  # fmt: skip
def test_an_id_that_is_not_plainly_one_is_refused_and_nothing_is_written(
    instance: Instance, text: str
) -> None:
    answer = instance.run("psk", "set", "--id", text, "--stdin", stdin=KEY)
    assert answer.code == 2
    assert "--id-type" in answer.err
    assert not list(instance.psk.glob("*"))
