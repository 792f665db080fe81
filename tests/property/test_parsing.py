"""Any text at all: it parses or it is a ConfigError, and no key comes back in an error."""

from __future__ import annotations

import base64
import ipaddress
import tomllib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.keys import GroupKey, PerIdKey
from iscsi_ipsec.base.policy import EspMode, Role
from iscsi_ipsec.base.portal import parse_portal_pattern
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.key_file import CredentialRef, KeyFileRef, parse_key_file
from iscsi_ipsec.core.config.portal_file import parse_portal_file
from iscsi_ipsec.core.config.security_flags import KNOWN_BITS, SecurityFlags, flag_names, interpret
from iscsi_ipsec.core.config.settings import parse_settings
from tests.support.examples import examples
from tests.support.identities import HOST_ADDRESSES, named

PARSERS: dict[str, Callable[[str], object]] = {
    "key": lambda text: parse_key_file(text, "psk.d/x.toml", "x"),
    "portal": lambda text: parse_portal_file(text, "portal.d/x.toml", "x"),
    "settings": lambda text: parse_settings(text, "iscsi-ipsecd.toml"),
}
each_parser = pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)

CANARY = "canary7f3a"

TOKENS = (
    '"', "'", '"""', "'''", "\n", "=", "[", "]", "[[", "{", "}", ",", "#", "\\", "\\u0000", "\\x", ".", "-", "0x", "1",
    "nan", "true", " ", "\t", "\r", "\0", "\x7f", "\ufeff", "\u2028", "é", "😀", "key", "id", "portals", "group", "defaults",
)  # fmt: skip

KEYS = (
    "id", "id_type", "id_hex", "group", "key", "key_hex", "key_base64", "key_file", "key_credential", "security_flags",
    "auth_method", "portals", "description", "role", "psk", "target_id", "target_id_type", "tunnel_outer_remote",
    "tunnel_outer_local", "preset", "start", "dpd_delay", "ike_proposals", "require_ipsec", "guard_devices",
    "resync_interval", "nodes_dirs", "vici_socket", "log_level", "initiators", "nonsense",
)  # fmt: skip
VALUES = (
    "true", "false", "1", "-1", "0x5B", "1.5", "nan", "inf", "1e400", "[]", '[""]', "[1]", '["x", 1]', "{}", "{ a = 1 }",
    '""', '"x"', '"10.0.0.20"', '"fe80::1%eth0"', '["10.0.0.0/24"]', '["10.0.0.1/24"]', '["[fd00::/64]:3260"]', '"ID_FQDN"',
    '"target"', '"*"', '"\\u0000"', "2024-01-01", "07:32:00", "1979-05-27T07:32:00Z", "'''a\nb'''", '"""\n"""', '"é"',
    '["a/b", "10.0.0.0/999", "::1/64/3"]', "999999999999999999999999999999",
)  # fmt: skip

tomlish = st.lists(
    st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)), max_size=6, unique_by=lambda row: row[0]
).map(lambda rows: "".join(f"{key} = {value}\n" for key, value in rows))
noise = st.lists(st.sampled_from(TOKENS) | st.text(max_size=3), max_size=15).map("".join)


def told_by(err: BaseException) -> str:
    """Everything that printing, logging or inspecting an exception may show, with all that led to it."""
    parts: list[str] = []
    queue, seen = [err], set[int]()
    while queue:
        each = queue.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        parts += [str(each), repr(each), repr(each.args), repr(vars(each))]
        parts += traceback.format_exception(each)
        queue += [e for e in (each.__cause__, each.__context__) if e is not None]
    return "\n".join(parts)


def refusal(parse: Callable[[str], object], text: str) -> ConfigError | None:
    try:
        parse(text)
    except ConfigError as err:
        assert err.problems
        assert all(p.message and p.file for p in err.problems)
        assert all(0 <= p.line <= text.count("\n") + 1 for p in err.problems)
        return err
    return None


@each_parser
@examples(50)
@given(text=st.text(max_size=60) | noise | tomlish)
def test_any_text_parses_or_is_a_config_error(parse: Callable[[str], object], text: str) -> None:
    refusal(parse, text)


@each_parser
@pytest.mark.parametrize(
    "text",
    [
        "x = " + "1" * 5000,
        "dpd_delay = 0x" + "F" * 4000 + "\n[defaults]\ndpd_delay = 0x" + "F" * 4000,
        "security_flags = 0x" + "F" * 3000 + "\n[defaults]\nsecurity_flags = 0x" + "F" * 3000,
        "resync_interval = 0x" + "F" * 4000,
        "auth_method = 0x" + "F" * 4000,
        "id_type = 0x" + "F" * 4000,
        "x = " + "[" * 5000,
        "x = " + "{a=" * 5000,
        "a" + ".a" * 1500 + " = 1",
        "[" + ".".join("a" * 5000) + "]",
        "\ufeff" * 3,
        "\0" * 1000,
        "portals = [" + '"10.0.0.1", ' * 4000 + "]",
        'portals = ["10.0.0.1:' + "1" * 5000 + '"]',
        'portals = ["10.0.0.0/' + "1" * 5000 + '"]',
        'id_hex = "' + "0" * 60000 + '"',
    ],
    ids=lambda text: text[:18],
)
def test_a_huge_value_is_a_config_error_and_a_short_one(parse: Callable[[str], object], text: str) -> None:
    err = refusal(parse, text)
    for problem in err.problems if err else ():
        assert len(problem.message) < 20_000


def leaves(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    elif isinstance(value, str):
        yield value


def stands_only_where_keys_stand(text: str) -> bool:
    """Whether TOML takes the canary for a key's value; a text that is no TOML may hold it anywhere."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError):
        return True
    fields = ("key", "key_hex", "key_base64", "key_file", "key_credential")
    return not any(
        CANARY in leaf
        for name, value in data.items()
        for leaf in (name, *(() if name in fields else leaves(value)))
    )


@st.composite
def spoilt_key_files(draw: st.DrawFn) -> str:
    field = draw(st.sampled_from(("key", "key_hex", "key_base64", "key", "key")))
    quote = draw(st.sampled_from(('"', "'", '"""', "'''")))
    owner = draw(
        st.sampled_from(
            ('id_type = "ID_FQDN"\nid = "db1"\n', "group = true\n", 'id = "x"\ngroup = true\n', "")
        )
    )
    text = f"# a comment\n{owner}{field} = {quote}{CANARY}{quote}\nsecurity_flags = 0x33\n"
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 2))
        text = text[:at] + draw(st.sampled_from((*TOKENS, ""))) + text[at + cut :]
    return text


@examples(150)
@given(spoilt_key_files())
def test_no_error_about_a_spoilt_key_file_quotes_the_key(text: str) -> None:
    assume(stands_only_where_keys_stand(text))
    try:
        draft = parse_key_file(text, "psk.d/x.toml", "x")
    except ConfigError as err:
        assert CANARY not in told_by(err)
        return
    if isinstance(draft.source, Secret):
        assert CANARY not in repr(draft) + str(draft) + f"{draft}"


@examples(40)
@given(noise, noise)
def test_a_key_pasted_without_quotes_is_never_quoted_back(before: str, after: str) -> None:
    text = f"{before}\nkey = {CANARY}{after}\n"
    assume(stands_only_where_keys_stand(text))
    for parse in PARSERS.values():
        err = refusal(parse, text)
        assert err is None or CANARY not in told_by(err)


# -- what is valid comes back as it was


def toml_text(text: str) -> str:
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{escaped}"'


labels = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9:._-]{0,40}", fullmatch=True)
identities = (
    HOST_ADDRESSES.map(IkeId.address)
    | named(labels)
    | named(st.tuples(labels, labels).map("@".join), IdType.ID_USER_FQDN)
)
key_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)
flag_values = st.integers(0, KNOWN_BITS).filter(lambda v: v & 0x0C != 0x0C and v & 0x60 != 0x60)
hosts4, hosts6 = (st.ip_addresses(network=network) for network in ("10.0.0.0/8", "2001:db8::/32"))
portal_texts = st.one_of(
    hosts4.map(str),
    hosts6.map(lambda a: f"[{a}]:3260"),
    st.tuples(hosts4, st.integers(8, 31)).map(
        lambda t: str(ipaddress.ip_network(f"{t[0]}/{t[1]}", strict=False))
    ),
    st.tuples(st.sampled_from(["san", "san-a.example.com"]), st.integers(1, 65535)).map(
        lambda t: f"{t[0]}:{t[1]}"
    ),
)


def spell_flags(value: int, as_names: bool, long: bool) -> str:
    if not as_names:
        return f"0x{value:02X}"
    prefix = "ISCSI_SECURITY_FLAG_" if long else ""
    return "[" + ", ".join(f'"{prefix}{name}"' for name in flag_names(SecurityFlags(value))) + "]"


@examples(50)
@given(
    id=st.none() | identities,
    by_hex=st.booleans(),
    as_number=st.booleans(),
    data=key_texts,
    form=st.sampled_from(["key", "key_hex", "key_base64", "key_file", "key_credential"]),
    flags=st.none() | flag_values,
    as_names=st.booleans(),
    long=st.booleans(),
    portals=st.lists(portal_texts, max_size=3),
)
def test_a_valid_key_file_comes_back_as_its_values(
    id: IkeId | None, by_hex: bool, as_number: bool, data: str, form: str,
    flags: int | None, as_names: bool, long: bool, portals: list[str],
) -> None:  # fmt: skip
    raw = data.encode()
    value = {
        "key": toml_text(data),
        "key_hex": f'"{raw.hex()}"',
        "key_base64": f'"{base64.b64encode(raw).decode()}"',
        "key_file": '"db1.key"',
        "key_credential": '"db1"',
    }[form]
    lines = [f"{form} = {value}"]
    if id is None:
        lines.append("group = true")
    else:
        lines.append(f"id_type = {id.type.value}" if as_number else f'id_type = "{id.type.name}"')
        packed = ipaddress.ip_address(id.text).packed if id.is_address else id.text.encode()
        lines.append(f'id_hex = "{packed.hex()}"' if by_hex else f'id = "{id.text}"')
    if flags is not None:
        lines.append(f"security_flags = {spell_flags(flags, as_names, long)}")
    if portals:
        lines.append("portals = [" + ", ".join(f'"{p}"' for p in portals) + "]")

    draft = parse_key_file("\n".join(lines), "psk.d/db1.toml", "db1")

    assert draft.id == id
    assert draft.portals == tuple(parse_portal_pattern(p) for p in portals)
    assert draft.choice == (None if flags is None else interpret(SecurityFlags(flags)))
    match draft.source:
        case Secret() as secret:
            assert secret.reveal() == raw
        case KeyFileRef(path=path):
            assert (form, path) == ("key_file", "db1.key")
        case CredentialRef(name=name):
            assert (form, name) == ("key_credential", "db1")
    key = draft.with_secret(Secret(raw))
    assert isinstance(key, GroupKey if id is None else PerIdKey)
    assert (key.name, key.path) == ("db1", "psk.d/db1.toml")


@examples(40)
@given(
    portals=st.lists(portal_texts, min_size=1, max_size=4),
    role=st.none() | st.sampled_from(Role),
    flags=st.none() | flag_values,
    psk=st.none() | labels,
    target_id=st.none() | identities,
    outer=st.none() | st.sampled_from(["203.0.113.1", "2001:db8::1"]),
    rekey=st.none() | st.integers(60, 604800),
)
def test_a_valid_portal_file_comes_back_as_its_values(
    portals: list[str], role: Role | None, flags: int | None, psk: str | None, target_id: IkeId | None,
    outer: str | None, rekey: int | None,
) -> None:  # fmt: skip
    choice = None if flags is None else interpret(SecurityFlags(flags))
    assume(not (outer and choice and choice.esp is EspMode.TRANSPORT))
    lines = ["portals = [" + ", ".join(f'"{p}"' for p in portals) + "]"]
    lines += [f'role = "{role}"'] if role else []
    lines += [f"security_flags = {flags}"] if flags is not None else []
    lines += [f'psk = "{psk}"'] if psk else []
    lines += (
        [f'target_id = "{target_id.text}"', f'target_id_type = "{target_id.type.name}"'] if target_id else []
    )
    lines += [f'tunnel_outer_remote = "{outer}"'] if outer else []
    lines += [f"esp_rekey_time = {rekey}"] if rekey else []

    policy = parse_portal_file("\n".join(lines), "portal.d/a.toml", "a")

    assert policy.patterns == tuple(parse_portal_pattern(p) for p in portals)
    assert policy.role is (role or Role.INITIATOR)
    assert policy.choice == choice
    assert policy.psk == (psk.removesuffix(".toml") if psk else None)
    assert policy.target_id == target_id
    assert str(policy.target_id) == str(target_id)  # as written, which == ignores
    assert policy.tunnel_outer_remote == (ipaddress.ip_address(outer) if outer else None)
    assert policy.tuning.esp_rekey_time == rekey


@examples(60)
@given(st.text(max_size=40) | portal_texts | st.from_regex(r"\[?[0-9a-fA-F:.%/]{1,30}\]?(:[0-9]{1,6})?"))
def test_a_portal_pattern_is_refused_or_its_text_parses_to_itself(text: str) -> None:
    try:
        pattern = parse_portal_pattern(text)
    except ValueError:
        return
    assert parse_portal_pattern(str(pattern)) == pattern
    assert "%" not in str(pattern)


@examples(60)
@given(st.sampled_from(IdType), st.text(max_size=30) | labels | st.ip_addresses().map(str), st.booleans())
def test_an_identity_is_refused_or_one_of_its_type(type: IdType, text: str, raw: bool) -> None:
    try:
        id: Any = IkeId.from_bytes(type, text.encode()) if raw else IkeId.parse(type, text)
    except ValueError:
        return
    assert id.type is type
    assert IkeId.parse(type, id.text).text == id.text
    assert not set(id.text) & set(" *?\"'\\\0\n")
    assert 0 < len(id.text) <= 255
