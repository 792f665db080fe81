"""States of the kernel as charon names them."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.xfrm import KernelState
from tests.support.values import SOURCE, TARGET, address


def state(spi: int, cipher: str = "") -> KernelState:
    return KernelState(
        src=address(SOURCE), dst=address(TARGET), spi=spi, proto=50, reqid=7, mode="transport", bytes=0, packets=0,
        age=0, sel=None, cipher=cipher,
    )  # fmt: skip


@pytest.mark.parametrize(("spi", "text"), [(0xC0000001, "c0000001"), (0x1F, "0000001f")])
def test_spi_hex_has_eight_digits_as_charon_writes_it(spi: int, text: str) -> None:
    assert state(spi).spi_hex == text
    assert not state(spi).larval


def test_larval_is_a_state_without_an_spi() -> None:
    assert state(0).larval


@pytest.mark.parametrize(
    ("cipher", "hides"),
    [
        ("cbc(aes)", True), ("rfc4106(gcm(aes))", True), ("rfc4543(gcm(aes))", False), ("ecb(cipher_null)", False),
        ("cipher_null", False), ("", False),
    ],
)  # fmt: skip
def test_encrypts_is_false_for_what_only_authenticates(cipher: str, hides: bool) -> None:
    assert state(1, cipher).encrypts is hides
