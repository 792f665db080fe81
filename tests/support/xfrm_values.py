"""Policies and states of the kernel for one flow of an initiator."""

from __future__ import annotations

import ipaddress
from typing import Any

from iscsi_ipsec.base.xfrm import KernelPolicy, KernelState
from tests.support.values import address


def policy(direction: str, **more: Any) -> KernelPolicy:
    out = direction == "out"
    fields: dict[str, Any] = {
        "src": ipaddress.ip_network("10.0.0.1" if out else "10.0.0.20"),
        "dst": ipaddress.ip_network("10.0.0.20" if out else "10.0.0.1"),
        "proto": 6, "sport": 0 if out else 3260, "sport_mask": 0 if out else 0xFFFF, "dport": 3260 if out else 0,
        "dport_mask": 0xFFFF if out else 0, "action": "allow", "priority": 1000, "index": 1, "reqid": 7, "mode": "transport",
        "tmpl_proto": 50, "tmpl_src": None, "tmpl_dst": None, "restricted": False,
    }  # fmt: skip
    return KernelPolicy(direction=direction, **{**fields, **more})


def state(direction: str, **more: Any) -> KernelState:
    out = direction == "out"
    fields: dict[str, Any] = {
        "src": address("10.0.0.1" if out else "10.0.0.20"), "dst": address("10.0.0.20" if out else "10.0.0.1"),
        "spi": 0xC0FFEE01, "proto": 50, "reqid": 7, "mode": "transport", "bytes": 1, "packets": 1, "age": 1, "sel": None,
        "cipher": "rfc4106(gcm(aes))",
    }  # fmt: skip
    return KernelState(**{**fields, **more})
