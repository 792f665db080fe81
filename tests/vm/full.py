"""Marks tests that run with VM_FULL=1 only, to keep the default run short.

Its law: a promise keeps one test that runs by default; left out is the second way of seeing it kept.
"""

from __future__ import annotations

import os

import pytest

FULL = bool(os.environ.get("VM_FULL"))

only_full = pytest.mark.skipif(not FULL, reason="to keep the run short: VM_FULL=1 runs it")
