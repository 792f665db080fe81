#!/usr/bin/env python3
"""The program of `make demo`; `python -m tests.support.demo` is the same."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # run by its path: make `tests` importable
    from tests.support.demo.__main__ import main

    sys.exit(main())
