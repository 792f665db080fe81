from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ipsec.adapters.charon import Charon
from tests.support.fake_charon import FakeCharon


@pytest.fixture
def socket_path() -> Iterator[Path]:
    # a Unix socket's path has at most 107 bytes, which pytest's tmp_path may exceed
    with tempfile.TemporaryDirectory(prefix="vici-") as folder:
        yield Path(folder, "charon.vici")


@pytest.fixture
def fake(socket_path: Path) -> Iterator[FakeCharon]:
    with FakeCharon(socket_path) as fake:
        yield fake


@pytest.fixture
def charon(fake: FakeCharon) -> Iterator[Charon]:
    """Our side, patient: no test fails because the machine is busy."""
    charon = Charon(fake.path, timeout=10)
    yield charon
    charon.close()


@pytest.fixture
def impatient(fake: FakeCharon) -> Iterator[Charon]:
    """Our side, for tests in which charon keeps silent: they last as long as the timeout."""
    charon = Charon(fake.path, timeout=0.3)
    yield charon
    charon.close()
