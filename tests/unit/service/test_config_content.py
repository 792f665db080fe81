"""What one file says: its value, the keys that it has or names, and what of them is kept for a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from iscsi_ipsec.adapters.state_db import LastGood
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.keys import GroupKey
from iscsi_ipsec.base.policy import PortalPolicy
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.service.config_content import Content, parse_content, revive

KEY = "a key of twenty bytes"
LITERAL = f'group = true\nkey = "{KEY}"\n'
BESIDE = 'group = true\nkey_file = "group.key"\n'


def content(folder: Path, text: str, kind: str = "psk") -> Content:
    return parse_content(kind, str(folder / "group.toml"), "group", Secret(text.encode()), text)


def stored(raw: Secret, key: Secret | None = None) -> LastGood:
    return LastGood(path="psk.d/group.toml", kind="psk", raw=raw, key=key, signature="")


def codes(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        content(folder, text)
    return [problem.code for problem in caught.value.problems]


def key_beside(folder: Path, name: str = "group.key", key: str = KEY) -> str:
    folder.chmod(0o700)
    file = folder / name
    file.touch(0o600)
    file.write_text(key)
    return str(file)


@pytest.mark.parametrize(
    ("kind", "text", "type"),
    [
        ("settings", "require_ipsec = true\n", Settings),
        ("portal", 'portals = ["10.0.0.20"]\n', PortalPolicy),
        ("psk", LITERAL, GroupKey),
    ],
)
def test_parse_content_makes_a_value_of_each_kind(
    tmp_path: Path, kind: str, text: str, type: type[object]
) -> None:
    assert isinstance(content(tmp_path, text, kind).value, type)


def test_parse_content_keeps_no_second_copy_of_a_key_in_the_file_itself(tmp_path: Path) -> None:
    found = content(tmp_path, LITERAL)
    assert isinstance(found.value, GroupKey)
    assert found.value.secret == Secret(KEY.encode())
    assert (found.key, found.previous, found.beside) == (None, None, ())


def test_parse_content_reads_a_key_beside_and_keeps_it(tmp_path: Path) -> None:
    at = key_beside(tmp_path)
    found = content(tmp_path, BESIDE)
    assert isinstance(found.value, GroupKey)
    assert found.value.secret == found.key == Secret(KEY.encode())
    assert found.beside == (at,)


def test_parse_content_reads_the_previous_key_too(tmp_path: Path) -> None:
    key_beside(tmp_path)
    before = key_beside(tmp_path, "before.key", "the key before this one")
    text = BESIDE + 'previous_key_file = "before.key"\nprevious_until = 2999-01-01T00:00:00Z\n'
    found = content(tmp_path, text)
    assert found.previous == Secret(b"the key before this one")
    assert found.beside[1:] == (before,)
    assert found.previous_line


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('group = true\nkey = ""\n', "empty-key"),
        ('group = true\nkey = "CHANGE-ME"\n', "placeholder-key"),
    ],
)
def test_parse_content_refuses_a_key_that_is_none(tmp_path: Path, text: str, code: str) -> None:
    assert codes(tmp_path, text) == [code]


def test_parse_content_warns_about_a_weak_key(tmp_path: Path) -> None:
    found = content(tmp_path, 'group = true\nkey = "short"\n')
    assert [problem.code for problem in found.warnings] == ["weak-key"]


def test_revive_gives_back_what_was_parsed(tmp_path: Path) -> None:
    key_beside(tmp_path)
    found = content(tmp_path, BESIDE)
    (tmp_path / "group.key").unlink()  # the kept key counts, not the file
    last = stored(found.raw, found.key)
    assert revive("psk", str(tmp_path / "group.toml"), "group", last) == found.value


@pytest.mark.parametrize(
    "raw", [b"portals = [", b"\xff", BESIDE.encode()], ids=["broken", "no text", "no key"]
)
def test_revive_gives_nothing_that_todays_rules_refuse(raw: bytes) -> None:
    assert revive("psk", "/etc/iscsi-ipsec/psk.d/group.toml", "group", stored(Secret(raw))) is None
