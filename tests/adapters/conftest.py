from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.netlab.space import Namespace


@pytest.fixture
def space() -> Iterator[Namespace]:
    """A network namespace with `v0` (10.0.0.1/24, fd00::1/64), whose other end nobody answers at."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    space = Namespace("adapters")
    try:
        space.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
        space.ip("address", "add", "10.0.0.1/24", "dev", "v0")
        space.ip("-6", "address", "add", "fd00::1/64", "dev", "v0", "nodad")
        space.ip("link", "set", "v0", "up")
        space.ip("link", "set", "v1", "up")
        yield space
    finally:
        space.close()
