"""The conversion of iscsicli commands, and the problems of those that are not taken over."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.addresses import host_address
from iscsi_ipsec.base.identity import IdType
from iscsi_ipsec.base.policy import EspMode
from iscsi_ipsec.base.portal import parse_portal
from iscsi_ipsec.core.config.security_flags import SecurityFlags, interpret
from iscsi_ipsec.core.windows.importer import parse
from iscsi_ipsec.core.windows.values import FoundKey, FoundPortal, Harvest, Rules
from tests.support.windows import (
    DB1,
    KEY,
    NOT_SPECIFIED,
    SECRET,
    X27,
    errors,
    key_for,
    of,
    portal,
    reported,
    warnings,
)


@pytest.mark.parametrize(
    ("word", "persistent"),
    [
        ("*", True),
        ("t", True),
        ("T", True),
        ("true", True),
        ("TRUE", True),
        ("f", False),
        ("0", False),
        ('""', False),
    ],
)
def test_command_persists_as_its_last_word_says(word: str, *, persistent: bool) -> None:
    harvest = of(
        f'PSKey * * 0x27 2 db1.example.com "{KEY}" {word}\n'
        f'GroupKey "{KEY}" {word}\n'
        f"TunnelAddr * * 10.0.0.20 203.0.113.1 {word}\n"
    )
    assert harvest.problems == []
    assert harvest.keys == [
        FoundKey(line=1, id=DB1, secret=SECRET, choice=X27, persistent=persistent),
        FoundKey(line=2, id=None, secret=SECRET, persistent=persistent),
    ]
    outer = host_address("203.0.113.1")
    assert harvest.portals == [
        FoundPortal(line=3, portal=parse_portal("10.0.0.20:3260"), outer=outer, persistent=persistent)
    ]


def test_command_ignores_words_beyond_its_own() -> None:
    harvest = of(f'PSKey * * 0x27 2 db1.example.com "{KEY}" t and more\nGroupKey "{KEY}" f t\n')
    assert harvest.problems == []
    assert [key.persistent for key in harvest.keys] == [True, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("PSKey", "PSKey: expected 7 arguments (<Initiator> <Port> <SecurityFlags> <IdType> <Id> <Key> <Persist>), got 0"),
        ("pskey * * 0x27 2 db1 canary",
         "PSKey: expected 7 arguments (<Initiator> <Port> <SecurityFlags> <IdType> <Id> <Key> <Persist>), got 6"),
        ("PSKey * * 0x27 2 db1 %canary% *",
         "PSKey: it holds a variable or a single %, which only cmd.exe could replace: write the value (a % as %%)"),
        ("GROUPKEY canary", "GroupKey: expected 2 arguments (<Key> <Persist>), got 1"),
        ("TunnelAddr * * 10.0.0.20 203.0.113.1",
         "TunnelAddr: expected 5 arguments (<Initiator> <InitiatorPort> <DestAddr> <TunnelAddr> <Persist>), got 4"),
        ("TunnelAddr * * * 203.0.113.1 f",
         "TunnelAddr: an outer address for all destinations is not supported; name the portals"),
        ("TunnelAddr * * 10.0.0.20 * f", "TunnelAddr: there is no outer address (iscsicli then sets none)"),
        ("TunnelAddr * * * * f",
         "TunnelAddr: an outer address for all destinations is not supported; name the portals"),
        ("TunnelAddr * * 10.0.0.20 canary *", "TunnelAddr: the outer address is not an IP address"),
        ("logintarget iqn.x T * * * * 0x27",
         "LoginTarget: its flags or key are not for one particular portal; name the portal's address"),
        ("AddConnection 1-2 * * * * * 1",
         "AddConnection: its flags or key are not for one particular portal; name the portal's address"),
        ("PersistentLoginTarget iqn.x T * 3260 * * * * * * * * * * * * canary",
         "PersistentLoginTarget: its flags or key are not for one particular portal; name the portal's address"),
        ("LoginTarget iqn.x T canary 3260 * * 0x27",
         "LoginTarget: the portal's address is no IP address; resolve the name first"),
        ("LoginTarget iqn.x T 10.0.0.20 canary * * 0x27", "LoginTarget: the portal's socket is no number"),
        ("LoginTarget iqn.x T 10.0.0.20 3260 * * canary", "LoginTarget: the flags word is no number"),
        ("LoginTarget iqn.x T 10.0.0.20 3260 * * 0x27 canary", "LoginTarget: the flags word is no number"),
        ("LoginTarget iqn.x T 10.0.0.20 3260 * * -2", "LoginTarget: the security flags are no number of 64 bits"),
    ],
)  # fmt: skip
def test_command_that_is_not_taken_is_reported_with_its_name_and_the_cause(line: str, message: str) -> None:
    harvest = of(f"rem\n\n{line}\n")
    assert (harvest.keys, harvest.portals, reported(harvest)) == ([], [], [(3, message)])


def test_login_refuses_flags_that_switch_off_what_the_login_flags_require() -> None:
    harvest = of("LoginTarget iqn.x T 10.0.0.20 3260 * * 0x01 3")
    assert harvest.portals == []
    assert reported(harvest) == [
        (1, "IKE_IPSEC_ENABLED is unset: unencrypted traffic will be allowed"),
        (1, "LoginTarget: the login flags require IPsec, the security flags switch it off"),
    ]


LOGINS = {  # 7 stands where a word must not count
    "LoginTarget": "iqn.x T {portal} * 7 {flags} {login} 7 7 7 7 7 user password 7 {key} 0",
    "PersistentLoginTarget": "iqn.x T {portal} * 7 {flags} {login} 7 7 7 7 7 user password 7 {key} 0",
    "AddConnection": "1-2 * 7 {portal} {flags} {login} 7 7 7 7 7 user password 7 {key}",
    "AddTargetPortal": "{portal} * 7 {flags} {login} 7 7 7 7 7 user password 7",
}
WITH_KEY = ("LoginTarget", "PersistentLoginTarget", "AddConnection")


def login(
    name: str, flags: str = "*", login: str = "*", key: str = "*", portal: str = "10.0.0.20 3261"
) -> Harvest:
    return of(f"{name} {LOGINS[name].format(portal=portal, flags=flags, login=login, key=key)}\n")


@pytest.mark.parametrize("name", LOGINS)
def test_login_or_discovery_flags_are_for_its_portal(name: str) -> None:
    for harvest in (login(name, "0x27"), login(name, "0x27", "0"), login(name, "39", "1")):
        assert (harvest.portals, harvest.keys, harvest.problems) == (
            [portal(1, "10.0.0.20:3261", X27)],
            [],
            [],
        )
    assert login(name, "0x27", portal="fd00::20 *").portals == [portal(1, "[fd00::20]:3260", X27)]


@pytest.mark.parametrize("name", LOGINS)
def test_login_flag_that_requires_ipsec_is_taken_without_any_security_flags(name: str) -> None:
    for word in ("1", "0x3", "255"):
        harvest = login(name, "*", word)
        assert (harvest.portals, harvest.problems) == ([portal(1, "10.0.0.20:3261", None)], [])


@pytest.mark.parametrize("name", LOGINS)
@pytest.mark.parametrize("word", ["*", "0", "2"])
def test_login_that_says_nothing_about_ipsec_is_ignored(name: str, word: str) -> None:
    for place in ("10.0.0.20 3261", "* *", "san.example.com 3260"):
        harvest = login(name, "*", word, portal=place)
        assert (harvest.portals, harvest.keys, harvest.problems) == ([], [], [])


@pytest.mark.parametrize("name", LOGINS)
def test_login_flags_that_count_for_nothing_are_reported(name: str) -> None:
    harvest = login(name, "0x26")
    assert (harvest.portals, reported(harvest)) == ([], [(1, NOT_SPECIFIED)])


@pytest.mark.parametrize("name", WITH_KEY)
def test_login_key_is_for_its_portal_with_flags_and_without(name: str) -> None:
    harvest = login(name, key=f'"{KEY}"')
    assert (harvest.portals, harvest.keys, harvest.problems) == ([], [key_for(1, "10.0.0.20:3261")], [])
    harvest = login(name, "0x27", "1", f'"{KEY}"')
    assert (harvest.portals, harvest.keys, harvest.problems) == (
        [portal(1, "10.0.0.20:3261", X27)], [key_for(1, "10.0.0.20:3261")], [],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("LoginTarget iqn.x T 10.0.0.20 3261 * * 0x27", "10.0.0.20:3261"),
        ("AddConnection 1-2 * * 10.0.0.20 3261 0x27", "10.0.0.20:3261"),
        ("AddTargetPortal 10.0.0.20 3261 * * 0x27", "10.0.0.20:3261"),
        ("LoginTarget iqn.x T 10.0.0.20 3261", None),
        ("LoginTarget iqn.x", None),
        ("LoginTarget", None),
        ("AddConnection", None),
        ("AddTargetPortal 10.0.0.20", None),
        ("AddTargetPortal", None),
    ],
)
def test_login_may_leave_words_out_at_its_end(line: str, found: str | None) -> None:
    harvest = of(line)
    assert (harvest.portals, harvest.problems) == ([portal(1, found, X27)] if found else [], [])


def test_program_with_iscsicli_inside_its_name_is_not_iscsicli() -> None:
    key = f'PSKey * * 0x27 2 db1.example.com "{KEY}" *'
    ours = ["iscsicli", "ISCSICLI", "IscsiCli.Exe", "C:\\Windows\\iscsicli.EXE", "./iscsicli"]
    others = ["myiscsicli", "iscsicli.com", "iscsicli2", "iscsicli.exe.bak", "iscsicli\\x"]
    assert [len(of(f"{name} {key}").keys) for name in ours] == [1] * len(ours)
    assert [len(of(f"{name} {key}").keys) for name in others] == [0] * len(others)


def test_pskey_becomes_a_key_of_that_id_type() -> None:
    harvest = of(
        f'iscsicli PSKey * * 0x37 2 db1.example.com "{KEY}" *\n'
        f'C:\\Windows\\System32\\ISCSICLI.EXE pskey "My HBA" 0 87 1 10.0.0.5 "{KEY}" false\n'
        f'psKEY * * * 5 fd00::20 "{KEY}" T\n'
        f'PSKey * * 0x37 3 a@example.com "{KEY}" n\n'
    )
    assert harvest.problems == []
    assert [(k.line, k.id.type if k.id else None, str(k.id), k.persistent) for k in harvest.keys] == [
        (1, IdType.ID_FQDN, "db1.example.com", True),
        (2, IdType.ID_IPV4_ADDR, "10.0.0.5", False),
        (3, IdType.ID_IPV6_ADDR, "fd00::20", True),
        (4, IdType.ID_USER_FQDN, "a@example.com", False),
    ]
    assert {k.secret.reveal() for k in harvest.keys} == {KEY.encode()}
    assert harvest.keys[2].choice is None
    assert harvest.keys[1].choice == interpret(SecurityFlags(0x57))


@pytest.mark.parametrize(
    ("hex_keys", "key"), [(False, b"0x00112233445566778899AABBCCDDEEFF"), (True, bytes(range(0, 256, 17)))]
)
def test_pskey_takes_a_key_that_begins_with_0x_literally_unless_the_admin_says_otherwise(
    hex_keys: bool, key: bytes
) -> None:
    harvest = of(
        "PSKey * * 0x37 2 db1 0x00112233445566778899AABBCCDDEEFF *", Rules(hex_keys=hex_keys)
    )  # fmt: skip
    assert harvest.keys[0].secret.reveal() == key
    assert bool(warnings(harvest)) is not hex_keys


def test_pskey_does_not_repeat_digits_that_are_no_hexadecimal_key() -> None:
    harvest = of("PSKey * * 0x37 2 db1 0xcanary *", Rules(hex_keys=True))
    assert len(errors(harvest)) == 1
    assert "canary" not in str(harvest.problems)


@pytest.mark.parametrize(("nul", "end"), [(False, b""), (True, b"\0")])
def test_groupkey_may_end_in_the_nul_that_iscsicli_sends_and_pskey_never_does(nul: bool, end: bytes) -> None:
    harvest = of(f'GroupKey "{KEY}" *\nPSKey * * 0x37 2 db1 "{KEY}" *', Rules(group_nul=nul))
    assert [k.secret.reveal() for k in harvest.keys] == [KEY.encode() + end, KEY.encode()]
    assert harvest.keys[0].id is None


def test_pskey_with_a_key_that_is_not_ascii_needs_its_code_page() -> None:
    line = "PSKey * * 0x37 2 db1 schlüsselschlüssel *"
    assert "--encoding" in errors(of(line))[0][1]
    assert "schl" not in str(of(line).problems)
    assert of(line, Rules(encoding="cp1252")).keys[0].secret.reveal() == "schlüsselschlüssel".encode("cp1252")


def test_logins_and_discovery_give_portals_their_flags() -> None:
    harvest = of(
        "LoginTarget iqn.x T 10.0.0.20 3260 * * 0x27 0 * * * * * user chappass * * 0\n"
        "PersistentLoginTarget iqn.x T 10.0.0.21 3261 * * 0x47 0 * * * * * * * * * 0\n"
        "AddTargetPortal 10.0.0.22 3260 * * 0x57\n"
        "AddTargetPortal 10.0.0.23 3260\n"
        "AddConnection 1-2 * * fd00::24 3260 0x27\n"
        "LoginTarget iqn.x T 10.0.0.25 3260 * * * 1\n"
        "QLoginTarget iqn.x\n"
    )
    assert harvest.problems == []
    assert [(p.line, str(p.portal), p.choice and p.choice.esp) for p in harvest.portals] == [
        (1, "10.0.0.20:3260", EspMode.TRANSPORT),
        (2, "10.0.0.21:3261", EspMode.TUNNEL),
        (3, "10.0.0.22:3260", EspMode.TUNNEL),
        (5, "[fd00::24]:3260", EspMode.TRANSPORT),
        (6, "10.0.0.25:3260", None),
    ]


def test_login_key_is_for_that_portal_whoever_we_are() -> None:
    harvest = of(f'LoginTarget iqn.x T 10.0.0.20 3260 * * 0x27 0 * * * * * u p 1 "{KEY}" 0')
    (key,) = harvest.keys
    assert (key.id, str(key.portal), key.secret.reveal()) == (None, "10.0.0.20:3260", KEY.encode())


def test_tunneladdr_becomes_an_outer_address() -> None:
    harvest = of("TunnelAddr * * 10.0.0.20 203.0.113.1 t")
    assert [(str(p.portal), str(p.outer)) for p in harvest.portals] == [("10.0.0.20:3260", "203.0.113.1")]


@pytest.mark.parametrize(
    "line",
    [
        "PSKey * * 0x37 2 db1 canarykey",
        "PSKey * * 0x37 9 db1 canarykey *",
        "PSKey * * canarykey 2 db1 0x37 *",
        "PSKey * * 0x37 canarykey db1 x *",
        "PSKey * * 0x37 1 canarykey db1 *",
        "PSKey * * 0x37 3 canarykey db1 *",
        "PSKey * * 0x37 2 db1 * *",
        "PSKey * * 0x37 2 db1 %canarykey% *",
        "PSKey",
        "GroupKey canarykey",
        "GroupKey * *",
        "TunnelAddr * * * 203.0.113.1 *",
        "TunnelAddr * * 10.0.0.20 * *",
        "TunnelAddr * * 10.0.0.20 canarykey *",
        "TunnelAddr * * canarykey 203.0.113.1 *",
        "LoginTarget iqn.x T * * * * 0x27",
        "LoginTarget iqn.x T san.example.com 3260 * * 0x27",
        "LoginTarget iqn.x T 10.0.0.20 canarykey * * 0x27",
        "LoginTarget iqn.x T 10.0.0.20 3260 * * 0x01 1",
        "AddTargetPortal 10.0.0.22 99999 * * 0x57",
    ],
)
def test_command_that_is_not_taken_is_reported_with_its_line_and_none_of_its_words(line: str) -> None:
    harvest = of(f"@echo off\n{line}\nPSKey * * 0x37 2 good.example.com {'k' * 20} *\n")
    assert [at for at, _ in errors(harvest)] == [2]
    assert [str(key.id) for key in harvest.keys] == ["good.example.com"]
    assert harvest.portals == []
    assert not [p for p in harvest.problems if "canarykey" in str(p)]


def test_comments_and_other_programs_are_passed_over() -> None:
    harvest = of(f"REM iscsicli PSKey * * 0x37 2 a {KEY} *\n:: GroupKey x *\necho PSKey\nnet start msiscsi\n")
    assert (harvest.keys, harvest.portals, harvest.problems) == ([], [], [])


def test_login_key_without_flags_is_taken_without_a_policy() -> None:
    text = "iscsicli LoginTarget iqn.x T 10.0.0.9 3260 * * 0 0 * * * * * u p 1 a-key-of-some-length 0\n"
    harvest = parse(text, "x", Rules())
    assert [str(key.portal) for key in harvest.keys] == ["10.0.0.9:3260"]
    assert harvest.portals == []


@pytest.mark.parametrize("outer", ["224.0.0.1", "0.0.0.0", "fe80::1%eth0", "x"])  # noqa: S104  # refused
def test_tunneladdr_refuses_an_outer_address_that_no_host_can_have(outer: str) -> None:
    harvest = parse(f"iscsicli TunnelAddr * * 10.0.0.2 {outer} *\n", "x", Rules())
    assert harvest.portals == []
    assert len(harvest.problems) == 1
