"""What the parsers of Windows' settings find, and what they say about what they don't take."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ipsec.base.identity import IdType
from iscsi_ipsec.base.policy import EspMode, IkeMode
from iscsi_ipsec.base.problem import Severity
from iscsi_ipsec.core.config.security_flags import SecurityFlags, interpret
from iscsi_ipsec.core.windows.importer import KINDS, kind_of, parse
from iscsi_ipsec.core.windows.iscsicli_script import commands
from iscsi_ipsec.core.windows.values import Harvest, Rules, take_flags

KEY = "a key of twenty bytes"


def of(text: str, rules: Rules | None = None) -> Harvest:
    return parse(text, "in", rules or Rules())


def errors(harvest: Harvest) -> list[tuple[int, str]]:
    return [(p.line, p.message) for p in harvest.problems if p.severity is Severity.ERROR]


def warnings(harvest: Harvest) -> list[tuple[int, str]]:
    return [(p.line, p.message) for p in harvest.problems if p.severity is Severity.WARNING]


# -- command lines


@given(st.text(alphabet='ab "\\^&|<>%@(:\n0', max_size=60))
def test_no_line_is_too_odd_to_be_taken_apart(text: str) -> None:
    assert all(command.words for command in commands(text))


# -- flags


@given(st.integers(0, 0xFF))
def test_every_bitmap_becomes_something_that_our_flags_can_say(value: int) -> None:
    harvest = Harvest("in")
    choice = take_flags(value, 3, harvest)
    assert (choice is None) is (not value & 1)
    assert all(p.line == 3 and p.severity is Severity.WARNING for p in harvest.problems)
    if choice and choice.required:
        assert choice.ike is not IkeMode.V2
    try:
        plain = interpret(SecurityFlags(value & 0x7F))
    except ValueError:
        assert harvest.problems
        return
    if choice != plain:
        assert harvest.problems, "taken over in another form, and not told"


# -- iscsicli


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
def test_a_key_that_begins_with_0x_is_literal_unless_the_admin_says_otherwise(
    hex_keys: bool, key: bytes
) -> None:
    harvest = of(
        "PSKey * * 0x37 2 db1 0x00112233445566778899AABBCCDDEEFF *", Rules(hex_keys=hex_keys)
    )  # fmt: skip
    assert harvest.keys[0].secret.reveal() == key
    assert bool(warnings(harvest)) is not hex_keys


def test_digits_that_are_no_hexadecimal_key_are_not_repeated() -> None:
    harvest = of("PSKey * * 0x37 2 db1 0xcanary *", Rules(hex_keys=True))
    assert len(errors(harvest)) == 1
    assert "canary" not in str(harvest.problems)


@pytest.mark.parametrize(("nul", "end"), [(False, b""), (True, b"\0")])
def test_a_group_key_may_end_in_the_nul_that_iscsicli_sends_and_a_psk_never_does(
    nul: bool, end: bytes
) -> None:
    harvest = of(f'GroupKey "{KEY}" *\nPSKey * * 0x37 2 db1 "{KEY}" *', Rules(group_nul=nul))
    assert [k.secret.reveal() for k in harvest.keys] == [KEY.encode() + end, KEY.encode()]
    assert harvest.keys[0].id is None


def test_a_key_that_is_not_ascii_needs_its_code_page() -> None:
    line = "PSKey * * 0x37 2 db1 schlüsselschlüssel *"
    assert "--encoding" in errors(of(line))[0][1]
    assert "schl" not in str(of(line).problems)
    assert of(line, Rules(encoding="cp1252")).keys[0].secret.reveal() == "schlüsselschlüssel".encode("cp1252")


def test_portals_get_the_flags_of_logins_and_discovery() -> None:
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


def test_a_key_of_a_login_is_for_that_portal_whoever_we_are() -> None:
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
def test_what_cannot_be_taken_over_is_told_with_its_line_and_none_of_its_words(line: str) -> None:
    harvest = of(f"@echo off\n{line}\nPSKey * * 0x37 2 good.example.com {'k' * 20} *\n")
    assert [at for at, _ in errors(harvest)] == [2]
    assert [str(key.id) for key in harvest.keys] == ["good.example.com"]
    assert harvest.portals == []
    assert not [p for p in harvest.problems if "canarykey" in str(p)]


def test_comments_and_other_programs_are_passed_over() -> None:
    harvest = of(f"REM iscsicli PSKey * * 0x37 2 a {KEY} *\n:: GroupKey x *\necho PSKey\nnet start msiscsi\n")
    assert (harvest.keys, harvest.portals, harvest.problems) == ([], [], [])


# -- WMI

WMI = {
    "AuthMethod": 1,
    "SecurityFlags": 0x37,
    "IdType": 2,
    "Id": list(b"db1.example.com"),
    "Key": list(KEY.encode()),
}


@pytest.mark.parametrize(
    "document",
    [
        WMI,
        [WMI],
        {"AuthInfo": {"PsKey": WMI}},
        {name.lower(): value for name, value in WMI.items()},
        WMI | {"Id": {"value": WMI["Id"], "Count": 15}},
        WMI | {"Id": [*b"db1.example.com", 0]},
        WMI | {"SecurityFlags": "0x37", "Id": "db1.example.com", "Key": KEY, "IdType": "ID_FQDN"},
    ],
)
def test_a_wmi_object_becomes_a_key(document: object) -> None:
    harvest = of(json.dumps(document, indent=1))
    assert harvest.problems == []
    (key,) = harvest.keys
    assert key.id
    assert (key.id.type, key.id.text, key.secret.reveal()) == (
        IdType.ID_FQDN,
        "db1.example.com",
        KEY.encode(),
    )
    assert key.choice == interpret(SecurityFlags(0x37))


def test_addresses_in_wmi_objects_are_bytes() -> None:
    four = WMI | {"IdType": 1, "Id": [10, 0, 0, 5]}
    sixteen = WMI | {"IdType": 5, "Id": [0xFD, *[0] * 14, 0x20]}
    harvest = of(json.dumps([four, sixteen]))
    assert [str(key.id) for key in harvest.keys] == ["10.0.0.5", "fd00::20"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"Key": None}, {"Key": []}, {"Key": [300]}, {"Key": ["a"]}, {"Id": [1, 2, 3], "IdType": 1}, {"Id": None},
        {"IdType": 11}, {"IdType": True}, {"AuthMethod": 2}, {"SecurityFlags": None}, {"SecurityFlags": [1]},
        {"Id": list(b"\xff\xfe")}, {"SecurityFlags": -1},
    ],
)  # fmt: skip
def test_a_wmi_object_that_is_wrong_is_told_with_its_line(wrong: dict[str, object]) -> None:
    text = json.dumps([WMI, WMI | wrong], indent=1)
    lines = [n for n, line in enumerate(text.splitlines(), 1) if '"IdType"' in line]
    harvest = of(text)
    assert [line for line, _ in errors(harvest)] == [lines[1]]
    assert len(harvest.keys) == 1
    assert not [p for p in harvest.problems if KEY in str(p)]


def test_portals_in_wmi_objects_get_their_flags() -> None:
    login = {"TargetPortal": {"Address": "10.0.0.20", "Port": 3260}, "SecurityFlags": 0x27}
    discovery = {"PortalAddress": "fd00::21", "PortalPort": 3261, "SecurityFlags": 0x47}
    nothing = {"TargetPortal": {"Address": "10.0.0.22", "Port": 3260}, "SecurityFlags": 0}
    harvest = of(json.dumps([login, discovery, nothing]))
    assert [str(found.portal) for found in harvest.portals] == ["10.0.0.20:3260", "[fd00::21]:3261"]


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, "{}", "[]", '{"a": ' + "9" * 5000 + "}", "[1, null, {}]"]
)
def test_json_that_holds_nothing_is_told(text: str) -> None:
    assert len(errors(of(text))) == 1


# -- the registry, iSNS


@pytest.mark.parametrize(
    "text",
    [
        'Windows Registry Editor Version 5.00\n\n[HKEY_LOCAL_MACHINE\\SOFTWARE]\n"DefaultSecurityBitmap"=dword:00000027\n',
        "HKEY_LOCAL_MACHINE\\SOFTWARE\n    DefaultSecurityBitmap    REG_DWORD    0x27\n",
        "DefaultSecurityBitmap=39\n",
    ],
)
def test_a_default_bitmap_is_found_in_every_form_of_the_registry(text: str) -> None:
    harvest = of(text)
    assert harvest.problems == []
    assert harvest.default == interpret(SecurityFlags(0x27))


def test_a_registry_export_without_the_bitmap_is_told() -> None:
    assert len(errors(of("Windows Registry Editor Version 5.00\n"))) == 1


def test_rows_of_isns_become_portals() -> None:
    harvest = of("# from the server\n10.0.0.20:3260 0x27\n[fd00::20]:3261, 71 # rack 2\n10.0.0.22 0\n")
    assert [(str(p.portal), p.choice and p.choice.esp) for p in harvest.portals] == [
        ("10.0.0.20:3260", EspMode.TRANSPORT),
        ("[fd00::20]:3261", EspMode.TUNNEL),
    ]


def test_a_row_of_isns_that_is_wrong_is_told() -> None:
    harvest = Harvest("in")
    KINDS["isns"]("10.0.0.20 0x27\nsan.example.com 0x27\n10.0.0.21\n", Rules(), harvest)
    assert [line for line, _ in errors(harvest)] == [2, 3]
    assert len(harvest.portals) == 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("{}", "json"), ("  [1]", "json"), ("REGEDIT4\n", "reg"), ("10.0.0.20 0x27\n", "isns"),
        ("PSKey * * 1 2 a b *", "iscsicli"), ("", "iscsicli"), ("@echo off\n", "iscsicli"),
    ],
)  # fmt: skip
def test_the_kind_of_input_is_told_by_its_looks(text: str, kind: str) -> None:
    assert kind_of(text) == kind


@given(st.sampled_from(sorted(KINDS)), st.text(max_size=300))
def test_no_input_makes_a_parser_fail(kind: str, text: str) -> None:
    KINDS[kind](text, Rules(hex_keys=True, group_nul=True), Harvest("in"))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["AuthMethod", "IdType", "Id", "Key", "SecurityFlags", "TargetPortal", "Address", "Port", "value"]
            ),
            inner,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_no_wmi_object_makes_the_parser_fail(document: object) -> None:
    KINDS["json"](json.dumps(document), Rules(), Harvest("in"))


def test_parse_takes_the_key_of_a_login_without_flags_without_a_policy() -> None:
    text = "iscsicli LoginTarget iqn.x T 10.0.0.9 3260 * * 0 0 * * * * * u p 1 a-key-of-some-length 0\n"
    harvest = parse(text, "x", Rules())
    assert [str(key.portal) for key in harvest.keys] == ["10.0.0.9:3260"]
    assert harvest.portals == []


def test_parse_takes_a_wmi_object_with_escaped_names_without_a_line() -> None:
    whole = {"IdType": 2, "Id": "db1", "Key": "a-key-of-some-length", "SecurityFlags": 0}
    text = json.dumps(whole).replace("IdType", "\\u0049dType")
    assert [key.line for key in parse(text, "x", Rules()).keys] == [0]


@pytest.mark.parametrize("outer", ["224.0.0.1", "0.0.0.0", "fe80::1%eth0", "x"])  # noqa: S104  # refused
def test_parse_refuses_an_outer_address_that_no_host_can_have(outer: str) -> None:
    harvest = parse(f"iscsicli TunnelAddr * * 10.0.0.2 {outer} *\n", "x", Rules())
    assert harvest.portals == []
    assert len(harvest.problems) == 1
