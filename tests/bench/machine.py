"""Describes the machine on which the numbers were measured, so that they can be compared."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from tests.support.netlab import Charon


def cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def describe(charon: Charon) -> dict[str, str]:
    """The machine as it is now, other people's load included."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    virtual = "a virtual machine" if "hypervisor" in _read("/proc/cpuinfo") else "bare metal"
    return {
        "cpu": cpu_model(),
        "cores": f"{os.cpu_count()} ({virtual})",
        "load average": f"{load} (1, 5, 15 minutes, before the run)",
        "kernel": platform.release(),
        "strongSwan": charon.version(),
        "Python": platform.python_version(),
    }


def resident(pid: int) -> dict[str, float]:
    """Memory in MiB: now, and at most so far."""
    status = _read(f"/proc/{pid}/status")
    found = {
        name: int(kb) / 1024 for name, kb in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status, re.MULTILINE)
    }
    return {"now": found.get("VmRSS", 0.0), "peak": found.get("VmHWM", 0.0)}


def cpu_seconds(pid: int) -> float:
    """CPU time of a process with all its threads; to the nanosecond where the kernel gives it, else to the tick."""
    times = [_read(str(path)).split() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    if nanoseconds := sum(int(fields[0]) for fields in times if fields):
        return nanoseconds / 1e9
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
