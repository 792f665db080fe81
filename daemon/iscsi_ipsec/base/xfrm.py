"""Policies and states of the kernel's XFRM, as frozen values (include/uapi/linux/xfrm.h).

Law: values only; no key material is in any of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from iscsi_ipsec.base.addresses import Address, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Selects packets. ``proto`` 0 means any; a port matches where its mask has bits set (mask 0: any)."""

    src: Network
    dst: Network
    proto: int
    sport: int
    sport_mask: int
    dport: int
    dport_mask: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPolicy:
    """A policy of the SPD; a lower ``priority`` wins.

    ``mode``, ``reqid`` and the template's addresses are of the first
    template; without a template (no IPsec at all) ``mode`` is empty.
    ``restricted``: bound to a device, mark or interface id as well, so it
    does not cover every packet that its selector matches.
    """

    direction: str
    src: Network
    dst: Network
    proto: int
    sport: int
    sport_mask: int
    dport: int
    dport_mask: int
    action: str
    priority: int
    index: int
    reqid: int
    mode: str
    tmpl_proto: int
    tmpl_src: Address | None
    tmpl_dst: Address | None
    restricted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelState:
    """A state of the SAD. ``larval``: no SA, only the kernel's note that it has asked for one.

    While a larval state lives the kernel asks no more
    (net.core.xfrm_acq_expires). ``age`` is in seconds, from the wall clock.
    ``cipher`` is the kernel's name of the algorithm, such as ``rfc4106(gcm(aes))``;
    empty where the kernel names none.
    """

    src: Address
    dst: Address
    spi: int
    proto: int
    reqid: int
    mode: str
    bytes: int
    packets: int
    age: int
    sel: Selector | None
    cipher: str = ""

    @property
    def larval(self) -> bool:
        """Whether it has no SPI yet."""
        return self.spi == 0

    @property
    def encrypts(self) -> bool:
        """Whether its cipher hides the data: the null cipher does not, and GMAC only authenticates (RFC 4543)."""
        return (
            bool(self.cipher) and "cipher_null" not in self.cipher and not self.cipher.startswith("rfc4543(")
        )

    @property
    def spi_hex(self) -> str:
        """The SPI as charon writes it."""
        return f"{self.spi:08x}"
