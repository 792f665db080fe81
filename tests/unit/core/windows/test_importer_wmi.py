"""The conversion of WMI objects, and the problems of those that are not taken over."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ipsec.base.identity import IdType
from iscsi_ipsec.core.config.security_flags import SecurityFlags, interpret
from iscsi_ipsec.core.windows.importer import KINDS, parse
from iscsi_ipsec.core.windows.values import FoundKey, Harvest, Rules
from tests.support.windows import (
    DB1,
    KEY,
    NOT_SPECIFIED,
    ONE_NAME,
    SECRET,
    X27,
    X47,
    errors,
    of,
    portal,
    reported,
)

WMI = {"AuthMethod": 1, "SecurityFlags": 0x27, "IdType": 2, "Id": "db1.example.com", "Key": KEY}
PERSISTENT = {"TargetPortal": {"Address": "10.0.0.20", "Port": 3261}, "SecurityFlags": 0x27}


@pytest.mark.parametrize("method", [1, "1", "IKE_PRESHARED_KEY_METHOD"])
def test_wmi_object_names_the_authentication_method_by_number_or_name(method: object) -> None:
    harvest = of(json.dumps(WMI | {"AuthMethod": method}))
    assert harvest.keys == [FoundKey(line=1, id=DB1, secret=SECRET, choice=X27)]
    assert harvest.problems == []


def test_wmi_object_without_method_and_flags_is_a_key_without_flags() -> None:
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
def test_wmi_object_flags_are_for_its_portal(item: object) -> None:
    harvest = of("\n\n" + json.dumps(item))
    assert (harvest.portals, harvest.problems) == ([portal(3, "10.0.0.20:3261", X27)], [])


def test_wmi_portal_without_a_port_has_the_port_of_iscsi() -> None:
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
        ({"Id": {"other": [1]}, "IdType": 1}, f"the id does not fit ID_IPV4_ADDR{ONE_NAME}"),
        ({"Id": None}, f"the id does not fit ID_FQDN{ONE_NAME}"),
        ({"Id": [1, 2, 3], "IdType": 1}, f"the id does not fit ID_IPV4_ADDR{ONE_NAME}"),
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
def test_wmi_key_that_is_not_taken_is_reported_with_the_line_of_its_type(
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
def test_wmi_portal_that_is_not_taken_is_reported_with_its_line(
    wrong: dict[str, object], message: str
) -> None:
    harvest = of("[\n\n" + json.dumps({"SecurityFlags": 0x27} | wrong) + "]")
    assert (harvest.portals, reported(harvest)) == ([], [(3, message)])


@pytest.mark.parametrize("flags", [{}, {"SecurityFlags": 0}, {"SecurityFlags": "0x0"}])
def test_wmi_portal_whose_flags_say_nothing_is_ignored(flags: dict[str, object]) -> None:
    harvest = of(json.dumps({"TargetPortal": {"Address": "10.0.0.20"}} | flags))
    assert (harvest.portals, harvest.problems) == ([], [])


def test_wmi_object_has_the_line_of_the_member_that_shows_its_class() -> None:
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


def test_wmi_member_with_an_escaped_name_is_known_without_its_line() -> None:
    text = json.dumps([WMI, PERSISTENT]).replace("IdType", "\\u0049dType").replace("TargetP", "\\u0054argetP")
    harvest = of(text)
    assert harvest.keys == [FoundKey(line=0, id=DB1, secret=SECRET, choice=X27)]
    assert harvest.portals == [portal(0, "10.0.0.20:3261", X27)]


@pytest.mark.slow
def test_wmi_objects_by_the_twenty_thousand_are_reported_each_with_its_line() -> None:
    """PowerShell writes a list with each byte on a line; counted from the top for each, the lines would take minutes."""
    count = 20_000
    harvest = of("[" + ",\n".join(['{"IdType": 2,' + " " * 300 + '"Key": ""}'] * count) + "]")
    assert [problem.line for problem in harvest.problems] == [*range(1, count + 1)]


NO_JSON = "this is not JSON, or nested too deeply"
NO_OBJECT = "no object in it is of a class with keys or portals"


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
def test_json_that_holds_nothing_is_reported_with_the_line_where_there_is_one(
    text: str, line: int, message: str
) -> None:
    assert reported(of(text)) == [(line, message)]


WMI_OBJECT = {
    "AuthMethod": 1,
    "SecurityFlags": 0x37,
    "IdType": 2,
    "Id": list(b"db1.example.com"),
    "Key": list(KEY.encode()),
}


@pytest.mark.parametrize(
    "document",
    [
        WMI_OBJECT,
        [WMI_OBJECT],
        {"AuthInfo": {"PsKey": WMI_OBJECT}},
        {name.lower(): value for name, value in WMI_OBJECT.items()},
        WMI_OBJECT | {"Id": {"value": WMI_OBJECT["Id"], "Count": 15}},
        WMI_OBJECT | {"Id": [*b"db1.example.com", 0]},
        WMI_OBJECT | {"SecurityFlags": "0x37", "Id": "db1.example.com", "Key": KEY, "IdType": "ID_FQDN"},
    ],
)
def test_wmi_object_becomes_a_key_in_every_form(document: object) -> None:
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


def test_wmi_object_has_an_address_as_bytes() -> None:
    four = WMI_OBJECT | {"IdType": 1, "Id": [10, 0, 0, 5]}
    sixteen = WMI_OBJECT | {"IdType": 5, "Id": [0xFD, *[0] * 14, 0x20]}
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
def test_wmi_object_that_is_wrong_is_reported_with_its_line(wrong: dict[str, object]) -> None:
    text = json.dumps([WMI_OBJECT, WMI_OBJECT | wrong], indent=1)
    lines = [n for n, line in enumerate(text.splitlines(), 1) if '"IdType"' in line]
    harvest = of(text)
    assert [line for line, _ in errors(harvest)] == [lines[1]]
    assert len(harvest.keys) == 1
    assert not [p for p in harvest.problems if KEY in str(p)]


def test_wmi_objects_give_portals_their_flags() -> None:
    login = {"TargetPortal": {"Address": "10.0.0.20", "Port": 3260}, "SecurityFlags": 0x27}
    discovery = {"PortalAddress": "fd00::21", "PortalPort": 3261, "SecurityFlags": 0x47}
    nothing = {"TargetPortal": {"Address": "10.0.0.22", "Port": 3260}, "SecurityFlags": 0}
    harvest = of(json.dumps([login, discovery, nothing]))
    assert [str(found.portal) for found in harvest.portals] == ["10.0.0.20:3260", "[fd00::21]:3261"]


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, "{}", "[]", '{"a": ' + "9" * 5000 + "}", "[1, null, {}]"]
)
def test_json_that_holds_nothing_is_one_error(text: str) -> None:
    assert len(errors(of(text))) == 1


def test_wmi_object_with_escaped_names_is_taken_without_a_line() -> None:
    whole = {"IdType": 2, "Id": "db1", "Key": "a-key-of-some-length", "SecurityFlags": 0}
    text = json.dumps(whole).replace("IdType", "\\u0049dType")
    assert [key.line for key in parse(text, "x", Rules()).keys] == [0]


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
def test_wmi_parser_takes_any_object(document: object) -> None:
    KINDS["json"](json.dumps(document), Rules(), Harvest("in"))
