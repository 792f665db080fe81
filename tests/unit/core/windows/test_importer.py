"""The detection of the input's kind; no text makes a parser fail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ipsec.core.windows.importer import KINDS, kind_of
from iscsi_ipsec.core.windows.values import Harvest, Rules


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("{}", "json"), ("  [1]", "json"), ("REGEDIT4\n", "reg"), ("10.0.0.20 0x27\n", "isns"),
        ("PSKey * * 1 2 a b *", "iscsicli"), ("", "iscsicli"), ("@echo off\n", "iscsicli"),
    ],
)  # fmt: skip
def test_kind_of_recognises_each_kind_by_its_looks(text: str, kind: str) -> None:
    assert kind_of(text) == kind


@given(st.sampled_from(sorted(KINDS)), st.text(max_size=300))
def test_every_parser_takes_any_text(kind: str, text: str) -> None:
    KINDS[kind](text, Rules(hex_keys=True, group_nul=True), Harvest("in"))


@pytest.mark.parametrize("before", ["\r\n", " \t"])
def test_kind_of_ignores_blanks_before_the_input(before: str) -> None:
    assert kind_of(before + "REGEDIT4\n") == "reg"
    assert kind_of(before + "Windows Registry Editor Version 5.00\n") == "reg"
    assert kind_of(before + "{}") == "json"
    assert kind_of(before + "10.0.0.20 0x27\n") == "isns"
