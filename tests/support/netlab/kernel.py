"""Finds out what this kernel supports, by trying it in a temporary namespace."""

from __future__ import annotations

import functools
import os
from enum import Enum
from pathlib import Path

from tests.support.netlab.space import Namespace

_STATE = [
    "xfrm",
    "state",
    "add",
    "src",
    "10.10.0.1",
    "dst",
    "10.10.0.2",
    "proto",
    "esp",
    "spi",
    "0x1000",
    "reqid",
    "1",
    "mode",
    "transport",
]
_ALGORITHMS = (
    ["aead", "rfc4106(gcm(aes))", "0x" + "11" * 20, "128"],
    ["enc", "cbc(aes)", "0x" + "11" * 16, "auth", "hmac(sha256)", "0x" + "11" * 32],
)


class Esp(Enum):
    """Whether the kernel or charon does ESP."""

    KERNEL = "kernel"  # XFRM: transport and tunnel mode, traps
    LIBIPSEC = "libipsec"  # charon itself over a TUN device: tunnel mode, no traps
    NONE = "none"  # nobody: IKE only


@functools.cache
def kernel_has_esp() -> bool:
    """Whether the kernel takes an ESP state (a kernel may have XFRM and still no ESP)."""
    space = Namespace("probe")
    try:
        return any(space.ip(*_STATE, *algorithm, check=False).ok for algorithm in _ALGORITHMS)
    finally:
        space.close()


def available_esp() -> Esp:
    """The best data path here."""
    if kernel_has_esp():
        return Esp.KERNEL
    plugin = Path("/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so")
    if plugin.exists() and Path("/dev/net/tun").exists():
        return Esp.LIBIPSEC
    return Esp.NONE


def missing_for_lab() -> list[str]:
    """Says in words why the lab cannot run here; empty when it can."""
    missing = []
    if os.geteuid() != 0:
        missing.append("root (network namespaces need it)")
    for program, package in (
        ("/usr/sbin/charon-systemd", "charon-systemd"),
        ("/usr/sbin/swanctl", "strongswan-swanctl"),
        ("/usr/sbin/tgtd", "tgt"),
        ("/usr/bin/iscsi-ls", "libiscsi-bin"),
        ("/usr/sbin/nft", "nftables"),
    ):
        if not Path(program).exists():
            missing.append(f"{program} (apt-get install {package})")
    return missing
