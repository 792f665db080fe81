"""Explains TOML syntax errors in terms of the usual mistakes.

Law: pure, and no value of the file is ever repeated: it may be a piece of a key.
"""

from __future__ import annotations

import re

_ASSIGNED = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=")
_TABLE = re.compile(r"\s*\[")
_BARE_ADDRESS = re.compile(r"=\s*\[?\s*(?:[0-9]+\.[0-9]+\.|[0-9a-fA-F]*:[0-9a-fA-F:]*:)")
_BARE_WORD = re.compile(r"=\s*\[?\s*(?!true\b|false\b|inf\b|nan\b)[A-Za-z_]")
_TYPOGRAPHIC = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb"
_STRING = re.compile(r"""\"(?:\\.|[^"\\])*"|'[^']*'|\#.*""", re.VERBOSE)


def explain(message: str, text: str, line: int) -> str:
    """A sentence about a common mistake; empty where it is not one of those."""
    lines = text.split("\n")
    written = lines[line - 1] if 0 < line <= len(lines) else ""
    if "overwrite a value" in message:
        return _twice(lines, line)
    if any(mark in written for mark in _TYPOGRAPHIC):
        return "the quotes are typographic ones: write straight ones"
    if not _STRING.sub("", written).isascii():
        return "a character outside of quotes is not ASCII, though it may look so: type the line again"
    # an array that is never closed is reported at the end of the file
    for row in (written, *lines):
        if _BARE_ADDRESS.search(row) or (row is written and _BARE_WORD.search(row)):
            return "a text needs quotes"
    if _STRING.sub("", written).count('"') + _STRING.sub("", written).count("'"):
        return "the text does not end: a quote is missing"
    return ""


def _twice(lines: list[str], line: int) -> str:
    """Name the key that stands in two lines of one table."""
    match = _ASSIGNED.match(lines[line - 1]) if 0 < line <= len(lines) else None
    if match is None:
        return "a key is set twice"
    table = max((n for n, row in enumerate(lines[:line], 1) if _TABLE.match(row)), default=0)
    for number, row in enumerate(lines[table : line - 1], table + 1):
        other = _ASSIGNED.match(row)
        if other and other[1] == match[1]:
            return f'"{match[1]}" is set twice, in lines {number} and {line}'
    return f'"{match[1]}" is set twice'
