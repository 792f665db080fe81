"""The content of one file: its value, the keys that it has or names, and the bytes kept for a restart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iscsi_ipsec.adapters import credentials
from iscsi_ipsec.adapters.state_db import LastGood
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.keys import GroupKey
from iscsi_ipsec.base.policy import PortalPolicy
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.service.config_content import Content, find_origins, parse_draft, revive, with_keys

KEY = "a key of twenty bytes"
LITERAL = f'group = true\nkey = "{KEY}"\n'
BESIDE = 'group = true\nkey_file = "group.key"\n'


def content(folder: Path, text: str, kind: str = "psk") -> Content:
    draft = parse_draft(kind, str(folder / "group.toml"), "group", text)
    return with_keys(draft, find_origins(draft))


def origins(folder: Path, text: str) -> list[str]:
    return [origin.path for origin in find_origins(parse_draft("psk", str(folder / "x.toml"), "x", text))]


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
def test_parse_draft_makes_a_value_of_each_kind(
    tmp_path: Path, kind: str, text: str, type: type[object]
) -> None:
    assert isinstance(content(tmp_path, text, kind).value, type)


def test_with_keys_keeps_no_second_copy_of_a_key_in_the_file_itself(tmp_path: Path) -> None:
    found = content(tmp_path, LITERAL)
    assert isinstance(found.value, GroupKey)
    assert found.value.secret == Secret(KEY.encode())
    assert (found.key, found.previous) == (None, None)
    assert origins(tmp_path, LITERAL) == []


def test_with_keys_reads_a_key_beside_and_keeps_it(tmp_path: Path) -> None:
    at = key_beside(tmp_path)
    found = content(tmp_path, BESIDE)
    assert isinstance(found.value, GroupKey)
    assert found.value.secret == found.key == Secret(KEY.encode())
    assert origins(tmp_path, BESIDE) == [at]


def test_with_keys_reads_the_previous_key_too(tmp_path: Path) -> None:
    key_beside(tmp_path)
    before = key_beside(tmp_path, "before.key", "the key before this one")
    text = BESIDE + 'previous_key_file = "before.key"\nprevious_until = 2999-01-01T00:00:00Z\n'
    found = content(tmp_path, text)
    assert found.previous == Secret(b"the key before this one")
    assert origins(tmp_path, text)[1:] == [before]


def test_key_origin_is_current_until_its_file_is_another(tmp_path: Path) -> None:
    at = Path(key_beside(tmp_path))
    (origin,) = find_origins(parse_draft("psk", str(tmp_path / "x.toml"), "x", BESIDE))
    states = [origin.is_current]
    at.rename(tmp_path / "other")
    states.append(origin.is_current)
    key_beside(tmp_path)
    states.append(origin.is_current)
    assert states == [True, False, False]


def test_key_origin_of_a_credential_is_not_current_when_a_stronger_store_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strong, weak = tmp_path / "etc", tmp_path / "run"
    monkeypatch.setattr(credentials, "ENCRYPTED_STORES", (str(strong), str(weak)))
    for store in (strong, weak):
        store.mkdir(mode=0o700)
    draft = parse_draft("psk", str(tmp_path / "x.toml"), "x", 'group = true\nkey_credential = "c"\n')
    (missing,) = find_origins(draft)
    assert (missing.path, missing.stat) == ("", None)
    key_beside(weak, "c")
    (origin,) = find_origins(draft)
    states = [missing.is_current, origin.is_current]
    os.link(weak / "c", strong / "c")  # even of the same file
    states.append(origin.is_current)
    assert states == [False, True, False]
    assert origin.folders[:2] == (str(strong), str(weak))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('group = true\nkey = ""\n', "empty-key"),
        ('group = true\nkey = "CHANGE-ME"\n', "placeholder-key"),
    ],
)
def test_with_keys_refuses_a_key_that_is_none(tmp_path: Path, text: str, code: str) -> None:
    assert codes(tmp_path, text) == [code]


def test_with_keys_warns_about_a_weak_key(tmp_path: Path) -> None:
    found = content(tmp_path, 'group = true\nkey = "short"\n')
    assert [problem.code for problem in found.warnings] == ["weak-key"]


def test_revive_gives_back_what_was_parsed(tmp_path: Path) -> None:
    key_beside(tmp_path)
    found = content(tmp_path, BESIDE)
    (tmp_path / "group.key").unlink()  # the kept key counts, not the file
    last = stored(Secret(BESIDE.encode()), found.key)
    assert revive("psk", str(tmp_path / "group.toml"), "group", last) == found.value


@pytest.mark.parametrize(
    "raw", [b"portals = [", b"\xff", BESIDE.encode()], ids=["broken", "no text", "no key"]
)
def test_revive_gives_nothing_that_todays_rules_refuse(raw: bytes) -> None:
    assert revive("psk", "/etc/iscsi-ipsec/psk.d/group.toml", "group", stored(Secret(raw))) is None
