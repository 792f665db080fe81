"""The settings file."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.model import IkeMode
from iscsi_ipsec.core.settings import Settings, parse_settings


def test_an_empty_file_is_as_good_as_none() -> None:
    assert parse_settings("", "s.toml") == Settings()
    assert Settings().guard
    assert not Settings().require_ipsec


def test_every_setting_is_read() -> None:
    settings = parse_settings(
        """\
require_ipsec = true
guard = false
guard_devices = ["ipsec0", "tun-1.2"]
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
    )
    assert (settings.require_ipsec, settings.guard, settings.guard_devices) == (
        True,
        False,
        ("ipsec0", "tun-1.2"),
    )
    assert (settings.resync_interval, settings.settle_time, settings.log_level) == (5.0, 0.25, "debug")
    assert (settings.vici_socket, settings.nodes_dirs) == ("/run/x.vici", ("/a", "/b"))
    assert settings.default_choice is not None
    assert settings.default_choice.ike is IkeMode.MAIN
    assert settings.tuning.dpd_delay == 5


@pytest.mark.parametrize(
    ("text", "line", "code"),
    [
        ('require_ipsec = "yes"', 1, "wrong-type"),
        ("require_ipsce = true", 1, "unknown-key"),
        ("\nguard = 0", 2, "wrong-type"),
        ('guard_devices = ["a b"]', 1, "bad-device"),
        ('guard_devices = ["x\\"; flush ruleset #"]', 1, "bad-device"),
        (f'guard_devices = ["{"a" * 16}"]', 1, "bad-device"),
        ("resync_interval = 0", 1, "out-of-range"),
        ("resync_interval = nan", 1, "out-of-range"),
        ("settle_time = 6", 1, "out-of-range"),
        ('log_level = "loud"', 1, "bad-log-level"),
        ('vici_socket = "charon.vici"', 1, "bad-path"),
        ('nodes_dirs = ["etc"]', 1, "bad-path"),
        ("[defaults]\nportals = []", 2, "unknown-key"),
        ("[defaults]\ndpd_delay = -1", 2, "out-of-range"),
        ("[defaults]\n\nsecurity_flags = 0x80", 3, "bad-flags"),
        ("defaults = 5", 1, "wrong-type"),
    ],
)
def test_a_mistake_is_told_at_its_line(text: str, line: int, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, "s.toml")
    (problem,) = caught.value.problems
    assert (problem.line, problem.code, problem.file) == (line, code, "s.toml")
