"""Key files: each mistake is reported with its line, all at once, and without the key."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import pytest

from iscsi_ipsec.base.addresses import parse_address
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.keys import GroupKey, PerIdKey, PreviousKey
from iscsi_ipsec.base.policy import EspMode, IkeMode, IpsecChoice
from iscsi_ipsec.base.portal import Portal, parse_portal_pattern
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.key_file import (
    PLACEHOLDER,
    CredentialRef,
    KeyDraft,
    KeyFileRef,
    empty_key_problem,
    parse_key_file,
    placeholder_problem,
    previous_over_problem,
    same_key_problem,
    weak_key_problem,
)

OWNER = 'id_type = "ID_FQDN"\nid = "db1.example.com"\n'
KEY = 'key = "canary-key-0123456789"\n'


def parse(text: str) -> KeyDraft:
    return parse_key_file(text, "psk.d/db1.toml", "db1")


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert "canary" not in str(caught.value) + repr(caught.value.problems)
    return caught.value.problems


def problem(text: str) -> Problem:
    (only,) = problems(text)
    return only


def secret_of(text: str) -> bytes:
    source = parse(OWNER + text).source
    assert isinstance(source, Secret)
    return source.reveal()


# -- right ones


MORE = """\
security_flags = 0x47
portals = ["10.0.0.0/24"]
auth_method = 1
description = "d"
previous_key = "canary-key-of-before"
previous_until = 2030-06-01T12:00:00+02:00
"""
SAID: dict[str, Any] = {
    "name": "db1",
    "path": "psk.d/db1.toml",
    "secret": Secret(b"x"),
    "choice": IpsecChoice(required=True, ike=IkeMode.MAIN, esp=EspMode.TUNNEL, pfs=False),
    "portals": (parse_portal_pattern("10.0.0.0/24"),),
    "previous": PreviousKey(secret=Secret(b"before"), until=datetime(2030, 6, 1, 10, tzinfo=UTC)),
}


def test_a_per_id_key_is_read_with_all_that_its_file_says() -> None:
    owner = IkeId.parse(IdType.ID_FQDN, "db1.example.com")
    key = parse(OWNER + KEY + MORE).with_secret(Secret(b"x"), Secret(b"before"))
    assert key == PerIdKey(id=owner, **SAID)


def test_a_group_key_is_read_with_all_that_its_file_says() -> None:
    key = parse("group = true\n" + KEY + MORE).with_secret(Secret(b"x"), Secret(b"before"))
    assert key == GroupKey(**SAID)


@pytest.mark.parametrize(
    ("type", "id", "expected"),
    [
        ('"ID_IPV4_ADDR"', "10.0.0.1", IdType.ID_IPV4_ADDR),
        ("1", "10.0.0.1", IdType.ID_IPV4_ADDR),
        ('"ID_FQDN"', "10.0.0.1", IdType.ID_FQDN),
        ("2", "iqn.2024-01.com.example:host", IdType.ID_FQDN),
        ('"ID_USER_FQDN"', "a@b", IdType.ID_USER_FQDN),
        ("3", "a@b", IdType.ID_USER_FQDN),
        ('"ID_IPV6_ADDR"', "fd00:0:0::1", IdType.ID_IPV6_ADDR),
        ("5", "::1", IdType.ID_IPV6_ADDR),
    ],
)
def test_every_id_type_goes_by_name_and_number(type: str, id: str, expected: IdType) -> None:
    draft = parse(f'id_type = {type}\nid = "{id}"\n{KEY}')
    assert draft.id is not None
    assert draft.id.type is expected
    assert draft.id.text == (str(parse_address(id)) if expected in (1, 5) else id)


@pytest.mark.parametrize(
    ("type", "raw", "text"),
    [
        ("ID_IPV4_ADDR", "0a000001", "10.0.0.1"),
        ("ID_IPV6_ADDR", "fd" + "00" * 14 + "01", "fd00::1"),
        ("ID_FQDN", b"db1".hex(), "db1"),
        ("ID_USER_FQDN", "0x" + b"a@b".hex(), "a@b"),
    ],
)
def test_an_id_goes_by_its_raw_bytes(type: str, raw: str, text: str) -> None:
    draft = parse(f'id_type = "{type}"\nid_hex = "{raw}"\n{KEY}')
    assert draft.id is not None
    assert draft.id.text == text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('key = "0x6161"', b"0x6161"),
        ('key = "0sYWE="', b"0sYWE="),
        ('key = "a\\u0000b"', b"a\0b"),
        ('key = "ä€"', "ä€".encode()),
        ('key = " spaces stay "', b" spaces stay "),
        ('key = """\nfirst\nsecond\n"""', b"first\nsecond\n"),
        ('key_hex = "00fF"', b"\0\xff"),
        ('key_hex = "0x00:ff 01"', b"\0\xff\1"),
        (f'key_base64 = "{base64.b64encode(bytes(range(256))).decode()}"', bytes(range(256))),
    ],
)
def test_the_keys_bytes_are_exactly_those_that_were_meant(line: str, expected: bytes) -> None:
    assert secret_of(line + "\n") == expected


def test_a_key_of_nearly_64_kib_is_read() -> None:
    assert len(secret_of(f'key = "{"k" * 65_000}"\n')) == 65_000


def test_keys_elsewhere_are_named() -> None:
    assert parse(OWNER + 'key_file = "db1.key"').source == KeyFileRef("db1.key")
    assert parse(OWNER + 'key_credential = "db1-psk"').source == CredentialRef("db1-psk")


@pytest.mark.parametrize("method", ['"preshared_key"', "1"])
def test_preshared_keys_are_the_only_method(method: str) -> None:
    assert parse(OWNER + KEY + f"auth_method = {method}\n").id is not None


def test_flags_without_valid_are_not_specified() -> None:
    assert parse(OWNER + KEY + "security_flags = 0x5A\n").choice is None


# -- wrong ones, each alone


@pytest.mark.parametrize(
    ("text", "line", "code", "words"),
    [
        (OWNER + KEY + "securty_flags = 1\n", 4, "unknown-key", 'did you mean "security_flags"?'),
        (OWNER + "key = 5\n", 3, "wrong-type", "key must be a text in quotes, not a number"),
        (OWNER + 'key = ["canary"]\n', 3, "wrong-type", "not a list"),
        ("id_type = 2\nid = 5\n" + KEY, 2, "wrong-type", "id must be a text"),
        ('group = "true"\n' + OWNER + KEY, 1, "wrong-type", "group must be true or false"),
        ('id_type = "ID_FDQN"\nid = "x"\n' + KEY, 1, "bad-id-type", "ID_FQDN"),
        ('id_type = 4\nid = "x"\n' + KEY, 1, "bad-id-type", "ID_FQDN (2)"),
        ('id_type = 11\nid = "x"\n' + KEY, 1, "bad-id-type", "ID_IPV6_ADDR (5)"),
        ('id_type = true\nid = "10.0.0.1"\n' + KEY, 1, "bad-id-type", "id_type must be one of"),
        ('id_type = 1.0\nid = "10.0.0.1"\n' + KEY, 1, "bad-id-type", "id_type must be one of"),
        ('id_type = 1\nid = "10.0.0.256"\n' + KEY, 2, "bad-id", "IPv4"),
        ('id_type = 1\nid = "fd00::1"\n' + KEY, 2, "bad-id", "IPv4"),
        ('id_type = 5\nid = "10.0.0.1"\n' + KEY, 2, "bad-id", "IPv6"),
        ('id_type = 5\nid = "fe80::1%eth0"\n' + KEY, 2, "bad-id", "zone"),
        ('id_type = 3\nid = "nobody"\n' + KEY, 2, "bad-id", "user@host"),
        ('id_type = 2\nid = "a@b"\n' + KEY, 2, "bad-id", "ID_USER_FQDN"),
        ('id_type = 2\nid = ""\n' + KEY, 2, "bad-id", "empty"),
        ('id_type = 2\nid = "*.example.com"\n' + KEY, 2, "bad-id", "wildcard"),
        ('id_type = 2\nid = "*"\n' + KEY, 2, "bad-id", "wildcard"),
        ('id_type = 3\nid = "*@example.com"\n' + KEY, 2, "bad-id", "wildcard"),
        ('id_type = 2\nid = "db?"\n' + KEY, 2, "bad-id", "wildcard"),
        ('id_type = 2\nid = "a b"\n' + KEY, 2, "bad-id", "printable"),
        ('id_type = 2\nid = "bücher.example"\n' + KEY, 2, "bad-id", "xn--"),
        ('id_type = 2\nid = "a\\u0000b"\n' + KEY, 2, "bad-id", "printable"),
        (f'id_type = 2\nid = "{"a" * 256}"\n' + KEY, 2, "bad-id", "255"),
        ('id_type = 2\nid = "CN=x"\n' + KEY, 2, "bad-id", "="),
        ('id_type = 2\nid_hex = "xyz"\n' + KEY, 2, "bad-id", "not hexadecimal"),
        ('id_type = 2\nid_hex = ""\n' + KEY, 2, "bad-id", "the id is empty"),
        ('id_type = 1\nid_hex = "0a0000"\n' + KEY, 2, "bad-id", "4 bytes, not 3"),
        ('id_type = 5\nid_hex = "0a000001"\n' + KEY, 2, "bad-id", "16 bytes, not 4"),
        ('id_type = 2\nid_hex = "ff00"\n' + KEY, 2, "bad-id", "ASCII"),
        ('id_type = "ID_FQDN"\n' + KEY, 0, "no-id", "neither an id nor group"),
        (OWNER + 'key_hex = "canary"\n', 3, "bad-hex", "hexadecimal"),
        (OWNER + 'key_hex = "abc"\n', 3, "bad-hex", "even number"),
        (OWNER + 'key_base64 = "canary!"\n', 3, "bad-base64", "base64"),
        (OWNER + 'key_base64 = "abc"\n', 3, "bad-base64", "base64"),
        (OWNER + 'key_base64 = "YWFh!"\n', 3, "bad-base64", "base64"),
        (OWNER + 'key_base64 = "YWE=YWE="\n', 3, "bad-base64", "base64"),
        (OWNER + 'key_file = "a\\u0000b"\n', 3, "bad-path", "NUL"),
        (OWNER + 'key_credential = "../shadow"\n', 3, "bad-credential", "without a path"),
        (OWNER + 'key_credential = ".."\n', 3, "bad-credential", "without a path"),
        (OWNER + 'key_credential = "."\n', 3, "bad-credential", "without a path"),
        (OWNER + 'key_credential = "a\\u0000b"\n', 3, "bad-credential", "without a path"),
        (OWNER + KEY + "description = 5\n", 4, "wrong-type", "description must be a text"),
        (OWNER + KEY + 'auth_method = "certificate"\n', 4, "bad-auth-method", "preshared_key"),
        (OWNER + KEY + "auth_method = 2\n", 4, "bad-auth-method", "preshared_key"),
        (OWNER + KEY + "auth_method = true\n", 4, "bad-auth-method", "preshared_key"),
        (OWNER + KEY + 'security_flags = ["VALDI"]\n', 4, "bad-flags", 'did you mean "VALID"'),
        (OWNER + KEY + "security_flags = 0x80\n", 4, "bad-flags", "0x80"),
        (OWNER + KEY + "security_flags = 0x0D\n", 4, "bad-flags", "exclude each other"),
        (OWNER + KEY + "security_flags = 0x61\n", 4, "bad-flags", "exclude each other"),
        (OWNER + KEY + "security_flags = -1\n", 4, "bad-flags", "negative"),
        (OWNER + KEY + "security_flags = true\n", 4, "wrong-type", "security_flags"),
        (OWNER + KEY + "portals = []\n", 4, "empty-list", "portals"),
        (OWNER + KEY + 'portals = ["10.0.0.1/24"]\n', 4, "bad-portal", "did you mean 10.0.0.0/24?"),
        (OWNER + KEY + 'portals = "10.0.0.1"\n', 4, "wrong-type", "a list"),
        (OWNER + KEY + 'portals = ["10.0.0.1:0"]\n', 4, "bad-portal", "1 to 65535"),
        (OWNER + KEY + 'portals = ["[fe80::1%eth0]"]\n', 4, "bad-portal", "zone"),
        ("group = true\n" + OWNER + KEY, None, "group-with-id", "a group key has no id"),
    ],
)
def test_parse_key_file_reports_a_mistake_at_its_line(
    text: str, line: int | None, code: str, words: str
) -> None:
    reported = [p for p in problems(text) if p.code == code]
    assert reported, problems(text)
    assert words in f"{reported[0].message} {reported[0].hint}"
    assert reported[0].severity is Severity.ERROR
    if line is not None:
        assert len(problems(text)) == 1
        assert str(reported[0]).startswith(f"psk.d/db1.toml:{line}: " if line else "psk.d/db1.toml: ")


@pytest.mark.parametrize(
    ("text", "line", "code", "message", "hint"),
    [
        (
            KEY, 0, "no-id", "neither an id nor group = true",
            'say whose key it is: id_type = "ID_FQDN" and id = "host.example.com", or group = true',
        ),
        (
            'id = "x"\n' + KEY, 1, "no-id-type", "id_type is missing",
            "one of ID_IPV4_ADDR, ID_FQDN, ID_USER_FQDN, ID_IPV6_ADDR",
        ),
        (OWNER + 'id_hex = "00"\n' + KEY, 3, "two-ids", "both id and id_hex are set", "keep one of them"),
        (
            "group = false\n" + OWNER + KEY, 1, "bad-group", "group can only be true",
            "leave the line out for a per-ID key",
        ),
        *(
            (
                f"group = true\n{key} = {value}\n{KEY}", 2, "group-with-id", f"a group key has no {key}",
                "leave out either group or the id",
            )
            for key, value in (("id", '"x"'), ("id_hex", '"00"'), ("id_type", "2"))
        ),
        (
            OWNER, 0, "no-key", "the key is missing",
            "set exactly one of key, key_hex, key_base64, key_file, key_credential",
        ),
        *(
            (
                f"{OWNER}{KEY}{key} = '00'\n", 4, "two-keys", f"both key and {key} are set",
                "keep exactly one of them",
            )
            for key in ("key_file", "key_hex")
        ),
        (OWNER + 'key = ""\n', 3, "empty-key", "key is empty", "write the key, or remove the file"),
        (
            OWNER + KEY + "previous_until = 2030-06-01T12:00:00Z\n", 0, "no-key", "the previous key is missing",
            "set exactly one of previous_key, previous_key_hex, previous_key_base64, previous_key_file, previous_key_credential",
        ),
        (
            OWNER + KEY + 'previous_key = "canary-key-of-before"\n', 4, "no-end", "the previous key has no end",
            "say until when both keys are valid, e.g. previous_until = 2026-12-01T00:00:00Z",
        ),
    ],
)  # fmt: skip
def test_parse_key_file_says_what_to_write_where_the_file_contradicts_itself(
    text: str, line: int, code: str, message: str, hint: str
) -> None:
    assert problem(text) == Problem(code=code, message=message, hint=hint, file="psk.d/db1.toml", line=line)


def test_an_absent_id_never_makes_a_group_key() -> None:
    for text in (KEY, "id_type = 2\n" + KEY, "group = false\n" + KEY):
        with pytest.raises(ConfigError):
            parse(text)


def test_parse_key_file_reports_all_mistakes_at_once_with_file_and_line() -> None:
    reported = problems(
        'id_type = "ID_FDQN"\nid = "x"\nkey_hex = "canary"\nsecurity_flags = 0x80\nauth_method = 7\nportals = ["x/y"]\nnonsense = 1\n'
    )
    assert sorted(p.line for p in reported) == [1, 3, 4, 5, 6, 7]
    assert {p.file for p in reported} == {"psk.d/db1.toml"}


def test_noise_is_one_problem() -> None:
    noise = "".join(chr(32 + (n * 7919) % 90) for n in range(1 << 16))
    assert problem(noise).code == "bad-toml"


# -- afterwards


def test_a_weak_key_is_a_warning_at_the_keys_line() -> None:
    draft = parse(OWNER + 'key = "fifteen bytes.."\n')
    assert weak_key_problem(draft, Secret(b"fifteen bytes..")) == Problem(
        code="weak-key",
        message="the key is shorter than 16 bytes and can be guessed",
        hint="make a random one, e.g. with: openssl rand -base64 32",
        file="psk.d/db1.toml",
        line=3,
        severity=Severity.WARNING,
    )
    assert weak_key_problem(draft, Secret(b"sixteen bytes...")) is None


def test_empty_key_problem_names_the_line_of_the_key_file() -> None:
    assert empty_key_problem(parse(OWNER + 'key_file = "x"\n')).line == 3


def test_a_draft_shows_no_key() -> None:
    draft = parse(OWNER + KEY)
    assert "canary" not in repr(draft) + repr(draft.with_secret(Secret(b"canary")))


def test_a_keys_portals_default_to_the_iscsi_port() -> None:
    (pattern,) = parse(OWNER + KEY + 'portals = ["10.0.0.1"]\n').portals
    address = parse_address("10.0.0.1")
    assert address is not None
    assert str(pattern) == str(Portal(address))


# -- a previous key beside it

UNTIL = "previous_until = 2030-06-01T12:00:00+02:00\n"
BEFORE = 'previous_key = "canary-key-of-before"\n'


def test_a_previous_key_is_read_with_its_end_in_utc() -> None:
    draft = parse(OWNER + KEY + BEFORE + UNTIL)
    assert draft.previous is not None
    assert draft.previous.until == datetime(2030, 6, 1, 10, tzinfo=UTC)
    assert (draft.key_line, draft.previous_line) == (3, 4)
    key = draft.with_secret(Secret(b"new"), Secret(b"old"))
    assert key.previous is not None
    assert key.previous.secret.reveal() == b"old"
    assert "canary" not in repr(draft) + repr(key)


@pytest.mark.parametrize(
    ("line", "source"),
    [
        ('previous_key_hex = "00ff"', Secret(b"\x00\xff")),
        ('previous_key_base64 = "AP8="', Secret(b"\x00\xff")),
        ('previous_key_file = "old.key"', KeyFileRef("old.key")),
        ('previous_key_credential = "old"', CredentialRef("old")),
    ],
)
def test_a_previous_key_comes_from_wherever_a_key_does(line: str, source: object) -> None:
    previous = parse(f"{OWNER}{KEY}{line}\n{UNTIL}").previous
    assert previous is not None
    assert previous.source == source


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        (BEFORE + 'previous_key_hex = "00"\n' + UNTIL, "two-keys", 5),
        (BEFORE + "previous_until = 2030-06-01T12:00:00\n", "no-time-zone", 5),
        (BEFORE + "previous_until = 2030-06-01\n", "wrong-type", 5),
        (BEFORE + 'previous_until = "2030-06-01T12:00:00Z"\n', "wrong-type", 5),
        (BEFORE + "previous_until = 9999-12-31T23:59:59-12:00\n", "out-of-range", 5),
        ('previous_key = ""\n' + UNTIL, "empty-key", 4),
        ('previous_key_hex = "canary"\n' + UNTIL, "bad-hex", 4),
    ],
)
def test_parse_key_file_reports_a_mistake_about_the_previous_key_at_its_line(
    text: str, code: str, line: int
) -> None:
    reported = problem(OWNER + KEY + text)
    assert (reported.code, reported.line) == (code, line)


def test_same_key_problem_names_the_line_of_a_previous_key_that_is_the_key_itself() -> None:
    draft = parse(OWNER + KEY + BEFORE + UNTIL)
    assert draft.with_secret(Secret(b"same"), Secret(b"same")).previous is None
    assert same_key_problem(draft) == Problem(
        code="same-key",
        message="the previous key is the same as the key",
        hint="put the new key into key, or remove the lines that begin with previous_",
        file="psk.d/db1.toml",
        line=4,
        severity=Severity.WARNING,
    )


def test_empty_key_problem_names_the_line_of_the_key_or_previous_key() -> None:
    draft = parse(OWNER + KEY + BEFORE + UNTIL)
    assert empty_key_problem(draft) == Problem(
        code="empty-key", message="the key is empty", hint="write the key into it", file="psk.d/db1.toml", line=3
    )  # fmt: skip
    assert empty_key_problem(draft, previous=True) == Problem(
        code="empty-key", message="the previous key is empty", hint="write the key into it", file="psk.d/db1.toml", line=4,
    )  # fmt: skip


def test_placeholder_problem_names_line_and_how_to_make_a_key() -> None:
    assert placeholder_problem(parse(OWNER + KEY), Secret(PLACEHOLDER)) == Problem(
        code="placeholder-key",
        message="the key is still the sample's",
        hint="make one of your own, e.g. with: openssl rand -base64 32",
        file="psk.d/db1.toml",
        line=3,
    )


def test_a_draft_that_was_read_from_no_file_has_no_lines() -> None:
    draft = KeyDraft(name="db1", path="db1.toml", id=None, source=Secret(b"x"), choice=None, portals=())
    assert (draft.key_line, draft.previous_line) == (0, 0)


def test_previous_over_problem_names_the_moment() -> None:
    until = datetime(2030, 6, 1, 10, tzinfo=UTC)
    assert previous_over_problem("psk.d/db1.toml", 4, until) == Problem(
        code="previous-key-over",
        message="the previous key is no longer used, since 2030-06-01T10:00:00Z",
        hint="remove the lines that begin with previous_",
        file="psk.d/db1.toml",
        line=4,
        severity=Severity.WARNING,
    )


def test_placeholder_and_empty_key_problems_name_the_keys_line() -> None:
    draft = parse_key_file('group = true\n\nkey = "x"\n', "x.toml", "x")
    sample = placeholder_problem(draft, Secret(PLACEHOLDER + b"-to-something"))
    assert sample is not None
    assert (sample.code, sample.line) == ("placeholder-key", 3)
    assert placeholder_problem(draft, Secret(b"another")) is None
    assert (empty_key_problem(draft).code, empty_key_problem(draft).line) == ("empty-key", 3)
