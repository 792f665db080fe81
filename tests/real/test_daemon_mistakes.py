"""Mistakes in files: a clear message with file and line, and the portal closed in the kernel rather than open."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.admin import (
    PORTAL,
    ROW,
    group_file,
    key_file,
    knock,
    known_to_open_iscsi,
    our_connections,
    our_secrets,
    portal_file,
    wait_for_connection,
)
from tests.support.ike import KEY_A, KEY_GROUP
from tests.support.netlab import Charon, Daemon, Lab, wait_until

BOTH_MODES = (
    'security_flags = ["VALID", "IKE_IPSEC_ENABLED", "MAIN_MODE_ENABLED", "AGGRESSIVE_MODE_ENABLED"]\n'
)
BOTH_ESP = (
    'security_flags = ["VALID", "IKE_IPSEC_ENABLED", "TRANSPORT_MODE_PREFERRED", "TUNNEL_MODE_PREFERRED"]\n'
)

IN_A_POLICY = {
    "both-modes": (BOTH_MODES, "MAIN_MODE_ENABLED and AGGRESSIVE_MODE_ENABLED exclude each other"),
    "both-esp-modes": (BOTH_ESP, "TRANSPORT_MODE_PREFERRED and TUNNEL_MODE_PREFERRED exclude each other"),
    "unknown-bits": ("security_flags = 0x183\n", "unknown flag bits 0x80, 0x100"),
    "unknown-flag": ('security_flags = ["VALID", "PFS_ENABELD"]\n', 'did you mean "PFS_ENABLED"?'),
    "id-of-another-type": (
        'target_id = "target.lab"\ntarget_id_type = "ID_IPV4_ADDR"\n', "target_id does not fit ID_IPV4_ADDR",
    ),
    "wildcard-id": ('target_id = "*.lab"\n', "the id holds a wildcard"),
}  # fmt: skip

ELSEWHERE = [f"10.10.0.{number}" for number in range(101, 111)]

IN_A_KEY = {
    "both-modes": (f'id_type = "ID_FQDN"\nid = "a.lab"\n{BOTH_MODES}', "exclude each other"),
    "both-esp-modes": (f'id_type = "ID_FQDN"\nid = "a.lab"\n{BOTH_ESP}', "exclude each other"),
    "unknown-bits": ('id_type = "ID_FQDN"\nid = "a.lab"\nsecurity_flags = 0x80\n', "unknown flag bits 0x80"),
    "id-of-another-type": ('id_type = "ID_IPV4_ADDR"\nid = "a.lab"\n', "id does not fit ID_IPV4_ADDR"),
    "wildcard-id": ('id_type = "ID_FQDN"\nid = "*.lab"\n', "the id holds a wildcard"),
    "no-id": ("", "neither an id nor group = true"),
}


def reported(daemon: Daemon, words: str, *, file: Path | None = None) -> dict[str, object]:
    """The problem (of the file) that says so."""

    def found() -> dict[str, object]:
        said = [p for p in daemon.status().get("problems", []) if words in p["message"]]
        return next((p for p in said if file is None or p["file"] == str(file)), {})

    return wait_until(found, f'a problem says "{words}"', detail=daemon.tail)


def is_closed(daemon: Daemon, address: str = PORTAL) -> None:
    """Nothing of the portal is in charon, and it is in the kernel's guard."""
    table = daemon.node.run(["nft", "list", "set", "inet", "iscsi_ipsec", "portals4"]).out
    assert f"{address} . 3260" in table
    row = daemon.row(f"{address}:3260")
    assert (row["closed"], row["ready"], row["connection"]) == (True, False, None)


def test_a_new_policy_with_a_mistake_is_reported_and_closes_its_portal(
    lab: Lab, charon: Charon, daemon: Daemon
) -> None:
    portals = dict(zip(IN_A_POLICY, [PORTAL, *ELSEWHERE], strict=False))
    files = {
        mistake: daemon.put_portal(mistake, f'portals = ["{portals[mistake]}"]\n{lines}')
        for mistake, (lines, _) in IN_A_POLICY.items()
    }
    daemon.start()
    for mistake, (_, words) in IN_A_POLICY.items():
        problem = reported(daemon, words)
        assert (problem["file"], problem["severity"]) == (str(files[mistake]), "error")
        assert problem["line"] in (2, 3)
        is_closed(daemon, portals[mistake])
    assert not our_connections(charon)
    assert knock(lab) == 0


def test_a_new_key_with_a_mistake_is_reported_and_closes_its_portals(
    lab: Lab, charon: Charon, daemon: Daemon
) -> None:
    portals = dict(zip(IN_A_KEY, [PORTAL, *ELSEWHERE], strict=False))
    files = {}
    for mistake, (lines, _) in IN_A_KEY.items():
        known_to_open_iscsi(daemon, portals[mistake])
        text = f'key = "{KEY_A.decode()}"\nportals = ["{portals[mistake]}"]\n{lines}'
        files[mistake] = daemon.put_key(mistake, text)
    daemon.start()
    for mistake, (_, words) in IN_A_KEY.items():
        problem = reported(daemon, words, file=files[mistake])
        assert problem["severity"] == "error"
        is_closed(daemon, portals[mistake])
    assert not our_secrets(charon)
    assert knock(lab) == 0


def test_a_key_with_a_mistake_closes_all_portals_if_it_is_for_any_until_it_is_fixed_or_gone(
    lab: Lab, charon: Charon, daemon: Daemon
) -> None:
    known_to_open_iscsi(daemon)
    daemon.start()
    assert knock(lab)
    everywhere = 'portals = ["any"]\n'
    daemon.put_key("a", key_file("*.lab", KEY_A))
    reported(daemon, "the id holds a wildcard")
    assert knock(lab), "a key without portals manages nothing, with a mistake or without"
    path = daemon.put_key("a", key_file("*.lab", KEY_A) + everywhere)
    wait_until(lambda: daemon.row(ROW)["closed"], "it is closed", detail=daemon.tail)
    is_closed(daemon)
    assert knock(lab) == 0
    path.unlink()  # it was never managed, so there is nothing to release
    wait_until(lambda: knock(lab), "it is left alone again", detail=daemon.tail)
    daemon.put_key("a", key_file("a.lab", KEY_A) + everywhere)
    wait_for_connection(charon, daemon)


def test_a_mistake_in_a_policy_that_was_good_leaves_it_in_force(charon: Charon, daemon: Daemon) -> None:
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file())
    daemon.start()
    wait_for_connection(charon, daemon)
    before = charon.connections()
    for line, words in IN_A_POLICY.values():
        daemon.put_portal("san", f'portals = ["{PORTAL}"]\n{line}')
        assert "its last good content stays in force" in str(reported(daemon, words)["message"])
        assert charon.connections() == before


def test_a_policy_that_names_a_missing_key_is_reported_and_closes_its_portal(
    lab: Lab, charon: Charon, daemon: Daemon
) -> None:
    daemon.put_key("group", group_file(KEY_GROUP))
    path = daemon.put_portal("san", portal_file(psk="nosuch"))
    daemon.start()
    problem = reported(daemon, 'the policy names the key "nosuch"')
    assert (problem["file"], problem["hint"]) == (str(path), "add psk.d/nosuch.toml or change psk")
    is_closed(daemon)
    assert knock(lab) == 0
    assert not our_connections(charon)
    daemon.put_key("nosuch", key_file("a.lab", KEY_A))
    wait_for_connection(charon, daemon)


# -- names


def test_a_name_that_does_not_resolve_keeps_the_group_key_from_standing_in_for_its_key(
    hosts: Path, charon: Charon, daemon: Daemon
) -> None:
    known_to_open_iscsi(daemon)
    daemon.put_key("group", group_file(KEY_GROUP) + 'portals = ["10.10.0.0/24"]\n')
    path = daemon.put_key("a", key_file("a.lab", KEY_A) + 'portals = ["san.lab"]\n')
    daemon.start()
    problem = reported(daemon, "the name san.lab does not resolve")
    assert problem["file"] == str(path)
    reported(daemon, f"is for san.lab, which does not resolve yet and may be {ROW}")
    is_closed(daemon)
    assert not our_connections(charon)
    hosts.write_text(f"127.0.0.1 localhost\n{PORTAL} san.lab\n")
    wait_until(lambda: daemon.row(ROW)["key"] == "a", "the name resolves", timeout=20, detail=daemon.tail)


@pytest.mark.usefixtures("hosts")
def test_a_name_that_does_not_resolve_leaves_its_keys_other_portals_alone(
    charon: Charon, daemon: Daemon
) -> None:
    daemon.put_key("group", group_file(KEY_GROUP))
    daemon.put_key("a", key_file("a.lab", KEY_A) + f'portals = ["nosuch.lab", "{PORTAL}"]\n')
    daemon.put_portal("san", portal_file())
    daemon.start()
    reported(daemon, "the name nosuch.lab does not resolve")
    wait_for_connection(charon, daemon)
    assert (daemon.row(ROW)["key"], daemon.row(ROW)["problem"]) == ("a", None)


def test_after_a_restart_without_dns_a_name_keeps_its_addresses(
    hosts: Path, charon: Charon, daemon: Daemon
) -> None:
    hosts.write_text(f"127.0.0.1 localhost\n{PORTAL} san.lab\n")
    daemon.put_key("a", key_file("a.lab", KEY_A) + 'portals = ["san.lab"]\n')
    daemon.put_portal("san", portal_file("san.lab"))
    daemon.start()
    wait_for_connection(charon, daemon)
    daemon.settle()
    before, mark = charon.connections(), charon.log_mark()
    daemon.kill()
    hosts.write_text("127.0.0.1 localhost\n")
    daemon.start()
    reported(daemon, "the name san.lab does not resolve any more")
    assert charon.connections() == before
    assert "vici connection" not in charon.log_text(mark)
    daemon.kill()
    charon.terminate()
    charon.start()
    daemon.start()
    wait_for_connection(charon, daemon)
    assert daemon.row(ROW)["key"] == "a"


@pytest.mark.parametrize(
    ("flags", "words", "write"),
    [
        ("0x22", "VALID is unset, so the flags IKE_IPSEC_ENABLED TRANSPORT_MODE_PREFERRED are not in force", "0x23"),
        ("0x01", "IKE_IPSEC_ENABLED is unset: what these flags apply to is reached unencrypted", "0x03"),
    ],
)  # fmt: skip
def test_flags_that_do_not_say_what_they_seem_to_are_shown_by_status_and_check(
    charon: Charon, daemon: Daemon, flags: str, words: str, write: str
) -> None:
    daemon.put_key("a", key_file("a.lab", KEY_A))
    path = daemon.put_portal("san", portal_file(more=f"security_flags = {flags}\n"))
    daemon.start()
    problem = reported(daemon, words, file=path)
    assert (problem["severity"], problem["line"]) == ("warning", 5)
    assert f"write security_flags = {write}" in str(problem["hint"])
    status, check = daemon.cli("status"), daemon.cli("check")
    for answer in (status, check):
        assert words in " ".join((answer.out + answer.err).split())
