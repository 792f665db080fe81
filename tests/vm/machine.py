"""One VM, driven over ssh on the control network.

Its law: every command has a deadline on both ends, because most tests here end with a
network that no longer answers.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# The longest time that a dead control connection costs.
GRACE = 20.0

# How much longer than named to wait for what must come: an emulated CPU is slow, and a busy host slower.
PATIENCE = 3.0


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended; 124 is a deadline missed."""

    rc: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit {self.rc}\n{self.out}{self.err}"


class CommandFailed(AssertionError):
    """A command that had to succeed did not."""


class Timeout(AssertionError):
    """A condition did not come true in time."""


@dataclass(slots=True)
class Running:
    """A command that runs while the test does something else."""

    process: subprocess.Popen[bytes]
    deadline: float

    def result(self) -> Result:
        """Wait for its end."""
        try:
            out, err = self.process.communicate(timeout=max(1.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            return Result(124, _text(out), _text(err) + "(no answer on the control network)\n")
        return Result(self.process.returncode, _text(out), _text(err))


@dataclass(slots=True)
class Machine:
    """A VM: its addresses on the data network, and a root shell in it."""

    name: str
    ip: str
    ip6: str
    ssh_config: Path
    _sockets: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="vm-"))

    def spawn(self, command: str, timeout: float = 60, stdin: bytes | None = None) -> Running:
        """Start a bash command as root."""
        limit = f"timeout --kill-after=5 {timeout:g} bash -c {shlex.quote(command)}"
        process = subprocess.Popen(
            [*self._ssh(), self.name, f"sudo -n -H {limit}"],
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        running = Running(process, time.monotonic() + timeout + GRACE)
        if stdin is not None and process.stdin:
            try:
                process.stdin.write(stdin)
                process.stdin.close()
            except BrokenPipeError:
                pass
            process.stdin = None
        return running

    def run(
        self, command: str, timeout: float = 60, check: bool = False, stdin: bytes | None = None
    ) -> Result:
        """Run a bash command as root and wait for it; with patience, if it must succeed."""
        result = self.spawn(command, timeout * PATIENCE if check else timeout, stdin).result()
        if check and result.rc:
            raise CommandFailed(f"{self.name}: {command}: {result}")
        return result

    def put(self, local: Path, remote: str) -> None:
        """Copy a local file into the machine."""
        self.run(f"cat >{shlex.quote(remote)}", timeout=120, check=True, stdin=local.read_bytes())

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file as an admin's editor would: whole, and with its mode from the start."""
        name = shlex.quote(path)
        self.run(
            f"mkdir -p $(dirname {name}) && install -m {mode:o} /dev/null {name}.new"
            f" && cat >{name}.new && mv {name}.new {name}",
            check=True,
            stdin=text.encode(),
        )

    def wait(self, condition: str, timeout: float = 60, every: float = 0.3) -> Result:
        """Wait in the machine until a bash command succeeds; return its last result."""
        result = self.run(
            f'until out=$( ( {condition}\n) 2>&1 ); do sleep {every}; done; printf %s "$out"',
            timeout * PATIENCE,
        )
        if result.rc:
            last = self.run(condition, timeout=30)
            raise Timeout(f"{self.name}: not within {timeout * PATIENCE:g} s: {condition}: {last}")
        return result

    def boot_id(self) -> str:
        """Return what changes with each boot; empty while the machine does not answer."""
        return self.run("cat /proc/sys/kernel/random/boot_id", timeout=5).out.strip()

    def reboot(self, timeout: float = 240) -> None:
        """Reboot, and return when the system is up."""
        before = self.boot_id()
        self.run("systemctl --no-block reboot", timeout=30)
        wait_until(lambda: self.boot_id() not in ("", before), timeout, f"{self.name} answers after a reboot")
        self.wait("! systemctl is-system-running 2>&1 | grep -qE 'starting|initializing'", timeout)

    def close(self) -> None:
        """End the control connection."""
        subprocess.run([*self._ssh(), "-O", "exit", self.name], capture_output=True, timeout=10)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _ssh(self) -> list[str]:
        # One connection for all commands: setting one up takes seconds on an emulated CPU.
        return [
            "ssh", "-F", str(self.ssh_config),
            "-o", "ControlMaster=auto", "-o", f"ControlPath={self._sockets}/%n",
            "-o", "ControlPersist=300", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
            "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=4",
        ]  # fmt: skip


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait until something is true; say what was not, if it never is."""
    deadline = time.monotonic() + timeout * PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Timeout(f"not within {timeout * PATIENCE:g} s: {what}")
        time.sleep(0.2)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
