"""Texts that others chose cannot control a terminal, forge a log line, or hide."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.printable import plural, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("iqn.2026-01.com.example:disk1 é 盘", "iqn.2026-01.com.example:disk1 é 盘"),
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("one\ntwo\r\t\0", r"one\ntwo\r\t\x00"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\u2028b\ud800", r"a\u2028b\ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_printable_escapes_everything_but_visible_characters(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


@pytest.mark.parametrize(("count", "said"), [(0, "0 files"), (1, "1 file"), (2, "2 files")])
def test_plural_counts_a_noun(count: int, said: str) -> None:
    assert plural(count, "file") == said
