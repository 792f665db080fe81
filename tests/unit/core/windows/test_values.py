"""How each part of Windows' settings is converted, and the problems where it cannot be."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.policy import EspMode, IkeMode, IpsecChoice
from iscsi_ipsec.base.portal import Portal, parse_portal
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.config.security_flags import SecurityFlags, interpret
from iscsi_ipsec.core.windows.values import (
    Harvest,
    NotTakenError,
    Rules,
    address_of,
    flags_of,
    id_type_of,
    identity_of,
    key_of,
    number_of,
    portal_of,
    take_flags,
)
from tests.support.windows import ONE_NAME


def warning(line: int, message: str, hint: str = "") -> Problem:
    return Problem(
        code="imported-otherwise", message=message, hint=hint, file="in", line=line, severity=Severity.WARNING
    )


def wanted(ike: IkeMode, esp: EspMode | None = None, *, pfs: bool = False) -> IpsecChoice:
    return IpsecChoice(required=True, ike=ike, esp=esp, pfs=pfs)


def test_harvest_problems_have_file_line_and_severity() -> None:
    harvest = Harvest("in")
    harvest.error(2, "no way", "go round")
    harvest.error(3, "no way")
    harvest.warn(4, "another way", "look")
    harvest.warn(5, "another way")
    assert harvest.problems == [
        Problem(code="not-imported", message="no way", hint="go round", file="in", line=2),
        Problem(code="not-imported", message="no way", file="in", line=3),
        warning(4, "another way", "look"),
        warning(5, "another way"),
    ]


BOTH_MODES = "main and aggressive mode are both set (RFC 4174, 2.4 allows one): main is taken"
NO_MODE = "neither main nor aggressive mode is set (RFC 4171: both disabled): main is taken"
BOTH_ESP = "transport and tunnel mode are both set (RFC 4174, 2.4 allows one): neither is preferred"
OFF = IpsecChoice(required=False, ike=IkeMode.V2, esp=None, pfs=False)


@pytest.mark.parametrize(
    ("value", "choice", "reported"),
    [
        (0x00, None, []),
        (0x02, None, ["VALID is unset: the flags count as not specified (RFC 4174, 2.4)"]),
        (0x27, wanted(IkeMode.MAIN, EspMode.TRANSPORT), []),
        (0x57, wanted(IkeMode.MAIN, EspMode.TUNNEL, pfs=True), []),
        (0x2B, wanted(IkeMode.AGGRESSIVE, EspMode.TRANSPORT), []),
        (0x07, wanted(IkeMode.MAIN), []),
        (0x01, OFF, ["IKE_IPSEC_ENABLED is unset: unencrypted traffic will be allowed"]),
        (0x35, OFF, ["IKE_IPSEC_ENABLED is unset: unencrypted traffic will be allowed"]),
        (0x2F, wanted(IkeMode.MAIN, EspMode.TRANSPORT), [BOTH_MODES]),
        (0x33, wanted(IkeMode.MAIN, EspMode.TRANSPORT, pfs=True), [NO_MODE]),
        (0x77, wanted(IkeMode.MAIN, pfs=True), [BOTH_ESP]),
        (0x7F, wanted(IkeMode.MAIN, pfs=True), [BOTH_MODES, BOTH_ESP]),
        (0x63, wanted(IkeMode.MAIN), [NO_MODE, BOTH_ESP]),
        (
            0x1A7,
            wanted(IkeMode.MAIN, EspMode.TRANSPORT),
            ["the reserved bits 0x180 are dropped (RFC 4171, 6.3.9)"],
        ),
        (
            (1 << 64) - 1,
            wanted(IkeMode.MAIN, pfs=True),
            ["the reserved bits 0xffffffffffffff80 are dropped (RFC 4171, 6.3.9)", BOTH_MODES, BOTH_ESP],
        ),
    ],
)
def test_take_flags_resolves_conflicting_bits_as_the_rfcs_say_and_reports_it(
    value: int, choice: IpsecChoice | None, reported: list[str]
) -> None:
    harvest = Harvest("in")
    assert take_flags(value, 3, harvest) == choice
    assert harvest.problems == [warning(3, message) for message in reported]


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (lambda: number_of("39", "x"), 39),
        (lambda: number_of("0x27", "x"), 39),
        (lambda: number_of("0X27", "x"), 39),
        (lambda: number_of("010", "x"), 10),
        (lambda: flags_of("*"), 0),
        (lambda: flags_of("0x27"), 39),
        (lambda: id_type_of(2), IdType.ID_FQDN),
        (lambda: id_type_of("2"), IdType.ID_FQDN),
        (lambda: id_type_of("0x3"), IdType.ID_USER_FQDN),
        (lambda: id_type_of("id_ipv4_ADDR"), IdType.ID_IPV4_ADDR),
        (lambda: identity_of(IdType.ID_FQDN, "db1"), IkeId(IdType.ID_FQDN, "db1")),
        (lambda: identity_of(IdType.ID_IPV4_ADDR, b"\x0a\0\0\5"), IkeId(IdType.ID_IPV4_ADDR, "10.0.0.5")),
        (lambda: portal_of("10.0.0.20", "*"), parse_portal("10.0.0.20:3260")),
        (lambda: portal_of("10.0.0.20:3261", "*"), parse_portal("10.0.0.20:3261")),
        (lambda: portal_of("fd00::20", "1"), Portal(ipaddress.ip_address("fd00::20"), 1)),
        (lambda: portal_of("10.0.0.20", "65535"), Portal(ipaddress.ip_address("10.0.0.20"), 65535)),
        (lambda: address_of("203.0.113.1"), ipaddress.ip_address("203.0.113.1")),
    ],
)  # fmt: skip
def test_words_become_the_values_that_they_mean(taken: Callable[[], object], expected: object) -> None:
    assert taken() == expected


LITERAL = warning(
    7, "the key begins with 0x and is taken literally, as iscsicli does", "--hex-keys decodes it"
)


@pytest.mark.parametrize(
    ("text", "rules", "key", "reported"),
    [
        ("0 is no prefix", Rules(hex_keys=True), b"0 is no prefix", []),
        ("0x00fF", Rules(hex_keys=True), b"\0\xff", []),
        ("0X00fF", Rules(hex_keys=True), b"\0\xff", []),
        ("0x00fF", Rules(), b"0x00fF", [LITERAL]),
        ("0Xno", Rules(), b"0Xno", [LITERAL]),
        ("schlüssel", Rules(encoding="cp1252"), b"schl\xfcssel", []),
    ],
)
def test_key_becomes_its_bytes_as_the_admin_says(
    text: str, rules: Rules, key: bytes, reported: list[Problem]
) -> None:
    harvest = Harvest("in")
    assert key_of(text, 7, rules, harvest) == key
    assert harvest.problems == reported


NO_KEY = "there is no key (iscsicli then sets none)"
NO_HEX = "the key begins with 0x but is not an even number of hexadecimal digits"
NO_ASCII = "the key is not ASCII: say the code page of the Windows machine with --encoding, e.g. cp1252"
NO_TYPE = "the type of the id is none of 1 (ID_IPV4_ADDR), 2 (ID_FQDN), 3 (ID_USER_FQDN), 5 (ID_IPV6_ADDR)"
NO_BITS = "the security flags are no number of 64 bits"
NO_PORT = "the portal's socket is no TCP port"
ONE_HOST = "the outer address is not the unicast address of one host"


@pytest.mark.parametrize(
    ("taken", "reported"),
    [
        (lambda to: take_flags(-1, 1, to), NO_BITS),
        (lambda to: take_flags(1 << 64, 1, to), NO_BITS),
        (lambda _: number_of("canary", "bitmap"), "the bitmap is no number"),
        (lambda _: number_of("0xcanary", "bitmap"), "the bitmap is no number"),
        (lambda _: flags_of("canary"), "the flags word is no number"),
        (lambda _: id_type_of("canary"), "the type of the id is no number"),
        (lambda _: id_type_of("4"), NO_TYPE),
        (lambda _: id_type_of(0), NO_TYPE),
        (lambda _: identity_of(IdType.ID_IPV4_ADDR, "canary"), f"the id does not fit ID_IPV4_ADDR{ONE_NAME}"),
        *(
            (lambda _, t=text: identity_of(IdType.ID_FQDN, t), f"the id does not fit ID_FQDN{ONE_NAME}")
            for text in ("fqdn:canary", "canary.", "*.canary", "%any", "10.0.0.0/24")
        ),
        (lambda _: identity_of(IdType.ID_IPV4_ADDR, bytes(4)), f"the id does not fit ID_IPV4_ADDR{ONE_NAME}"),
        (lambda _: identity_of(IdType.ID_FQDN, b"canary\xff"), f"the id does not fit ID_FQDN{ONE_NAME}"),
        (lambda to: key_of("", 1, Rules(), to), NO_KEY),
        (lambda to: key_of("*", 1, Rules(), to), NO_KEY),
        (lambda to: key_of("0x", 1, Rules(hex_keys=True), to), NO_HEX),
        (lambda to: key_of("0xcanary", 1, Rules(hex_keys=True), to), NO_HEX),
        (lambda to: key_of("canäry", 1, Rules(), to), NO_ASCII),
        (lambda to: key_of("canary€", 1, Rules(encoding="latin-1"), to), NO_ASCII),
        (lambda _: portal_of("canary", "*"), "the portal's address is no IP address; resolve the name first"),
        (lambda _: portal_of("10.0.0.20", "canary"), "the portal's socket is no number"),
        (lambda _: portal_of("10.0.0.20", "0"), NO_PORT),
        (lambda _: portal_of("10.0.0.20", "65536"), NO_PORT),
        (lambda _: address_of("canary"), "the outer address is not an IP address"),
        (lambda _: address_of("::"), ONE_HOST),
        (lambda _: address_of("224.0.0.1"), ONE_HOST),
    ],
)
def test_harvest_reports_what_is_not_taken_without_a_word_of_it(
    taken: Callable[[Harvest], object], reported: str
) -> None:
    harvest = Harvest("in")
    with pytest.raises(NotTakenError) as caught:
        taken(harvest)
    assert (str(caught.value), harvest.problems) == (reported, [])


@given(st.integers(0, 0xFF))
def test_take_flags_makes_of_every_bitmap_what_our_flags_can_say(value: int) -> None:
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
        assert harvest.problems, "taken over in another form, and not reported"
