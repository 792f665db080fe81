"""Fields that several kinds of file share: identities, peers, numbers and proposals of strongSwan."""

from __future__ import annotations

from typing import Any

import pytest

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.policy import PortalPolicy, Tuning
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.config.portal_file import parse_portal_file
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


# -- flags


def test_parse_choice_takes_one_text_and_parse_id_type_reports_an_unknown_one_once() -> None:
    text = 'portals = ["10.0.0.1"]\nsecurity_flags = "VALID"\n'
    assert parse_portal_file(text, "x.toml", "x").choice is not None
    with pytest.raises(ConfigError) as caught:
        parse_portal_file(text + 'target_id = "san"\ntarget_id_type = "ID_FQDNN"\n', "x.toml", "x")
    assert [problem.code for problem in caught.value.problems] == ["bad-id-type"]


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
