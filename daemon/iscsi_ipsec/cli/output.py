"""Prints JSON, tables that fit the terminal, and colours where they are wanted.

Law: colour only on a terminal, never with NO_COLOR (no-color.org) or TERM=dumb; what does not fit is shortened,
and never the first two columns.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

RED, GREEN, YELLOW = 31, 32, 33
PLAIN_WIDTH = 80
"""Columns where the terminal's width is unknown."""

_GAP = "  "
_LEAST = 6
"""Characters that a shortened cell keeps."""


def print_json(document: object) -> None:
    """Every answer as JSON."""
    json.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")


def has_colour(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours and obeys control sequences."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: int) -> str:
    """The text in an ANSI colour where the output shows colours."""
    return f"\x1b[{colour}m{text}\x1b[0m" if colour and has_colour(sys.stdout) else text


def width() -> int:
    """The number of columns: those of the terminal (or COLUMNS), else 80."""
    return shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns


def print_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    colours: Sequence[int] = (),
    columns: int | None = None,
) -> None:
    """Aligned columns; each row in its colour. ``columns``: cut the cells so that lines are no longer."""
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    if columns is not None:
        widths = fit(widths, columns)
    for number, line in enumerate(lines):
        cells = (_cut(cell, size).ljust(size) for cell, size in zip(line, widths, strict=False))
        text = _GAP.join(cells).rstrip()
        sys.stdout.write((paint(text, colours[number - 1]) if number and colours else text) + "\n")


def fit(widths: Sequence[int], columns: int) -> list[int]:
    """Column widths that fit the line: the widest columns after the second shrink first, then the last ones are dropped."""
    fitting = list(widths)
    while len(fitting) > 2 and _total(fitting) > columns:
        widest = max(range(2, len(fitting)), key=lambda column: fitting[column])
        if fitting[widest] > _LEAST:
            fitting[widest] -= 1
        else:
            fitting.pop()
    return fitting


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _cut(cell: str, size: int) -> str:
    return cell if len(cell) <= size else f"{cell[: size - 1]}~"


def span(seconds: int) -> str:
    """A time in its largest unit: ``24s``, ``5m``, ``3h``, ``2d``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def size(count: float) -> str:
    """A number of bytes: ``512B``, ``1.8K``, ``39.0M``."""
    for unit in ("B", "K", "M", "G"):
        if count < 1024:
            return f"{count:.0f}{unit}" if unit == "B" else f"{count:.1f}{unit}"
        count /= 1024
    return f"{count:.1f}T"
