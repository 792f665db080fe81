"""What an admin waits for: each command beside a running daemon, against an interpreter that does nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tests.bench.living import quiet
from tests.bench.loading import LONG, timed
from tests.bench.report import Report
from tests.bench.shape import Shape, clean, fresh, key_name
from tests.support.netlab import Lab

ROUNDS = 5


def measure(lab: Lab, name: str, shape: Shape, report: Report, say: Callable[[str], None]) -> None:
    """The time of each command from its start to its end, in one run with that of Python alone."""
    say(f"commands, {shape}")
    charon, daemon = fresh(lab, name, shape)
    daemon.start(timeout=LONG)
    quiet(daemon)
    node, what = daemon.node, f"one command, {shape}"
    alone = [timed(lambda: node.run([sys.executable, "-c", "import argparse, json"])) for _ in range(ROUNDS)]
    base = report.add(what, "Python with argparse and json", alone, note="ratios are to this one")
    portal = daemon.status()["portals"][0]["portal"]
    key = str(daemon.psk / f"{key_name(0)}.toml")
    for words, target in (
        (("status",), "0.25 s"),
        (("explain", portal), "0.25 s"),
        (("psk", "list"), "0.25 s"),
        (("check", key), "0.25 s"),
        (("verify",), "0.6 s with one session, 3 s with 1,000"),
    ):
        times = [timed(lambda words=words: daemon.cli(*words, timeout=LONG)) for _ in range(ROUNDS)]  # type: ignore[misc]  # mypy knows no defaults
        shown = " ".join((words[0], *words[1:2])) if words[0] == "psk" else words[0]
        report.add(
            what, f"iscsi-ipsec {shown}", times, base=base, note=f"target on an idle machine: {target}"
        )
    clean(node, charon, daemon)
