"""Settings for all tests: the number of examples of each property."""

from __future__ import annotations

from hypothesis import settings

# for `make unit`: every law, with fewer examples (--hypothesis-profile=quick)
settings.register_profile("quick", max_examples=5)
