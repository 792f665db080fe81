"""A daemon that runs: one file changes, charon dies and comes back, and nothing happens at all."""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from tests.bench.loading import LONG, holds, python, timed, writes_of
from tests.bench.machine import cpu_seconds, resident
from tests.bench.report import Report
from tests.bench.shape import ROUND, Shape, clean, fresh, key_name, key_text
from tests.support.netlab import Charon, Daemon, Lab, wait_until

POLL = 0.002
SETTLE_TIME = 0.05
"""The daemon's default: for so long nothing new may come before a pass begins."""

AT_REST, AT_REST_PER_KEY = 0.4, 0.0001
"""Seconds without a finished pass after which a daemon counts as being at rest; a pass takes time itself."""

LOADED = "loaded IKE shared key with id"
DOWN = 3.0
"""Seconds for which charon is down: longer than the delay after which a connection that fails at once is retried."""


def quiet(daemon: Daemon) -> None:
    daemon.settle(2.5, timeout=LONG)  # a change is looked at once more after 2 s


def change_one(charon: Charon, daemon: Daemon, shape: Shape, count: int, report: Report) -> None:
    """From the rename of a new key file to charon's word that it has loaded the secret.

    charon's log is read, since asking charon for all its secrets would take time from both.
    """
    times, passes = [], []
    rest = AT_REST + shape.keys * AT_REST_PER_KEY
    writes, first = writes_of(daemon), charon.log_mark()
    for number in range(count):
        daemon.settle(rest, timeout=LONG)
        before, mark = charon.secrets(), charon.log_mark()
        before_it = daemon.passes()
        key = shape.keys - 1 - number % (shape.keys - shape.portals)  # one that no portal uses
        path = daemon.psk / f"{key_name(key)}.toml"
        beside = path.with_name(f".{path.name}.new")
        beside.touch(mode=0o600)
        beside.write_text(key_text(key, number + 1))
        began = time.perf_counter()
        beside.replace(path)
        wait_until(partial(_loaded, charon, mark), "the new secret is there", timeout=LONG, interval=POLL)
        times.append(time.perf_counter() - began)
        daemon.settle(rest, timeout=LONG)
        passes.append(daemon.passes() - before_it)
        new, gone = charon.secrets() - before, before - charon.secrets()
        report.check(f"secrets that came and went, {shape}", (len(new), len(gone)), (1, 1))
    quiet(daemon)
    what = f"one key file changed, {shape}"
    settle = f"{SETTLE_TIME * 1000:.0f} ms of settle time in it"
    note = f"worst {max(times) * 1000:.0f} ms, {settle}; {statistics.mean(passes):.1f} passes each"
    report.add(what, "daemon, rename to secret in charon", times, note=note)
    report.add(what, "the same less the settle time", [value - SETTLE_TIME for value in times])
    report.check(f"{what}: secrets loaded", charon.log_text(first).count(LOADED), count)
    report.check(f"{what}: VICI writes", writes_of(daemon) - writes, 2 * count)


def _loaded(charon: Charon, mark: int) -> bool:
    return LOADED in charon.log_text(mark)


def restart(lab: Lab, name: str, shape: Shape, runs: int, report: Report) -> None:
    """Kill charon under a daemon; from the moment that the new one answers until it holds everything."""
    what = f"charon killed and started again, {shape}"
    bare = _bare_load(lab, name, shape, runs)
    base = report.add(what, "bare client that waits for it, window 64", bare, note="ratios are to this one")
    charon, daemon = fresh(lab, name, shape)
    daemon.start(timeout=LONG)
    quiet(daemon)
    for away in (0.0, DOWN):
        times = []
        for _ in range(runs):
            writes = writes_of(daemon)
            charon.kill()
            time.sleep(away)
            charon.start()
            times.append(timed(lambda: wait_until(lambda: holds(charon, shape), "all is back", timeout=LONG)))
            quiet(daemon)
            report.check(
                f"VICI writes after a restart of charon, {shape}", writes_of(daemon) - writes, shape.writes
            )
        who = f"daemon, charon away for {away:g} s" if away else "daemon, charon back at once"
        report.add(what, who, times, base=base, note="keys and traps are in place; target: 2 s")
    clean(lab.node(name), charon, daemon)


def _bare_load(lab: Lab, name: str, shape: Shape, runs: int) -> list[float]:
    """How long the same messages take a client that has them ready and knows when charon answers."""
    messages = lab.folder / "restart.json"
    charon, daemon = fresh(lab, name, shape)
    changed = daemon.psk / f"{key_name(shape.keys - 1)}.toml"
    python(lab.node(name), "inside", str(messages), str(changed), *daemon.options)
    clean(lab.node(name), charon, daemon)
    times = []
    for _ in range(runs):
        charon = lab.ike_only(name)
        load = python(lab.node(name), "rivals", "pipelined", str(charon.socket), str(messages))
        times.append(load["seconds"])
        clean(lab.node(name), charon)
    return times


def footprint(daemon: Daemon, shape: Shape, seconds: float, report: Report) -> None:
    """Memory, and the share of one core that a daemon without work takes."""
    before, began = cpu_seconds(daemon.pid), time.perf_counter()
    before_it = daemon.passes()
    time.sleep(seconds)
    used, lasted = cpu_seconds(daemon.pid) - before, time.perf_counter() - began
    passes = daemon.passes() - before_it
    memory = resident(daemon.pid)
    what = f"daemon at rest, {shape}"
    report.add(
        what, "memory (RSS)", [memory["now"]], unit="MiB", note=f"at most so far {memory['peak']:.0f} MiB"
    )
    note = f"over {lasted:.0f} s, with {passes} passes in them"
    report.add(what, "CPU", [100 * used / lasted], unit="% of a core", note=note)


def regular_pass(daemon: Daemon, shape: Shape, report: Report) -> None:
    """CPU time of the pass that is made every 30 s; made here once a second, for there to be some."""
    daemon.put_settings("resync_interval = 1\n")
    wait_until(
        lambda: any(row["kind"] == "settings" for row in daemon.status()["files"]), "the settings are read"
    )
    changed = daemon.passes()
    wait_until(
        lambda: daemon.passes() >= changed + 3,
        "what the change itself costs is over",
        timeout=LONG,
    )
    quiet_enough, writes = ROUND, writes_of(daemon)
    began, before = daemon.passes(), cpu_seconds(daemon.pid)
    wait_until(lambda: daemon.passes() >= began + quiet_enough, "passes are made", timeout=LONG)
    passes = daemon.passes() - began
    each = (cpu_seconds(daemon.pid) - before) / passes
    what = f"daemon at rest, {shape}"
    report.add(
        what, "CPU of a regular pass", [each], note=f"{each / 30 * 100:.2f} % of a core, at one in 30 s"
    )
    report.check(f"{what}: VICI writes of regular passes", writes_of(daemon) - writes, 0)


WATCHDOG = 2.0
"""Seconds; the daemon says that it is alive twice in them, and while it loads."""


def burst(lab: Lab, name: str, shape: Shape, report: Report) -> None:
    """All files appear, are changed and half of them vanish, one after the other and as fast as they can be written."""
    charon = lab.ike_only(name)
    daemon = lab.daemon(name, charon)
    daemon.start(watchdog=WATCHDOG)
    mark = charon.log_mark()
    paths = [daemon.psk / f"{key_name(number)}.toml" for number in range(shape.keys)]
    began = time.perf_counter()
    for version in range(2):
        for number, path in enumerate(paths):
            beside = path.with_name(f".{path.name}.new")
            beside.touch(mode=0o600)
            beside.write_text(key_text(number, version))
            beside.replace(path)
    for path in paths[::2]:
        path.unlink()
    written = time.perf_counter() - began
    left = len(paths) - len(paths[::2])

    def converged() -> bool:
        files = [row for row in daemon.status().get("files", []) if row["kind"] == "psk"]
        return len(files) == left and len(charon.secrets()) == left

    wait_until(converged, "charon holds what the files say", timeout=LONG, interval=0.5)
    lasted = time.perf_counter() - began
    quiet(daemon)
    loads = Counter(re.findall(r"for: '(?:fqdn:)?(k\d+)\.bench", charon.log_text(mark)))
    what = f"burst: appear, change, half vanish, {shape.keys:,} files"
    report.add(what, "writing them", [written])
    report.add(what, "until charon holds what is left", [lasted], note=f"{sum(loads.values()):,} loads")
    gaps = [after - before for before, after in pairwise(daemon.alive)]
    report.add(
        what, "longest silence of the loop", [max(gaps, default=0.0)], note="the unit's watchdog is 60 s"
    )
    report.check(f"{what}: loads of one key at most", max(loads.values(), default=0) <= 2, True)
    report.check(f"{what}: keys in charon", len(charon.secrets()), left)
    clean(lab.node(name), charon, daemon)


def measure(
    lab: Lab,
    name: str,
    shape: Shape,
    runs: int,
    changes: int,
    rest: float,
    report: Report,
    say: Callable[[str], None],
) -> None:
    say(f"{shape}: {changes} changes, one after the other")
    charon, daemon = fresh(lab, name, shape)
    daemon.start(timeout=LONG)
    quiet(daemon)
    change_one(charon, daemon, shape, changes, report)
    say(f"{shape}: {rest:g} s of nothing")
    footprint(daemon, shape, rest, report)
    regular_pass(daemon, shape, report)
    clean(lab.node(name), charon, daemon)
    say(f"{shape}: a burst")
    burst(lab, name, shape, report)
    restarted = Shape(min(shape.keys, 1000), min(shape.keys, 1000) // 5)
    say(f"{restarted}: charon killed and started again")
    restart(lab, name, restarted, runs, report)
