"""Processes that the lab starts, and may therefore end: always by their own pid.

Each is started through setpriv(1) with a parent-death signal, so that even a lab that is
killed leaves nothing running. (The signal follows the *thread* that started the process:
start processes from a thread that lives as long as they should.)
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a finished command."""

    argv: tuple[str, ...]
    rc: int
    out: str
    err: str

    @property
    def ok(self) -> bool:
        return self.rc == 0

    def __str__(self) -> str:
        return f"{shlex.join(self.argv)}: exit {self.rc}\n{self.out}{self.err}".rstrip()


class CommandFailedError(RuntimeError):
    """A command that had to succeed did not."""


class EndedAtOnceError(RuntimeError):
    """A process that should have kept running ended while it was waited for."""


TIMED_OUT = 124  # what timeout(1) exits with


def run(
    argv: Sequence[str],
    *,
    timeout: float = 20.0,
    check: bool = True,
    text: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Run to the end; a command that outlives *timeout* is killed and has exit code 124."""
    words = tuple(str(word) for word in argv)
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **(env or {})},
    )
    try:
        out, err = process.communicate(text or "", timeout=timeout)
        rc = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        rc = TIMED_OUT
    except BaseException:
        process.kill()
        process.communicate()
        raise
    result = Result(argv=words, rc=rc, out=out, err=err)
    if check and rc:
        raise CommandFailedError(str(result))
    return result


class Child:
    """A long-running process with its output in a file."""

    def __init__(self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.argv = tuple(str(word) for word in argv)
        self.log = log
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def rc(self) -> int | None:
        return self._process.poll()

    def terminate(self, *, grace: float = 5.0) -> int:
        """SIGTERM, then after *grace* seconds SIGKILL; returns the exit status."""
        if self.running:
            self._process.terminate()
        try:
            return self._process.wait(grace)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL: the process gets no chance to clean up after itself."""
        if self.running:
            self._process.kill()
        return self._process.wait()

    def send(self, signal: int) -> None:
        self._process.send_signal(signal)

    def wait(self, timeout: float) -> int:
        return self._process.wait(timeout)

    def output(self) -> str:
        return self.log.read_text(errors="replace")
