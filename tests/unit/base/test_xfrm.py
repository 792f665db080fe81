"""States of the kernel as charon names them."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.xfrm import KernelState
from tests.support.values import SOURCE, TARGET, address


def state(spi: int) -> KernelState:
    return KernelState(
        src=address(SOURCE), dst=address(TARGET), spi=spi, proto=50, reqid=7, mode="transport", bytes=0, packets=0,
        age=0, sel=None,
    )  # fmt: skip


@pytest.mark.parametrize(("spi", "text"), [(0xC0000001, "c0000001"), (0x1F, "0000001f")])
def test_spi_hex_has_eight_digits_as_charon_writes_it(spi: int, text: str) -> None:
    assert state(spi).spi_hex == text
    assert not state(spi).larval


def test_larval_is_a_state_without_an_spi() -> None:
    assert state(0).larval
