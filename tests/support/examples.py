"""How many examples a property is tried with; the profile ``quick`` of tests/conftest.py takes fewer."""

from __future__ import annotations

from hypothesis import settings


def examples(number: int) -> settings:
    """As many examples as the profile allows, at most ``number``; a busy machine fails no example for its time."""
    return settings(max_examples=min(number, settings().max_examples), deadline=None)
