"""Presets and built-in proposals: nothing broken is offered, and IKEv1 gets what it can carry."""

from __future__ import annotations

import itertools

import pytest

from iscsi_ipsec.base.policy import IkeMode
from iscsi_ipsec.core.config.presets import (
    PRESETS,
    default_esp_proposals,
    default_ike_proposals,
)
from iscsi_ipsec.core.config.proposals import has_dh_group

GROUPS = ("modp", "ecp", "curve")
BROKEN = {"des", "3des", "md5", "null", "modp768", "modp1024", "modp1536", "sha1", "blowfish128"}
EVERY_MODE = pytest.mark.parametrize("ike", list(IkeMode))
EITHER = (False, True)


def esp_proposals(ike: IkeMode) -> set[str]:
    return {
        proposal
        for pfs, fast_aes, esn in itertools.product(EITHER, EITHER, EITHER)
        for proposal in default_esp_proposals(ike, pfs=pfs, fast_aes=fast_aes, esn=esn)
    }


@EVERY_MODE
def test_default_proposals_have_no_broken_algorithm(ike: IkeMode) -> None:
    ike_proposals = {p for fast_aes in EITHER for p in default_ike_proposals(ike, fast_aes=fast_aes)}
    parts = {part for proposal in ike_proposals | esp_proposals(ike) for part in proposal.split("-")}
    assert not parts & BROKEN


@pytest.mark.parametrize("ike", [IkeMode.MAIN, IkeMode.AGGRESSIVE])
def test_default_proposals_of_ikev1_have_one_algorithm_of_a_kind(ike: IkeMode) -> None:
    # charon sends only the first of several
    for proposal in {*default_ike_proposals(ike, fast_aes=True), *esp_proposals(ike)}:
        parts = proposal.split("-")
        assert sum(part.startswith(GROUPS) for part in parts) <= 1
        assert sum(part.startswith("aes") for part in parts) == 1
        assert sum(part.startswith("sha") for part in parts) == (0 if "gcm" in proposal else 1)


def test_default_ike_proposals_of_ikev1_are_without_aead_and_on_one_group() -> None:
    assert all(
        "gcm" not in p and p.endswith("-modp2048") for p in default_ike_proposals(IkeMode.MAIN, fast_aes=True)
    )


@pytest.mark.parametrize(("fast_aes", "first"), [(True, "aes256gcm16"), (False, "chacha20poly1305")])
def test_default_proposals_begin_with_what_is_fast_on_the_cpu(fast_aes: bool, first: str) -> None:
    esp = default_esp_proposals(IkeMode.V2, pfs=True, fast_aes=fast_aes, esn=True)
    for proposals in (default_ike_proposals(IkeMode.V2, fast_aes=fast_aes), esp):
        assert proposals[0].split("-")[0] == first


@EVERY_MODE
@pytest.mark.parametrize("pfs", EITHER)
def test_default_esp_proposals_have_a_group_exactly_with_pfs(ike: IkeMode, pfs: bool) -> None:
    proposals = default_esp_proposals(ike, pfs=pfs, fast_aes=True, esn=True)
    assert {has_dh_group(proposal) for proposal in proposals} == {pfs}


@pytest.mark.parametrize("esn", EITHER)
def test_default_esp_proposals_offer_extended_sequence_numbers_where_asked_for_and_never_demand_them(
    esn: bool,
) -> None:
    for proposal in default_esp_proposals(IkeMode.V2, pfs=True, fast_aes=True, esn=esn):
        assert ("esn" in proposal.split("-")) is ("noesn" in proposal.split("-")) is esn


@pytest.mark.parametrize("name", PRESETS)
def test_preset_names_its_source_and_its_proposals_agree_with_its_pfs_flag(name: str) -> None:
    preset = PRESETS[name]
    assert preset.source
    if preset.choice and preset.tuning.esp_proposals:
        assert {has_dh_group(p) for p in preset.tuning.esp_proposals} == {preset.choice.pfs}
