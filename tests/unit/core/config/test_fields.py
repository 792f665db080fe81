"""Fields that several kinds of file share: identities, peers, numbers and proposals of strongSwan."""

from __future__ import annotations

from typing import Any

import pytest

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.policy import PortalPolicy, Tuning
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.config.fields import guess_id
from iscsi_ipsec.core.config.key_file import parse_key_file
from iscsi_ipsec.core.config.portal_file import parse_portal_file
from iscsi_ipsec.core.config.settings import parse_settings
from tests.support.values import identity

PORTALS = 'portals = ["10.0.0.20"]\n'


def parse(text: str) -> PortalPolicy:
    return parse_portal_file(text, "portal.d/san.toml", "san")


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return caught.value.problems


# -- identities


@pytest.mark.parametrize("text", ["10.0.0.9", "fd00::9", "san.example.com", "a@b"])
def test_parse_identity_guesses_the_type_where_it_is_plain(text: str) -> None:
    assert parse(PORTALS + f'target_id = "{text}"\n').target_id == identity(text)


def test_parse_identity_takes_the_type_that_is_given() -> None:
    target_id = parse(PORTALS + 'target_id = "10.0.0.9"\ntarget_id_type = "ID_FQDN"\n').target_id
    assert target_id is not None
    assert target_id.type.name == "ID_FQDN"


@pytest.mark.parametrize(
    "line", ['target_id = "fd00::1%x . 3260 }"', 'role = "target"\ninitiators = ["fd00::1%x . 3260 }"]', 'role = "target"\ninitiators = ["fd00::%x/64"]']
)  # fmt: skip
def test_parse_identity_and_peers_refuse_a_zone(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_portal_file(f'portals = ["10.0.0.1"]\n{line}\n', "x.toml", "x")
    (problem,) = caught.value.problems
    assert problem.code == "bad-id"
    assert "zone" in problem.message


NOT_PLAIN = (
    "10.20.1.256", "10.20.1", "1.2.3", "10", "0x0a000001", "010.0.0.5", "10.0.0.5:3260", "db1.lab:3260", "[fd00::5]",
    "[fd00::5]:3260", "fd00::5::1", "fd00:1:2:3", "host.123", "admin@10.20.1.256", "../../etc/passwd", "/etc/passwd",
    "./db1", "db1/", "10.0.0.5/24", "fd00::/64", "10.0.0.0/255.0.0.0", "a;b", "$(id)", "~db1", "-db1", "fqdn:db1",
    "@db1", "db1.lab.", "*.lab", "%any", "0.0.0.0", "::", "255.255.255.255", "224.0.0.1", "::ffff:10.0.0.5", "",  # noqa: S104  # what must be refused
)  # fmt: skip


@pytest.mark.parametrize("text", NOT_PLAIN)
def test_guess_id_refuses_what_is_not_plainly_an_address_or_a_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        guess_id(text)
    assert {p.code for p in problems(PORTALS + f'target_id = "{text}"\n')} == {"bad-id"}


@pytest.mark.parametrize(
    "text", ["iqn.2026-01.com.example:1", "eui.0200456744256780", "db-1", "1db", "a.b_c", "x+y@z.lab", "db1"]
)
def test_guess_id_takes_plain_names(text: str) -> None:
    assert (guess_id(text).text, guess_id(text).is_address) == (text, False)


@pytest.mark.parametrize(
    "text", ["0.0.0.0/0", "::/0", "0.0.0.0/1", "224.0.0.0/4", "ff00::/8", "::ffff:10.0.0.0/120", "255.255.255.255/32"]
)  # fmt: skip
def test_parse_peers_refuses_networks_of_anybody_or_of_no_host(text: str) -> None:
    (problem,) = problems(PORTALS + f'role = "target"\ninitiators = ["{text}"]\n')
    assert (problem.code, problem.line) == ("bad-id", 3)


def test_parse_peers_takes_two_spellings_of_one_identity_once() -> None:
    policy = parse(PORTALS + 'role = "target"\ninitiators = ["DB1", "db1", "10.0.0.0/24", "10.0.0.0/24"]\n')
    assert [str(peer) for peer in policy.initiators] == ["DB1", "10.0.0.0/24"]


@pytest.mark.parametrize(("text", "count"), [("10.0.0.9", 1), ("10.0.0.256", 1), ("fd00::9", 1), ("db9", 0)])
def test_parse_identity_warns_of_a_name_that_looks_like_an_address(text: str, count: int) -> None:
    warnings: list[Problem] = []
    named = f'target_id = "{text}"\ntarget_id_type = "ID_FQDN"\n'
    assert str(parse_portal_file(PORTALS + named, "x", "x", warnings).target_id) == text
    assert [(p.code, p.line, p.severity) for p in warnings] == [
        ("address-like-id", 2, Severity.WARNING)
    ] * count


# -- flags


def test_parse_choice_takes_one_text_and_parse_id_type_reports_an_unknown_one_once() -> None:
    text = 'portals = ["10.0.0.1"]\nsecurity_flags = "VALID"\n'
    assert parse_portal_file(text, "x.toml", "x").choice is not None
    with pytest.raises(ConfigError) as caught:
        parse_portal_file(text + 'target_id = "san"\ntarget_id_type = "ID_FQDNN"\n', "x.toml", "x")
    assert [problem.code for problem in caught.value.problems] == ["clear-allowed", "bad-id-type"]


# -- settings of strongSwan


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [
        ("ike_rekey_time", 60, 604800),
        ("esp_rekey_time", 60, 604800),
        ("dpd_delay", 0, 3600),
        ("dpd_timeout", 1, 3600),
        ("replay_window", 0, 4096),
    ],
)
def test_parse_tuning_takes_a_number_from_its_least_to_its_most(key: str, least: int, most: int) -> None:
    for number in (least, most):
        only: dict[str, Any] = {key: number}
        assert parse(f"{PORTALS}{key} = {number}\n").tuning == Tuning(**only)
    for number in (least - 1, most + 1):
        (problem,) = problems(f"{PORTALS}{key} = {number}\n")
        assert str(problem) == f"portal.d/san.toml:2: {key} must be {least} to {most}"


def test_parse_tuning_takes_a_proposal_of_512_characters_and_quotes_80_of_a_longer_one() -> None:
    longest = "".join(f"{n:04}" for n in range(128))
    assert parse(f'{PORTALS}ike_proposals = ["{longest}"]\n').tuning.ike_proposals == (longest,)
    (problem,) = problems(f'{PORTALS}ike_proposals = ["{longest}x"]\n')
    assert problem.message.startswith(f'"{longest[:80]}" is not a strongSwan proposal')


# -- flags that do less than they seem to


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        (
            "0x22",
            "VALID is unset, so the flags IKE_IPSEC_ENABLED TRANSPORT_MODE_PREFERRED are not in force",
            "write security_flags = 0x23, or leave the line out",
        ),
        (
            '["MAIN_MODE_ENABLED", "AGGRESSIVE_MODE_ENABLED"]',
            "VALID is unset, so the flags MAIN_MODE_ENABLED AGGRESSIVE_MODE_ENABLED are not in force",
            "leave the line out; with VALID they would be refused: MAIN_MODE_ENABLED and AGGRESSIVE_MODE_ENABLED exclude each other (RFC 4174, 2.4)",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["portal", "psk", "settings"])
def test_parse_choice_warns_about_flags_without_valid(kind: str, flags: str, message: str, hint: str) -> None:
    (warning,) = flag_warnings(kind, flags)
    assert warning == Problem(
        code="flags-not-valid", message=message, hint=hint, file="f.toml", line=warning.line,
        severity=Severity.WARNING,
    )  # fmt: skip
    assert warning.line


@pytest.mark.parametrize("kind", ["portal", "psk", "settings"])
@pytest.mark.parametrize(("flags", "value"), [("0x01", "0x03"), ('["VALID", "PFS_ENABLED"]', "0x13")])
def test_parse_choice_warns_about_flags_that_open_and_names_the_value_to_write(
    kind: str, flags: str, value: str
) -> None:
    (warning,) = flag_warnings(kind, flags)
    assert (warning.code, warning.severity) == ("clear-allowed", Severity.WARNING)
    assert warning.hint == f"to protect it, write security_flags = {value}"


@pytest.mark.parametrize("kind", ["portal", "psk", "settings"])
@pytest.mark.parametrize("flags", ["0", "[]", "0x33", '["VALID", "IKE_IPSEC_ENABLED"]'])
def test_parse_choice_warns_about_no_other_flags(kind: str, flags: str) -> None:
    assert flag_warnings(kind, flags) == []


def flag_warnings(kind: str, flags: str) -> list[Problem]:
    warnings: list[Problem] = []
    line = f"security_flags = {flags}\n"
    if kind == "portal":
        parse_portal_file(PORTALS + line, "f.toml", "f", warnings)
    elif kind == "psk":
        parse_key_file(f'group = true\nkey = "a good key of the group"\n{line}', "f.toml", "f", warnings)
    else:
        parse_settings(f"[defaults]\n{line}", "f.toml", warnings)
    return warnings
