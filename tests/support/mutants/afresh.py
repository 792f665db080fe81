"""For pytest, when a mutant is tried: tests are imported anew, as what they make at import must be the mutant's work.

mutmut forks a process that has them already, made by the program as it is.
"""

from __future__ import annotations

import sys


def pytest_sessionstart() -> None:
    for name in [
        name
        for name in sys.modules
        if name.startswith(("tests.unit", "tests.property", "tests.support.values"))
    ]:
        del sys.modules[name]
