"""Finds bridges to which guests are attached, from sysfs. Read only.

Law: decides nothing. An entry that vanishes while it is read is skipped.
"""

from __future__ import annotations

import os


def guest_bridges(sysfs: str) -> dict[str, tuple[str, ...]]:
    """Each bridge with the ports that lead to guests; bridges without such ports are left out."""
    folder = os.path.join(sysfs, "class/net")
    found = {}
    for bridge in _names(folder):
        ports = sorted(_names(os.path.join(folder, bridge, "brif")))
        if guests := tuple(port for port in ports if _is_a_guests(os.path.join(folder, port))):
            found[bridge] = guests
    return found


def _is_a_guests(port: str) -> bool:
    """A tap, or the end of a veth pair: no hardware, and no link below it as VLANs and bonds have."""
    names = _names(port)
    if "tun_flags" in names:
        return True
    return bool(names) and not any(
        name in ("device", "bonding", "bridge") or name.startswith("lower_") for name in names
    )


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
