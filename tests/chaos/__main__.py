"""`make chaos`: a thousand faults in a row. `python -m tests.chaos --seed N --steps N`."""

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from types import FrameType

from tests.chaos.run import ChaosError, Run
from tests.chaos.stage import make_stage
from tests.support.netlab import missing_for_lab


def leave(number: int, _frame: FrameType | None) -> None:
    """Make an exception of a signal, so that the lab is taken down."""
    sys.exit(128 + number)


def show(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def quiet(_: str) -> None:
    pass


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Random faults against the daemon."
    )
    parser.add_argument(
        "--seed", type=int, default=int(os.environ.get("CHAOS_SEED") or secrets.randbelow(10**6))
    )
    parser.add_argument("--steps", type=int, default=int(os.environ.get("CHAOS_STEPS") or 1000))
    parser.add_argument("--verbose", action="store_true", help="print each step")
    options = parser.parse_args(words)
    if missing := missing_for_lab():
        sys.stderr.write("Chaos needs:\n" + "".join(f"  {what}\n" for what in missing))
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    sys.stdout.write(f"CHAOS_SEED={options.seed} CHAOS_STEPS={options.steps}\n")
    sys.stdout.flush()
    began = time.monotonic()
    with make_stage() as stage:
        run = Run(stage, label=f"CHAOS_SEED={options.seed}")
        run.begin()
        try:
            rng = random.Random(options.seed)  # noqa: S311  # to be repeated, not to be secret
            run.random_steps(rng, options.steps, show if options.verbose else quiet)
        except ChaosError as err:
            sys.stdout.write(f"{err}\n")
            return 1
    lasted = time.monotonic() - began
    counts = ", ".join(f"{name} {count}" for name, count in sorted(run.counts.items()))
    sys.stdout.write(
        f"{len(run.done)} steps, {run.proofs} authentications, {lasted:.0f} s,"
        f" median {statistics.median(run.times) * 1000:.0f} ms\n{counts}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
