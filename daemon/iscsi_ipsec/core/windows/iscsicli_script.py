"""Splits the command lines of a script as cmd.exe and a C program's start-up code do.

Law: pure, and limited to what a script that calls one program needs:
comments, quotes, carets, ``%%``, several commands on a line, redirections. The value of a variable is unknown
here, and the command says so. No text of a
command goes into a message, as one of its words may be a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_COMMENT = re.compile(r"\s*@?\s*(?:rem(?:\s|$)|::)", re.IGNORECASE)
_REDIRECTION = re.compile(r'(?:>>?|<)(?:&[0-9]|\s*(?:"[^"]*"?|[^\s"&|<>])+)')
_HANDLE = re.compile(r"(?<!\S)[0-9]$")
# characters without a special meaning: outside quotes and inside, on a line and in a word
_PLAIN, _QUOTED = re.compile(r'[^"^&|<>]+'), re.compile(r'[^"]+')
_PART, _QUOTED_PART = re.compile(r'[^\\" \t]+'), re.compile(r'[^\\"]+')


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
        bare = part.lstrip(" \t@(")
        words = tuple(split_words(bare))
        if "(" in part[: len(part) - len(bare)] and len(words) > 1 and words[-1].endswith(")"):
            words = (*words[:-1], words[-1][:-1]) if len(words[-1]) > 1 else words[:-1]  # it closes the group
        if words:
            yield Command(number, words, doubt)


def _split(line: str) -> Iterable[str]:
    """The commands of a line: cut at unquoted & and |, without redirections."""
    pieces: list[str] = []
    quoted, at = False, 0
    while at < len(line):
        if run := (_QUOTED if quoted else _PLAIN).match(line, at):
            pieces.append(run[0])
            at = run.end()
            continue
        character = line[at]
        if character == '"':
            quoted = not quoted
        elif character == "^":
            at += 1
            character = line[at : at + 1]
        elif character in "&|":
            yield "".join(pieces)
            pieces, character = [], ""
        elif found := _REDIRECTION.match(line, at):
            _drop_handle(pieces)
            at, character = found.end() - 1, " "
        pieces += character
        at += 1
    yield "".join(pieces)


def _drop_handle(pieces: list[str]) -> None:
    """Take away the digit that stands alone right before a redirection."""
    if pieces and _HANDLE.search("".join(pieces[-2:])[-2:]):
        pieces[-1] = pieces[-1][:-1]


def split_words(text: str) -> Iterable[str]:
    """A command line's words as CommandLineToArgvW has them: blanks and tabs part; quotes group; a backslash means something only before a quote."""
    word: list[str] | None = None
    quoted, at = False, 0
    while at < len(text):
        end = at
        while text.startswith("\\", end):
            end += 1
        slashes, at = end - at, end + 1
        character = text[end:at]
        if not slashes and not quoted and character in " \t":
            if word is not None:
                yield "".join(word)
                word = None
            continue
        word = [] if word is None else word
        if character != '"':
            word.append("\\" * slashes)
            at = end
            if run := (_QUOTED_PART if quoted else _PART).match(text, end):
                word.append(run[0])
                at = run.end()
            continue
        word.append("\\" * (slashes // 2))
        if slashes % 2:
            word.append('"')
        elif quoted and text.startswith('"', at):
            word.append('"')
            at += 1
        else:
            quoted = not quoted
    if word is not None:
        yield "".join(word)
