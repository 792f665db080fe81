"""Reads from a file with mistakes which portals it closes, as far as that can be read.

Nothing else of such a file is in force. But its author wants these portals protected, so they must not be
reached unencrypted meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from iscsi_ipsec.base.policy import IpsecChoice, Role
from iscsi_ipsec.base.portal import PortalPattern, parse_portal_patterns
from iscsi_ipsec.core.config.security_flags import interpret, parse_flags
from iscsi_ipsec.core.config.toml_reader import readable_part


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenFile:
    """The portals that a key file or a policy with a mistake names; never empty."""

    path: str
    role: Role
    is_policy: bool
    patterns: tuple[PortalPattern, ...]

    @property
    def name(self) -> str:
        """The file's name without ``.toml``."""
        return self.path.rpartition("/")[2].removesuffix(".toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenSettings:
    """The settings of a file with a mistake that close portals; None for each that the file does not set."""

    require_ipsec: bool | None = None
    guard: bool | None = None
    choice: IpsecChoice | None = None


def read_broken(kind: str, text: str, path: str) -> tuple[BrokenFile, ...]:
    """The portals that a key file (``psk``) or a policy (``portal``) with a mistake names, for each role it may mean."""
    data = readable_part(text)
    listed = data.get("portals")
    patterns = named_portals(listed if isinstance(listed, list) else [listed])
    if kind not in ("psk", "portal") or not patterns:
        return ()
    is_policy = kind == "portal"
    return tuple(
        BrokenFile(path=path, role=role, is_policy=is_policy, patterns=patterns)
        for role in (_roles(data.get("role")) if is_policy else (Role.INITIATOR,))
    )


def read_broken_settings(text: str) -> BrokenSettings | None:
    """The settings of a settings file with a mistake that close portals; None where there are none."""
    data = readable_part(text)
    below = data.get("defaults")
    defaults: Mapping[str, object] = below if isinstance(below, dict) else {}
    found = BrokenSettings(
        # a line behind [defaults] belongs to that table, which is a common mistake
        require_ipsec=True if _says_yes(data.get("require_ipsec", defaults.get("require_ipsec"))) else None,
        guard=True if _says_yes(data.get("guard", defaults.get("guard"))) else None,
        choice=_closing_choice(defaults.get("security_flags", data.get("security_flags"))),
    )
    return found if found != BrokenSettings() else None


def named_portals(listed: Iterable[object]) -> tuple[PortalPattern, ...]:
    """The texts that name portals."""
    patterns: list[PortalPattern] = []
    for item in listed:
        with contextlib.suppress(ValueError):
            # iscsiadm shows a portal group behind a comma, which is a common mistake
            patterns += parse_portal_patterns(item.partition(",")[0]) if isinstance(item, str) else ()
    return tuple(patterns)


def _roles(role: object) -> tuple[Role, ...]:
    if role is None:
        return (Role.INITIATOR,)
    return tuple(r for r in Role if r.value == role) or tuple(Role)


def _says_yes(value: object) -> bool:
    return value is True or value == 1 or (isinstance(value, str) and value.lower() in ("true", "yes", "on"))


def _closing_choice(flags: object) -> IpsecChoice | None:
    raw = tuple(map(str, flags)) if isinstance(flags, list) else flags
    if not isinstance(raw, int | str | tuple):
        return None
    with contextlib.suppress(ValueError):
        choice = interpret(parse_flags(raw))
        return choice if choice and choice.required else None
    return None
