"""Rows, a status and counters, as the metrics get them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counters:
    passes: int = 7
    vici_writes: int = 5
    guard_loads: int = 2
    initiations: int = 3
    files_opened: int = 4
    seconds: float = 1.5
    last_seconds: float = 0.25
    failures: Mapping[str, int] = field(default_factory=dict)


def row(portal: str = "10.0.0.20:3260", **more: Any) -> dict[str, Any]:
    return {
        "portal": portal, "role": "initiator", "interface": "", "managed": True, "closed": True,
        "ready": True, "user_space_esp": False,
        "protected": True, "connection": "iscsi-ipsec-x", "sessions": [], "problem": None,
        "identity": "canary-identity", "key": "canary-name",
        "sa": {"age": 12, "bytes_in": 100, "bytes_out": 200, "spi_in": "c0ffee01", "spi_out": "c0ffee02"},
    } | more  # fmt: skip


def reported(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "version": "1.2", "time": 1000, "charon": {"reachable": True, "settled": True},
        "guard": {"wanted": True, "installed": True, "dropped": 4}, "keys": [{}, {}], "problems": [],
        "portals": list(rows),
    } | more  # fmt: skip
