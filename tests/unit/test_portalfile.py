"""Portal files: what they say, and each mistake at its line."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.model import (
    EspMode,
    PortalPolicy,
    Problem,
    Role,
    Start,
    parse_portal,
    parse_portal_pattern,
)
from iscsi_ipsec.core.portalfile import parse_portal_file
from tests.unit.making import address, identity

PORTALS = 'portals = ["10.0.0.20"]\n'


def parse(text: str) -> PortalPolicy:
    return parse_portal_file(text, "portal.d/san.toml", "san")


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return caught.value.problems


def test_everything_that_may_stand_in_a_policy_is_read() -> None:
    policy = parse(
        """\
portals = ["10.0.0.20", "10.0.0.0/24", "[fd00::20]:3261", "San-A.example.com:3262"]
security_flags = ["VALID", "IKE_IPSEC_ENABLED", "TUNNEL_MODE_PREFERRED"]
psk = "db1.toml"
target_id = "san-a.example.com"
tunnel_outer_remote = "203.0.113.1"
tunnel_outer_local = "198.51.100.1"
preset = "ontap"
description = "the first"
ike_proposals = ["aes256gcm16-prfsha384-ecp384"]
esp_proposals = ["aes256gcm16"]
ike_rekey_time = 3600
esp_rekey_time = 1800
dpd_delay = 0
dpd_timeout = 9
replay_window = 0
start = "start"
"""
    )
    assert [str(p) for p in policy.patterns] == [
        "10.0.0.20:3260", "10.0.0.0/24:3260", "[fd00::20]:3261", "san-a.example.com:3262",
    ]  # fmt: skip
    assert policy.role is Role.INITIATOR
    assert policy.choice is not None
    assert policy.choice.esp is EspMode.TUNNEL
    assert (policy.psk, policy.preset, policy.name) == ("db1", "ontap", "san")
    assert policy.target_id == identity("san-a.example.com")
    assert (policy.tunnel_outer_remote, policy.tunnel_outer_local) == (
        address("203.0.113.1"),
        address("198.51.100.1"),
    )
    assert (policy.tuning.dpd_delay, policy.tuning.replay_window, policy.tuning.start) == (0, 0, Start.START)


def test_a_served_portal_has_the_role_target() -> None:
    assert parse(PORTALS + 'role = "target"\n').role is Role.TARGET


@pytest.mark.parametrize("text", ["10.0.0.9", "fd00::9", "san.example.com", "a@b"])
def test_a_target_ids_type_is_guessed_where_it_is_plain(text: str) -> None:
    assert parse(PORTALS + f'target_id = "{text}"\n').target_id == identity(text)


def test_a_target_ids_type_may_be_said() -> None:
    target_id = parse(PORTALS + 'target_id = "10.0.0.9"\ntarget_id_type = "ID_FQDN"\n').target_id
    assert target_id is not None
    assert target_id.type.name == "ID_FQDN"


@pytest.mark.parametrize(
    ("text", "line", "code", "words"),
    [
        ("", 0, "no-portals", "portals is missing"),
        ("portals = []\n", 1, "empty-list", "empty list"),
        ('portals = ["10.0.0.20", 5]\n', 1, "wrong-type", "a list of texts"),
        ('portals = ["10.0.0.300"]\n', 1, "bad-portal", "10.0.0.300"),
        ('portals = ["san_a!"]\n', 1, "bad-portal", "host name"),
        ('portals = ["[fd00::20"]\n', 1, "bad-portal", "[fd00::20]:3260"),
        ('portals = ["10.0.0.20:99999"]\n', 1, "bad-portal", "1 to 65535"),
        (PORTALS + 'role = "server"\n', 2, "bad-role", "initiator"),
        (PORTALS + "security_flags = 0x0D\n", 2, "bad-flags", "exclude"),
        (PORTALS + 'psk = "psk.d/db1"\n', 2, "bad-psk", "without folder"),
        (PORTALS + 'psk = ""\n', 2, "bad-psk", "name of a file"),
        (PORTALS + 'preset = "ontop"\n', 2, "bad-preset", 'did you mean "ontap"?'),
        (PORTALS + 'preset = "zzzzz"\n', 2, "bad-preset", "rfc7146"),
        (PORTALS + 'target_id = "*"\n', 2, "bad-id", "wildcard"),
        (PORTALS + 'target_id_type = "ID_FQDN"\n', 2, "no-id", "target_id is not"),
        (PORTALS + 'target_id = "x"\ntarget_id_type = "ID_IPV4_ADDR"\n', 2, "bad-id", "IPv4"),
        (PORTALS + 'tunnel_outer_remote = "gateway"\n', 2, "bad-address", "not an IP address"),
        (PORTALS + 'tunnel_outer_remote = "0.0.0.0"\n', 2, "bad-address", "unicast"),
        (PORTALS + 'tunnel_outer_local = "ff02::1"\n', 2, "bad-address", "unicast"),
        (PORTALS + 'tunnel_outer_local = "fe80::1%e"\n', 2, "bad-address", "unicast"),
        (PORTALS + 'tunnel_outer_remote = "192.0.2.1"\ntunnel_outer_local = "::1"\n', 3, "mixed-versions", "IP version"),
        (PORTALS + 'tunnel_outer_remote = "192.0.2.1"\nsecurity_flags = 0x23\n', 2, "outer-without-tunnel", "TUNNEL_MODE_PREFERRED"),
        (PORTALS + 'start = "now"\n', 2, "bad-start", "trap"),
        (PORTALS + 'ike_proposals = ["AES!"]\n', 2, "bad-proposal", "aes256gcm16-prfsha384-ecp384"),
        (PORTALS + "esp_proposals = []\n", 2, "empty-list", "esp_proposals"),
        (PORTALS + "ike_rekey_time = 59\n", 2, "out-of-range", "60 to"),
        (PORTALS + 'ike_rekey_time = "4h"\n', 2, "wrong-type", "a number"),
        (PORTALS + "dpd_delay = -1\n", 2, "out-of-range", "0 to"),
        (PORTALS + "replay_window = 5000\n", 2, "out-of-range", "4096"),
        (PORTALS + 'portal = "x"\n', 2, "unknown-key", 'did you mean "portals"?'),
        (PORTALS + 'initiators = ["db1"]\n', 2, "initiators-without-target", "target"),
        (PORTALS + 'role = "target"\ninitiators = ["*"]\n', 3, "bad-id", "wildcard"),
        (PORTALS + 'role = "target"\ninitiators = ["10.0.0.1/24"]\n', 3, "bad-id", "host bits"),
        (PORTALS + 'role = "target"\ninitiators = []\n', 3, "empty-list", "initiators"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_at_its_line(text: str, line: int, code: str, words: str) -> None:
    (problem,) = problems(text)
    assert (problem.line, problem.code, problem.file) == (line, code, "portal.d/san.toml")
    assert words in f"{problem.message} {problem.hint}"


def test_all_mistakes_are_told_at_once() -> None:
    told = problems('portals = ["x y", "10.0.0.1/8"]\nrole = "x"\npsk = "a/b"\nstart = 1\n')
    assert [p.line for p in told] == [1, 1, 2, 3, 4]


# -- patterns


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("10.0.0.20", "10.0.0.20:3260"),
        ("10.0.0.20/32", "10.0.0.20:3260"),
        (" 10.0.0.20:1 ", "10.0.0.20:1"),
        ("fd00::20", "[fd00::20]:3260"),
        ("FD00:0::20", "[fd00::20]:3260"),
        ("[fd00::20]", "[fd00::20]:3260"),
        ("fd00::/64", "[fd00::/64]:3260"),
        ("[fd00::/64]:1", "[fd00::/64]:1"),
        ("0.0.0.0/0", "0.0.0.0/0:3260"),
        ("san.example.com.", "san.example.com:3260"),
        ("_iscsi.san", "_iscsi.san:3260"),
    ],
)
def test_a_portal_pattern_is_read_in_every_form(text: str, printed: str) -> None:
    assert str(parse_portal_pattern(text)) == printed


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "10.0.0.20:", "10.0.0.20:x", "10.0.0.20:١", "[10.0.0.20", "[fd00::20]3260", "[fd00::20]/64", "10.0.0", "1",
        "10.0.0.0/33", "-san", "a..b", "a" * 64, "san/24", "san example", "10.0.0.20:3260:1x", "0.0.0.0", "::", "224.0.0.1",  # noqa: S104  # what must be refused
    ],
)  # fmt: skip
def test_what_is_no_portal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_portal_pattern(text)


def test_one_portal_is_asked_for_by_address() -> None:
    assert str(parse_portal("fd00::20")) == "[fd00::20]:3260"
    for text in ("10.0.0.0/24", "san.example.com"):
        with pytest.raises(ValueError, match="not the address of one portal"):
            parse_portal(text)
