"""Proposals cut to what charon has: nothing that it lacks is left, and nothing else is lost."""

from __future__ import annotations

import pytest

from iscsi_ipsec.core.config import presets
from iscsi_ipsec.core.decide.algorithms import cut, lacking
from tests.support.values import connection_of, derived, group, managed, policy, record, view_of

ALL = frozenset(
    {
        "AES_CBC", "AES_CTR", "AES_GCM_16", "CHACHA20_POLY1305", "HMAC_SHA1_96", "HMAC_SHA2_256_128", "HMAC_SHA2_384_192",
        "HMAC_SHA2_512_256", "PRF_HMAC_SHA1", "PRF_HMAC_SHA2_256", "PRF_HMAC_SHA2_384", "PRF_HMAC_SHA2_512", "ECP_256",
        "ECP_384", "CURVE_25519", "MODP_2048", "MODP_3072", "MODP_1536", "MODP_1024",
    }
)  # fmt: skip
FIPS = ALL - {"CURVE_25519", "CHACHA20_POLY1305", "MODP_1024"}


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_algorithm_of_a_preset_is_known_by_its_name(preset: str) -> None:
    tuning = presets.PRESETS[preset].tuning
    for proposal in (*(tuning.ike_proposals or ()), *(tuning.esp_proposals or ())):
        known = lacking(proposal, frozenset({"none of these"}), groups_only=False)
        assert set(proposal.split("-")) - {"none"} == set(known)


def test_a_charon_that_has_everything_or_does_not_say_is_offered_everything() -> None:
    wanted = ("aes256gcm16-prfsha384-curve25519-ecp384", "aes256-sha256-modp2048")
    assert cut(wanted, ALL, groups_only=False) == (wanted, ())
    assert cut(wanted, frozenset(), groups_only=False) == (wanted, ())


def test_what_charon_lacks_goes_and_a_proposal_without_any_of_a_kind_goes_as_a_whole() -> None:
    wanted = (
        "aes256gcm16-prfsha384-curve25519-ecp384",
        "chacha20poly1305-prfsha384-ecp384",
        "aes128-sha256-x25519",
    )
    kept, lost = cut(wanted, FIPS, groups_only=False)
    assert kept == ("aes256gcm16-prfsha384-ecp384",)
    assert lost == ("curve25519", "chacha20poly1305", "x25519")


def test_of_esp_only_the_groups_are_charons() -> None:
    wanted = ("chacha20poly1305-curve25519-ecp384-esn-noesn",)
    assert cut(wanted, FIPS, groups_only=True)[0] == ("chacha20poly1305-ecp384-esn-noesn",)


def test_what_is_not_known_here_is_left_to_charon() -> None:
    assert cut(("camellia256-sha256-modp2048",), ALL, groups_only=False)[0] == (
        "camellia256-sha256-modp2048",
    )


def test_connections_offer_nothing_that_charon_lacks() -> None:
    connection = connection_of(managed(group(), record(), algorithms=FIPS))
    for proposal in (*connection.ike_proposals, *connection.esp_proposals):
        assert "25519" not in proposal
    assert connection_of(managed(group(), record())).ike_proposals != connection.ike_proposals


def test_a_portal_whose_proposals_charon_has_none_of_stays_closed_and_says_which() -> None:
    view = view_of(derived(group(), policy(preset="mds"), algorithms=ALL - {"MODP_1536"}))
    assert (view.closed, view.connection) == (True, None)
    assert view.problem is not None
    assert view.problem.code == "no-algorithm"
    assert "modp1536" in view.problem.message
