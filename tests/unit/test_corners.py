"""What no other test here comes by: corners of the core, each with its own small promise."""

from __future__ import annotations

import ipaddress
import json
import re

import pytest

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.identity import IkeId
from iscsi_ipsec.base.networks import subtract
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.key_file import (
    PLACEHOLDER,
    empty_key_problem,
    parse_key_file,
    placeholder_problem,
)
from iscsi_ipsec.core.config.portal_file import parse_portal_file
from iscsi_ipsec.core.config.writer import make_portal_text, shown_key_text
from iscsi_ipsec.core.decide.connection_settings import connection_name
from iscsi_ipsec.core.guard.ruleset import HOLDING, held_portals, parse_elements
from iscsi_ipsec.core.ike.ike_failures import NO_PROPOSAL
from iscsi_ipsec.core.ike.sa_lifecycle import CARRYING, TerminateIke
from iscsi_ipsec.core.windows.importer import parse
from iscsi_ipsec.core.windows.values import Rules
from tests.support.values import child_sa, connection_of, ike_sa, portal
from tests.unit.core.ike.test_sa_lifecycle import CHILD, OLD_SETTINGS, act, targets
from tests.unit.core.report.test_portal_status import CONN, WANTED, good, row


def test_the_samples_key_and_an_empty_one_are_told_by_their_line() -> None:
    draft = parse_key_file('group = true\n\nkey = "x"\n', "x.toml", "x")
    sample = placeholder_problem(draft, Secret(PLACEHOLDER + b"-to-something"))
    assert sample is not None
    assert (sample.code, sample.line) == ("placeholder-key", 3)
    assert placeholder_problem(draft, Secret(b"another")) is None
    assert (empty_key_problem(draft).code, empty_key_problem(draft).line) == ("empty-key", 3)


def test_where_the_key_lies_in_a_file_beside_it_is_shown_which() -> None:
    draft = parse_key_file('group = true\nkey_file = "a.key"\n', "x.toml", "x")
    assert 'key_file = "a.key"' in shown_key_text(draft).splitlines()


def test_connections_are_named_after_portal_interface_and_peer() -> None:
    assert connection_name(portal("10.0.0.20")) == "iscsi-ipsec-10.0.0.20-3260"


def test_a_policy_with_initiators_is_written_as_it_is_read() -> None:
    text = 'portals = ["10.0.0.1"]\nrole = "target"\ninitiators = ["10.0.0.0/24", "db1.lab", "a@b.lab"]\n'
    policy = parse_portal_file(text, "portal.d/x.toml", "x")
    assert policy.role is Role.TARGET
    assert parse_portal_file(make_portal_text(policy), "portal.d/x.toml", "x") == policy


def test_flags_may_be_one_text_and_an_unknown_type_of_id_is_one_problem() -> None:
    text = 'portals = ["10.0.0.1"]\nsecurity_flags = "VALID"\n'
    assert parse_portal_file(text, "x.toml", "x").choice is not None
    with pytest.raises(ConfigError) as caught:
        parse_portal_file(text + 'target_id = "san"\ntarget_id_type = "ID_FQDNN"\n', "x.toml", "x")
    assert [problem.code for problem in caught.value.problems] == ["bad-id-type"]


@pytest.mark.parametrize(
    ("whole", "holes", "left"),
    [
        ("10.0.0.0/24", ["10.0.0.0/16"], []),
        ("fd00::/64", ["fd00::/16"], []),
        ("10.0.0.0/31", ["10.0.0.1/32"], ["10.0.0.0/32"]),
        ("fd00::/127", ["fd00::1/128"], ["fd00::/128"]),
        ("10.0.0.0/30", ["10.0.0.1/32"], ["10.0.0.0/32", "10.0.0.2/31"]),
        ("fd00::/126", ["fd00::1/128"], ["fd00::/128", "fd00::2/127"]),
        ("10.0.0.0/24", ["192.0.2.0/24"], ["10.0.0.0/24"]),
        ("fd00::/64", ["fd01::/64"], ["fd00::/64"]),
        ("10.0.0.0/24", ["fd00::/64"], ["10.0.0.0/24"]),
    ],
)
def test_a_network_without_another_is_what_is_left(whole: str, holes: list[str], left: list[str]) -> None:
    found = subtract(ipaddress.ip_network(whole), [ipaddress.ip_network(hole) for hole in holes])
    assert [str(network) for network in found] == left


def test_only_sets_that_hold_portals_closed_count_as_holding() -> None:
    inside, other = portal("10.0.0.20"), portal("10.0.0.99")
    sets: dict[str, frozenset[Portal]] = {
        HOLDING[0]: frozenset({inside}),
        "somebody_elses": frozenset({other}),
    }
    assert held_portals(sets) == {inside}


def test_a_renewal_that_fails_is_told_while_the_sa_still_protects() -> None:
    reported = row(WANTED, good(), causes={CONN: NO_PROPOSAL})
    assert reported["protected"] is True
    assert reported["problem"]["code"] == "no-proposal"
    assert "renewing it fails" in reported["problem"]["message"]


def test_a_cipher_is_compared_where_its_keyword_is_known() -> None:
    """One that has no keyword here cannot be compared, and is not called wrong."""
    offered = {part for proposal in connection_of(WANTED).esp_proposals for part in proposal.split("-")}
    unknown = row(WANTED, good(encr="CAMELLIA_CBC", encr_keysize=256))
    assert unknown["problem"] is None
    chacha = row(WANTED, good(encr="CHACHA20_POLY1305", encr_keysize=256))
    assert (chacha["problem"] is None) == ("chacha20poly1305" in offered)


def test_an_ike_sa_that_is_already_ending_is_not_ended_again() -> None:
    new = ike_sa(child_sa(CHILD), unique_id=1)
    ending = ike_sa(child_sa(OLD_SETTINGS), unique_id=2, state="DELETING")
    ended = [op for op in act([targets()], [new, ending])[0] if isinstance(op, TerminateIke)]
    assert ended == []
    assert CARRYING


def test_a_key_of_a_login_without_flags_is_taken_without_a_policy() -> None:
    text = "iscsicli LoginTarget iqn.x T 10.0.0.9 3260 * * 0 0 * * * * * u p 1 a-key-of-some-length 0\n"
    harvest = parse(text, "x", Rules())
    assert [str(key.portal) for key in harvest.keys] == ["10.0.0.9:3260"]
    assert harvest.portals == []


def test_an_object_whose_names_are_escaped_is_taken_without_a_line() -> None:
    whole = {"IdType": 2, "Id": "db1", "Key": "a-key-of-some-length", "SecurityFlags": 0}
    text = json.dumps(whole).replace("IdType", "\\u0049dType")
    assert [key.line for key in parse(text, "x", Rules()).keys] == [0]


@pytest.mark.parametrize("outer", ["224.0.0.1", "0.0.0.0", "fe80::1%eth0", "x"])  # noqa: S104  # refused
def test_an_outer_address_that_is_no_hosts_is_not_taken(outer: str) -> None:
    harvest = parse(f"iscsicli TunnelAddr * * 10.0.0.2 {outer} *\n", "x", Rules())
    assert harvest.portals == []
    assert len(harvest.problems) == 1


# --- zones: Python takes any text behind the % of an address, and addresses become text for nft and charon

ZONED = "fd00::1%x . 3260 } } ; flush ruleset #"


def test_no_portal_and_no_identity_is_made_of_an_address_with_a_zone() -> None:
    reported = re.escape(f"{ZONED!r} has a zone, which neither an identity nor a portal can carry")
    for make in (Portal, IkeId.address):
        with pytest.raises(ValueError, match=f"^{reported}$"):
            make(ipaddress.ip_address(ZONED))


@pytest.mark.parametrize(
    "line", [f'target_id = "{ZONED}"', f'role = "target"\ninitiators = ["{ZONED}"]', 'role = "target"\ninitiators = ["fd00::%x/64"]']
)  # fmt: skip
def test_a_policy_that_names_a_peer_with_a_zone_is_refused(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_portal_file(f'portals = ["10.0.0.1"]\n{line}\n', "x.toml", "x")
    (problem,) = caught.value.problems
    assert problem.code == "bad-id"
    assert "zone" in problem.message


def test_an_element_of_the_guards_file_with_a_zone_is_passed_over() -> None:
    text = "set portals6 {\n elements = { fd00::1%x . 3260, fd00::2 . 3260 } }"
    assert parse_elements(text) == ((portal("fd00::2"),), ())
