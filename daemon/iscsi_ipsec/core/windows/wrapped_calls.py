"""Finds the call of iscsicli inside what a script wraps it in: start, call, cmd /c, if, for, psexec, Start-Process.

Law: pure; no word of the input is repeated in a message. A call in an unknown wrapper is taken with a note, never silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from iscsi_ipsec.core.windows.iscsicli_script import Command, split_words

_PROGRAM = re.compile(r"(?:.*[\\/])?([^\\/]*?)(?:\.exe)?", re.IGNORECASE)
_WRAPPERS = (
    "start",
    "call",
    "cmd",
    "if",
    "else",
    "do",
    "then",
    "psexec",
    "psexec64",
    "runas",
    "start-process",
    "saps",
)
_SPEAKING = ("echo", "echo.", "title", "set", "write-host", "write-output")
"""Programs that only show or keep the words behind them."""

NOT_UNDERSTOOD = "it calls iscsicli in a way that is not understood: write the call as a line of its own"


def program(word: str) -> str:
    """The name of the program that a word starts, without folder and suffix."""
    match = _PROGRAM.fullmatch(word.strip("()"))
    return match[1].lower() if match else ""


def calls(command: Command) -> Iterable[tuple[Command, str]]:
    """The calls of iscsicli in a command, each with what should be known about how it was wrapped.

    A command that is no call of iscsicli is given back as it is: it may be typed into iscsicli itself.
    """
    words = list(command.words)
    first = program(words[0])
    if first in _SPEAKING:
        return
    if first == "for":
        yield from _loop(command)
        return
    if first not in _WRAPPERS:
        if first != "iscsicli" and any(program(word) == "iscsicli" for word in words[1:]):
            yield replace(command, words=("iscsicli",), doubt=NOT_UNDERSTOOD), ""
        else:
            yield command, ""
        return
    words = _spread(words)
    at = next((n for n, word in enumerate(words) if n and program(word) == "iscsicli"), 0)
    if not at:
        return
    note = {"if": "the condition of if is ignored", "else": "the condition of if is ignored"}.get(first, "")
    if first.startswith("psexec"):
        note = "psexec ran it on another machine"
    yield replace(command, words=_closed(_arguments(words[at:]), words[:at])), note


def _spread(words: Sequence[str]) -> list[str]:
    """Words that hold a whole command line, as behind ``cmd /c``, taken apart."""
    spread: list[str] = []
    for word in words:
        inner = list(split_words(word)) if " " in word else [word]
        spread += inner if len(inner) > 1 and program(inner[0]) == "iscsicli" else [word]
    return spread


def _arguments(words: Sequence[str]) -> Sequence[str]:
    """Without what Start-Process names its parameters; one text of all arguments is taken apart."""
    if len(words) > 1 and words[1].lower() in ("-argumentlist", "-args"):
        rest = [
            word
            for word in words[2:]
            if not re.fullmatch(r"-(?:wait|nonewwindow|passthru)", word, re.IGNORECASE)
        ]
        return [words[0], *(split_words(rest[0]) if len(rest) == 1 else rest)]
    return words


def _closed(words: Sequence[str], before: Sequence[str]) -> tuple[str, ...]:
    """Without the bracket that closes one opened in front of the call."""
    opened = words[0].startswith("(") or any(word.endswith("(") for word in before)
    first = words[0].lstrip("(")
    last = words[-1].removesuffix(")") if opened and len(words) > 1 else words[-1]
    return (first, *words[1:-1], last) if len(words) > 1 else (first,)


def _loop(command: Command) -> Iterable[tuple[Command, str]]:
    """``for %p in (a b) do ...`` for each of its values; other loops have values that only cmd.exe knows."""
    words = list(command.words)
    lower = [word.lower() for word in words]
    if "do" not in lower or not any(program(word) == "iscsicli" for word in words):
        return
    do = lower.index("do")
    values = [word.strip("(),") for word in words[3:do]]
    if len(words) < 4 or lower[2] != "in" or any(re.search(r"[*?%]", value) for value in values):
        yield replace(command, words=("iscsicli",), doubt="only cmd.exe knows the values of this loop"), ""
        return
    for value in filter(None, values):
        body = tuple(word.replace(words[1], value) for word in words[do + 1 :])
        yield from calls(replace(command, words=body))
