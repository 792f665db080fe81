"""The files in /etc and the examples agree with the parsers."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from iscsi_ipsec.core.config import settings
from iscsi_ipsec.core.config.key_file import parse_key_file
from iscsi_ipsec.core.config.portal_file import parse_portal_file
from tests.support.source import TOP

SAMPLES = TOP / "etc/iscsi-ipsec"
SETTINGS = SAMPLES / "iscsi-ipsecd.toml"


def examples(folder: str) -> list[Path]:
    found = sorted((SAMPLES / folder).glob("*.toml.example"))
    assert found
    return found


def uncommented(text: str) -> str:
    return re.sub(r"^#(?=\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("path", examples("psk.d"), ids=lambda path: path.name)
def test_a_sample_key_file_parses(path: Path) -> None:
    parse_key_file(path.read_text(), str(path), path.name)


@pytest.mark.parametrize("path", examples("portal.d"), ids=lambda path: path.name)
def test_a_sample_policy_parses(path: Path) -> None:
    parse_portal_file(path.read_text(), str(path), path.name)


def test_no_sample_is_read_where_it_lies() -> None:
    assert not list(SAMPLES.glob("*.d/*.toml"))


def test_the_settings_file_changes_nothing_as_it_is_shipped() -> None:
    assert settings.parse_settings(SETTINGS.read_text(), "x") == settings.Settings()


def test_the_settings_file_names_every_setting_and_only_these() -> None:
    reported = tomllib.loads(uncommented(SETTINGS.read_text()))
    assert sorted(reported) == sorted(settings.KNOWN_KEYS)
    assert sorted(reported["defaults"]) == sorted(settings.DEFAULTS_KEYS)


def test_the_settings_file_tells_the_true_defaults() -> None:
    reported = settings.parse_settings(uncommented(SETTINGS.read_text()), "x")
    default = settings.Settings()
    for name in ("require_ipsec", "guard", "guard_devices", "resync_interval", "settle_time", "log_level"):
        assert getattr(reported, name) == getattr(default, name), name


@pytest.mark.parametrize("path", sorted(SAMPLES.rglob("*.example")), ids=lambda path: path.name)
def test_every_line_of_a_sample_is_explained(path: Path) -> None:
    """A block of settings has a comment right above it."""
    header, *blocks = path.read_text().strip().split("\n\n")
    assert header.startswith("# ")
    for block in blocks:
        assert block.startswith("# "), block
