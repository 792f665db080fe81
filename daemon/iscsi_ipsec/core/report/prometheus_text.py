"""Formats metrics in Prometheus' text format, version 0.0.4.

Law: knows the format, not the meaning of any number. Prometheus documents it in
docs/instrumenting/exposition_formats.md; strings in it are UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """The type of a family; the name of a counter ends in ``_total``."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Family:
    """Numbers with one name and meaning, distinguished by labels."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    samples: list[tuple[tuple[str, ...], float]] = field(default_factory=list)
    """The labels' values in their order, and the number."""

    def add(self, number: float, *values: str) -> None:
        """One more sample; ``values`` are those of all labels."""
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}")
        self.samples.append((values, float(number)))


def exposed(families: Iterable[Family]) -> bytes:
    """The families as a file; a family without samples is listed too."""
    lines: list[str] = []
    for family in families:
        lines.append(f"# HELP {family.name} {_escaped(family.help)}\n")
        lines.append(f"# TYPE {family.name} {family.kind}\n")
        starts = [f'{label}="' for label in family.labels]
        for values, number in family.samples:
            labels = ",".join(
                f'{start}{_quoted(value)}"' for start, value in zip(starts, values, strict=True)
            )
            lines.append(
                f"{family.name}{{{labels}}} {number!r}\n" if labels else f"{family.name} {number!r}\n"
            )
    return "".join(lines).encode()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"')
