"""The output that the admin sees: headings, commands with their output, and checks."""

from __future__ import annotations

import shlex
import sys
import time

from tests.support.netlab import Result
from tests.support.netlab.process import TIMED_OUT

RULE = 78


class Disappointment(Exception):
    """A step did not do what it should; *evidence* is shown to whoever has to find out why."""

    def __init__(self, what: str, evidence: str = "") -> None:
        super().__init__(what)
        self.evidence = evidence


class Narrator:
    """Prints; and a check that does not hold ends the story."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty()
        self._started = time.monotonic()
        self._chapter = 0
        self.checks = 0

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text

    def _print(self, text: str = "") -> None:
        print(text, flush=True)

    def chapter(self, title: str) -> None:
        self._chapter += 1
        clock = f"{time.monotonic() - self._started:.1f} s"
        head = f"{self._chapter}. {title} "
        self._print()
        self._print(self._paint("1", f"{head}{'-' * max(3, RULE - len(head) - len(clock) - 1)} {clock}"))

    def say(self, *lines: str) -> None:
        for line in lines:
            self._print(f"   {line}")

    def show(self, title: str, text: str) -> None:
        """A file or a command's output."""
        self._print(self._paint("36", f"   {title}"))
        for line in text.rstrip("\n").splitlines():
            self._print(f"      {line}".rstrip())

    def command(self, words: list[str], result: Result) -> None:
        """A command as the admin would type it, with what it printed."""
        out = "\n".join(part.rstrip() for part in (result.out, result.err) if part.strip())
        code = f"\n(exit {result.rc})" if result.rc else ""
        if result.rc == TIMED_OUT:
            code = "\n(given up: no answer)"
        self.show(f"$ {shlex.join(words)}", (out + code).strip() or "(no output)")

    def check(self, holds: object, what: str, evidence: str = "") -> None:
        if not holds:
            raise Disappointment(what, evidence)
        self.checks += 1
        self._print(f"   {self._paint('32', 'ok')} {what}")

    def failed(self, error: Disappointment) -> None:
        self._print(f"   {self._paint('31', 'FAILED')} {error}")
        if error.evidence:
            self.show("what there is to see:", error.evidence)

    def end(self, *lines: str) -> None:
        self._print()
        self.say(*lines, f"{self.checks} checks held, {time.monotonic() - self._started:.1f} s.")
