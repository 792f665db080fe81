"""The texts of key files and policies to the byte, and the names that such files get."""

from __future__ import annotations

import dataclasses
import ipaddress
from datetime import UTC, datetime

import pytest

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.policy import EspMode, IkeMode, Role, Start, Tuning
from iscsi_ipsec.base.portal import parse_portal_pattern
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.key_file import (
    CredentialRef,
    KeyDraft,
    KeyFileRef,
    PreviousDraft,
    parse_key_file,
)
from iscsi_ipsec.core.config.portal_file import parse_portal_file
from iscsi_ipsec.core.config.writer import (
    description_of,
    file_name,
    flags_text,
    make_key_text,
    make_portal_text,
    quote,
    shown_key_text,
)
from tests.support.values import choice, policy

GROUP = KeyDraft(name="x", path="psk.d/x.toml", id=None, source=Secret(b"k"), choice=None, portals=())
UNTIL = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
FULL = dataclasses.replace(
    GROUP,
    id=IkeId.parse(IdType.ID_FQDN, "db1.example.com"),
    source=Secret(b"the new key"),
    previous=PreviousDraft(source=Secret(b"\0old"), until=UNTIL),
    choice=choice(IkeMode.MAIN, EspMode.TUNNEL),
    portals=(parse_portal_pattern("10.0.0.0/24"), parse_portal_pattern("san.example.com:3261")),
)
FULL_TEXT = """\
description = "what for"
id_type = "ID_FQDN"
id = "db1.example.com"
{key}
{previous}
previous_until = 2030-01-02T03:04:05Z
security_flags = ["VALID", "IKE_IPSEC_ENABLED", "MAIN_MODE_ENABLED", "PFS_ENABLED", "TUNNEL_MODE_PREFERRED"]
portals = ["10.0.0.0/24:3260", "san.example.com:3261"]
"""


def test_all_that_a_key_file_can_say_is_written_and_no_key_is_shown() -> None:
    assert make_key_text(FULL, "what for") == FULL_TEXT.format(
        key='key = "the new key"', previous='previous_key_hex = "006f6c64"'
    )
    assert shown_key_text(FULL, "what for") == FULL_TEXT.format(
        key="# the key is not shown", previous="# the previous key is not shown"
    )
    assert make_key_text(GROUP) == 'group = true\nkey = "k"\n'
    assert shown_key_text(GROUP) == "group = true\n# the key is not shown\n"


def test_where_a_key_lies_is_written_and_shown() -> None:
    draft = dataclasses.replace(
        GROUP,
        source=KeyFileRef("a.key"),
        previous=PreviousDraft(source=CredentialRef("old"), until=UNTIL),
    )
    text = (
        'group = true\nkey_file = "a.key"\nprevious_key_credential = "old"\n'
        "previous_until = 2030-01-02T03:04:05Z\n"
    )
    assert (make_key_text(draft), shown_key_text(draft)) == (text, text)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"printable", 'key = "printable"'),
        ("schlüssel".encode(), 'key = "schlüssel"'),
        (b"ends in a newline\n", f'key_hex = "{b"ends in a newline".hex()}0a"'),
        (b"\xff\0", 'key_hex = "ff00"'),
        (b"\xff" * 64, f'key_hex = "{"ff" * 64}"'),
        (b"\xff" * 66, f'key_base64 = "{"/" * 88}"'),
        (b"\xff" * 65, f'key_base64 = "{"/" * 86}8="'),
    ],
)
def test_a_key_that_is_no_text_is_written_in_hex_and_a_long_one_in_base64(data: bytes, line: str) -> None:
    assert make_key_text(dataclasses.replace(GROUP, source=Secret(data))) == f"group = true\n{line}\n"


def test_all_that_a_policy_can_say_is_written_and_nothing_that_it_does_not() -> None:
    full = policy(
        "10.0.0.1", role=Role.TARGET, flags=choice(IkeMode.AGGRESSIVE, EspMode.TUNNEL, pfs=False), psk="db1",
        target_id=IkeId.parse(IdType.ID_FQDN, "san"),
        tunnel_outer_remote=ipaddress.ip_address("203.0.113.1"),
        tunnel_outer_local=ipaddress.ip_address("203.0.113.2"), preset="lio",
        initiators=(IkeId.parse(IdType.ID_FQDN, "db1"), ipaddress.ip_network("10.0.0.0/24")),
        tuning=Tuning(ike_proposals=("a", "b"), esp_proposals=("c",), ike_rekey_time=3600, start=Start.TRAP),
    )  # fmt: skip
    assert (
        make_portal_text(full, "what for")
        == """\
description = "what for"
portals = ["10.0.0.1:3260"]
role = "target"
security_flags = ["VALID", "IKE_IPSEC_ENABLED", "AGGRESSIVE_MODE_ENABLED", "TUNNEL_MODE_PREFERRED"]
psk = "db1"
target_id_type = "ID_FQDN"
target_id = "san"
tunnel_outer_remote = "203.0.113.1"
tunnel_outer_local = "203.0.113.2"
preset = "lio"
initiators = ["db1", "10.0.0.0/24"]
ike_proposals = ["a", "b"]
esp_proposals = ["c"]
ike_rekey_time = 3600
start = "trap"
"""
    )
    assert make_portal_text(policy("fd00::20")) == 'portals = ["[fd00::20]:3260"]\n'


def test_a_choice_is_written_as_the_names_of_its_flags() -> None:
    assert flags_text(choice(required=False, pfs=False)) == '["VALID"]'


def test_only_what_cannot_be_printed_or_ends_a_text_is_escaped() -> None:
    assert quote('X "\\ ü 𐀀 \n \uffff \U0001ffff') == ('"X \\"\\\\ ü 𐀀 \\u000a \\uffff \\U0001ffff"')


def test_a_files_description_is_what_it_says_of_itself() -> None:
    assert description_of('group = true\ndescription = "what for"\n', "x.toml") == "what for"
    assert description_of("group = true\n", "x.toml") == ""
    with pytest.raises(ConfigError, match=r"\Ax\.toml:1: "):
        description_of("=", "x.toml")


@pytest.mark.parametrize(
    ("kind", "text", "name"),
    [
        (IdType.ID_FQDN, "DB1.example.com", "db1.example.com"),
        (IdType.ID_FQDN, "_a-b.c", "_a-b.c"),
        (IdType.ID_FQDN, "a" * 180, "a" * 180),
        (IdType.ID_USER_FQDN, "a@example.com", "a@example.com"),
        (IdType.ID_IPV4_ADDR, "10.0.0.5", "10.0.0.5"),
        # a name that could be another identity's, or no file's
        (IdType.ID_FQDN, "10.0.0.5", "10.0.0.5-ded30a75ea926e19"),
        (IdType.ID_FQDN, "group", "group-d48851888fb11ee9"),
        (IdType.ID_FQDN, "DB1.toml", "db1.toml-9d1308d0b37e3825"),
        (IdType.ID_FQDN, "db1-0123456789abcdef", "db1-0123456789abcdef-a267c998e9ef5af0"),
        (IdType.ID_FQDN, "a" * 181, "a" * 180 + "-11543faeacb24fe6"),
        (IdType.ID_FQDN, "a/b", "a-b-55d678b724d3274a"),
        (IdType.ID_FQDN, "a:b", "a-b-212947a54c7209a7"),
        (IdType.ID_FQDN, ".hidden/", "hidden-0806300086a963bd"),
        (IdType.ID_FQDN, "fd00::20", "fd00-20-4cb526f995471ac8"),
        (IdType.ID_IPV6_ADDR, "FD00::20", "fd00-20-d7eda7b7c0ceaa74"),
    ],
)  # fmt: skip
def test_a_key_keeps_its_files_name_from_one_version_to_the_next(kind: IdType, text: str, name: str) -> None:
    assert file_name(IkeId.parse(kind, text)) == name


def test_a_group_keys_file_has_a_name_of_its_own() -> None:
    assert file_name(None) == "group"


def test_shown_key_text_names_the_key_file() -> None:
    draft = parse_key_file('group = true\nkey_file = "a.key"\n', "x.toml", "x")
    assert 'key_file = "a.key"' in shown_key_text(draft).splitlines()


def test_make_portal_text_writes_initiators_as_they_are_read() -> None:
    text = 'portals = ["10.0.0.1"]\nrole = "target"\ninitiators = ["10.0.0.0/24", "db1.lab", "a@b.lab"]\n'
    policy = parse_portal_file(text, "portal.d/x.toml", "x")
    assert policy.role is Role.TARGET
    assert parse_portal_file(make_portal_text(policy), "portal.d/x.toml", "x") == policy
