"""Views of a served portal: who is admitted with which key, by which connection, and which problems are reported."""

from __future__ import annotations

import ipaddress

import pytest

from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.keys import GroupKey
from iscsi_ipsec.base.policy import EspMode, IkeMode, Role, Start, Tuning
from iscsi_ipsec.base.problem import Severity
from iscsi_ipsec.core.config import presets
from iscsi_ipsec.core.decide.desired import Connection, Desired, PortalView
from iscsi_ipsec.core.decide.world import PortalBinding
from tests.support.values import (
    CLEAR,
    SOURCE,
    TARGET,
    address,
    choice,
    connection_of,
    derived,
    group,
    identity,
    managed,
    per_id,
    policy,
    portal,
    record,
    serves,
    view_of,
)

MAIN = choice(IkeMode.MAIN)


def served(desired: Desired) -> dict[str, str]:
    """The admitted peers, each with its key."""
    return {str(c.remote_id): c.key.name for c in desired.connections if c.role is Role.TARGET}


def reported(desired: Desired) -> list[tuple[str, str, str]]:
    """Code, file and portal of each problem that a row has."""
    return [(v.problem.code, v.problem.file, v.problem.portal) for v in desired.portals if v.problem]


def only_view(desired: Desired) -> PortalView:
    (view,) = desired.portals
    return view


# -- the connection and its row


def test_target_views_make_this_connection_of_an_initiator() -> None:
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


def test_target_views_select_the_portal_itself_behind_an_outer_address() -> None:
    outer = address("203.0.113.9")
    (connection,) = derived(serves(tunnel_outer_local=outer), per_id("db1")).connections
    assert (connection.local_address, connection.local_id) == (outer, IkeId.address(outer))
    assert (connection.esp, connection.local_ts) == (EspMode.TUNNEL, "10.0.0.1/32[6/3260]")


def test_target_view_names_policy_key_identity_and_every_reason() -> None:
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


def test_target_view_of_a_refused_initiator_keeps_its_reasons() -> None:
    tuned = serves(tuning=Tuning(esp_proposals=("aes256gcm16",)), flags=choice(pfs=True))
    view = only_view(derived(tuned, per_id("db1")))
    assert view.problem
    assert (view.problem.code, view.problem.file) == ("pfs-without-group", "portal.d/serves.toml")
    assert (view.key, view.connection, view.problem.portal) == ("db1", None, f"{SOURCE}:3260")
    assert "initiator db1 with key psk.d/db1.toml" in view.reasons


def test_target_view_that_refuses_transport_mode_names_portal_and_policy() -> None:
    desired = derived(serves(flags=choice(esp=EspMode.TRANSPORT)), per_id("db1"), user_space_esp=True)
    view = only_view(desired)
    assert view.problem
    assert reported(desired) == [("no-transport-mode", "portal.d/serves.toml", f"{SOURCE}:3260")]
    assert view.problem.message.startswith(f"{SOURCE}:3260 ")


# -- names of connections


def test_target_views_never_give_two_initiators_one_connection_name() -> None:
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


def test_target_views_take_a_peer_of_64_bytes_whole_and_in_lower_case_into_the_name() -> None:
    whole = "A" * 62 + ".B"
    (connection,) = derived(serves(), per_id(whole)).connections
    assert connection.name.endswith("-3260-" + whole.lower())


# -- main mode


def test_target_views_distinguish_one_name_beside_addresses_in_main_mode() -> None:
    desired = derived(serves(flags=MAIN), per_id("db1"), per_id("10.0.0.5"), per_id("10.0.0.6"))
    assert served(desired) == {"db1": "db1", "10.0.0.5": "10.0.0.5", "10.0.0.6": "10.0.0.6"}


def test_target_views_serve_the_one_name_in_main_mode_beside_names_of_other_modes() -> None:
    desired = derived(serves(), per_id("db1", flags=MAIN), per_id("db2"), per_id("db3"))
    assert set(served(desired)) == {"db1", "db2", "db3"}
    both = derived(serves(), per_id("db1", flags=MAIN), per_id("db2", flags=MAIN), per_id("db3"))
    assert set(served(both)) == {"db3"}
    assert reported(both) == [("main-mode-names", "portal.d/serves.toml", f"{SOURCE}:3260")] * 2


def test_target_views_serve_one_name_with_the_group_key_in_main_mode() -> None:
    assert served(derived(serves(flags=MAIN, initiators=(identity("db1"),)), group())) == {"db1": "group"}


# -- who may use which key


def test_target_views_let_in_by_the_group_key_whom_the_policy_names_without_a_problem() -> None:
    desired = derived(serves(initiators=(identity("db1"),)), group())
    assert served(desired) == {"db1": "group"}
    assert reported(desired) == []


def test_target_views_let_nobody_in_by_a_group_key_for_other_portals() -> None:
    desired = derived(serves(initiators=(identity("db1"),)), group(portals=["10.9.0.0/16"]))
    assert served(desired) == {}
    assert reported(desired) == [("no-key", "portal.d/serves.toml", f"{SOURCE}:3260")]


def test_target_views_take_the_policys_of_two_group_keys_and_neither_without_a_psk() -> None:
    keys = group("one"), group("two")
    assert served(derived(serves(psk="two", initiators=(identity("db1"),)), *keys)) == {"db1": "two"}
    neither = derived(serves(initiators=(identity("db1"),)), *keys)
    assert served(neither) == {}
    (view,) = neither.portals
    assert view.problem
    assert view.problem.code == "ambiguous-key"
    assert f"several keys for the group apply to {SOURCE}:3260" in view.problem.message


@pytest.mark.parametrize("psk", ["db1", "gone", ""])
def test_target_views_let_nobody_in_by_the_group_key_where_the_psk_is_no_group_key(psk: str) -> None:
    desired = derived(serves(psk=psk, initiators=(identity("db2"),)), per_id("db1"), group())
    assert "group" not in served(desired).values()


def test_target_views_report_the_identity_that_has_two_keys() -> None:
    desired = derived(serves(), per_id("db1", "one"), per_id("DB1", "two"), per_id("db2"))
    assert served(desired) == {"db2": "db2"}
    (view,) = [view for view in desired.portals if view.problem]
    assert view.problem
    assert (view.problem.code, view.problem.portal) == ("ambiguous-key", f"{SOURCE}:3260")
    assert f"several keys for the identity db1 apply to {SOURCE}:3260" in view.problem.message


def test_target_views_serve_the_initiators_behind_a_refused_one() -> None:
    keys = per_id("db1", "a"), per_id("DB1", "b"), per_id("db2", "c"), per_id("DB2", "d"), per_id("db3", "e")
    desired = derived(serves(), *keys)
    assert served(desired) == {"db3": "e"}
    assert [code for code, *_ in reported(desired)] == ["ambiguous-key"] * 2


def test_target_views_report_a_portal_that_serves_no_one_with_the_remedies() -> None:
    (view,) = derived(serves()).portals
    assert view.problem
    assert (view.problem.code, view.problem.file) == ("no-key", "portal.d/serves.toml")
    assert "per-ID keys to psk.d" in view.problem.hint
    assert "initiators" in view.problem.hint


def test_target_views_let_nobody_in_under_the_portals_own_identity() -> None:
    assert served(derived(serves(), per_id(SOURCE, "own"), per_id("db1"))) == {"db1": "db1"}


def test_target_views_report_an_initiator_that_is_an_end_of_our_own_connection() -> None:
    serving = serves(target_id=identity("san.example.com"))
    desired = derived(per_id(SOURCE), group(), policy(psk="group"), serving, record())
    (view,) = [view for view in desired.portals if view.problem]
    assert view.problem
    assert (view.problem.code, view.problem.file) == ("shared-identity", f"psk.d/{SOURCE}.toml")
    assert "also an end of this host's connection" in view.problem.message
    assert view.problem.hint.startswith("use one key in both directions")


def test_target_views_report_a_portal_under_an_identity_of_our_own_connection() -> None:
    desired = managed(per_id(SOURCE), record(), serves(), per_id("db1"))
    (view,) = [view for view in desired.portals if view.role is Role.TARGET]
    assert view.problem
    assert (view.problem.code, view.problem.file) == ("shared-identity", "portal.d/serves.toml")
    assert "charon would accept the keys of both" in view.problem.message
    assert "target_id" in view.problem.hint


def test_target_views_serve_every_portal_of_overlapping_patterns_once() -> None:
    local = [SOURCE, "10.0.0.2"]
    desired = derived(serves(SOURCE, "10.0.0.0/24"), per_id("db1"), local=local)
    assert [str(view.binding.portal) for view in desired.portals] == [f"{host}:3260" for host in local]
    assert reported(desired) == []


# -- initiators with keys of their own


def test_target_views_give_each_initiator_its_own_connection_with_its_identity_pinned() -> None:
    desired = derived(serves(), per_id("10.0.0.5"), per_id("db1.example.com"))
    assert {c.remote_id for c in desired.connections} == {identity("10.0.0.5"), identity("db1.example.com")}
    assert {c.local_id for c in desired.connections} == {identity(SOURCE)}
    assert {c.remote_address for c in desired.connections} == {None}
    assert len({c.name for c in desired.connections}) == 2
    assert desired.local_portals == (portal(SOURCE),)


def test_target_views_let_nobody_in_by_the_group_key_alone() -> None:
    desired = derived(serves(), group())
    view = view_of(desired, SOURCE)
    assert (view.closed, view.connection) == (True, None)
    assert desired.secrets == ()
    assert view.problem is not None
    assert view.problem.code == "no-key"


def test_target_views_keep_a_portal_closed_whose_psk_is_the_group_key_and_that_names_no_initiators() -> None:
    desired = derived(serves(psk="group"), group(), per_id("10.0.0.5"))
    assert desired.connections == ()
    assert desired.local_portals == (portal(SOURCE),)


def test_target_views_refuse_an_initiator_with_two_keys_and_serve_the_others() -> None:
    desired = derived(serves(), per_id("db1", "one"), per_id("DB1", "two"), per_id("db2"))
    assert [str(c.remote_id) for c in desired.connections] == ["db2"]
    (problem,) = desired.problems
    assert "psk.d/one.toml" in problem.message
    assert "psk.d/two.toml" in problem.message
    assert desired.local_portals == (portal(SOURCE),)


def test_target_views_take_a_key_for_the_portals_it_names_only() -> None:
    desired = derived(serves("10.0.0.1", "10.0.0.2"), per_id("db1", portals=["10.0.0.2"]), per_id("db2"))
    assert [(str(c.binding.portal), str(c.remote_id)) for c in desired.connections] == [
        ("10.0.0.1:3260", "db2"),
        ("10.0.0.2:3260", "db1"),
        ("10.0.0.2:3260", "db2"),
    ]


def test_target_views_select_the_portals_own_port_from_any_port() -> None:
    (connection,) = derived(serves("10.0.0.1:3261"), per_id("db1")).connections
    assert (connection.local_ts, connection.remote_ts) == ("dynamic[6/3261]", "dynamic[6]")


def test_target_views_answer_under_the_target_id() -> None:
    (connection,) = derived(serves(target_id=identity("san.example.com")), per_id("db1")).connections
    assert connection.local_id == identity("san.example.com")


def test_target_views_tell_an_address_from_a_name_of_the_same_text() -> None:
    looks_like = per_id(IkeId.parse(IdType.ID_FQDN, "10.0.0.5"), "looks-like")
    desired = derived(serves(), per_id("10.0.0.5", "address"), looks_like)
    assert len({c.name for c in desired.connections}) == 2


def test_target_views_name_the_longest_identity_within_a_vici_name() -> None:
    label = "a" * 63
    longest = f"{label}.{label}.{label}.{label}"[:255]
    (connection,) = derived(
        serves("[fd00:1111:2222:3333:4444:5555:6666:7777]:65535"), per_id(longest)
    ).connections
    assert len(connection.name.encode()) <= 255


def test_target_views_report_a_policy_that_names_only_a_network() -> None:
    desired = derived(serves("10.0.0.0/24"), per_id("db1"))
    assert desired.local_portals or desired.problems


def test_target_views_leave_a_portal_open_whose_flags_ask_for_no_ipsec_and_say_so() -> None:
    desired = derived(serves(flags=CLEAR), per_id("db1"))
    assert desired.local_portals == ()
    assert [p.code for p in desired.problems] == ["clear-allowed"]


def test_target_views_close_a_portal_for_one_initiator_that_must_use_ipsec() -> None:
    desired = derived(serves(), per_id("db1", flags=CLEAR), per_id("db2"))
    assert desired.local_portals == (portal(SOURCE),)


def test_target_views_keep_a_served_portal_closed_that_was_managed_before() -> None:
    desired = derived(previously_managed=[(SOURCE, Role.TARGET)])
    assert (desired.guarded, desired.local_portals) == ((), (portal(SOURCE),))


@pytest.mark.parametrize(("id", "left"), [("db1", {"10.0.0.4/31"}), ("10.0.0.5", {"db1", "10.0.0.4/32"})])
def test_target_views_refuse_the_group_key_to_an_initiator_whose_own_key_may_apply(
    id: str, left: set[str]
) -> None:
    served = serves(initiators=(identity("db1"), ipaddress.ip_network("10.0.0.4/31")))
    desired = derived(served, group(), per_id(id, portals=["nowhere.example.com"]))
    assert {str(connection.remote_id) for connection in desired.connections} == left


def test_target_views_serve_a_portal_of_two_patterns_once() -> None:
    desired = derived(serves(SOURCE, "10.0.0.0/24"), per_id("db1"))
    assert len([c for c in desired.connections if c.role is Role.TARGET]) == 1


def test_target_views_refuse_a_second_port_of_a_served_address() -> None:
    desired = derived(serves(f"{SOURCE}:3260", f"{SOURCE}:3261"), per_id("db1"))
    assert {c.binding.portal.port for c in desired.connections} == {3260}
    (problem,) = desired.problems
    assert (problem.code, problem.file) == ("served-twice", "portal.d/serves.toml")
    assert set(desired.local_portals) == {portal(f"{SOURCE}:3260"), portal(f"{SOURCE}:3261")}


def test_target_views_let_nobody_in_by_the_group_key_where_the_psk_is_an_explicit_key() -> None:
    policy_of = serves(psk="db1", initiators=(identity("db1"), identity("db2")))
    desired = derived(policy_of, per_id("db1"), group())
    assert [c.key.name for c in desired.connections] == ["db1"]


# -- the group key


def test_target_views_let_in_by_the_group_key_only_initiators_that_the_policy_names() -> None:
    desired = derived(serves(initiators=(identity("db7"), identity("10.0.0.7"))), group())
    assert {c.remote_id for c in desired.connections} == {identity("db7"), identity("10.0.0.7")}
    assert {e.owners for e in desired.secrets} == {(identity("db7"),), (identity("10.0.0.7"),)}


@pytest.mark.parametrize("order", [1, -1])
def test_target_views_refuse_the_group_key_to_an_initiator_with_its_own_key(order: int) -> None:
    keys = (per_id("DB7"), per_id("10.0.0.7"), group())[::order]
    named = (identity("db7"), ipaddress.ip_network("10.0.0.0/29"))
    desired = derived(serves("10.0.0.250", initiators=named), *keys)
    own = {c.remote_id: c.key.name for c in desired.connections if not isinstance(c.key, GroupKey)}
    assert own == {identity("DB7"): "DB7", identity("10.0.0.7"): "10.0.0.7"}
    others = [c.remote_id for c in desired.connections if isinstance(c.key, GroupKey)]
    networks = [n for n in others if not isinstance(n, IkeId)]
    assert networks == others
    assert {str(a) for n in networks for a in n} == {f"10.0.0.{n}" for n in range(7)}
    group_owners = {o for e in desired.secrets if e.keys == ("group",) for o in e.owners}
    assert group_owners == set(networks)


@pytest.mark.parametrize("psk", [None, "group"])
def test_target_views_refuse_the_group_key_to_whoever_has_a_key_for_other_portals(psk: str | None) -> None:
    elsewhere = ["10.99.0.0/24"]
    keys = (per_id("db7", portals=elsewhere), per_id("10.0.0.7", portals=elsewhere), group())
    named = (identity("db7"), identity("db9"), ipaddress.ip_network("10.0.0.0/29"))
    desired = derived(serves("10.0.0.250", initiators=named, psk=psk), *keys)
    peers = [c.remote_id for c in desired.connections]
    assert identity("db9") in peers
    assert identity("db7") not in peers
    networks = [peer for peer in peers if not isinstance(peer, IkeId)]
    assert {str(a) for n in networks for a in n} == {f"10.0.0.{n}" for n in range(7)}
    # their keys wait under their own identities, which no connection of this portal has
    assert {e.owners for e in desired.secrets if e.keys != ("group",)} == {
        (identity("db7"),),
        (identity("10.0.0.7"),),
    }
    (warning,) = [p for p in desired.problems if p.code == "own-key-elsewhere"]
    assert warning.severity is Severity.WARNING
    assert "10.0.0.7 and 1 more cannot come in to 10.0.0.250:3260" in warning.message
    assert not [
        p for p in derived(serves("10.0.0.250", initiators=named), group()).problems
        if p.code == "own-key-elsewhere"
    ]  # fmt: skip


def test_target_views_cut_only_addresses_of_its_own_version_out_of_a_network() -> None:
    network = ipaddress.ip_network("fd00::/64")
    desired = derived(serves("fd00:1::1", initiators=(network,)), per_id("10.0.0.7"), group())
    assert network in {c.remote_id for c in desired.connections}


@pytest.mark.parametrize(
    ("network", "left"), [("10.0.0.0/31", {"10.0.0.0/32"}), ("10.0.0.20/31", {"10.0.0.21/32"})]
)
def test_target_views_refuse_the_group_key_to_the_ends_of_our_own_connections(
    network: str, left: set[str]
) -> None:
    served = serves("10.0.0.250", initiators=(ipaddress.ip_network(network),))
    own = per_id(SOURCE, portals=[TARGET])
    desired = derived(own, group(), served, record(), local=[SOURCE, "10.0.0.250"])
    assert connection_of(desired).key.name == SOURCE
    assert {str(c.remote_id) for c in desired.connections if c.role is Role.TARGET} == left
    shared = derived(group(), served, record(), local=[SOURCE, "10.0.0.250"])
    assert {str(c.remote_id) for c in shared.connections if c.role is Role.TARGET} == {network}


# -- main mode, networks and addresses


def test_target_views_refuse_names_that_main_mode_cannot_distinguish() -> None:
    flags = choice(IkeMode.MAIN)
    several = derived(serves(flags=flags), per_id("db1"), per_id("db2"))
    assert several.connections == ()
    assert {p.code for p in several.problems} == {"main-mode-names"}
    assert len(derived(serves(flags=flags), per_id("db1")).connections) == 1


def test_target_views_distinguish_addresses_in_main_mode_by_their_source() -> None:
    desired = derived(serves(flags=choice(IkeMode.MAIN)), per_id("10.0.0.5"), per_id("10.0.0.6"))
    assert {c.remote_address for c in desired.connections} == {address("10.0.0.5"), address("10.0.0.6")}


def test_target_views_distinguish_networks_in_main_mode_by_their_source() -> None:
    networks = tuple(map(ipaddress.ip_network, ("10.1.0.0/16", "10.2.0.0/16")))
    desired = derived(serves(flags=choice(IkeMode.MAIN), initiators=networks), group())
    assert {c.remote_address for c in desired.connections} == set(networks)


# -- a host of both roles


def test_target_views_close_a_portal_that_would_answer_under_the_initiators_identity() -> None:
    desired = managed(per_id(SOURCE), record(), serves(), per_id("db1"))
    assert [c.role for c in desired.connections] == [Role.INITIATOR]
    assert desired.local_portals == (portal(SOURCE),)
    (problem,) = desired.problems
    assert "target_id" in problem.hint


def test_target_views_serve_a_portal_with_its_own_identity_beside_the_initiator() -> None:
    served = serves(target_id=identity("san.example.com"))
    desired = managed(per_id(SOURCE), record(), served, per_id("db1"))
    assert {c.role for c in desired.connections} == {Role.INITIATOR, Role.TARGET}


def test_target_views_let_nobody_in_under_our_own_identity_with_another_key() -> None:
    # the secret [10.0.0.1] of such an initiator would match our own connection as well
    serving = serves(target_id=identity("san.example.com"))
    desired = managed(per_id(SOURCE), group(), policy(psk="group"), serving, record())
    assert [c.key.name for c in desired.connections] == ["group"]
    assert [p.code for p in desired.problems if p.portal == f"{SOURCE}:3260"] == ["shared-identity"]
    same = managed(per_id(SOURCE), serving, record())
    assert {c.role for c in same.connections} == {Role.INITIATOR, Role.TARGET}


def test_target_views_let_no_initiator_in_with_the_hosts_own_key() -> None:
    # an IKEv2 responder tries every key that matches either id: the secret of the pair
    # [10.0.0.1, target] matches when 10.0.0.1 is also what the served portal calls itself
    desired = derived(per_id(SOURCE), serves(), per_id("db1"), record())
    serving = [c for c in desired.connections if c.role is Role.TARGET and c.remote_id == identity("db1")]
    for connection in serving:
        matching = {
            e.secret for e in desired.secrets if {connection.local_id, connection.remote_id} & set(e.owners)
        }
        reported = any(p.portal == str(connection.binding.portal) for p in desired.problems)
        assert matching == {connection.key.secret} or reported
