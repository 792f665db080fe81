"""A stream of I/O that runs through everything a test does, and measures how long it stood still.

Its law: each block is written through to the target's disk, read back from there and compared,
so that both directions carry data all the time and no byte is taken on trust.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from tests.vm.machine import PATIENCE, Machine, wait_until

# Runs in the machine: a line per block that went out and came back, with the time; ends at the
# first error, which is its last line.
PROGRAM = """
import mmap, os, sys, time
device, offset = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT), int(sys.argv[2])
sent, received = mmap.mmap(-1, 8192), mmap.mmap(-1, 8192)
with open(sys.argv[3], "w", buffering=1) as log:
    for number in range(10**9):
        sent[:] = number.to_bytes(8, "big") * 1024
        try:
            os.pwritev(device, [sent], offset + number % 256 * 8192)
            os.preadv(device, [received], offset + number % 256 * 8192)
        except OSError as err:
            sys.exit(log.write(f"error: {err}\\n"))
        if sent[:] != received[:]:
            sys.exit(log.write(f"error: block {number} came back changed\\n"))
        log.write(f"{time.monotonic():.3f}\\n")
        time.sleep(0.2)
"""

# What the tests measured, for the end of the run: emulated machines are reported, not judged.
MEASURED: list[str] = []


def report(what: str, *seconds: str) -> None:
    """Keep for the end of the run how long I/O stood still."""
    MEASURED.append(f"{what}: {', '.join(seconds)}")


@dataclass(slots=True)
class Stream:
    """I/O on one disk, from `start` to `stop`. Streams on the same disk need different numbers."""

    machine: Machine
    device: str
    number: int = 0
    _mark: int = field(default=0)

    @property
    def _name(self) -> str:
        return f"stream-{self.number}"

    def start(self) -> Stream:
        """Begin, and return when the first blocks are through."""
        offset = (32 + 4 * self.number) << 20
        self.machine.write("/root/stream.py", PROGRAM)
        self.machine.run(
            f"systemd-run -q --collect --unit={self._name}"
            f" python3 /root/stream.py {self.device} {offset} /run/{self._name}",
            check=True,
        )
        wait_until(lambda: self._count() > 2, 60, f"blocks go to {self.device} and back")
        return self

    def stop(self) -> None:
        """End it."""
        self.machine.run(f"systemctl stop {self._name}", timeout=120)

    def mark(self) -> None:
        """Measure from here on."""
        self._mark = self._count()

    def wait_until_it_flows(self, timeout: float = 90) -> None:
        """Return when some blocks that were begun after this call are through; an error fails the test."""
        # the first may have been under way, and held up, before
        ended = self.machine.run(
            f"log=/run/{self._name}; wanted=$(( $(wc -l <$log) + 4 ));"
            " until [ $(wc -l <$log) -ge $wanted ] || grep -q error $log; do sleep 0.2; done; tail -n1 $log",
            timeout=timeout * PATIENCE,
        )
        assert ended.rc == 0, f"{self.device}: nothing goes through any more: {ended}"
        assert "error" not in ended.out, f"{self.device}: {ended.out}"

    def stall(self) -> float:
        """Return the longest time without a block since the mark."""
        times = [float(line) for line in self._lines()[max(0, self._mark - 1) :]]
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)

    def _count(self) -> int:
        return len(self._lines())

    def _lines(self) -> list[str]:
        return self.machine.run(f"cat /run/{self._name}", timeout=30).out.splitlines()
