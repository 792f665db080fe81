"""Run the benchmarks: ``make bench``, or ``python -m tests.bench --keys 10000`` for the full size."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from tests.bench import commands, living, loading, revoking
from tests.bench.machine import describe
from tests.bench.report import Report
from tests.bench.shape import Shape, make_route
from tests.support.netlab import Lab, missing_for_lab
from tests.support.netlab.daemon import CHECKOUT

RESULT = CHECKOUT / "build" / "bench.json"
NODE = "host"


def leave(number: int, _frame: FrameType | None) -> None:
    """Make an exception of a signal, so that the lab is taken down."""
    sys.exit(128 + number)


def say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def options_of(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Benchmarks of iscsi-ipsecd.")
    parser.add_argument(
        "--keys", type=int, default=1000, help="key files; a tenth as many portals (%(default)s)"
    )
    parser.add_argument(
        "--sizes",
        type=lambda text: [int(size) for size in text.split(",")],
        help="numbers of key files to load, for growth (default: a tenth, a third and all of --keys)",
    )
    parser.add_argument("--runs", type=int, default=3, help="rounds of each measure (%(default)s)")
    parser.add_argument("--changes", type=int, default=20, help="changes of one file (%(default)s)")
    parser.add_argument("--rest", type=float, default=10.0, help="seconds of idleness measured (%(default)s)")
    parser.add_argument(
        "--limit",
        type=float,
        default=120.0,
        help="seconds after which no further round is begun (%(default)s)",
    )
    options = parser.parse_args(words)
    if options.keys < 100 or options.runs < 1:
        parser.error("at least 100 keys and 1 run")
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = options_of(words)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    if missing := missing_for_lab():
        sys.stderr.write("The benchmarks need:\n" + "".join(f"  {what}\n" for what in missing))
        return 2
    began = time.monotonic()
    with Lab(NODE) as lab:
        make_route(lab.node(NODE))
        probe = lab.ike_only(NODE)
        report = Report(describe(probe))
        probe.kill()
        sizes = [Shape.of(n) for n in options.sizes or (options.keys // 10, options.keys // 3, options.keys)]
        loading.measure(lab, NODE, sizes, options.runs, options.limit, report, say)
        living.measure(
            lab, NODE, Shape.of(options.keys), options.runs, options.changes, options.rest, report, say
        )
        commands.measure(lab, NODE, sizes[0], report, say)
    revoking.measure(options.runs, report, say)
    report.save(RESULT, {"keys": options.keys, "runs": options.runs, "seconds": time.monotonic() - began})
    sys.stdout.write(f"{report.table()}\n\nraw numbers: {RESULT.relative_to(CHECKOUT)}\n")
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
