"""How long reads stand still when something restarts or dies, and how much of it is charon's own start (VM_BENCH=1).

The connection that is written by hand goes through the same, so that a ratio can be read. Nothing is asserted of
times; that no frame was unencrypted where the product protects the session is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest

from tests.vm import openiscsi
from tests.vm.conftest import Tables
from tests.vm.machine import Machine
from tests.vm.test_throughput import BY_HAND, WAYS, Way, far_end, protect  # noqa: F401  # a fixture
from tests.vm.wire import Wire

pytestmark = pytest.mark.skipif(not os.environ.get("VM_BENCH"), reason="a benchmark: make bench-vm")

# Reads 4 KiB blocks directly, one after the other; prints the longest time between two that succeeded.
READS = """
import mmap, os, sys, time
device, seconds = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), float(sys.argv[2])
block, last, longest, number = mmap.mmap(-1, 4096), time.monotonic(), 0.0, 0
end = last + seconds
while time.monotonic() < end or number == 0:
    os.preadv(device, [block], number % 4096 * 4096)
    now = time.monotonic()
    longest, last, number = max(longest, now - last), now, number + 1
print(f"{longest:.2f} {number}")
"""

SECONDS = 30

KILL = (
    "was=$(systemctl show -p MainPID {unit}); systemctl kill -s KILL {unit};"
    " until systemctl -q is-active {unit} && [ $(systemctl show -p MainPID {unit}) != $was ];"
    " do sleep 0.1; systemctl start {unit}; done"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, and the end at which it happens."""

    name: str
    command: str
    far: bool = False


FAULTS = (
    Fault("nothing", "true"),
    Fault("our charon restarts", "systemctl restart strongswan"),
    Fault("our charon is killed", KILL.format(unit="strongswan")),
    Fault("the far end's charon restarts", "systemctl restart strongswan", far=True),
    Fault("the far end's charon is killed", KILL.format(unit="strongswan"), far=True),
    Fault("the daemon restarts", "systemctl restart iscsi-ipsecd"),
    Fault("the daemon is killed", KILL.format(unit="iscsi-ipsecd")),
)


def longest_gap(machine: Machine, target: Machine, device: str, fault: Fault) -> float:
    """The longest time between two reads, in seconds, with the fault a few seconds after the beginning."""
    reads = machine.spawn(f"python3 /root/reads.py {device} {SECONDS}", timeout=180)
    machine.run("sleep 5", check=True)
    (target if fault.far else machine).run(fault.command, timeout=90, check=True)
    ended = reads.result()
    assert ended.rc == 0, f"{fault.name}: {ended}"
    return float(ended.out.split()[0])


def test_longest_time_between_two_reads(
    ready: Machine,
    far_end: Machine,  # noqa: F811
    wire: Wire,
    tables: Tables,
) -> None:
    ready.write("/root/reads.py", READS)
    start = 'b=$(date +%s.%N); systemctl restart strongswan; e=$(date +%s.%N); awk "BEGIN { print $e - $b }"'
    gaps: dict[Way, dict[Fault, float]] = {}
    for way in (BY_HAND, WAYS[2]):
        protect(ready, far_end, way)
        openiscsi.discover(ready, far_end.ip)
        device = openiscsi.login(ready, far_end.ip)
        openiscsi.give_up_after(ready, 300)
        mark = wire.mark()
        gaps[way] = {
            fault: longest_gap(ready, far_end, device, fault)
            for fault in FAULTS
            if not (way.by_hand and "daemon" in fault.name)
        }
        if not way.by_hand:
            assert not wire.tcp(3260, mark, frozenset({ready.ip}))
    own = {
        end: float(machine.run(start, timeout=90, check=True).out)
        for end, machine in ((False, ready), (True, far_end))
    }
    tables["longest time between two 4 KiB reads, in seconds; in brackets charon's own restart"] = [
        f"  {way.name:<28} {fault.name:<32} {gap:6.2f}"
        + (f"  ({own[fault.far]:.2f})" if "charon" in fault.name else "")
        for way, by_fault in gaps.items()
        for fault, gap in by_fault.items()
    ]
