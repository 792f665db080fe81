"""What each command of iscsicli becomes, with all that is in it, and what exactly is told of one that is not taken."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.addresses import host_address
from iscsi_ipsec.base.portal import parse_portal
from iscsi_ipsec.core.windows.values import FoundKey, FoundPortal, Harvest
from tests.support.windows import DB1, KEY, NOT_SPECIFIED, SECRET, X27, key_for, of, portal, reported


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
def test_what_is_to_persist_is_said_by_the_last_word_of_each_command(word: str, *, persistent: bool) -> None:
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


def test_words_beyond_those_of_a_command_change_nothing() -> None:
    harvest = of(f'PSKey * * 0x27 2 db1.example.com "{KEY}" t and more\nGroupKey "{KEY}" f t\n')
    assert harvest.problems == []
    assert [key.persistent for key in harvest.keys] == [True, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("PSKey", "PSKey: 0 of its words are there: <Initiator> <Port> <SecurityFlags> <IdType> <Id> <Key> <Persist>"),
        ("pskey * * 0x27 2 db1 canary",
         "PSKey: 6 of its words are there: <Initiator> <Port> <SecurityFlags> <IdType> <Id> <Key> <Persist>"),
        ("PSKey * * 0x27 2 db1 %canary% *",
         "PSKey: it holds a variable or a single %, which only cmd.exe could replace: write the value (a % as %%)"),
        ("GROUPKEY canary", "GroupKey: 1 of its words are there: <Key> <Persist>"),
        ("TunnelAddr * * 10.0.0.20 203.0.113.1",
         "TunnelAddr: 4 of its words are there: <Initiator> <InitiatorPort> <DestAddr> <TunnelAddr> <Persist>"),
        ("TunnelAddr * * * 203.0.113.1 f",
         "TunnelAddr: an outer address for all destinations has no place here; name the portals"),
        ("TunnelAddr * * 10.0.0.20 * f", "TunnelAddr: there is no outer address (iscsicli then sets none)"),
        ("TunnelAddr * * * * f",
         "TunnelAddr: an outer address for all destinations has no place here; name the portals"),
        ("TunnelAddr * * 10.0.0.20 canary *", "TunnelAddr: the outer address is not an IP address"),
        ("logintarget iqn.x T * * * * 0x27",
         "LoginTarget: its flags or key are for no certain portal; name the portal's address"),
        ("AddConnection 1-2 * * * * * 1",
         "AddConnection: its flags or key are for no certain portal; name the portal's address"),
        ("PersistentLoginTarget iqn.x T * 3260 * * * * * * * * * * * * canary",
         "PersistentLoginTarget: its flags or key are for no certain portal; name the portal's address"),
        ("LoginTarget iqn.x T canary 3260 * * 0x27",
         "LoginTarget: the portal's address is no IP address; resolve the name first"),
        ("LoginTarget iqn.x T 10.0.0.20 canary * * 0x27", "LoginTarget: the portal's socket is no number"),
        ("LoginTarget iqn.x T 10.0.0.20 3260 * * canary", "LoginTarget: the flags word is no number"),
        ("LoginTarget iqn.x T 10.0.0.20 3260 * * 0x27 canary", "LoginTarget: the flags word is no number"),
        ("LoginTarget iqn.x T 10.0.0.20 3260 * * -2", "LoginTarget: the security flags are no number of 64 bits"),
    ],
)  # fmt: skip
def test_a_command_that_is_not_taken_is_told_with_its_name_and_the_cause(line: str, message: str) -> None:
    harvest = of(f"rem\n\n{line}\n")
    assert (harvest.keys, harvest.portals, reported(harvest)) == ([], [], [(3, message)])


def test_flags_that_switch_off_what_the_login_flags_require_are_not_taken() -> None:
    harvest = of("LoginTarget iqn.x T 10.0.0.20 3260 * * 0x01 3")
    assert harvest.portals == []
    assert reported(harvest) == [
        (1, "IKE_IPSEC_ENABLED is unset: clear text will be allowed"),
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
def test_flags_of_a_login_or_a_discovery_are_for_its_portal(name: str) -> None:
    for harvest in (login(name, "0x27"), login(name, "0x27", "0"), login(name, "39", "1")):
        assert (harvest.portals, harvest.keys, harvest.problems) == (
            [portal(1, "10.0.0.20:3261", X27)],
            [],
            [],
        )
    assert login(name, "0x27", portal="fd00::20 *").portals == [portal(1, "[fd00::20]:3260", X27)]


@pytest.mark.parametrize("name", LOGINS)
def test_the_login_flag_that_requires_ipsec_is_taken_without_any_security_flags(name: str) -> None:
    for word in ("1", "0x3", "255"):
        harvest = login(name, "*", word)
        assert (harvest.portals, harvest.problems) == ([portal(1, "10.0.0.20:3261", None)], [])


@pytest.mark.parametrize("name", LOGINS)
@pytest.mark.parametrize("word", ["*", "0", "2"])
def test_a_login_that_says_nothing_about_ipsec_is_passed_over_wherever_it_goes(name: str, word: str) -> None:
    for place in ("10.0.0.20 3261", "* *", "san.example.com 3260"):
        harvest = login(name, "*", word, portal=place)
        assert (harvest.portals, harvest.keys, harvest.problems) == ([], [], [])


@pytest.mark.parametrize("name", LOGINS)
def test_flags_of_a_login_that_count_for_nothing_are_told(name: str) -> None:
    harvest = login(name, "0x26")
    assert (harvest.portals, reported(harvest)) == ([], [(1, NOT_SPECIFIED)])


@pytest.mark.parametrize("name", WITH_KEY)
def test_a_key_of_a_login_is_for_its_portal_with_flags_and_without(name: str) -> None:
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
def test_words_that_a_login_leaves_out_at_its_end_say_nothing(line: str, found: str | None) -> None:
    harvest = of(line)
    assert (harvest.portals, harvest.problems) == ([portal(1, found, X27)] if found else [], [])


def test_the_same_word_elsewhere_in_a_program_s_name_does_not_make_it_iscsicli() -> None:
    key = f'PSKey * * 0x27 2 db1.example.com "{KEY}" *'
    ours = ["iscsicli", "ISCSICLI", "IscsiCli.Exe", "C:\\Windows\\iscsicli.EXE", "./iscsicli"]
    others = ["myiscsicli", "iscsicli.com", "iscsicli2", "iscsicli.exe.bak", "iscsicli\\x"]
    assert [len(of(f"{name} {key}").keys) for name in ours] == [1] * len(ours)
    assert [len(of(f"{name} {key}").keys) for name in others] == [0] * len(others)
