"""A mark for tests that nobody has seen pass in the VMs yet: each loses it with its first green run."""

from __future__ import annotations

import os

import pytest

unproven = pytest.mark.skipif(
    not os.environ.get("VM_FULL"), reason="written, but not yet seen to pass in the VMs: VM_FULL=1 runs it"
)
