"""Parses the settings file (``iscsi-ipsecd.toml``): every key, its default and its meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

from iscsi_ipsec.base.policy import IpsecChoice, Tuning
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.config import fields
from iscsi_ipsec.core.config.toml_reader import Source, parse_toml

T = TypeVar("T")

LOG_LEVELS = ("debug", "info", "warning", "error")

KNOWN_KEYS = (
    "require_ipsec", "guard", "guard_devices", "guard_forward", "guard_rdma", "resync_interval", "settle_time",
    "log_level", "vici_socket", "nodes_dirs", "defaults",
)  # fmt: skip
DEFAULTS_KEYS = ("security_flags", *fields.TUNING_KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The content of the settings file; the defaults here are those of an absent file.

    ``resync_interval`` and ``settle_time`` are in seconds. ``vici_socket``
    empty and ``nodes_dirs`` empty mean: where this system has them.
    """

    require_ipsec: bool = False
    guard: bool = True
    guard_devices: tuple[str, ...] = ()
    guard_forward: bool = True
    guard_rdma: bool = False
    resync_interval: float = 30.0
    settle_time: float = 0.05
    log_level: str = "info"
    vici_socket: str = ""
    nodes_dirs: tuple[str, ...] = ()
    default_choice: IpsecChoice | None = None
    tuning: Tuning = Tuning()


def parse_settings(text: str, path: str, warnings: list[Problem] | None = None) -> Settings:
    """Parse and check the settings file; raise :class:`ConfigError` with every problem in it.

    Warnings are added to ``warnings``.
    """
    source = parse_toml(text, path)
    source.refuse_unknown(KNOWN_KEYS)
    base = Settings()
    defaults = source.table("defaults")
    defaults.refuse_unknown(DEFAULTS_KEYS)
    level = source.text("log_level")
    if level is not None and level not in LOG_LEVELS:
        source.problem("log_level", "bad-log-level", "log_level must be one of " + ", ".join(LOG_LEVELS))
    devices = source.texts("guard_devices") or ()
    for device in devices:
        # names of interfaces end up in an nftables text
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", device):
            source.problem(
                "guard_devices", "bad-device", f"{device!r} is not the name of a network interface"
            )
    nodes_dirs = source.texts("nodes_dirs") or ()
    for folder in nodes_dirs:
        _check_path(source, "nodes_dirs", folder)
    socket = source.text("vici_socket")
    if socket is not None:
        _check_path(source, "vici_socket", socket)

    settings = Settings(
        require_ipsec=_or(source.truth("require_ipsec"), base.require_ipsec),
        guard=_or(source.truth("guard"), base.guard),
        guard_devices=devices,
        guard_forward=_or(source.truth("guard_forward"), base.guard_forward),
        guard_rdma=_or(source.truth("guard_rdma"), base.guard_rdma),
        resync_interval=_or(source.real("resync_interval", 1, 3600), base.resync_interval),
        settle_time=_or(source.real("settle_time", 0, 5), base.settle_time),
        log_level=level or base.log_level,
        vici_socket=socket or "",
        nodes_dirs=nodes_dirs,
        default_choice=fields.parse_choice(defaults),
        tuning=fields.parse_tuning(defaults),
    )
    source.raise_if_wrong(warnings)
    return settings


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _check_path(source: Source, key: str, path: str) -> None:
    if not path.startswith("/") or "\0" in path:
        source.problem(key, "bad-path", f"{key} must be an absolute path")
