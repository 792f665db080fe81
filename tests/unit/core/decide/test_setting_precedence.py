"""Which flags, settings and proposals are in force, and what is refused where they contradict each other."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.policy import EspMode, IkeMode, Start, Tuning
from iscsi_ipsec.core.config.settings import Settings
from tests.support.values import (
    SOURCE,
    TARGET,
    choice,
    connection_of,
    derived,
    group,
    managed,
    per_id,
    policy,
    record,
    refused,
    view_of,
)

# -- flags


def test_pick_choice_prefers_the_policys_flags_to_the_keys() -> None:
    desired = derived(per_id(SOURCE, flags=choice(IkeMode.MAIN)), policy(flags=choice(IkeMode.V2)))
    assert connection_of(desired).ike is IkeMode.V2


def test_pick_choice_prefers_a_presets_flags_to_the_keys_and_the_policys_to_both() -> None:
    key = per_id(SOURCE, flags=choice(IkeMode.AGGRESSIVE))
    assert connection_of(derived(key, policy(preset="windows"))).ike is IkeMode.MAIN
    assert connection_of(derived(key, policy(preset="windows", flags=choice(pfs=False)))).ike is IkeMode.V2


def test_pick_choice_prefers_the_keys_flags_to_the_defaults_of_the_settings() -> None:
    settings = Settings(default_choice=choice(IkeMode.MAIN))
    flagged = managed(per_id(SOURCE, flags=choice(IkeMode.AGGRESSIVE)), record(), settings=settings)
    assert connection_of(flagged).ike is IkeMode.AGGRESSIVE
    assert connection_of(managed(per_id(SOURCE), record(), settings=settings)).ike is IkeMode.MAIN


def test_pick_choice_falls_back_to_ikev2_transport_and_pfs() -> None:
    connection = connection_of(managed(per_id(SOURCE), record()))
    assert (connection.ike, connection.esp, connection.pfs) == (IkeMode.V2, EspMode.TRANSPORT, True)


# -- settings


def test_tuning_of_prefers_the_policy_to_its_preset_and_both_to_the_defaults() -> None:
    settings = Settings(tuning=Tuning(esp_rekey_time=111, dpd_delay=7, replay_window=64))
    tuned = policy(preset="windows", tuning=Tuning(dpd_delay=9, start=Start.START))
    connection = connection_of(derived(group(), tuned, settings=settings))
    assert connection.tuning.esp_rekey_time == 3300
    assert connection.tuning.dpd_delay == 9
    assert connection.tuning.replay_window == 64
    assert connection.start is Start.START
    assert connection.ike_proposals[0] == "aes256-sha384-ecp384"


@pytest.mark.parametrize("preset", ["rfc7146", "rfc3723", "ontap", "windows", "equallogic", "mds"])
def test_every_preset_alone_makes_a_connection(preset: str) -> None:
    assert connection_of(derived(group(), policy(preset=preset))).key.name == "group"


# -- proposals


def test_esp_proposals_without_a_group_are_refused_with_pfs() -> None:
    tuned = policy(tuning=Tuning(esp_proposals=("aes256gcm16",)), flags=choice(pfs=True))
    refused(view_of(derived(group(), tuned)), "pfs-without-group", "no DH group: aes256gcm16$", "append one")


def test_esp_proposals_names_those_without_a_group() -> None:
    mixed = Tuning(esp_proposals=("aes256gcm16", "aes256gcm16-ecp384"))
    asked = derived(group(), policy(tuning=mixed, flags=choice(pfs=True)))
    refused(view_of(asked), "pfs-without-group", "no DH group: aes256gcm16$", "append one")


def test_esp_proposals_with_a_group_are_refused_without_pfs() -> None:
    tuned = policy(tuning=Tuning(esp_proposals=("aes256gcm16-ecp384",)), flags=choice(pfs=False))
    view = view_of(derived(group(), tuned))
    refused(view, "group-without-pfs", "has a DH group: aes256gcm16-ecp384$", "take the group out")


def test_esp_proposals_of_the_settings_that_contradict_a_keys_flags_are_refused_and_no_policy_is_named() -> (
    None
):
    without = Settings(tuning=Tuning(esp_proposals=("aes256gcm16",)))
    view = view_of(derived(per_id(SOURCE, flags=choice(pfs=True), portals=[TARGET]), settings=without))
    refused(view, "pfs-without-group", "no DH group", "append one", file="")


def test_esp_proposals_offer_extended_sequence_numbers_only_with_a_replay_window() -> None:
    """Charon 5.9.8 negotiates them and installs the SA without; later versions install nothing."""

    def esn_of(tuning: Tuning) -> bool:
        offered = connection_of(derived(group(), policy(tuning=tuning))).esp_proposals
        return any("esn" in proposal.split("-") for proposal in offered)

    assert esn_of(Tuning())
    assert esn_of(Tuning(replay_window=64))
    assert not esn_of(Tuning(replay_window=0))


def test_esp_proposals_with_extended_sequence_numbers_are_refused_without_a_replay_window() -> None:
    given = ("aes256gcm16-ecp384-esn-noesn",)
    for settings, tuned in (
        (Settings(), policy(tuning=Tuning(esp_proposals=given, replay_window=0))),
        (Settings(tuning=Tuning(replay_window=0)), policy(tuning=Tuning(esp_proposals=given))),
    ):
        view = view_of(derived(group(), tuned, settings=settings))
        refused(view, "esn-without-window", "replay_window is 0", "take esn out")


def test_esp_proposals_of_a_preset_lose_their_groups_where_the_policy_asks_for_no_pfs() -> None:
    connection = connection_of(derived(group(), policy(preset="ontap", flags=choice(pfs=False))))
    assert connection.esp_proposals[0] == "aes256gcm16"
    assert not any("ecp" in p or "none" in p for p in connection.esp_proposals)


@pytest.mark.parametrize("ike", list(IkeMode))
@pytest.mark.parametrize("pfs", [True, False])
def test_esp_proposals_by_default_have_a_group_exactly_with_pfs(ike: IkeMode, pfs: bool) -> None:
    connection = connection_of(managed(per_id(SOURCE, flags=choice(ike, pfs=pfs)), record()))
    groups = {
        part
        for p in connection.esp_proposals
        for part in p.split("-")
        if part.startswith(("modp", "ecp", "curve"))
    }
    assert bool(groups) is pfs
    phase1 = {part for p in connection.ike_proposals for part in p.split("-")}
    assert groups <= phase1
    assert not groups & {"modp768", "modp1024", "modp1536"}


def test_esp_proposals_offer_long_sequence_numbers_to_the_kernels_esp_only() -> None:
    flags = choice(esp=EspMode.TUNNEL)
    for in_kernel in (True, False):
        desired = managed(per_id(SOURCE, flags=flags), record(), user_space_esp=not in_kernel)
        assert any("-esn" in proposal for proposal in connection_of(desired).esp_proposals) is in_kernel
