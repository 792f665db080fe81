"""First load, and a pass in which nothing changed: the daemon beside its rivals, by size."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.machine import cpu_seconds
from tests.bench.report import Report, Row
from tests.bench.shape import Shape, clean, fresh, key_name, load, swanctl_conf
from tests.support.netlab import Charon, Daemon, Lab, Node, wait_until
from tests.support.netlab.daemon import CHECKOUT

LONG = 600.0  # seconds; nothing here is asserted to be faster
BARE = ("sequential", "pipelined")

Times = dict[str, list[float]]


def python(node: Node, module: str, *words: str) -> dict[str, Any]:
    """Run one of our modules in the node and read what it found."""
    path = os.pathsep.join((str(CHECKOUT), str(CHECKOUT / "daemon")))
    argv = [sys.executable, "-m", f"tests.bench.{module}", *words]
    done = node.run(argv, timeout=LONG, env={"PYTHONPATH": path})
    found: dict[str, Any] = json.loads(done.out)
    return found


def writes_of(daemon: Daemon) -> int:
    """How often the daemon has written to charon, by its own metrics."""
    return daemon.metric("vici_writes")


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def swanctl(charon: Charon, command: str) -> float:
    """Run swanctl on its own file, the start of the process included."""
    env = {"STRONGSWAN_CONF": str(charon.strongswan_conf), "SWANCTL_DIR": str(charon.swanctl_dir)}
    file = str(charon.swanctl_dir / "swanctl.conf")
    argv = ["swanctl", command, "--noprompt", "--file", file, "--uri", f"unix://{charon.socket}"]
    return timed(lambda: charon.node.run(argv, env=env, timeout=LONG))


LISTABLE = 16_900
"""So many of our secrets charon can list: its answer has at most 512 KiB, and beyond it never answers."""


def holds(charon: Charon, shape: Shape) -> bool:
    """Whether charon has as many secrets and connections as the shape asks for."""
    with charon.vici(timeout=LONG) as session:
        if len(session.get_conns().get("conns", [])) != shape.portals:
            return False
        if shape.keys > LISTABLE:
            return charon.log_text(0).count("loaded IKE shared key with id") >= shape.keys
        return len(session.get_shared().get("keys", [])) == shape.keys


def _start(lab: Lab, name: str, shape: Shape, report: Report, times: Times) -> None:
    """The daemon as a process of its own, from its start to READY, with no state and then with state."""
    charon, daemon = fresh(lab, name, shape)
    times["ready"].append(timed(lambda: daemon.start(timeout=LONG)))
    times["ready-cpu"].append(cpu_seconds(daemon.pid))
    wait_until(lambda: holds(charon, shape), "charon holds everything", timeout=LONG)
    report.check(f"{shape}: VICI writes of the first load", writes_of(daemon), shape.writes)
    daemon.terminate()
    times["again"].append(timed(lambda: daemon.start(timeout=LONG)))
    times["again-cpu"].append(cpu_seconds(daemon.pid))
    daemon.settle(timeout=LONG)
    # what charon cannot list is loaded again, to be sure
    again = 0 if shape.keys <= LISTABLE else shape.keys
    report.check(f"{shape}: VICI writes after a restart of the daemon", writes_of(daemon), again)
    clean(lab.node(name), charon, daemon)


def _inside(lab: Lab, name: str, shape: Shape, report: Report, times: Times, messages: Path) -> None:
    """The same by hand, in parts, with what each part touches."""
    charon, daemon = fresh(lab, name, shape)
    changed = daemon.psk / f"{key_name(shape.keys - 1)}.toml"  # one that no portal uses
    found = python(lab.node(name), "inside", str(messages), str(changed), *daemon.options)
    times["building"].append(found["building"])
    times["first"].append(found["first"]["pass"])
    times["apply"].append(found["first"]["apply"])
    times["report"].append(found["first"]["report"])
    for reason in ("files", "sa", "resync"):
        times[reason] += [took["pass"] for took in found[reason]]
        times[f"{reason}-report"] += [took["report"] for took in found[reason]]
        times[f"{reason}-cpu"] += [took["cpu"] for took in found[reason]]
    report.check(f"{shape}: VICI writes by hand", found["first"]["writes"], shape.writes)
    report.check(f"{shape}: unchanged", found["unchanged"], {"opened": 0, "writes": 0})
    report.check(f"{shape}: files opened for one that changed", found["changed"]["opened"], 1)
    report.check(
        f"{shape}: VICI writes for one that changed",
        found["changed"]["commands"],
        ["load-shared", "unload-shared"],
    )
    clean(lab.node(name), charon, daemon)


def _rivals(lab: Lab, name: str, shape: Shape, report: Report, times: Times, messages: Path) -> None:
    """The same messages by everybody else, each on a charon of its own."""
    for mode in BARE:
        charon = lab.ike_only(name)
        times[mode].append(
            python(lab.node(name), "rivals", mode, str(charon.socket), str(messages))["seconds"]
        )
        report.check(f"{shape}: what the {mode} client loaded is there", holds(charon, shape), True)
        clean(lab.node(name), charon)
    if shape.keys > LISTABLE:
        return  # swanctl waits for the list for ever
    charon = lab.ike_only(name)
    charon.write_swanctl(swanctl_conf(load(messages)))
    times["load-all"].append(swanctl(charon, "--load-all"))
    report.check(f"{shape}: what swanctl loaded is there", holds(charon, shape), True)
    times["load-creds"].append(swanctl(charon, "--load-creds"))
    clean(lab.node(name), charon)


def measure(
    lab: Lab,
    name: str,
    shapes: Sequence[Shape],
    runs: int,
    limit: float,
    report: Report,
    say: Callable[[str], None],
) -> None:
    """Every rival in turn, and the whole round again: a burst of somebody else's load meets all of them.

    After ``limit`` seconds no further round is begun, but each shape gets one.
    """
    messages = lab.folder / "messages.json"
    began = time.monotonic()
    for shape in shapes:
        times: Times = defaultdict(list)
        for number in range(runs):
            if number and time.monotonic() - began > limit:
                break
            say(f"{shape}: round {number + 1} of {runs}")
            _start(lab, name, shape, report, times)
            _inside(lab, name, shape, report, times, messages)
            _rivals(lab, name, shape, report, times, messages)
        _rows(shape, times, report)


def _rows(shape: Shape, times: Times, report: Report) -> None:
    def add(what: str, who: str, name: str, base: Row | None = None, note: str = "") -> Row:
        return report.add(f"{what}, {shape}", who, times[name], base=base, note=note)

    what = "first load, VICI alone"
    base = add(what, "bare client, window 64", "pipelined", note="ratios are to this one")
    add(what, "daemon, first write to last", "apply", base)
    add(what, "bare client, one by one", "sequential", base)
    what = "first load as a whole"
    whole = None
    if times["load-all"]:
        whole = add(what, "swanctl --load-all", "load-all", note="one file; ratios are to this one")
    add(what, "daemon, start to READY", "ready", whole, f"{shape.writes:,} files, nothing stored yet")
    add(what, "daemon, started again", "again", whole, "charon holds everything already")
    add(what, "CPU of the daemon's start to READY", "ready-cpu")
    add(what, "CPU of the daemon started again", "again-cpu")
    what = "the daemon's first pass in parts"
    add(what, "building, files read once", "building")
    add(what, "the pass itself, VICI included", "first")
    add(what, "status and metrics written", "report")
    what = "nothing changed"
    again = None
    if times["load-creds"]:
        again = add(what, "swanctl --load-creds", "load-creds", note="ratios are to this one")
    add(what, "daemon, a pass for files", "files", again, "0 VICI writes, 0 files opened")
    add(what, "daemon, a pass after an event", "sa", again, "no file is looked at")
    add(what, "daemon, the regular pass", "resync", again, "mean of ten, one part after the other")
    add(what, "status and metrics written", "files-report", again)
    add(
        what,
        "CPU of pass for files and report",
        "files-cpu",
        note="of our process; other load counts less",
    )
    add(what, "CPU of pass after an event and report", "sa-cpu")
    add(what, "CPU of regular pass and report", "resync-cpu", note="nft's included")
