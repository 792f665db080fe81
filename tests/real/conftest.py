"""A lab for every module, and charons of its own for every test (20 ms each): tests/support/pair.py."""

from __future__ import annotations

from tests.support.pair import charon, daemon, hosts, lab, managed, pair  # noqa: F401  # fixtures, found by their names here
