"""``check``: every problem of every file by its line, offline."""

from __future__ import annotations

import json

import pytest

from tests.support import reported
from tests.support.fake_charon import FakeCharon
from tests.support.reported import (
    FINE,
    PROBLEMS,
    Instance,
)

charon, instance, running = (
    reported.charon,
    reported.instance,
    reported.running,
)  # fixtures, found by their names here
KEY = 'id_type = "ID_FQDN"\nid = "db1"\nkey = "canary-key-0123456789"\n'


def test_check_shows_every_problem_of_every_file_by_line(instance: Instance) -> None:
    key = instance.write("etc/psk.d/db1.toml", 'id_type = "ID_FDQN"\nid = "x"\nkey_hex = "canary"\n')
    policy = instance.write("etc/portal.d/san.toml", 'portals = ["10.0.0.20"]\nrole = "server"\n')
    settings = instance.write("etc/iscsi-ipsecd.toml", "\nguard = 1\n")
    answer = instance.call("check")
    assert answer.code == PROBLEMS
    *reported, total = answer.out.splitlines()
    assert total == "3 files, 4 errors, 0 warnings"
    assert [line.split(": ", 1)[0] for line in reported] == [
        f"{settings}:2",
        f"{key}:1",
        f"{key}:3",
        f"{policy}:2",
    ]
    assert 'did you mean "ID_FQDN"?' in answer.out
    assert "canary" not in answer.out + answer.err


def test_check_of_good_files_says_how_many(instance: Instance) -> None:
    instance.write("etc/psk.d/db1.toml", KEY)
    answer = instance.call("check")
    assert (answer.code, answer.out) == (FINE, "1 file, no problems\n")


def test_check_takes_files_and_folders(instance: Instance) -> None:
    key = instance.write("etc/psk.d/db1.toml", KEY)
    policy = instance.write("etc/portal.d/san.toml", 'portals = ["x y"]\n')
    assert instance.call("check", str(key)).code == FINE
    answer = instance.call("check", str(policy), str(key.parent))
    assert answer.code == PROBLEMS
    assert answer.out.startswith(f"{policy}:1: ")


def test_check_takes_the_kind_of_a_file_from_its_content_in_any_folder(instance: Instance) -> None:
    assert instance.call("check", str(instance.write("a.toml", KEY))).code == FINE
    assert instance.call("check", str(instance.write("b.toml", 'portals = ["10.0.0.20"]\n'))).code == FINE


def test_check_warns_about_a_weak_key_and_succeeds(instance: Instance) -> None:
    instance.write("etc/psk.d/db1.toml", KEY.replace("canary-key-0123456789", "short"))
    answer = instance.call("check")
    assert answer.code == FINE
    assert "guessed" in answer.out


@pytest.mark.parametrize("line", ['key_hex = "0x"', 'key_file = "empty.key"'])
def test_check_fails_for_an_empty_key_as_the_daemon_does(instance: Instance, line: str) -> None:
    instance.write("etc/psk.d/empty.key", "\n")
    instance.write("etc/psk.d/db1.toml", f'id_type = "ID_FQDN"\nid = "db1"\n{line}\n')
    assert instance.call("check").code == PROBLEMS


def test_check_shows_wrong_rights_with_the_command_that_fixes_them(instance: Instance) -> None:
    key = instance.write("etc/psk.d/db1.toml", KEY, 0o644)
    answer = instance.call("check")
    assert answer.code == PROBLEMS
    assert f"chmod 600 {key}" in answer.out


def test_check_as_json_has_file_and_line(instance: Instance) -> None:
    key = instance.write("etc/psk.d/db1.toml", KEY + "nonsense = 1\n")
    (row,) = json.loads(instance.call("check", "--json").out)
    assert (row["file"], row["line"], row["code"], row["severity"]) == (str(key), 4, "unknown-key", "error")


def test_check_shows_proposals_that_this_charon_cannot_do(running: Instance, charon: FakeCharon) -> None:
    running.write("etc/psk.d/g.toml", 'group = true\nkey = "a key of more than 20 bytes"\n')
    running.write(
        "etc/portal.d/san.toml",
        'portals = ["10.0.0.20", "203.0.113.0/28"]\nike_proposals = ["aes256-sha256-ecp521"]\n',
        0o644,
    )
    words = ("check", "--nodes-dir", str(running.root / "nodes"))
    answer = running.call(*words)
    assert "ecp521" in answer.out
    charon.close()
    assert "ecp521" not in running.call(*words).out
