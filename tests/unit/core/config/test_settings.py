"""The settings file."""

from __future__ import annotations

from typing import Any

import pytest

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.policy import IkeMode, Tuning
from iscsi_ipsec.core.config.settings import Settings, parse_settings
from tests.support.values import choice


def test_an_empty_file_is_as_good_as_none() -> None:
    assert parse_settings("", "s.toml") == Settings()
    assert Settings().guard
    assert not Settings().require_ipsec


def test_every_setting_is_read() -> None:
    assert parse_settings(
        """\
require_ipsec = true
guard = false
guard_devices = ["ipsec0", "tun-1.2", "Q_z9"]
resync_interval = 5
settle_time = 0.25
log_level = "debug"
vici_socket = "/run/x.vici"
nodes_dirs = ["/a", "/b"]
[defaults]
security_flags = 0x07
dpd_delay = 5
""",
        "s.toml",
    ) == Settings(
        require_ipsec=True,
        guard=False,
        guard_devices=("ipsec0", "tun-1.2", "Q_z9"),
        resync_interval=5.0,
        settle_time=0.25,
        log_level="debug",
        vici_socket="/run/x.vici",
        nodes_dirs=("/a", "/b"),
        default_choice=choice(IkeMode.MAIN, pfs=False),
        tuning=Tuning(dpd_delay=5),
    )


@pytest.mark.parametrize(("key", "least", "most"), [("resync_interval", 1, 3600), ("settle_time", 0, 5)])
def test_a_time_is_taken_from_its_least_to_its_most(key: str, least: int, most: int) -> None:
    for time in (least, most):
        values: dict[str, Any] = {key: float(time)}
        assert parse_settings(f"{key} = {time}", "s.toml") == Settings(**values)
    for text in (least - 0.1, most + 0.1, "nan", "inf"):
        with pytest.raises(ConfigError) as caught:
            parse_settings(f"{key} = {text}", "s.toml")
        assert [str(p) for p in caught.value.problems] == [f"s.toml:1: {key} must be {least} to {most}"]


@pytest.mark.parametrize(
    ("text", "line", "code"),
    [
        ('require_ipsec = "yes"', 1, "wrong-type"),
        ("require_ipsce = true", 1, "unknown-key"),
        ("\nguard = 0", 2, "wrong-type"),
        ('guard_devices = ["a b"]', 1, "bad-device"),
        ('guard_devices = ["x\\"; flush ruleset #"]', 1, "bad-device"),
        (f'guard_devices = ["{"a" * 16}"]', 1, "bad-device"),
        ('log_level = "loud"', 1, "bad-log-level"),
        ('vici_socket = "charon.vici"', 1, "bad-path"),
        ('nodes_dirs = ["etc"]', 1, "bad-path"),
        ('nodes_dirs = ["/a", "/b\\u0000"]', 1, "bad-path"),
        ("[defaults]\nportals = []", 2, "unknown-key"),
        ("[defaults]\ndpd_delay = -1", 2, "out-of-range"),
        ("[defaults]\n\nsecurity_flags = 0x80", 3, "bad-flags"),
        ("defaults = 5", 1, "wrong-type"),
    ],
)
def test_parse_settings_reports_a_mistake_at_its_line(text: str, line: int, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, "s.toml")
    (problem,) = caught.value.problems
    assert (problem.line, problem.code, problem.file) == (line, code, "s.toml")
