"""The conversion of registry exports and iSNS rows, and the problems of those that are not taken over."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.policy import EspMode
from iscsi_ipsec.base.problem import Severity
from iscsi_ipsec.core.config.security_flags import SecurityFlags, interpret
from iscsi_ipsec.core.windows.importer import KINDS
from iscsi_ipsec.core.windows.values import Harvest, Rules
from tests.support.windows import (
    NOT_SPECIFIED,
    X27,
    X47,
    errors,
    of,
    portal,
    reported,
)


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
def test_registry_bitmap_is_read_in_each_form_that_windows_writes(line: str, end: str) -> None:
    harvest = Harvest("in")
    KINDS["reg"](f"[HKEY]{end}{line}{end}{end}", Rules(), harvest)
    assert (harvest.default, harvest.problems) == (X27, [])


@pytest.mark.parametrize("value", ["dword:canary", "dword:", "dword:0x27", "hex:27", "", "39 40"])
def test_registry_bitmap_that_is_no_number_is_reported_with_its_line(value: str) -> None:
    harvest = of(f'REGEDIT4\n"x"="a\u2028b\x85c"\n"DefaultSecurityBitmap"={value}\n')
    assert harvest.default is None
    assert reported(harvest) == [(3, "the DefaultSecurityBitmap is no number")]


def test_registry_bitmap_reports_with_its_line_what_had_to_be_decided() -> None:
    harvest = of('REGEDIT4\n\n"DefaultSecurityBitmap"=dword:26\n')
    assert harvest.default is None
    assert [(p.line, p.message, p.severity) for p in harvest.problems] == [
        (3, NOT_SPECIFIED, Severity.WARNING)
    ]


def test_registry_export_without_the_bitmap_is_reported_without_a_line() -> None:
    harvest = of('REGEDIT4\n"NoDefaultSecurityBitmap"=dword:27\n')
    assert reported(harvest) == [(0, "DefaultSecurityBitmap is not in it")]


def test_isns_rows_become_portals_each_with_its_line_and_flags() -> None:
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
def test_isns_row_that_is_not_taken_is_reported_with_its_line(row: str, message: str) -> None:
    harvest = Harvest("in")
    KINDS["isns"](f"# first\n10.0.0.20 0x27\n{row}\n", Rules(), harvest)
    assert (harvest.portals, reported(harvest)) == ([portal(2, "10.0.0.20:3260", X27)], [(3, message)])


@pytest.mark.parametrize(
    "text",
    [
        'Windows Registry Editor Version 5.00\n\n[HKEY_LOCAL_MACHINE\\SOFTWARE]\n"DefaultSecurityBitmap"=dword:00000027\n',
        "HKEY_LOCAL_MACHINE\\SOFTWARE\n    DefaultSecurityBitmap    REG_DWORD    0x27\n",
        "DefaultSecurityBitmap=39\n",
    ],
)
def test_registry_bitmap_is_found_in_every_form_of_an_export(text: str) -> None:
    harvest = of(text)
    assert harvest.problems == []
    assert harvest.default == interpret(SecurityFlags(0x27))


def test_registry_export_without_the_bitmap_is_one_error() -> None:
    assert len(errors(of("Windows Registry Editor Version 5.00\n"))) == 1


def test_isns_rows_become_portals() -> None:
    harvest = of("# from the server\n10.0.0.20:3260 0x27\n[fd00::20]:3261, 71 # rack 2\n10.0.0.22 0\n")
    assert [(str(p.portal), p.choice and p.choice.esp) for p in harvest.portals] == [
        ("10.0.0.20:3260", EspMode.TRANSPORT),
        ("[fd00::20]:3261", EspMode.TUNNEL),
    ]


def test_isns_row_that_is_wrong_is_reported() -> None:
    harvest = Harvest("in")
    KINDS["isns"]("10.0.0.20 0x27\nsan.example.com 0x27\n10.0.0.21\n", Rules(), harvest)
    assert [line for line, _ in errors(harvest)] == [2, 3]
    assert len(harvest.portals) == 1
