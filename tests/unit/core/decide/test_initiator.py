"""The decision about a portal that this host reaches: left alone, closed or connected, and why."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from iscsi_ipsec.base.keys import Key
from iscsi_ipsec.base.policy import EspMode, IkeMode, Role, Tuning
from iscsi_ipsec.base.portal import EVERYWHERE
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.desired import PortalView
from iscsi_ipsec.core.decide.setting_precedence import BUILT_IN
from iscsi_ipsec.core.decide.world import PortalBinding
from tests.support.values import (
    CLEAR,
    SOURCE,
    TARGET,
    address,
    broken,
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
    session,
    view_of,
)


def reported(
    code: str, message: str, hint: str, file: str = "", severity: Severity = Severity.ERROR
) -> Problem:
    """The whole problem, about the portal that the tests use where they need but one."""
    return Problem(
        code=code, message=message, hint=hint, file=file, portal=f"{TARGET}:3260", severity=severity
    )


# -- left alone, open or closed


def test_initiator_view_closes_a_policys_portal_without_any_key() -> None:
    assert derived(policy()).portals == (
        PortalView(
            binding=PortalBinding(portal()),
            role=Role.INITIATOR,
            managed=True,
            closed=True,
            reasons=(
                "policy portal.d/san.toml applies",
                "no key applies",
                "built-in flags: IKEv2, PFS, transport mode unless an outer address is set",
                f"no key applies to {TARGET}:3260: the portal stays closed",
            ),
            origins=("policy portal.d/san.toml",),
            policy="portal.d/san.toml",
            covered=True,
            choice=BUILT_IN,
            problem=reported(
                "no-key",
                f"no key applies to {TARGET}:3260",
                "add a per-ID key or a group key to psk.d, or name one with psk in the policy",
                "portal.d/san.toml",
            ),
        ),
    )


CLEAR_BY_FILE = pytest.mark.parametrize(
    ("parts", "file"),
    [
        ((per_id(SOURCE, flags=CLEAR, portals=[TARGET]),), f"psk.d/{SOURCE}.toml"),
        ((policy(flags=CLEAR),), "portal.d/san.toml"),
        ((per_id(SOURCE, flags=CLEAR), policy()), "portal.d/san.toml"),
    ],
    ids=["key", "policy", "both"],
)


@CLEAR_BY_FILE
def test_clear_view_leaves_a_portal_open_whose_flags_ask_for_no_ipsec_and_says_so(
    parts: Any, file: str
) -> None:
    desired = derived(*parts)
    view = view_of(desired)
    assert (view.managed, view.closed, view.connection, desired.guarded) == (True, False, None, ())
    assert view.reasons[-1] == "IKE_IPSEC_ENABLED is unset: unencrypted traffic is allowed"
    assert view.problem == reported(
        "clear-allowed",
        f"the flags of {TARGET}:3260 don't ask for IPsec: its traffic is unencrypted",
        "set IKE_IPSEC_ENABLED to protect it",
        file,
        Severity.WARNING,
    )


@CLEAR_BY_FILE
def test_clear_view_blocks_a_portal_whose_flags_ask_for_no_ipsec_under_require_ipsec(
    parts: Any, file: str
) -> None:
    desired = derived(*parts, settings=Settings(require_ipsec=True))
    view = view_of(desired)
    assert (view.managed, view.closed, view.connection, desired.guarded) == (True, True, None, (portal(),))
    assert view.reasons[-1] == "IKE_IPSEC_ENABLED is unset but require_ipsec is set: blocked"
    assert view.problem == reported(
        "ipsec-required",
        f"the flags of {TARGET}:3260 allow unencrypted traffic but require_ipsec is set, so it is blocked",
        "set IKE_IPSEC_ENABLED for it",
        file,
    )


def test_uncovered_view_blocks_a_portal_without_key_or_policy_under_require_ipsec() -> None:
    desired = derived(record(), settings=Settings(require_ipsec=True))
    view = view_of(desired)
    assert (view.managed, view.closed, desired.guarded) == (False, True, (portal(),))
    assert view.reasons[-1] == "require_ipsec is set: a portal without key or policy is blocked"
    assert view.problem == reported(
        "ipsec-required",
        f"{TARGET}:3260 has neither key nor policy and require_ipsec is set, so it is blocked",
        "add a key to psk.d, or a policy to portal.d",
    )


def test_uncovered_view_leaves_a_portal_without_key_or_policy_alone() -> None:
    desired = derived(record())
    view = view_of(desired)
    assert (view.closed, view.managed, desired.guarded) == (False, False, ())
    assert view.reasons[-1] == "no policy and no key's portals name it: left alone, unencrypted"


@pytest.mark.parametrize("key", [group(), per_id(SOURCE), per_id("db1")], ids=["group", "address", "name"])
def test_initiator_view_leaves_a_known_portal_alone_that_only_a_key_without_portals_is_there_for(
    key: Key,
) -> None:
    desired = derived(key, record(), session())
    view = view_of(desired)
    assert (view.managed, view.closed, desired.guarded, desired.networks) == (False, False, (), ())
    assert view.problem == reported(
        "not-protected",
        f"{TARGET}:3260 is not managed: its iSCSI traffic is unencrypted",
        f'to protect it, put this line into a file in portal.d: portals = ["{TARGET}:3260"]',
        severity=Severity.WARNING,
    )


@pytest.mark.parametrize("key", [group(), per_id(SOURCE), per_id("db1")], ids=["group", "address", "name"])
@pytest.mark.parametrize(
    "more",
    [{"settings": Settings(require_ipsec=True)}, {"inherited": frozenset({portal()})}],
    ids=["require_ipsec", "inherited"],
)
def test_initiator_view_uses_a_key_without_portals_where_something_else_manages_the_portal(
    key: Key, more: Any
) -> None:
    if "inherited" in more:
        more = {**more, "previously_managed": [TARGET]}
    assert connection_of(derived(key, record(), **more)).key == key
    assert connection_of(derived(key, policy("any"), record())).key == key
    assert connection_of(derived(key, group("other", portals=[TARGET]), policy(psk=key.name))).key == key


def test_initiator_view_keeps_what_an_earlier_version_managed_and_names_the_line_to_add() -> None:
    both = [TARGET, "10.0.0.21"]
    desired = derived(group(), previously_managed=both, inherited=frozenset(map(portal, both)))
    assert [view.connection is not None for view in desired.portals] == [True, True]
    (warning,) = [problem for problem in desired.problems if problem.code == "unrestricted-key"]
    assert (warning.file, warning.severity) == ("psk.d/group.toml", Severity.WARNING)
    assert warning.hint == (
        f'put this line into a file in portal.d: portals = ["{TARGET}:3260", "10.0.0.21:3260"]'
    )
    after = derived(group(), policy(*both), previously_managed=both, inherited=frozenset(map(portal, both)))
    assert after.connections == desired.connections, "the line changes nothing in charon"
    assert not [problem for problem in after.problems if problem.code == "unrestricted-key"]


def test_initiator_view_keeps_an_inherited_portal_closed_without_its_key() -> None:
    view = view_of(derived(previously_managed=[TARGET], inherited=frozenset({portal()})))
    assert (view.managed, view.closed, view.connection) == (True, True, None)
    assert view.problem
    assert view.problem.code == "orphaned"


def test_initiator_view_takes_no_unrestricted_key_for_a_portal_that_left_its_policy() -> None:
    view = view_of(derived(group(), previously_managed=[TARGET]))
    assert (view.managed, view.closed, view.connection) == (True, True, None)
    assert view.problem
    assert view.problem.code == "orphaned"


@pytest.mark.parametrize(
    "parts",
    [(group(portals=["any"]),), (group(), policy("any"))],
    ids=["key", "policy"],
)
def test_any_manages_all_portals_on_the_registered_port_known_or_not(parts: Any) -> None:
    desired = derived(*parts, record(), record("fd00::20"), record("10.0.0.21", port=3261))
    assert desired.guarded == (portal(), portal("fd00::20"))
    assert desired.networks == EVERYWHERE
    assert len(desired.connections) == 2


def test_any_is_the_least_specific_of_all() -> None:
    desired = derived(
        group(portals=["any"]), policy("10.0.0.0/8", flags=CLEAR), record(), record("192.0.2.1")
    )
    assert (view_of(desired).closed, view_of(desired, "192.0.2.1").closed) == (False, True)
    assert desired.clear_exceptions, "an unknown portal of that network is not closed either"


def test_initiator_view_closes_a_portal_that_a_keys_portals_name_though_no_key_applies() -> None:
    view = view_of(derived(per_id("10.0.0.9", portals=[TARGET])))
    assert (view.managed, view.closed, view.connection) == (True, True, None)
    assert view.problem
    assert view.problem.code == "no-key"


def test_uncovered_view_keeps_a_portal_closed_that_was_managed_before() -> None:
    desired = derived(record(), previously_managed=[TARGET])
    view = view_of(desired)
    assert (view.closed, view.managed, view.connection, desired.guarded) == (True, True, None, (portal(),))
    assert view.reasons[-1] == (
        "it was managed before and no file covers it any more: it stays closed until released"
    )
    assert view.problem == reported(
        "orphaned",
        f"no file covers {TARGET}:3260 any more, so it stays closed",
        f"restore its files, or open it with: iscsi-ipsec release {TARGET}:3260",
    )


@pytest.mark.parametrize(("oif", "through"), [("", ""), ("ens3", " through ens3")])
def test_initiator_view_closes_a_portal_without_a_route(oif: str, through: str) -> None:
    desired = managed(group(), record(net_ifacename=oif), sources={(TARGET, oif): None})
    view = view_of(desired, oif=oif)
    assert (view.closed, view.connection, desired.guarded) == (True, None, (portal(),))
    assert view.problem == reported(
        "no-route",
        f"the kernel has no route to {TARGET}:3260{through}",
        f"check with: ip route get {TARGET}",
    )


@pytest.mark.parametrize("key", [group(), per_id(SOURCE)], ids=["group", "address"])
def test_initiator_view_shows_the_missing_route_to_a_portal_behind_a_tunnel(key: Key) -> None:
    desired = derived(key, policy(tunnel_outer_remote=address("10.0.0.254")), sources={TARGET: None})
    view = view_of(desired)
    assert (view.closed, view.connection) == (True, None)
    assert view.problem is not None
    assert view.problem.code == "no-route"
    assert "ip route add 10.0.0.20 via 10.0.0.254" in view.problem.hint


def test_uncovered_view_quotes_an_ipv6_portal_so_that_its_hint_can_be_typed() -> None:
    """Brackets mean something to a shell."""
    view = view_of(derived(record("fd00::20"), previously_managed=["fd00::20"]), "fd00::20")
    assert view.problem
    assert view.problem.hint.endswith("iscsi-ipsec release '[fd00::20]:3260'")


def test_initiator_view_names_no_gateway_of_the_other_ip_version_in_its_hint() -> None:
    remote, outer = address("fd00::20"), address("10.0.0.254")
    desired = derived(group(), policy("fd00::20", tunnel_outer_remote=outer), sources={"fd00::20": None})
    (view,) = [v for v in desired.portals if v.binding.portal.address == remote]
    assert view.problem is not None
    assert view.problem.code == "no-route"
    assert "ip -6 route add fd00::20 dev" in view.problem.hint
    assert str(outer) not in view.problem.hint


def test_initiator_view_leaves_a_portal_at_this_hosts_own_address_alone() -> None:
    desired = derived(per_id(SOURCE), record(SOURCE))
    view = view_of(desired, SOURCE)
    assert (desired.guarded, desired.connections, view.problem) == ((), (), None)
    assert view.reasons == (
        "no policy names this portal",
        "no policy and no key's portals name it: left alone, unencrypted",
        "the address is this host's own at present: no connection is needed",
    )


@pytest.mark.parametrize(
    ("parts", "more"),
    [
        ((group(), policy(SOURCE)), {}),
        ((group(portals=["10.0.0.0/24"]), record(SOURCE)), {}),
        ((policy(SOURCE),), {}),
        ((), {"previously_managed": [SOURCE]}),
        ((group(),), {"previously_managed": [SOURCE], "inherited": frozenset({portal(SOURCE)})}),
        ((), {"broken": broken(SOURCE)}),
        ((record(SOURCE),), {"settings": Settings(require_ipsec=True)}),
    ],
    ids=["policy", "key", "without a key", "managed before", "inherited", "broken", "require_ipsec"],
)
def test_initiator_view_keeps_closed_what_is_closed_while_the_address_is_this_hosts_own(
    parts: Any, more: Any
) -> None:
    away = derived(*parts, local=["10.0.0.77"], **more)
    here = derived(*parts, **more)
    assert away.guarded == here.guarded == (portal(SOURCE),)
    view = view_of(here, SOURCE)
    assert (view.connection, view.problem, view.own_address) == (None, None, True)
    assert view.managed == view_of(away, SOURCE).managed


def test_initiator_view_opens_an_own_address_as_its_flags_say() -> None:
    assert not view_of(derived(group(), policy(SOURCE, flags=CLEAR)), SOURCE).closed


# -- interfaces


def test_initiator_view_of_a_bound_interface_has_its_own_connection_and_key() -> None:
    desired = managed(
        per_id("10.0.0.1"),
        per_id("10.1.0.1"),
        record(),
        record(net_ifacename="ens4"),
        sources={TARGET: "10.0.0.1", (TARGET, "ens4"): "10.1.0.1"},
    )
    plain, bound = connection_of(desired), connection_of(desired, oif="ens4")
    assert (plain.local_id, plain.local_address) == (identity("10.0.0.1"), address("10.0.0.1"))
    assert (bound.local_id, bound.local_address) == (identity("10.1.0.1"), address("10.1.0.1"))
    assert plain.name != bound.name
    assert bound.name.endswith("-ens4")
    assert desired.guarded == (portal(),)


def test_initiator_view_is_not_made_unbound_where_only_a_bound_interface_uses_the_portal() -> None:
    desired = managed(per_id(SOURCE), record(net_ifacename="ens4"))
    assert [c.binding for c in desired.connections] == [PortalBinding(portal(), "ens4")]


# -- the connection


def test_connection_expects_the_peers_address_as_identity_unless_a_policy_says_otherwise() -> None:
    assert connection_of(managed(group(), record())).remote_id == identity(TARGET)
    named = policy(target_id=identity("san.example.com"))
    assert connection_of(managed(group(), named)).remote_id == identity("san.example.com")


def test_connection_in_tunnel_mode_without_outer_addresses_runs_between_the_portals_addresses() -> None:
    connection = connection_of(managed(per_id(SOURCE, flags=choice(esp=EspMode.TUNNEL)), record()))
    assert connection.esp is EspMode.TUNNEL
    assert (connection.local_ts, connection.remote_ts) == ("dynamic[6]", "dynamic[6/3260]")


def test_connection_with_an_outer_address_is_a_tunnel_to_it_that_selects_the_portal() -> None:
    outer = policy(tunnel_outer_remote=address("203.0.113.1"))
    desired = derived(per_id("db1"), outer, sources={TARGET: "10.0.0.1", "203.0.113.1": "198.51.100.9"})
    connection = connection_of(desired)
    assert connection.esp is EspMode.TUNNEL
    assert connection.remote_address == address("203.0.113.1")
    assert connection.local_address == address("198.51.100.9")
    assert connection.remote_ts == "10.0.0.20/32[6/3260]"
    assert connection.local_ts == "10.0.0.1/32[6]"
    assert connection.remote_id == identity("203.0.113.1")
    assert desired.guarded == (portal(),)


def test_connection_takes_a_local_outer_address_and_selects_the_inner_one() -> None:
    outer = policy(tunnel_outer_local=address("198.51.100.9"))
    connection = connection_of(derived(per_id("db1"), outer))
    assert connection.esp is EspMode.TUNNEL
    assert (connection.local_address, connection.local_ts) == (address("198.51.100.9"), "10.0.0.1/32[6]")
    assert connection.remote_ts == "dynamic[6/3260]"


@pytest.mark.parametrize(
    ("outer", "addresses"),
    [
        (
            {"tunnel_outer_remote": address("2001:db8::1"), "tunnel_outer_local": address("198.51.100.9")},
            "198.51.100.9 and 2001:db8::1",
        ),
        ({"tunnel_outer_local": address("2001:db8::1")}, f"2001:db8::1 and {TARGET}"),
    ],
)
def test_connection_between_outer_addresses_of_two_versions_is_refused(
    outer: dict[str, Any], addresses: str
) -> None:
    view = view_of(derived(per_id("db1"), policy(**outer)))
    assert (view.closed, view.connection) == (True, None)
    assert view.problem == reported(
        "mixed-versions",
        f"the tunnel's outer addresses {addresses} differ in IP version",
        "set both tunnel_outer_local and tunnel_outer_remote",
        "portal.d/san.toml",
    )


def test_connection_to_an_outer_address_without_a_route_is_refused() -> None:
    outer = policy(tunnel_outer_remote=address("203.0.113.1"))
    view = view_of(derived(per_id("db1"), outer, sources={"203.0.113.1": None}))
    assert (view.closed, view.connection) == (True, None)
    assert view.problem == reported(
        "no-route",
        "the kernel has no route to the tunnel's outer address 203.0.113.1",
        "check with: ip route get 203.0.113.1",
        "portal.d/san.toml",
    )


def test_initiator_view_has_a_reason_for_every_rule_that_decided() -> None:
    flags = choice(IkeMode.MAIN, EspMode.TUNNEL)
    tuned = policy(psk="db1", tuning=Tuning(ike_proposals=("aes128-sha256-modp2048",)), preset="windows")
    view = view_of(derived(per_id("db1"), tuned, record(), settings=Settings(default_choice=flags)))
    assert view.reasons == (
        "policy portal.d/san.toml applies",
        "key psk.d/db1.toml: the policy names it",
        "flags from the preset windows: 0x27 VALID IKE_IPSEC_ENABLED MAIN_MODE_ENABLED TRANSPORT_MODE_PREFERRED",
        "identity db1 (ID_FQDN) towards 10.0.0.20 (ID_IPV4_ADDR)",
        "IKE proposals from the policy portal.d/san.toml",
        "ESP proposals from the preset windows",
    )
    flags = choice(IkeMode.MAIN, EspMode.TUNNEL, pfs=False)
    view = view_of(derived(per_id(SOURCE, flags=flags, portals=[TARGET])))
    assert view.reasons == (
        "no policy names this portal",
        "key psk.d/10.0.0.1.toml: its identity is the source address 10.0.0.1",
        "flags from the key psk.d/10.0.0.1.toml: 0x47 VALID IKE_IPSEC_ENABLED MAIN_MODE_ENABLED TUNNEL_MODE_PREFERRED",
        "identity 10.0.0.1 (ID_IPV4_ADDR) towards 10.0.0.20 (ID_IPV4_ADDR)",
        "IKE proposals from the built-in list: RFC 7146 and better, fastest first on this CPU",
        "ESP proposals from the built-in list: RFC 7146 and better, fastest first on this CPU",
    )


def test_initiator_view_names_the_keys_file_and_the_identity_it_is_used_under() -> None:
    view = view_of(managed(per_id("db1.lab", name="db1"), record()))
    assert (view.key, view.key_path, view.identity) == ("db1", "psk.d/db1.toml", identity("db1.lab"))
    assert dataclasses.replace(view, key="") != view
