"""Command lines of a script as cmd.exe and a C program's start-up code take them apart.

Law: pure, and no more than what a script that calls one program needs:
comments, quotes, carets, ``%%``, several commands on a line, redirections. A
variable cannot be known here, and the command says so. No text of a
command goes into a message, as one of its words may be a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_COMMENT = re.compile(r"\s*@?\s*(?:rem(?:\s|$)|::)", re.IGNORECASE)
_REDIRECTION = re.compile(r'(?:>>?|<)(?:&[0-9]|\s*(?:"[^"]*"?|[^\s"&|<>])+)')
_HANDLE = re.compile(r"(?<!\S)[0-9]$")


@dataclass(frozen=True, slots=True)
class Command:
    """One command: the line on which it begins, its words, and why they cannot be trusted (empty: they can)."""

    line: int
    words: tuple[str, ...]
    doubt: str = ""


def commands(text: str) -> Iterable[Command]:
    """All commands of a script, in order."""
    whole, first = "", 0
    # not splitlines(): it cuts at more characters, which may stand in a key; cmd.exe drops every CR
    for number, line in enumerate(text.replace("\r", "").split("\n"), 1):
        if not whole:
            first = number
            if _COMMENT.match(line):
                continue
        if _carets_at_end(line) % 2:
            whole += line[:-1]  # a caret at the end continues the line
            continue
        yield from _commands(whole + line, first)
        whole = ""
    if whole:
        yield from _commands(whole, first)


def _carets_at_end(line: str) -> int:
    return 0 if _inside_quotes(line) else len(line) - len(line.rstrip("^"))


def _inside_quotes(line: str) -> bool:
    return line.count('"') % 2 == 1


def _commands(line: str, number: int) -> Iterable[Command]:
    doubt = ""
    if "%" in line.replace("%%", ""):
        doubt = (
            "it holds a variable or a single %, which only cmd.exe could replace: write the value (a % as %%)"
        )
    for part in _split(line.replace("%%", "%")):
        words = tuple(_words(part.lstrip(" \t@(")))
        if words:
            yield Command(number, words, doubt)


def _split(line: str) -> Iterable[str]:
    """The commands of a line: cut at unquoted & and |, without redirections."""
    parts, quoted, at = [""], False, 0
    while at < len(line):
        character = line[at]
        if character == '"':
            quoted = not quoted
        elif not quoted and character == "^":
            at += 1
            character = line[at : at + 1]
        elif not quoted and character in "&|":
            parts.append("")
            character = ""
        elif not quoted and (found := _REDIRECTION.match(line, at)):
            parts[-1] = _HANDLE.sub("", parts[-1])
            at, character = found.end() - 1, " "
        parts[-1] += character
        at += 1
    return parts


def _words(text: str) -> Iterable[str]:
    """As CommandLineToArgvW: blanks and tabs part; quotes group; a backslash means something only before a quote."""
    word: str | None = None
    quoted, at = False, 0
    while at < len(text):
        slashes = len(text) - at - len(text[at:].lstrip("\\"))
        at += slashes
        character = text[at : at + 1]
        at += 1
        if character == '"':
            word = (word or "") + "\\" * (slashes // 2)
            if slashes % 2:
                word += '"'
            elif quoted and text[at : at + 1] == '"':
                word, at = word + '"', at + 1
            else:
                quoted = not quoted
            continue
        if slashes:
            word = (word or "") + "\\" * slashes
        if character and (quoted or character not in " \t"):
            word = (word or "") + character
        elif word is not None and not quoted:
            yield word
            word = None
    if word is not None:
        yield word
