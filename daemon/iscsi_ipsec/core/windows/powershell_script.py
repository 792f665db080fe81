"""Splits a PowerShell script into command lines, as far as a script that calls iscsicli needs it: quotes, ``&``, comments, lines.

Law: pure; no word of the input is repeated in a message. The value of a variable is unknown here, and the
command says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from iscsi_ipsec.core.windows.iscsicli_script import Command

LOOKS_LIKE = re.compile(
    r"(?mi)^\s*(?:&\s*\S|\$\w+\s*=|param\s*\(|(?:Start-Process|Write-Host|Import-Module|foreach\s*\())|iscsicli(?:\.exe)?\s.*'[^']*'"
)
"""Syntax that scripts of cmd.exe do not have."""

_DOUBT = "it holds a variable or an expression, which only PowerShell could replace: write the value"
_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*|<\#.*?\#>)|(?P<line>`\r?\n)|(?P<end>[\n;|{}])"""
    r"""|'(?P<single>(?:[^']|'')*)'|"(?P<double>(?:[^"`]|""|`.)*)"|(?P<blank>[\s,()@&]+?)|(?P<bare>(?:`.|[^\s,;|{}()'"`])+)""",
    re.DOTALL | re.VERBOSE,
)


def commands(text: str) -> Iterable[Command]:
    """All commands of a script, in order; words that stand side by side are one."""
    words: list[str] = []
    first, doubt, at, joined = 0, "", 0, False
    text = text.replace("\r", "")
    for match in _TOKEN.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        kind, glued = match.lastgroup, joined and match.start() == at
        at, joined = match.end(), False
        if kind in ("single", "double", "bare"):
            first = first if words else line
            word, odd = _value(kind, match[kind])
            doubt = doubt or (_DOUBT if odd else "")
            words = [*words[:-1], words[-1] + word] if glued else [*words, word]
            joined = True
        elif kind == "end" and words:
            yield Command(first, tuple(words), doubt)
            words, doubt = [], ""
    if words:
        yield Command(first, tuple(words), doubt)


def _value(kind: str, text: str) -> tuple[str, bool]:
    """The value of a word, and whether it holds something that only PowerShell can evaluate."""
    if kind == "single":
        return text.replace("''", "'"), False
    odd = bool(re.search(r"(?<!`)\$[\w({]", text))
    return re.sub(r"`(.)", r"\1", text.replace('""', '"') if kind == "double" else text), odd
