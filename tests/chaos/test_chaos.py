"""Faults at random: a fixed number of them here, a thousand and more with `make chaos`."""

from __future__ import annotations

import os
import random
import sys

import pytest

from tests.chaos.run import Run
from tests.chaos.stage import make_stage
from tests.support.netlab import missing_for_lab

SEED = int(os.environ.get("CHAOS_SEED") or 1)
STEPS = int(os.environ.get("CHAOS_STEPS") or 60)
SECONDS_A_STEP = 3
"""Far more than one takes, so that only a hang is ended."""


@pytest.mark.timeout(120 + STEPS * SECONDS_A_STEP)
def test_after_each_of_many_faults_all_is_as_the_files_say_and_nothing_was_unencrypted() -> None:
    if missing := missing_for_lab():
        pytest.skip(f"no lab without {', '.join(missing)}")
    sys.stdout.write(f"CHAOS_SEED={SEED} CHAOS_STEPS={STEPS}\n")
    rng = random.Random(SEED)  # noqa: S311  # to be repeated, not to be secret
    with make_stage() as stage:
        run = Run(stage, label=f"CHAOS_SEED={SEED}")
        run.begin()
        run.random_steps(rng, STEPS)
    assert run.proofs > STEPS // 40, "next to no key was proven by an authentication"
