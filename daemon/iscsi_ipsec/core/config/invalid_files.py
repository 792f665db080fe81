"""Reads from a file with mistakes which portals it names, so that they are closed.

Nothing of such a file is in force. But whoever wrote it wants these portals
protected, so what no other file covers of them must not run in clear meanwhile.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass

from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.portal import PortalPattern, parse_portal_pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenFile:
    """``patterns`` empty: a key file that would be for every portal."""

    path: str
    role: Role
    is_policy: bool
    patterns: tuple[PortalPattern, ...]


def read_broken(kind: str, text: str, path: str) -> BrokenFile | None:
    """What a key file (``psk``) or a policy (``portal``) means; None where that cannot be told."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError):
        return None
    listed = data.get("portals")
    patterns = []
    for item in listed if isinstance(listed, list) else ():
        try:
            patterns.append(parse_portal_pattern(str(item)))
        except ValueError:
            continue
    everywhere = kind == "psk" and listed is None and bool(data)
    if kind not in ("psk", "portal") or not (patterns or everywhere):
        return None
    role = Role.TARGET if kind == "portal" and data.get("role") == Role.TARGET.value else Role.INITIATOR
    return BrokenFile(path=path, role=role, is_policy=kind == "portal", patterns=tuple(patterns))
