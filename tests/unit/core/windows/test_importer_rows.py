"""What each object, value and row becomes, with all that is in it, and what exactly is told of one that is not taken."""

from __future__ import annotations

import json

import pytest

from iscsi_ipsec.base.problem import Severity
from iscsi_ipsec.core.windows.importer import KINDS, kind_of
from iscsi_ipsec.core.windows.values import FoundKey, Harvest, Rules
from tests.support.windows import DB1, KEY, NOT_SPECIFIED, SECRET, X27, X47, of, portal, reported

# -- WMI

WMI = {"AuthMethod": 1, "SecurityFlags": 0x27, "IdType": 2, "Id": "db1.example.com", "Key": KEY}
PERSISTENT = {"TargetPortal": {"Address": "10.0.0.20", "Port": 3261}, "SecurityFlags": 0x27}


@pytest.mark.parametrize("method", [1, "1", "IKE_PRESHARED_KEY_METHOD"])
def test_the_one_authentication_method_is_known_by_number_and_name(method: object) -> None:
    harvest = of(json.dumps(WMI | {"AuthMethod": method}))
    assert harvest.keys == [FoundKey(line=1, id=DB1, secret=SECRET, choice=X27)]
    assert harvest.problems == []


def test_a_wmi_object_without_method_and_flags_is_a_key_without_flags() -> None:
    harvest = of(json.dumps({name: WMI[name] for name in ("IdType", "Id", "Key")}))
    assert harvest.keys == [FoundKey(line=1, id=DB1, secret=SECRET)]
    assert harvest.problems == []


@pytest.mark.parametrize(
    "item",
    [
        PERSISTENT,
        {"TARGETPORTAL": {"ADDRESS": "10.0.0.20", "PORT": "3261"}, "securityflags": "39"},
        {"TargetPortal": {"Address": "10.0.0.20", "Socket": 3261}, "SecurityFlags": "0x27"},
        {"TargetPortal": {"PortalAddress": "10.0.0.20", "PortalPort": 3261}, "SecurityFlags": 0x27},
        {"PortalAddress": "10.0.0.20", "PortalPort": 3261, "SecurityFlags": 0x27},
        {"PortalAddress": "10.0.0.20", "Socket": 3261, "SecurityFlags": 0x27},
        {"PortalAddress": "10.0.0.20:3261", "SecurityFlags": 0x27},
        {"TargetPortal": "10.0.0.20", "Address": "10.0.0.20", "Port": 3261, "SecurityFlags": 0x27},
    ],
)
def test_flags_of_a_wmi_object_are_for_its_portal(item: object) -> None:
    harvest = of("\n\n" + json.dumps(item))
    assert (harvest.portals, harvest.problems) == ([portal(3, "10.0.0.20:3261", X27)], [])


def test_a_portal_of_a_wmi_object_without_a_port_has_iscsi_s() -> None:
    harvest = of('{"PortalAddress": "fd00::20", "SecurityFlags": 39}')
    assert (harvest.portals, harvest.problems) == ([portal(1, "[fd00::20]:3260", X27)], [])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"Key": None}, "there is no Key in it: Windows never gives one back, so it must be added by hand"),
        ({"Key": []}, "there is no Key in it: Windows never gives one back, so it must be added by hand"),
        ({"Key": "*"}, "there is no key (iscsicli then sets none)"),
        ({"Key": [300]}, "Key is no list of bytes"),
        ({"Key": [True]}, "Key is no list of bytes"),
        ({"Key": 1}, "Key is no list of bytes"),
        ({"Key": {"value": ["canary"]}}, "Key is no list of bytes"),
        ({"Id": [-1]}, "Id is no list of bytes"),
        ({"Id": {"other": [1]}, "IdType": 1}, "the id does not fit ID_IPV4_ADDR"),
        ({"Id": None}, "the id does not fit ID_FQDN"),
        ({"Id": [1, 2, 3], "IdType": 1}, "the id does not fit ID_IPV4_ADDR"),
        ({"IdType": True}, "IdType is neither a number nor a name"),
        ({"IdType": None}, "IdType is neither a number nor a name"),
        ({"IdType": 1.0}, "IdType is neither a number nor a name"),
        ({"IdType": "canary"}, "the type of the id is no number"),
        ({"AuthMethod": 2}, "the authentication method is not the pre-shared key (1)"),
        ({"AuthMethod": None}, "the authentication method is not the pre-shared key (1)"),
        ({"AuthMethod": "ike_preshared"}, "the authentication method is not the pre-shared key (1)"),
        ({"SecurityFlags": None}, "SecurityFlags is no number"),
        ({"SecurityFlags": True}, "SecurityFlags is no number"),
        ({"SecurityFlags": "canary"}, "the value of SecurityFlags is no number"),
        ({"SecurityFlags": 1 << 64}, "the security flags are no number of 64 bits"),
    ],
)
def test_a_wmi_key_that_is_not_taken_is_told_with_the_line_of_its_type(
    wrong: dict[str, object], message: str
) -> None:
    harvest = of(json.dumps({"a": WMI | wrong}, indent=1))
    assert (harvest.keys, reported(harvest)) == ([], [(5, message)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"PortalAddress": "canary"}, "the portal's address is no IP address; resolve the name first"),
        ({"PortalAddress": None}, "the portal's address is no IP address; resolve the name first"),
        ({"TargetPortal": {}}, "the portal's address is no IP address; resolve the name first"),
        ({"PortalAddress": "10.0.0.20", "Port": "canary"}, "the portal's socket is no number"),
        ({"PortalAddress": "10.0.0.20", "Port": 0}, "the portal's socket is no TCP port"),
        ({"PortalAddress": "10.0.0.20", "SecurityFlags": [39]}, "SecurityFlags is no number"),
        ({"PortalAddress": "10.0.0.20", "SecurityFlags": -2}, "the security flags are no number of 64 bits"),
        ({"PortalAddress": "10.0.0.20", "SecurityFlags": 0x26}, NOT_SPECIFIED),
    ],
)
def test_a_wmi_portal_that_is_not_taken_is_told_with_its_line(wrong: dict[str, object], message: str) -> None:
    harvest = of("[\n\n" + json.dumps({"SecurityFlags": 0x27} | wrong) + "]")
    assert (harvest.portals, reported(harvest)) == ([], [(3, message)])


@pytest.mark.parametrize("flags", [{}, {"SecurityFlags": 0}, {"SecurityFlags": "0x0"}])
def test_a_wmi_portal_whose_flags_say_nothing_is_passed_over(flags: dict[str, object]) -> None:
    harvest = of(json.dumps({"TargetPortal": {"Address": "10.0.0.20"}} | flags))
    assert (harvest.portals, harvest.problems) == ([], [])


def test_each_object_keeps_the_line_of_the_member_that_tells_its_class() -> None:
    objects = [WMI, PERSISTENT, {"Other": [WMI]}, PERSISTENT | {"SecurityFlags": 0x47}, WMI]
    text = "\n" + json.dumps(objects, indent=1).replace("IdType", "idTYPE").replace(
        "TargetPortal", "targetportal"
    )
    lines = text.split("\n")
    harvest = of(text)
    assert [key.line for key in harvest.keys] == [n for n, line in enumerate(lines, 1) if "idTYPE" in line]
    assert [found.line for found in harvest.portals] == [
        n for n, line in enumerate(lines, 1) if "targetportal" in line
    ]
    assert [found.choice for found in harvest.portals] == [X27, X47]


def test_a_member_whose_name_is_escaped_is_known_and_its_line_is_not() -> None:
    text = json.dumps([WMI, PERSISTENT]).replace("IdType", "\\u0049dType").replace("TargetP", "\\u0054argetP")
    harvest = of(text)
    assert harvest.keys == [FoundKey(line=0, id=DB1, secret=SECRET, choice=X27)]
    assert harvest.portals == [portal(0, "10.0.0.20:3261", X27)]


def test_twenty_thousand_objects_in_six_megabytes_are_told_each_with_its_line() -> None:
    """PowerShell writes a list with each byte on a line; counted from the top for each, the lines would take minutes."""
    count = 20_000
    harvest = of("[" + ",\n".join(['{"IdType": 2,' + " " * 300 + '"Key": ""}'] * count) + "]")
    assert [problem.line for problem in harvest.problems] == [*range(1, count + 1)]


NO_JSON = "this is no JSON, or nested too deeply"
NO_OBJECT = "no object of a class that tells of keys or portals is in it"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('{\n"a": 1\n"b": 2}', 3, NO_JSON),
        ("[" * 100_000, 0, NO_JSON),
        ('{"a": ' + "9" * 5000 + "}", 0, NO_JSON),
        ("\n{}", 0, NO_OBJECT),
        ('[1, null, {"Id": "db1"}]', 0, NO_OBJECT),
    ],
)
def test_json_that_holds_nothing_is_told_with_the_line_where_there_is_one(
    text: str, line: int, message: str
) -> None:
    assert reported(of(text)) == [(line, message)]


# -- the registry, iSNS


@pytest.mark.parametrize(
    "line",
    [
        '"DefaultSecurityBitmap"=dword:00000027',
        '"DefaultSecurityBitmap"=DWORD:27 ',
        "    DefaultSecurityBitmap    REG_DWORD    0x27",
        "    defaultSECURITYbitmap\treg_dword\t0X27",
        "DefaultSecurityBitmap : 39",
        '    "DefaultSecurityBitmap":  39,',
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_default_bitmap_is_read_in_each_form_that_windows_writes(line: str, end: str) -> None:
    harvest = Harvest("in")
    KINDS["reg"](f"[HKEY]{end}{line}{end}{end}", Rules(), harvest)
    assert (harvest.default, harvest.problems) == (X27, [])


@pytest.mark.parametrize("value", ["dword:canary", "dword:", "dword:0x27", "hex:27", "", "39 40"])
def test_a_default_bitmap_that_is_no_number_is_told_with_its_line(value: str) -> None:
    harvest = of(f'REGEDIT4\n"x"="a\u2028b\x85c"\n"DefaultSecurityBitmap"={value}\n')
    assert harvest.default is None
    assert reported(harvest) == [(3, "the DefaultSecurityBitmap is no number")]


def test_what_had_to_be_decided_of_a_default_bitmap_is_told_with_its_line() -> None:
    harvest = of('REGEDIT4\n\n"DefaultSecurityBitmap"=dword:26\n')
    assert harvest.default is None
    assert [(p.line, p.message, p.severity) for p in harvest.problems] == [
        (3, NOT_SPECIFIED, Severity.WARNING)
    ]


def test_a_registry_export_without_the_bitmap_is_told_without_a_line() -> None:
    harvest = of('REGEDIT4\n"NoDefaultSecurityBitmap"=dword:27\n')
    assert reported(harvest) == [(0, "DefaultSecurityBitmap is not in it")]


def test_rows_of_isns_become_portals_each_with_its_line_and_flags() -> None:
    harvest = of(
        "# from the server\n\n10.0.0.20 0x27\r\n[fd00::20]:3261 ; 71# rack\x0c 2\n10.0.0.22, 0\n10.0.0.23,0X47\n"
    )
    assert harvest.problems == []
    assert harvest.portals == [
        portal(3, "10.0.0.20:3260", X27),
        portal(4, "[fd00::20]:3261", X47),
        portal(6, "10.0.0.23:3260", X47),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("10.0.0.21", "not a portal and a bitmap"),
        ("10.0.0.21 0x27 0x27", "not a portal and a bitmap"),
        ("10.0.0.21 canary", "not a portal and a bitmap"),
        ("san.example.com 0x27", "the portal's address is no IP address; resolve the name first"),
        ("10.0.0.21 " + "9" * 5000, "the bitmap is no number"),
        ("10.0.0.21 0x10000000000000000", "the security flags are no number of 64 bits"),
        ("10.0.0.21 0x26", NOT_SPECIFIED),
    ],
)
def test_a_row_of_isns_that_is_not_taken_is_told_with_its_line(row: str, message: str) -> None:
    harvest = Harvest("in")
    KINDS["isns"](f"# first\n10.0.0.20 0x27\n{row}\n", Rules(), harvest)
    assert (harvest.portals, reported(harvest)) == ([portal(2, "10.0.0.20:3260", X27)], [(3, message)])


@pytest.mark.parametrize("before", ["\r\n", " \t"])
def test_blanks_before_it_do_not_hide_what_the_input_is(before: str) -> None:
    assert kind_of(before + "REGEDIT4\n") == "reg"
    assert kind_of(before + "Windows Registry Editor Version 5.00\n") == "reg"
    assert kind_of(before + "{}") == "json"
    assert kind_of(before + "10.0.0.20 0x27\n") == "isns"
