"""``plan --with``: what files that are not in place yet would close, cut and negotiate again."""

from __future__ import annotations

import json

from tests.support.admin import PORTAL, ROW, key_file, our_connections, our_secrets, portal_file
from tests.support.ike import KEY_A, KEY_B
from tests.support.netlab import Charon, Daemon, wait_until
from tests.support.reported import write_session


def running(charon: Charon, daemon: Daemon) -> None:
    daemon.put_portal("san", portal_file(psk="a"))
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.start()
    wait_until(lambda: daemon.row(ROW)["ready"], "the portal is ready", detail=daemon.tail)


def outside(daemon: Daemon, name: str, text: str) -> str:
    (daemon.folder / "new").mkdir(exist_ok=True)
    return str(daemon.put(daemon.folder / "new" / f"{name}.toml", text))


def test_files_in_place_change_nothing(charon: Charon, daemon: Daemon) -> None:
    running(charon, daemon)
    assert daemon.cli("plan", check=True).out == "nothing to do: charon holds what the files say\n"
    same = outside(daemon, "a", key_file("a.lab", KEY_A))
    assert daemon.cli("plan", "--with", same, check=True).out.startswith("nothing to do")


def test_a_portal_that_a_new_policy_closes_is_shown_with_its_sessions(charon: Charon, daemon: Daemon) -> None:
    running(charon, daemon)
    daemon.put(daemon.portal / "open.toml", 'portals = ["10.10.0.9"]\nsecurity_flags = ["VALID"]\n')
    wait_until(lambda: daemon.row("10.10.0.9:3260").get("closed") is False, "it is open", detail=daemon.tail)
    write_session(daemon.folder / "sys", 7, "10.10.0.9")
    new = outside(daemon, "open", portal_file("10.10.0.9", psk="a"))
    sysfs = f"--sysfs-dir={daemon.folder}/sys"
    answer = daemon.cli("plan", "--with", new, sysfs, check=True)
    assert "10.10.0.9:3260 is closed: nothing passes outside IPsec" in answer.out
    assert "session 7, iqn.2026-01.com.example:disk: sdx" in answer.out
    assert ROW not in answer.out
    shown = json.loads(daemon.cli("plan", "--json", "--with", new, sysfs, check=True).out)
    assert [(row["portal"], row["what"]) for row in shown["portals"]] == [("10.10.0.9:3260", "closes")]
    assert any(row["command"] == "load-conn" for row in shown["operations"])


def test_a_changed_key_and_changed_settings_are_distinguished_and_nothing_is_touched(
    charon: Charon, daemon: Daemon
) -> None:
    running(charon, daemon)
    before = (our_connections(charon), our_secrets(charon))
    key = outside(daemon, "a", key_file("a.lab", KEY_B))
    assert f"{ROW} gets the key {daemon.psk}/a.toml instead of" in daemon.cli("plan", "--with", key).out
    policy = outside(daemon, "san", portal_file(psk="a", more="dpd_delay = 7\nesp_rekey_time = 777\n"))
    assert f"{ROW} gets other settings" in daemon.cli("plan", "--with", policy).out
    both = daemon.cli("plan", "--with", key, policy).out
    assert f"{ROW} gets the key" in both
    assert KEY_B.decode() not in both
    assert (our_connections(charon), our_secrets(charon)) == before


def test_a_file_with_a_mistake_is_no_plan(charon: Charon, daemon: Daemon) -> None:
    running(charon, daemon)
    answer = daemon.cli("plan", "--with", outside(daemon, "x", f'portals = ["{PORTAL}"]\nrole = "server"\n'))
    assert answer.rc == 1
    assert "x.toml:2: " in answer.err
