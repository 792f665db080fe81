"""Escapes text from outside before a terminal or a log shows it.

Law: whatever came from a peer, a file's name or a program passes through here before a
terminal or a log gets it: a name may hold what a terminal obeys, a line break that makes
a second line of log, or a mark that turns the direction of writing.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with everything that is not a visible character (or a space) as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
