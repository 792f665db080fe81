"""Portal files: what they say, and each mistake at its line."""

from __future__ import annotations

import ipaddress

import pytest

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.policy import EspMode, PortalPolicy, Role, Start, Tuning
from iscsi_ipsec.base.portal import NamedPortal, PortalRange
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.config.portal_file import parse_portal_file
from tests.support.values import address, choice, identity

PORTALS = 'portals = ["10.0.0.20"]\n'


def parse(text: str) -> PortalPolicy:
    return parse_portal_file(text, "portal.d/san.toml", "san")


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return caught.value.problems


def test_parse_portal_file_reads_everything_that_a_policy_may_say() -> None:
    assert parse(
        """\
portals = ["10.0.0.20", "10.0.0.0/24", "[fd00::20]:3261", "San-A.example.com:3262"]
security_flags = ["VALID", "IKE_IPSEC_ENABLED", "TUNNEL_MODE_PREFERRED"]
psk = "db1"
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
    ) == PortalPolicy(
        name="san",
        path="portal.d/san.toml",
        patterns=(
            PortalRange(ipaddress.ip_network("10.0.0.20")),
            PortalRange(ipaddress.ip_network("10.0.0.0/24")),
            PortalRange(ipaddress.ip_network("fd00::20"), 3261),
            NamedPortal("san-a.example.com", 3262),
        ),
        role=Role.INITIATOR,
        choice=choice(esp=EspMode.TUNNEL, pfs=False),
        psk="db1",
        target_id=identity("san-a.example.com"),
        tunnel_outer_remote=address("203.0.113.1"),
        tunnel_outer_local=address("198.51.100.1"),
        preset="ontap",
        tuning=Tuning(
            ike_proposals=("aes256gcm16-prfsha384-ecp384",),
            esp_proposals=("aes256gcm16",),
            ike_rekey_time=3600,
            esp_rekey_time=1800,
            dpd_delay=0,
            dpd_timeout=9,
            replay_window=0,
            start=Start.START,
        ),
    )


def test_parse_portal_file_reads_the_role_target() -> None:
    assert parse(PORTALS + 'role = "target"\n').role is Role.TARGET


@pytest.mark.parametrize(
    ("text", "line", "code", "reported"),
    [
        ("", 0, "no-portals", 'portals is missing (say which portals: portals = ["10.0.0.20"])'),
        ("[portals]\n", 1, "wrong-type", "portals must be a list, not a table"),
        ("portals = []\n", 1, "empty-list", "portals is an empty list (name at least one portal, or leave the line out)"),
        ('portals = ["10.0.0.20", 5]\n', 1, "wrong-type", "portals must be a list of texts, but holds a number"),
        ('portals = ["10.0.0.300"]\n', 1, "bad-portal", "'10.0.0.300' is neither an address, a network nor a host name (10.0.0.20, 10.0.0.0/24, [fd00::20]:3260, san.example.com)"),
        ('portals = ["san_a!"]\n', 1, "bad-portal", "'san_a!' is neither an address, a network nor a host name (10.0.0.20, 10.0.0.0/24, [fd00::20]:3260, san.example.com)"),
        ('portals = ["[fd00::20"]\n', 1, "bad-portal", "'[fd00::20' is not a portal (write an IPv6 one as [fd00::20]:3260)"),
        ('portals = ["10.0.0.20:99999"]\n', 1, "bad-portal", "'10.0.0.20:99999': the port must be 1 to 65535"),
        (PORTALS + 'role = "server"\n', 2, "bad-role", 'role must be "initiator" or "target"'),
        (PORTALS + "security_flags = 0x0D\n", 2, "bad-flags", "MAIN_MODE_ENABLED and AGGRESSIVE_MODE_ENABLED exclude each other (RFC 4174, 2.4) (iscsi-ipsec flags NAME... explains them)"),
        (PORTALS + 'psk = "psk.d/db1"\n', 2, "bad-psk", "psk is the name of a file in psk.d, without folder"),
        (PORTALS + 'psk = ""\n', 2, "bad-psk", "psk is the name of a file in psk.d, without folder"),
        (PORTALS + 'psk = "db1\\u0000"\n', 2, "bad-psk", "psk is the name of a file in psk.d, without folder"),
        (PORTALS + "description = 1\n", 2, "wrong-type", "description must be a text in quotes, not a number"),
        (PORTALS + 'preset = "ontop"\n', 2, "bad-preset", 'unknown preset "ontop" (did you mean "ontap"?)'),
        (PORTALS + 'preset = "zzzzz"\n', 2, "bad-preset", 'unknown preset "zzzzz" (known: rfc7146, rfc3723, ontap, windows, equallogic, mds)'),
        (PORTALS + 'target_id = "*"\n', 2, "bad-id", 'target_id: the id holds a wildcard, which would match other identities too: write the name of one host (a name that looks odd needs its type: target_id_type = "ID_FQDN")'),
        (PORTALS + 'target_id_type = "ID_FQDN"\n', 2, "no-id", "target_id_type is set but target_id is not"),
        (PORTALS + 'target_id = "x"\ntarget_id_type = "ID_IPV4_ADDR"\n', 2, "bad-id", "target_id does not fit ID_IPV4_ADDR: 'x' is not an IPv4 address"),
        (PORTALS + 'target_id = "x"\ntarget_id_type = "id_fqdn"\n', 3, "bad-id-type", 'unknown target_id_type "id_fqdn" (did you mean "ID_FQDN"?)'),
        (PORTALS + 'target_id = "x"\ntarget_id_type = "?"\n', 3, "bad-id-type", 'unknown target_id_type "?" (one of ID_IPV4_ADDR, ID_FQDN, ID_USER_FQDN, ID_IPV6_ADDR)'),
        (PORTALS + 'target_id = "x"\ntarget_id_type = 4\n', 3, "bad-id-type", "target_id_type must be one of ID_IPV4_ADDR (1), ID_FQDN (2), ID_USER_FQDN (3), ID_IPV6_ADDR (5)"),
        (PORTALS + 'tunnel_outer_remote = "gateway"\n', 2, "bad-address", "tunnel_outer_remote is not an IP address"),
        (PORTALS + 'tunnel_outer_remote = "0.0.0.0"\n', 2, "bad-address", "tunnel_outer_remote is not the unicast address of one host"),
        (PORTALS + 'tunnel_outer_local = "ff02::1"\n', 2, "bad-address", "tunnel_outer_local is not the unicast address of one host"),
        (PORTALS + 'tunnel_outer_local = "fe80::1%e"\n', 2, "bad-address", "tunnel_outer_local is not the unicast address of one host"),
        (PORTALS + 'tunnel_outer_remote = "192.0.2.1"\ntunnel_outer_local = "::1"\n', 3, "mixed-versions", "the two tunnel addresses are not of one IP version"),
        (PORTALS + 'tunnel_outer_remote = "192.0.2.1"\nsecurity_flags = 0x23\n', 2, "outer-without-tunnel", "an outer address is for tunnel mode, but the flags ask for transport mode (use TUNNEL_MODE_PREFERRED instead of TRANSPORT_MODE_PREFERRED)"),
        (PORTALS + 'tunnel_outer_local = "192.0.2.1"\nsecurity_flags = 0x23\n', 2, "outer-without-tunnel", "an outer address is for tunnel mode, but the flags ask for transport mode (use TUNNEL_MODE_PREFERRED instead of TRANSPORT_MODE_PREFERRED)"),
        (PORTALS + 'start = "now"\n', 2, "bad-start", 'start must be "trap" or "start"'),
        (PORTALS + 'ike_proposals = ["AES!"]\n', 2, "bad-proposal", '"AES!" is not a strongSwan proposal such as aes256gcm16-prfsha384-ecp384'),
        (PORTALS + "esp_proposals = []\n", 2, "empty-list", "esp_proposals is an empty list"),
        (PORTALS + 'ike_rekey_time = "4h"\n', 2, "wrong-type", "ike_rekey_time must be a number, not a text in quotes"),
        (PORTALS + 'portal = "x"\n', 2, "unknown-key", 'unknown key "portal" (did you mean "portals"?)'),
        (PORTALS + 'initiators = ["db1"]\n', 2, "initiators-without-target", 'initiators is for role = "target" only'),
        (PORTALS + 'role = "target"\ninitiators = ["*"]\n', 3, "bad-id", "initiators: the id holds a wildcard, which would match other identities too: write the name of one host"),
        (PORTALS + 'role = "target"\ninitiators = ["10.0.0.1/24"]\n', 3, "bad-id", "initiators: 10.0.0.1/24 has host bits set"),
        (PORTALS + 'role = "target"\ninitiators = []\n', 3, "empty-list", "initiators is an empty list (name at least one, or leave the line out)"),
    ],
)  # fmt: skip
def test_parse_portal_file_reports_a_mistake_at_its_line(
    text: str, line: int, code: str, reported: str
) -> None:
    (problem,) = problems(text)
    where = f"portal.d/san.toml:{line}" if line else "portal.d/san.toml"
    assert (problem.code, str(problem)) == (code, f"{where}: {reported}")


def test_parse_portal_file_reports_all_mistakes_at_once() -> None:
    reported = problems('portals = ["x y", "10.0.0.1/8"]\nrole = "x"\npsk = "a/b"\nstart = 1\n')
    assert [p.line for p in reported] == [1, 1, 2, 3, 4]


def test_parse_portal_file_refuses_a_key_in_capitals() -> None:
    assert [(p.code, p.line) for p in problems("\n" + PORTALS.upper())] == [
        ("unknown-key", 2),
        ("no-portals", 0),
    ]
