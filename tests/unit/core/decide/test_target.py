"""What a served portal becomes: who is let in with which key, as which connection, and what is told."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.policy import EspMode, IkeMode, Role, Start, Tuning
from iscsi_ipsec.core.config import presets
from iscsi_ipsec.core.decide.desired import Connection, Desired, PortalView
from iscsi_ipsec.core.decide.world import PortalBinding
from tests.support.values import (
    SOURCE,
    address,
    choice,
    derived,
    group,
    identity,
    per_id,
    policy,
    portal,
    record,
    serves,
)

MAIN = choice(IkeMode.MAIN)


def served(desired: Desired) -> dict[str, str]:
    """Who is let in, with which key."""
    return {str(c.remote_id): c.key.name for c in desired.connections if c.role is Role.TARGET}


def reported(desired: Desired) -> list[tuple[str, str, str]]:
    """Code, file and portal of each problem that a row has."""
    return [(v.problem.code, v.problem.file, v.problem.portal) for v in desired.portals if v.problem]


def only_view(desired: Desired) -> PortalView:
    (view,) = desired.portals
    return view


# -- the connection and its row


def test_the_whole_connection_of_an_initiator_is_this() -> None:
    tuning = Tuning(dpd_delay=3)
    key = per_id("db1", flags=choice(IkeMode.V2, EspMode.TUNNEL, pfs=False))
    desired = derived(
        serves(target_id=identity("san"), tuning=tuning), key, user_space_esp=True, fast_aes=True
    )
    assert desired.connections == (
        Connection(
            name="iscsi-ipsec-10.0.0.1-3260-db1",
            binding=PortalBinding(portal(SOURCE)),
            role=Role.TARGET,
            local_address=address(SOURCE),
            remote_address=None,
            local_id=identity("san"),
            remote_id=identity("db1"),
            ike=IkeMode.V2,
            esp=EspMode.TUNNEL,
            pfs=False,
            ike_proposals=presets.default_ike_proposals(IkeMode.V2, fast_aes=True),
            esp_proposals=presets.default_esp_proposals(IkeMode.V2, pfs=False, fast_aes=True, esn=False),
            local_ts="dynamic[6/3260]",
            remote_ts="dynamic[6]",
            start=Start.TRAP,
            user_space_esp=True,
            tuning=tuning,
            key=key,
        ),
    )


def test_behind_an_outer_address_the_portal_itself_is_selected() -> None:
    outer = address("203.0.113.9")
    (connection,) = derived(serves(tunnel_outer_local=outer), per_id("db1")).connections
    assert (connection.local_address, connection.local_id) == (outer, IkeId.address(outer))
    assert (connection.esp, connection.local_ts) == (EspMode.TUNNEL, "10.0.0.1/32[6/3260]")


def test_its_row_names_policy_key_identity_and_every_reason() -> None:
    flags = choice(IkeMode.V2, EspMode.TRANSPORT)
    view = only_view(derived(serves(flags=flags, preset="ontap"), per_id("db1", "host")))
    assert (view.managed, view.closed, view.problem) == (True, True, None)
    assert (view.policy, view.origins) == ("portal.d/serves.toml", ("policy portal.d/serves.toml",))
    assert (view.key, view.key_path, view.identity) == ("host", "psk.d/host.toml", identity("db1"))
    assert view.choice == flags
    assert view.reasons[:2] == (
        "policy portal.d/serves.toml applies",
        "initiator db1 with key psk.d/host.toml",
    )
    assert "identity 10.0.0.1 (ID_IPV4_ADDR) is ours" in view.reasons
    assert "IKE proposals from the preset ontap" in view.reasons


def test_the_row_of_one_that_is_refused_keeps_its_reasons() -> None:
    tuned = serves(tuning=Tuning(esp_proposals=("aes256gcm16",)), flags=choice(pfs=True))
    view = only_view(derived(tuned, per_id("db1")))
    assert view.problem
    assert (view.problem.code, view.problem.file) == ("pfs-without-group", "portal.d/serves.toml")
    assert (view.key, view.connection, view.problem.portal) == ("db1", None, f"{SOURCE}:3260")
    assert "initiator db1 with key psk.d/db1.toml" in view.reasons


def test_a_refusal_of_transport_mode_names_portal_and_policy() -> None:
    desired = derived(serves(flags=choice(esp=EspMode.TRANSPORT)), per_id("db1"), user_space_esp=True)
    view = only_view(desired)
    assert view.problem
    assert reported(desired) == [("no-transport-mode", "portal.d/serves.toml", f"{SOURCE}:3260")]
    assert view.problem.message.startswith(f"{SOURCE}:3260 ")


# -- names of connections


def test_two_initiators_never_share_a_name() -> None:
    stem = "a" * 63 + "." + "b" * 40
    names = [stem + ".one", stem + ".two", "c" * 63, "c" * 63 + ".d", "10.0.0.5", "fqdn-10.0.0.5"]
    keys = [per_id(name, f"k{n}") for n, name in enumerate(names)]
    keys.append(per_id(IkeId.parse(IdType.ID_FQDN, "10.0.0.5"), "looks"))
    keys.append(per_id(IkeId.parse(IdType.ID_USER_FQDN, "a@10.0.0.5"), "mail"))
    names_of = [
        c.name.removeprefix("iscsi-ipsec-10.0.0.1-3260-") for c in derived(serves(), *keys).connections
    ]
    assert len(set(names_of)) == len(keys)
    assert {"10.0.0.5", "fqdn:10.0.0.5", "fqdn-10.0.0.5", "a@10.0.0.5", "c" * 63} <= set(names_of)
    assert all(len(name) <= 64 for name in names_of)
    assert [len(name) for name in names_of if name.startswith("aaa")] == [64, 64]


def test_a_name_of_64_bytes_is_taken_whole_and_in_lower_case() -> None:
    whole = "A" * 62 + ".B"
    (connection,) = derived(serves(), per_id(whole)).connections
    assert connection.name.endswith("-3260-" + whole.lower())


# -- main mode


def test_one_name_beside_addresses_is_told_apart_in_main_mode() -> None:
    desired = derived(serves(flags=MAIN), per_id("db1"), per_id("10.0.0.5"), per_id("10.0.0.6"))
    assert served(desired) == {"db1": "db1", "10.0.0.5": "10.0.0.5", "10.0.0.6": "10.0.0.6"}


def test_names_of_other_modes_are_no_danger_to_the_one_in_main_mode() -> None:
    desired = derived(serves(), per_id("db1", flags=MAIN), per_id("db2"), per_id("db3"))
    assert set(served(desired)) == {"db1", "db2", "db3"}
    both = derived(serves(), per_id("db1", flags=MAIN), per_id("db2", flags=MAIN), per_id("db3"))
    assert set(served(both)) == {"db3"}
    assert reported(both) == [("main-mode-names", "portal.d/serves.toml", f"{SOURCE}:3260")] * 2


def test_a_name_with_the_group_key_may_come_by_main_mode_alone() -> None:
    assert served(derived(serves(flags=MAIN, initiators=(identity("db1"),)), group())) == {"db1": "group"}


# -- who may use which key


def test_the_group_key_lets_in_whom_the_policy_names_and_nothing_is_missing() -> None:
    desired = derived(serves(initiators=(identity("db1"),)), group())
    assert served(desired) == {"db1": "group"}
    assert reported(desired) == []


def test_a_group_key_that_is_for_other_portals_lets_nobody_in() -> None:
    desired = derived(serves(initiators=(identity("db1"),)), group(portals=["10.9.0.0/16"]))
    assert served(desired) == {}
    assert reported(desired) == [("no-key", "portal.d/serves.toml", f"{SOURCE}:3260")]


def test_of_two_group_keys_the_policys_lets_in_and_without_one_neither() -> None:
    keys = group("one"), group("two")
    assert served(derived(serves(psk="two", initiators=(identity("db1"),)), *keys)) == {"db1": "two"}
    neither = derived(serves(initiators=(identity("db1"),)), *keys)
    assert served(neither) == {}
    (view,) = neither.portals
    assert view.problem
    assert view.problem.code == "ambiguous-key"
    assert f"several keys for the group apply to {SOURCE}:3260" in view.problem.message


@pytest.mark.parametrize("psk", ["db1", "gone", ""])
def test_where_the_policy_names_no_group_key_it_lets_nobody_in(psk: str) -> None:
    desired = derived(serves(psk=psk, initiators=(identity("db2"),)), per_id("db1"), group())
    assert "group" not in served(desired).values()


def test_two_keys_of_one_identity_are_told_by_the_identity_and_the_others_come_in() -> None:
    desired = derived(serves(), per_id("db1", "one"), per_id("DB1", "two"), per_id("db2"))
    assert served(desired) == {"db2": "db2"}
    (view,) = [view for view in desired.portals if view.problem]
    assert view.problem
    assert (view.problem.code, view.problem.portal) == ("ambiguous-key", f"{SOURCE}:3260")
    assert f"several keys for the identity db1 apply to {SOURCE}:3260" in view.problem.message


def test_an_initiator_that_is_refused_keeps_none_of_those_behind_it_out() -> None:
    keys = per_id("db1", "a"), per_id("DB1", "b"), per_id("db2", "c"), per_id("DB2", "d"), per_id("db3", "e")
    desired = derived(serves(), *keys)
    assert served(desired) == {"db3": "e"}
    assert [code for code, *_ in reported(desired)] == ["ambiguous-key"] * 2


def test_a_portal_that_serves_no_one_is_told_with_the_remedies() -> None:
    (view,) = derived(serves()).portals
    assert view.problem
    assert (view.problem.code, view.problem.file) == ("no-key", "portal.d/serves.toml")
    assert "per-ID keys to psk.d" in view.problem.hint
    assert "initiators" in view.problem.hint


def test_a_key_of_the_portals_own_identity_lets_nobody_in() -> None:
    assert served(derived(serves(), per_id(SOURCE, "own"), per_id("db1"))) == {"db1": "db1"}


def test_an_initiator_that_is_an_end_of_our_own_connection_is_told_with_file_and_remedy() -> None:
    serving = serves(target_id=identity("san.example.com"))
    desired = derived(per_id(SOURCE), group(), policy(psk="group"), serving, record())
    (view,) = [view for view in desired.portals if view.problem]
    assert view.problem
    assert (view.problem.code, view.problem.file) == ("shared-identity", f"psk.d/{SOURCE}.toml")
    assert "also an end of this host's connection" in view.problem.message
    assert view.problem.hint.startswith("use one key in both directions")


def test_a_portal_under_an_identity_of_our_own_connection_is_told_with_file_and_remedy() -> None:
    desired = derived(per_id(SOURCE), record(), serves(), per_id("db1"))
    (view,) = [view for view in desired.portals if view.role is Role.TARGET]
    assert view.problem
    assert (view.problem.code, view.problem.file) == ("shared-identity", "portal.d/serves.toml")
    assert "charon would accept the keys of both" in view.problem.message
    assert "target_id" in view.problem.hint


def test_every_portal_of_a_policy_is_served_once_whatever_its_patterns_share() -> None:
    local = [SOURCE, "10.0.0.2"]
    desired = derived(serves(SOURCE, "10.0.0.0/24"), per_id("db1"), local=local)
    assert [str(view.binding.portal) for view in desired.portals] == [f"{host}:3260" for host in local]
    assert reported(desired) == []
