"""Makes text for people: escapes what comes from outside before a terminal or a log shows it, and counts nouns.

Law: text from a peer, a file's name or a program passes through here before a terminal or a log gets it. It
may hold a terminal's control sequences, a line break that would make a second log line, or a mark that
reverses the direction of writing.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with everything that is not a visible character (or a space) as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def plural(count: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
