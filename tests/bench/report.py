"""Numbers as they were taken, the plain table, and the counts that must hold."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. ``base``: the median that ``ratio`` compares with, and the rival that it belongs to."""

    what: str
    who: str
    values: tuple[float, ...]
    unit: str = "s"
    base: float = 0.0
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def cells(self) -> tuple[str, ...]:
        ratio = f"{self.median / self.base:.2f}" if self.base else ""
        spread = f"{text(min(self.values), self.unit)} .. {text(max(self.values), self.unit)}"
        alone = len(self.values) == 1
        return (
            self.what,
            self.who,
            text(self.median, self.unit),
            str(len(self.values)),
            "" if alone else spread,
            ratio,
            self.note,
        )


def text(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"
    return f"{value:.3f} {unit}" if abs(value) < 1 else f"{value:,.1f} {unit}"


@dataclass(slots=True)
class Report:
    """Collects rows and broken checks while the benchmark goes on."""

    machine: Mapping[str, str]
    rows: list[Row] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    checked: int = 0

    def add(
        self,
        what: str,
        who: str,
        values: Iterable[float],
        *,
        unit: str = "s",
        base: Row | None = None,
        note: str = "",
    ) -> Row:
        row = Row(
            what=what, who=who, values=tuple(values), unit=unit, base=base.median if base else 0.0, note=note
        )
        self.rows.append(row)
        return row

    def check(self, what: str, found: object, wanted: object) -> None:
        """A count that must be exactly so on every machine."""
        self.checked += 1
        if found != wanted:
            self.broken.append(f"{what}: {found} instead of {wanted}")

    def table(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.machine.items()]
        head = ("measure", "who", "median", "runs", "spread", "ratio", "note")
        cells = [head, *(row.cells() for row in self.rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
        for number, line in enumerate(cells):
            if number == 0 or line[0] != cells[number - 1][0]:
                lines.append("")
            shown = [line[0] if number == 0 or line[0] != cells[number - 1][0] else "", *line[1:]]
            lines.append(
                "  ".join(cell.ljust(width) for cell, width in zip(shown, widths, strict=True)).rstrip()
            )
        lines += ["", f"{self.checked - len(self.broken)} of {self.checked} counts are as they must be"]
        return "\n".join([*lines, *(f"BROKEN: {what}" for what in self.broken)])

    def save(self, path: Path, more: Mapping[str, Any]) -> None:
        path.parent.mkdir(exist_ok=True)
        document = {
            "machine": dict(self.machine), **more, "rows": [asdict(row) for row in self.rows], "broken": self.broken
        }  # fmt: skip
        path.write_text(json.dumps(document, indent=1) + "\n")
