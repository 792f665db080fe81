"""``import``: the output, the written files, and the files that are left alone."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from iscsi_ipsec.adapters import files
from iscsi_ipsec.cli.file_check import FileCheck
from iscsi_ipsec.core.config.key_file import parse_key_file
from iscsi_ipsec.service.paths import Paths
from tests.cli.conftest import Instance
from tests.support.reported import write_session

CANARY = "canary-key-0123456789"
SCRIPT = f"""@echo off
iscsicli PSKey * * 0x37 2 db1.example.com {CANARY} *
iscsicli PSKey * * 0x37 1 10.0.0.5 {CANARY} f
iscsicli GroupKey {CANARY} *
iscsicli TunnelAddr * * 10.0.0.20 203.0.113.1 *
iscsicli PersistentLoginTarget iqn.x T 10.0.0.21 3260 * * 0x27 0 * * * * * u {CANARY} 1 {CANARY} 0
"""
MADE = {
    "etc/psk.d/db1.example.com.toml",
    "run/psk.d/10.0.0.5.toml",
    "etc/psk.d/group.toml",
    "etc/psk.d/group-10.0.0.21-3260.toml",
    "etc/portal.d/windows-10.0.0.20-3260.toml",
    "etc/portal.d/windows-10.0.0.21-3260.toml",
}


@pytest.fixture
def script(instance: Instance) -> str:
    return str(instance.put(instance.root / "in/keys.cmd", SCRIPT))


def made(instance: Instance) -> set[str]:
    return {path for path in instance.files() if not path.startswith("in/")}


def test_by_default_nothing_is_written_and_no_key_is_shown(instance: Instance, script: str) -> None:
    answer = instance.fine("import", script)
    assert made(instance) == set()
    assert all(path in answer.out for path in MADE)
    assert "add --apply" in answer.out
    assert CANARY not in answer.all


def test_applied_files_are_as_the_daemon_wants_them(instance: Instance, script: str) -> None:
    answer = instance.fine("import", script, "--apply")
    assert made(instance) == MADE
    assert CANARY not in answer.all
    for name in MADE:
        path = instance.root / name
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if "psk.d" in name else 0o644)
        assert FileCheck(Paths()).judge(str(path)).problems == ()
    assert f'key = "{CANARY}"' in instance.key("db1.example.com")


def test_a_logins_key_is_named_by_the_policy_of_its_portal(instance: Instance, script: str) -> None:
    instance.fine("import", script, "--apply")
    assert 'psk = "group-10.0.0.21-3260"' in (instance.portal / "windows-10.0.0.21-3260.toml").read_text()


def test_importing_again_changes_nothing(instance: Instance, script: str) -> None:
    instance.fine("import", script, "--apply")
    before = {path: (instance.root / path).stat().st_mtime_ns for path in MADE}
    answer = instance.fine("import", script, "--apply")
    assert "0 files written" in answer.out
    assert {path: (instance.root / path).stat().st_mtime_ns for path in MADE} == before


def test_a_file_that_exists_is_only_replaced_with_force(instance: Instance, script: str) -> None:
    mine = 'id_type = "ID_FQDN"\nid = "db1.example.com"\nkey = "mine, and not to be lost"\n'
    path = instance.put(instance.psk / "db1.example.com.toml", mine)
    answer = instance.run("import", script, "--apply")
    assert answer.code == 1
    assert f"{script}:2: {path} exists and is kept" in answer.err
    assert path.read_text() == mine
    assert made(instance) == MADE
    instance.fine("import", script, "--apply", "--force")
    assert CANARY in path.read_text()


def test_an_identity_that_another_file_has_is_not_imported_a_second_time(
    instance: Instance, script: str
) -> None:
    instance.put(
        instance.psk / "rack1.toml", f'id_type = "ID_FQDN"\nid = "DB1.example.com"\nkey = "{CANARY}"\n'
    )
    answer = instance.run("import", script, "--apply", "--force")
    assert answer.code == 1
    assert "rack1.toml already has a key" in answer.err
    assert not (instance.psk / "db1.example.com.toml").exists()


def test_a_policy_that_already_names_a_portal_stays_the_only_one(instance: Instance, script: str) -> None:
    instance.put(instance.portal / "san.toml", 'portals = ["10.0.0.20"]\n')
    answer = instance.run("import", script, "--apply", "--force")
    assert answer.code == 1
    assert "san.toml already names 10.0.0.20:3260" in answer.err
    assert not (instance.portal / "windows-10.0.0.20-3260.toml").exists()


def test_import_reports_that_it_outranks_a_policy_for_the_network(instance: Instance, script: str) -> None:
    instance.put(instance.portal / "san.toml", 'portals = ["10.0.0.0/24"]\n')
    answer = instance.fine("import", script)
    assert "counts instead of" in answer.err


def test_of_two_keys_the_last_and_of_two_sets_of_flags_the_first_counts(instance: Instance) -> None:
    text = (
        f"PSKey * * 0x37 2 db1 {'a' * 20} *\nPSKey * * 0x57 2 DB1 {'b' * 20} *\n"
        "AddTargetPortal 10.0.0.20 3260 * * 0x27\nLoginTarget x T 10.0.0.20 3260 * * 0x47\n"
    )
    path = str(instance.put(instance.root / "in/x.cmd", text))
    answer = instance.fine("import", path, "--apply")
    assert "b" * 20 in instance.key("db1")
    assert "TRANSPORT" in (instance.portal / "windows-10.0.0.20-3260.toml").read_text()
    assert f"{path}:1: a later key" in answer.err
    assert f"{path}:4: other flags" in answer.err


def test_import_reports_an_outer_address_for_transport_mode_and_does_not_write_it(instance: Instance) -> None:
    text = "AddTargetPortal 10.0.0.20 3260 * * 0x27\nTunnelAddr * * 10.0.0.20 203.0.113.1 *\n"
    answer = instance.run("import", str(instance.put(instance.root / "in/x.cmd", text)), "--apply")
    assert answer.code == 1
    assert "tunnel mode" in answer.err
    assert made(instance) == set()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_are_read_in_the_encodings_that_windows_writes(instance: Instance, encoding: str) -> None:
    path = instance.root / "keys.json"
    item = {
        "AuthMethod": 1,
        "SecurityFlags": 39,
        "IdType": 2,
        "Id": list(b"db1"),
        "Key": list(CANARY.encode()),
    }
    path.write_bytes(json.dumps([item]).replace("\n", "\r\n").encode(encoding))
    instance.fine("import", str(path), "--apply")
    assert CANARY in instance.key("db1")


def test_a_key_of_bytes_survives(instance: Instance) -> None:
    key = [0, 255, 10, 13, 34, 92, *range(20)]
    item = {"AuthMethod": 1, "SecurityFlags": 39, "IdType": 2, "Id": list(b"db1"), "Key": key}
    answer = instance.run("import", "-", "--apply", stdin=json.dumps(item).encode())
    assert answer.code == 0, answer.err
    draft = parse_key_file(instance.key("db1"), "", "db1")
    assert draft.source.reveal() == bytes(key)  # type: ignore[union-attr]  # a Secret, or the test fails


def test_import_says_that_keys_without_portals_manage_none(instance: Instance) -> None:
    path = instance.root / "keys.cmd"
    path.write_text('iscsicli PSKey * * 0x27 2 db1.example.com "a key of twenty bytes" *\n')
    assert "note: a key without portals manages none by itself" in instance.run("import", str(path)).err
    path.write_text(
        'iscsicli PSKey * * 0x27 2 db1.example.com "a key of twenty bytes" *\n'
        "iscsicli TunnelAddr * * 192.0.2.20 203.0.113.1 *\n"
    )
    assert "note:" not in instance.run("import", str(path)).err


def test_a_default_bitmap_becomes_a_suggestion_and_no_file(instance: Instance) -> None:
    answer = instance.fine("import", "--default-bitmap", "0x27", "--apply")
    assert "[defaults]\nsecurity_flags = [" in answer.out
    assert "iscsi-ipsecd.toml" in answer.out
    assert instance.files() == set()


def test_for_machines_the_same_is_said_without_keys(instance: Instance, script: str) -> None:
    answer = instance.fine("import", script, "--json")
    document = json.loads(answer.out)
    assert {str(Path(file["path"]).relative_to(instance.root)) for file in document["files"]} == MADE
    assert {file["state"] for file in document["files"]} == {"new"}
    assert document["problems"] == []
    assert CANARY not in answer.all


def test_import_of_an_empty_input_is_an_error(instance: Instance) -> None:
    answer = instance.run("import", str(instance.put(instance.root / "in/x.cmd", "echo hello\n")))
    assert answer.code == 1
    assert "nothing in it is about IPsec" in answer.err


@pytest.mark.parametrize("words", [(), ("/nonexistent",), ("-", "--encoding", "no-such")])
def test_wrong_usage_is_exit_code_2(instance: Instance, words: tuple[str, ...]) -> None:
    assert instance.run("import", *words).code == 2


def test_a_thousand_keys_are_imported_in_one_go_and_again(instance: Instance) -> None:
    text = "".join(f"PSKey * * 0x37 2 host{n}.example.com {CANARY}{n} *\n" for n in range(1000))
    path = str(instance.put(instance.root / "in/many.cmd", text))
    assert "1000 files written" in instance.fine("import", path, "--apply").out
    assert "0 files written" in instance.fine("import", path, "--apply").out
    assert len(files.find_config([str(instance.psk)]).files) == 1000


# -- what it would do to what is there


def test_identities_that_would_make_a_portals_key_ambiguous_are_not_written(instance: Instance) -> None:
    instance.put(instance.portal / "san.toml", 'portals = ["10.0.0.20"]\n', 0o644)
    lines = [f"iscsicli PSKey * * 0x27 2 {name}.example.com {CANARY} *" for name in ("db1", "db2")]
    script = instance.put(instance.root / "fleet.cmd", "\r\n".join(lines))
    shown = instance.run("import", str(script))
    assert shown.code == 1
    assert "several keys with a name as identity" in shown.err
    refused = instance.run("import", "--apply", str(script))
    assert refused.code == 1
    assert "--id" in refused.err
    assert not instance.psk.exists()
    instance.fine("import", "--apply", "--id", "DB2.example.com", str(script))
    assert [path.name for path in instance.psk.iterdir()] == ["db2.example.com.toml"]


def test_sessions_that_an_import_would_close_are_shown_first(instance: Instance) -> None:
    row = {
        "portal": "10.0.0.20:3260", "role": "initiator", "key": None, "key_file": None, "managed": False,
        "closed": False, "ready": True, "identity": None, "sa": None, "problem": None,
    }  # fmt: skip
    instance.pretend_daemon({"schema": 1, "portals": [row], "keys": [], "files": [], "problems": []})
    write_session(instance.root / "sys", 7, "10.0.0.20")
    script = instance.put(
        instance.root / "x.cmd",
        f"iscsicli TunnelAddr * * 10.0.0.20 203.0.113.1 *\niscsicli GroupKey {CANARY} *\n",
    )
    words = ("import", "--apply", str(script), f"--sysfs-dir={instance.root}/sys")
    for more, code in ((), 1), (("--dry-run",), 0):
        answer = instance.run(*words, *more)
        assert answer.code == code
        assert "open now, and closed until IKE succeeds" in answer.err
        assert "session 7" in answer.err
        assert not instance.psk.exists()
    instance.fine(*words, "--yes")
    assert (instance.psk / "group.toml").exists()


def test_a_key_that_an_import_replaces_can_be_brought_back(instance: Instance) -> None:
    instance.fine("psk", "set", "--id", "db1", "--stdin", stdin=b"the key of before this")
    before = instance.key("db1")
    script = instance.put(instance.root / "x.cmd", f"iscsicli PSKey * * 0x27 2 db1 {CANARY} *\n")
    instance.fine("import", "--apply", "--force", str(script))
    assert CANARY in instance.key("db1")
    instance.fine("psk", "undo", "db1")
    assert instance.key("db1") == before


def test_flags_and_an_outer_address_that_contradict_name_the_line_of_the_address(instance: Instance) -> None:
    lines = [
        "iscsicli AddTargetPortal 10.0.0.20 3260 * 0 0x27 0",
        "",
        "iscsicli TunnelAddr * * 10.0.0.20 203.0.113.1 *",
    ]
    script = instance.put(instance.root / "x.cmd", "\n".join(lines))
    answer = instance.run("import", str(script))
    assert answer.code == 1
    assert f"{script}:3: " in answer.err
