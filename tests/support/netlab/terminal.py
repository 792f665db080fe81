"""A terminal with a process on it: what it paints is read at once, and keys can be pressed."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


class Terminal:
    """``with Terminal(argv) as terminal``: the process is its session's leader, as under a login."""

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self._master, slave = pty.openpty()
        self._text = bytearray()
        self._process = subprocess.Popen(
            # a shell starts what it runs behind itself deaf to control-C, and tests may run so
            ["env", "--default-signal=INT", "setsid", "--ctty", "--wait", "setpriv", "--pdeathsig", "KILL", *argv],
            stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env={**os.environ, **(env or {})},
        )  # fmt: skip
        os.close(slave)
        # a terminal that nobody reads stops its process when its buffer is full
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):  # the last process on it has ended
            while data := os.read(self._master, 4096):
                self._text += data

    @property
    def text(self) -> str:
        """Everything that was painted so far."""
        return self._text.decode(errors="replace")

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def halt(self) -> None:
        """Let the process stand still until :meth:`go_on`, while time passes."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def end(self, timeout: float = 20.0) -> int:
        """Wait for the process; its exit code."""
        code = self._process.wait(timeout)
        self._reader.join(5)
        return code

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(5)
        os.close(self._master)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
