"""Shows progress in one line on a terminal's stderr, and wipes it at the end.

Law: shows nothing where stderr is not a terminal, so that logs and pipes hold results only.
"""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import Self

_DELAY = 0.3
"""Seconds before the first line: quick work shows no progress."""


class Progress:
    """``with Progress() as progress: progress.show("...")``; the line is wiped when the block ends."""

    def __init__(self) -> None:
        self._shown, self._terminal = "", sys.stderr.isatty()
        self._start = time.monotonic()

    def show(self, text: str) -> None:
        """Show this text at once, with the seconds that have passed."""
        passed = time.monotonic() - self._start
        if not self._terminal or passed < _DELAY:
            return
        line = f"{text} ({passed:.0f} s)"
        line = line[: shutil.get_terminal_size().columns - 1]
        if line != self._shown:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
            self._shown = line

    def count(self, done: int, of: int, what: str) -> None:
        """Show how many items of a total are done."""
        self.show(f"{what}: {done} of {of}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
