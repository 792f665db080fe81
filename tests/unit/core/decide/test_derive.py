"""Which key, which flags, open or closed: every rule, and what happens where the files leave doubt."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from typing import Any

import pytest

from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.keys import GroupKey, Key
from iscsi_ipsec.base.policy import EspMode, IkeMode, Role, Start, Tuning
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.derive import EVERYWHERE, Deriver, derive
from iscsi_ipsec.core.decide.desired import Desired, PortalView
from iscsi_ipsec.core.decide.key_choice import BUILT_IN
from iscsi_ipsec.core.decide.world import Lookup, PortalBinding, candidates, wanted_sources
from tests.support.values import (
    CLEAR,
    SOURCE,
    TARGET,
    address,
    broken,
    choice,
    connection_of,
    derived,
    discovery,
    group,
    identity,
    per_id,
    policy,
    portal,
    record,
    serves,
    session,
    view_of,
    world,
)

V4, V6 = "10.0.0.20", "[fd00::20]:3260"


# -- which key


def test_a_key_whose_address_is_the_source_address_is_used() -> None:
    connection = connection_of(derived(per_id(SOURCE), record()))
    assert (connection.key.name, connection.local_id) == (SOURCE, identity(SOURCE))


def test_the_policys_psk_beats_the_source_addresses_key() -> None:
    desired = derived(per_id(SOURCE), per_id("db1"), group(), policy(psk="db1"))
    assert connection_of(desired).key.name == "db1"


def test_the_source_addresses_key_beats_a_named_one_and_the_group() -> None:
    assert connection_of(derived(group(), per_id("db1"), per_id(SOURCE), record())).key.name == SOURCE


@pytest.mark.parametrize("id", ["db1.example.com", "db1@example.com"])
def test_the_only_named_key_beats_the_group_key(id: str) -> None:
    connection = connection_of(derived(group(), per_id(id), per_id("10.0.0.99"), record()))
    assert connection.local_id == identity(id)


def test_another_addresses_key_is_never_used() -> None:
    view = view_of(derived(per_id("10.0.0.99"), record()))
    assert view.connection is None
    assert not view.managed


def test_the_group_key_is_used_under_the_source_address() -> None:
    connection = connection_of(derived(group(), per_id("10.0.0.99"), record()))
    assert isinstance(connection.key, GroupKey)
    assert connection.local_id == identity(SOURCE)


def test_an_fqdn_that_looks_like_the_source_address_is_no_address_key() -> None:
    looks_like = per_id(IkeId.parse(IdType.ID_FQDN, SOURCE), "looks-like")
    desired = derived(looks_like, per_id(SOURCE, "address"), record())
    assert connection_of(desired).key.name == "address"


def refused(view: PortalView, code: str, message: str, hint: str, *, file: str = "portal.d/san.toml") -> None:
    """The portal is closed, and the problem names the file, the matter and the remedy."""
    assert (view.closed, view.connection) == (True, None)
    assert view.problem is not None
    assert (view.problem.code, view.problem.file) == (code, file)
    assert re.search(message, view.problem.message)
    assert hint in view.problem.hint


def reported(
    code: str, message: str, hint: str, file: str = "", severity: Severity = Severity.ERROR
) -> Problem:
    """The whole problem, about the portal that the tests use where they need but one."""
    return Problem(
        code=code, message=message, hint=hint, file=file, portal=f"{TARGET}:3260", severity=severity
    )


@pytest.mark.parametrize(("number", "end"), [(5, ".toml"), (6, ".toml and more")])
def test_of_many_keys_that_apply_only_some_are_named(number: int, end: str) -> None:
    view = view_of(derived(*(per_id(f"host{n}.lab") for n in range(number)), record()))
    assert view.problem is not None
    assert re.search(rf"lab{re.escape(end)}$", view.problem.message)


def test_several_named_keys_are_refused_by_their_files_and_the_portal_stays_closed() -> None:
    view = view_of(derived(per_id("a.example.com"), per_id("b.example.com"), group(), record()))

    assert view.connection is None
    assert view.closed
    assert view.managed
    assert view.problem == Problem(
        code="ambiguous-key",
        message="several keys with a name as identity apply to 10.0.0.20:3260:"
        " psk.d/a.example.com.toml, psk.d/b.example.com.toml",
        hint="say which with psk in a policy, or narrow the keys with portals",
        portal="10.0.0.20:3260",
    )


@pytest.mark.parametrize(
    "keys",
    [
        (per_id(SOURCE, "one"), per_id(SOURCE, "two")),
        (group("one"), group("two")),
    ],
    ids=["of one address", "group keys"],
)
def test_two_keys_of_one_rank_close_the_portal(keys: tuple[GroupKey, GroupKey]) -> None:
    desired = derived(*keys, record())
    view = view_of(desired)
    assert view.closed
    assert view.connection is None
    assert view.problem is not None
    assert "psk.d/one.toml" in view.problem.message
    assert "psk.d/two.toml" in view.problem.message
    assert portal() in desired.guarded


def test_a_policy_resolves_what_would_be_ambiguous() -> None:
    desired = derived(per_id("a.example.com"), per_id("b.example.com"), policy(psk="b.example.com"))
    assert connection_of(desired).key.name == "b.example.com"


def test_a_thousand_ambiguous_keys_make_no_endless_message() -> None:
    view = view_of(derived(*(per_id(f"host{n}.example.com") for n in range(1000)), record()))
    assert view.problem is not None
    assert len(view.problem.message) < 500
    assert "and more" in view.problem.message


def test_ambiguous_keys_are_told_alike_in_whatever_order_they_were_read() -> None:
    keys = [per_id(f"host{n}.example.com") for n in range(9)]
    there, back = view_of(derived(*keys, record())), view_of(derived(*keys[::-1], record()))
    assert there.problem == back.problem


def test_a_key_is_not_used_outside_of_its_portals() -> None:
    key = per_id("db1", portals=["10.0.0.0/24"])
    desired = derived(key, group(), record(TARGET), record("10.0.1.20"))
    assert connection_of(desired, TARGET).key.name == "db1"
    assert connection_of(desired, "10.0.1.20").key.name == "group"


def test_a_keys_portals_count_with_their_port() -> None:
    desired = derived(
        per_id("db1", portals=[f"{TARGET}:3261"]), group(), record(port=3260), record(port=3261)
    )
    assert connection_of(desired, f"{TARGET}:3260").key.name == "group"
    assert connection_of(desired, f"{TARGET}:3261").key.name == "db1"


def test_a_psk_of_which_no_file_is_in_force_closes_the_portal() -> None:
    view = view_of(derived(per_id(SOURCE), group(), policy(psk="gone")))
    assert (view.closed, view.connection) == (True, None)
    assert view.problem is not None
    assert (view.problem.code, view.problem.file) == ("missing-key", "portal.d/san.toml")
    assert "psk.d/gone.toml" in view.problem.hint


def test_a_psk_whose_portals_leave_out_the_portal_closes_it() -> None:
    view = view_of(derived(per_id("db1", portals=["10.9.0.0/16"]), group(), policy(psk="db1")))
    assert (view.closed, view.connection) == (True, None)
    assert view.problem is not None
    assert (view.problem.code, view.problem.file) == ("key-not-for-portal", "portal.d/san.toml")
    assert f"portals leave out {TARGET}:3260" in view.problem.message
    assert view.problem.hint == "add the portal to the key's portals"


def test_a_policy_without_any_key_closes_its_portal() -> None:
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
            choice=BUILT_IN,
            problem=reported(
                "no-key",
                f"no key applies to {TARGET}:3260",
                "add a per-ID key or a group key to psk.d, or name one with psk in the policy",
                "portal.d/san.toml",
            ),
        ),
    )


def test_a_policy_may_name_the_group_key() -> None:
    connection = connection_of(derived(per_id(SOURCE), group(), policy(psk="group")))
    assert connection.key.name == "group"
    assert connection.local_id == identity(SOURCE)


def test_the_reasons_tell_which_rule_decided() -> None:
    assert any("source address 10.0.0.1" in r for r in view_of(derived(per_id(SOURCE), record())).reasons)
    assert any("policy names it" in r for r in view_of(derived(per_id("a"), policy(psk="a"))).reasons)
    assert any("the group key" in r for r in view_of(derived(group(), record())).reasons)


@pytest.mark.parametrize(("source", "reported"), [(SOURCE, SOURCE), (None, "(no route)")])
def test_the_reasons_tell_for_which_address_no_key_was_found(source: str | None, reported: str) -> None:
    elsewhere = per_id("10.0.0.9", portals=["10.9.0.0/16"])
    reasons = view_of(derived(elsewhere, group(), record(), sources={TARGET: source})).reasons
    assert f"no address key is for the source address {reported}" in reasons


def test_an_ipv6_portal_uses_the_key_of_the_ipv6_source() -> None:
    desired = derived(per_id(SOURCE), per_id("fd00::1"), record(V4), record("fd00::20"))
    assert connection_of(desired, V4).local_id == identity(SOURCE)
    assert connection_of(desired, V6).local_id == identity("fd00::1")


def test_a_changed_route_changes_the_key() -> None:
    keys = (per_id("10.0.0.1"), per_id("10.0.0.2"), record())
    assert connection_of(derived(*keys, sources={TARGET: "10.0.0.1"})).key.name == "10.0.0.1"
    assert connection_of(derived(*keys, sources={TARGET: "10.0.0.2"})).key.name == "10.0.0.2"


# -- two keys for what charon cannot tell apart


def test_two_keys_for_one_pair_of_identities_are_refused_since_charon_cannot_tell_ports_apart() -> None:
    # IKE authenticates hosts, not ports: both secrets would have the same owners
    desired = derived(
        per_id("db1", "one", portals=[f"{TARGET}:3260"]),
        per_id("db1", "two", portals=[f"{TARGET}:3261"]),
        record(port=3260),
        record(port=3261),
    )
    owners = [entry.owners for entry in desired.secrets]
    assert len(owners) == len(set(owners))
    message = "different keys apply between db1 and 10.0.0.20: psk.d/one.toml, psk.d/two.toml"
    assert desired.problems == tuple(
        Problem(
            code="ambiguous-key",
            message=message,
            hint="let one key serve all portals of that target, or give them different target_id",
            portal=f"{TARGET}:{port}",
        )
        for port in (3260, 3261)
    )
    assert {view.reasons[-1] for view in desired.portals} == {f"{message}: the portal stays closed"}
    assert desired.guarded == (portal(), portal(f"{TARGET}:3261"))


def test_a_remote_that_two_local_ids_reach_is_reached_by_each_with_its_own_key() -> None:
    # charon ranks the match on the other id first: a secret owned by the remote alone is as good as any pair's
    desired = derived(
        per_id("10.0.0.1", "one", portals=["10.0.0.20"]),
        group(),
        per_id("10.0.1.1", "two"),
        record("10.0.0.20"),
        record("10.0.0.21"),
        record("10.0.0.20", net_ifacename="ens4"),
        sources={("10.0.0.20", "ens4"): "10.0.1.1"},
    )
    for connection in desired.connections:
        ranked = [
            ((connection.remote_id in e.owners, connection.local_id in e.owners), e.secret)
            for e in desired.secrets
        ]
        best = max(rank for rank, _ in ranked)
        assert [secret for rank, secret in ranked if rank == best] == [connection.key.secret]


# -- interfaces


def test_a_bound_interface_gives_a_connection_of_its_own_with_its_own_key() -> None:
    desired = derived(
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


def test_bindings_that_differ_in_nothing_but_the_interface_share_one_connection() -> None:
    desired = derived(
        per_id("10.0.0.1"),
        record(),
        record(net_ifacename="ens4"),
        sources={TARGET: "10.0.0.1", (TARGET, "ens4"): "10.0.0.1"},
    )
    assert len(desired.portals) == 2
    assert [c.name for c in desired.connections] == ["iscsi-ipsec-10.0.0.20-3260"]
    assert {v.connection for v in desired.portals} == set(desired.connections)


def test_a_portal_that_only_a_bound_interface_uses_has_no_unbound_connection() -> None:
    desired = derived(per_id(SOURCE), record(net_ifacename="ens4"))
    assert [c.binding for c in desired.connections] == [PortalBinding(portal(), "ens4")]


# -- flags


def test_a_policys_flags_beat_the_keys() -> None:
    desired = derived(per_id(SOURCE, flags=choice(IkeMode.MAIN)), policy(flags=choice(IkeMode.V2)))
    assert connection_of(desired).ike is IkeMode.V2


def test_a_presets_flags_beat_the_keys_and_yield_to_the_policys() -> None:
    key = per_id(SOURCE, flags=choice(IkeMode.AGGRESSIVE))
    assert connection_of(derived(key, policy(preset="windows"))).ike is IkeMode.MAIN
    assert connection_of(derived(key, policy(preset="windows", flags=choice(pfs=False)))).ike is IkeMode.V2


def test_a_keys_flags_beat_the_settings_defaults() -> None:
    settings = Settings(default_choice=choice(IkeMode.MAIN))
    flagged = derived(per_id(SOURCE, flags=choice(IkeMode.AGGRESSIVE)), record(), settings=settings)
    assert connection_of(flagged).ike is IkeMode.AGGRESSIVE
    assert connection_of(derived(per_id(SOURCE), record(), settings=settings)).ike is IkeMode.MAIN


def test_unspecified_flags_are_ikev2_transport_and_pfs() -> None:
    connection = connection_of(derived(per_id(SOURCE), record()))
    assert (connection.ike, connection.esp, connection.pfs) == (IkeMode.V2, EspMode.TRANSPORT, True)


CLEAR_BY_FILE = pytest.mark.parametrize(
    ("parts", "file"),
    [
        ((per_id(SOURCE, flags=CLEAR), record()), f"psk.d/{SOURCE}.toml"),
        ((policy(flags=CLEAR),), "portal.d/san.toml"),
        ((per_id(SOURCE, flags=CLEAR), policy()), "portal.d/san.toml"),
    ],
    ids=["key", "policy", "both"],
)


@CLEAR_BY_FILE
def test_flags_that_ask_for_no_ipsec_leave_the_portal_open_and_say_so(parts: Any, file: str) -> None:
    desired = derived(*parts)
    view = view_of(desired)
    assert (view.managed, view.closed, view.connection, desired.guarded) == (True, False, None, ())
    assert view.reasons[-1] == "IKE_IPSEC_ENABLED is unset: clear text is allowed"
    assert view.problem == reported(
        "clear-allowed",
        f"the flags of {TARGET}:3260 don't ask for IPsec: it runs in clear",
        "set IKE_IPSEC_ENABLED to protect it",
        file,
        Severity.WARNING,
    )


@CLEAR_BY_FILE
def test_flags_that_ask_for_no_ipsec_are_blocked_under_require_ipsec(parts: Any, file: str) -> None:
    desired = derived(*parts, settings=Settings(require_ipsec=True))
    view = view_of(desired)
    assert (view.managed, view.closed, view.connection, desired.guarded) == (True, True, None, (portal(),))
    assert view.reasons[-1] == "IKE_IPSEC_ENABLED is unset but require_ipsec is set: blocked"
    assert view.problem == reported(
        "ipsec-required",
        f"the flags of {TARGET}:3260 allow clear text but require_ipsec is set, so it is blocked",
        "set IKE_IPSEC_ENABLED for it",
        file,
    )


def test_require_ipsec_blocks_a_portal_without_key_or_policy() -> None:
    desired = derived(record(), settings=Settings(require_ipsec=True))
    view = view_of(desired)
    assert (view.managed, view.closed, desired.guarded) == (False, True, (portal(),))
    assert view.reasons[-1] == "require_ipsec is set: a portal without key or policy is blocked"
    assert view.problem == reported(
        "ipsec-required",
        f"{TARGET}:3260 has neither key nor policy and require_ipsec is set, so it is blocked",
        "add a key to psk.d, or a policy to portal.d",
    )


def test_a_portal_without_key_or_policy_is_left_alone() -> None:
    desired = derived(record())
    view = view_of(desired)
    assert (view.closed, view.managed, desired.guarded, desired.problems) == (False, False, (), ())
    assert view.reasons[-1] == "neither a key nor a policy applies: left alone, in clear"


# -- closed rather than open


def test_a_portal_that_was_managed_stays_closed_when_no_file_covers_it() -> None:
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


def test_a_portal_that_was_managed_stays_closed_when_nothing_names_it_any_more() -> None:
    desired = derived(previously_managed=[TARGET, V6])
    assert desired.guarded == (portal(TARGET), portal(V6))


def test_a_served_portal_that_was_managed_stays_closed_as_a_served_one() -> None:
    desired = derived(previously_managed=[(SOURCE, Role.TARGET)])
    assert (desired.guarded, desired.local_portals) == ((), (portal(SOURCE),))


@pytest.mark.parametrize(("oif", "through"), [("", ""), ("ens3", " through ens3")])
def test_a_portal_without_a_route_is_closed(oif: str, through: str) -> None:
    desired = derived(group(), record(net_ifacename=oif), sources={(TARGET, oif): None})
    view = view_of(desired, oif=oif)
    assert (view.closed, view.connection, desired.guarded) == (True, None, (portal(),))
    assert view.problem == reported(
        "no-route",
        f"the kernel has no route to {TARGET}:3260{through}",
        f"check with: ip route get {TARGET}",
    )


@pytest.mark.parametrize("key", [group(), per_id(SOURCE)], ids=["group", "address"])
def test_a_portal_behind_a_tunnel_without_a_route_says_that_it_needs_one(key: Key) -> None:
    desired = derived(key, policy(tunnel_outer_remote=address("10.0.0.254")), sources={TARGET: None})
    view = view_of(desired)
    assert (view.closed, view.connection) == (True, None)
    assert view.problem is not None
    assert view.problem.code == "no-route"
    assert "ip route add 10.0.0.20 via 10.0.0.254" in view.problem.hint


def test_a_lost_route_opens_no_portal_that_the_key_of_its_source_closes() -> None:
    parts = (per_id(SOURCE, flags=choice()), group(flags=CLEAR), record())
    assert derived(*parts, previously_managed=[TARGET]).guarded == (portal(),)
    assert derived(*parts, previously_managed=[TARGET], sources={TARGET: None}).guarded == (portal(),)


def test_a_portal_at_this_hosts_own_address_is_left_alone() -> None:
    desired = derived(per_id(SOURCE), record(SOURCE))
    assert (desired.guarded, desired.connections) == ((), ())
    assert view_of(desired, SOURCE).reasons == (
        "no policy names this portal",
        "the address is this host's own: its packets never leave the host",
    )


@pytest.mark.parametrize("host", ["fe80::1%eth0", "fe80::1%1"])
def test_a_portal_with_a_zone_never_gets_into_the_guards_text(host: str) -> None:
    # nft would refuse the whole table, and with it every other portal
    desired = derived(per_id(SOURCE), group(), record(host), record())
    assert portal() in desired.guarded
    assert not any("%" in str(p) for p in desired.guarded)
    assert desired.problems == (
        Problem(
            code="link-local",
            message=f"the link-local portal {host} cannot be protected",
            hint="give the target a global or unique local address",
            file=f"nodes/{host},3260",
        ),
    )


def test_an_ipv4_mapped_portal_of_a_policy_is_guarded_as_the_ipv4_portal_that_tcp_uses() -> None:
    assert derived(group(), policy("[::ffff:10.0.0.20]:3260")).guarded == (portal(TARGET),)


# -- which policy


def test_the_most_specific_pattern_wins() -> None:
    policies = (
        policy("0.0.0.0/0", name="1-all", psk="all"),
        policy("10.0.0.0/8", name="2-wide", psk="wide"),
        policy("10.0.0.0/24", name="3-narrow", psk="narrow"),
        policy(TARGET, name="4-exact", psk="exact"),
    )
    keys = tuple(per_id(n) for n in ("all", "wide", "narrow", "exact"))
    records = tuple(record(h) for h in ("192.0.2.1", "10.1.0.1", "10.0.0.21", TARGET))
    desired = derived(*policies[::-1], *keys, *records)
    assert [connection_of(desired, r.host).key.name for r in records] == ["all", "wide", "narrow", "exact"]


def test_of_equally_specific_policies_the_first_file_by_name_wins() -> None:
    one, two = policy(name="10-a", psk="a"), policy(name="20-b", psk="b")
    for order in ((one, two), (two, one)):
        assert connection_of(derived(*order, per_id("a"), per_id("b"))).key.name == "a"


def test_a_policy_counts_for_its_port_only() -> None:
    desired = derived(policy(f"{TARGET}:3261"), group(), record(port=3260))
    assert view_of(desired, f"{TARGET}:3260").policy == ""
    assert view_of(desired, f"{TARGET}:3261").policy == "portal.d/san.toml"


def test_a_target_policy_says_nothing_about_portals_that_are_reached() -> None:
    assert view_of(derived(group(), serves("10.0.0.0/24"), record())).policy == ""


def test_a_named_pattern_counts_for_each_of_its_addresses() -> None:
    desired = derived(
        policy("san.example.com"), group(), names={"san.example.com": ["10.0.0.20", "10.0.0.21", "fd00::20"]}
    )
    assert desired.guarded == tuple(map(portal, ("10.0.0.20", "10.0.0.21", "[fd00::20]")))


def test_a_names_lost_address_stays_closed() -> None:
    desired = derived(policy("san.example.com"), group(), names={}, previously_managed=[TARGET])
    assert desired.guarded == (portal(),)


# -- networks in which nobody has named a portal yet


def ranges(desired: Desired) -> tuple[set[str], set[str]]:
    """What is closed, and what is open in it or beside it."""
    assert len(set(desired.clear_exceptions)) == len(desired.clear_exceptions)
    return {*map(str, desired.networks)}, {*map(str, desired.clear_exceptions)}


def test_networks_are_closed_or_open_as_policies_and_files_with_mistakes_say_to_initiators() -> None:
    parts = (
        policy("10.1.0.0/16", "[fd01::/64]:3261", "10.1.0.9", "san.lab", name="closed"),
        policy("10.2.0.0/16", "[fd02::/64]:3261", "10.2.0.9", "san.lab", name="clear", flags=CLEAR),
        serves("10.3.0.0/16", name="serves"),
        serves("10.4.0.0/16", name="serves-in-clear", flags=CLEAR),
    )
    mistaken = (
        *broken("10.5.0.0/16", "10.5.0.9", "san.lab"),
        *broken("10.6.0.0/16", role=Role.TARGET),
        *broken("10.7.0.0/16", is_policy=False),
    )
    closed = {"10.1.0.0/16:3260", "[fd01::/64]:3261", "10.5.0.0/16:3260"}
    clear = {"10.2.0.0/16:3260", "[fd02::/64]:3261"}
    assert ranges(derived(*parts, broken=mistaken)) == (closed, {*clear, "10.2.0.9:3260"})
    by_default = Settings(default_choice=CLEAR)
    assert ranges(derived(*parts, broken=mistaken, settings=by_default)) == (
        {"10.5.0.0/16:3260"},
        {*clear, "10.1.0.0/16:3260", "[fd01::/64]:3261", "10.1.0.9:3260", "10.2.0.9:3260"},
    )
    required = derived(*parts, broken=mistaken, settings=Settings(require_ipsec=True))
    assert (required.networks, required.clear_exceptions) == (EVERYWHERE, ())


def test_of_a_network_in_clear_nothing_is_open_that_as_narrow_a_policy_closes_on_its_port() -> None:
    desired = derived(
        policy("10.0.0.0/8", name="wide", flags=CLEAR),
        policy("10.0.0.0/9", "10.160.0.0/12", "[10.192.0.0/10]:3261", name="narrower"),
        policy("10.64.0.0/10", name="narrowest", flags=CLEAR),
        policy("[10.0.0.0/7]:3260", "172.16.0.0/12", name="wider"),
        policy("172.16.0.0/12", name="also-in-clear", flags=CLEAR),
    )
    assert ranges(desired)[1] == {
        *("10.128.0.0/11:3260", "10.176.0.0/12:3260", "10.192.0.0/10:3260"),  # 10.0.0.0/8
        "10.64.0.0/10:3260",
    }


def test_a_portal_in_clear_is_open_on_its_port_inside_of_a_closed_network() -> None:
    desired = derived(
        policy("10.0.0.0/24", "[10.0.0.0/24]:3261", name="closed", psk="db1"),
        policy("10.0.0.20:3261", "[fd00::20]:3260", name="clear", flags=CLEAR),
        serves("10.0.0.250", name="serves-in-clear", flags=CLEAR),
        per_id("db1", portals=["10.0.0.0/24"]),
        record("10.0.0.21"),
        record("192.0.2.1"),
        local=[SOURCE, "10.0.0.250"],
    )
    assert ranges(desired) == (
        {"10.0.0.0/24:3260", "10.0.0.0/24:3261"},
        {"10.0.0.20:3261", "[fd00::20]:3260"},
    )


# -- names in a key's portals that have no address yet

NOWHERE = "nowhere.example.com"


def in_doubt(*parts: Any, **more: Any) -> PortalView:
    """The view of a portal that an unresolved name keeps closed."""
    desired = derived(*parts, **more)
    view = view_of(desired)
    assert view.problem
    assert view.problem.code == "name-not-resolved"
    assert NOWHERE in view.problem.message
    assert (view.closed, view.connection, desired.guarded) == (True, None, (portal(),))
    return view


@pytest.mark.parametrize("listed", [(TARGET, NOWHERE), (NOWHERE, TARGET), (NOWHERE, "10.0.0.0/24")])
def test_a_name_without_address_leaves_the_other_portals_of_its_key_alone(listed: tuple[str, ...]) -> None:
    desired = derived(per_id("db1", portals=listed), group(), record())
    assert connection_of(desired).key.name == "db1"
    assert desired.problems == ()


@pytest.mark.parametrize("id", ["db1", SOURCE])
def test_while_an_explicit_key_may_be_for_the_portal_the_group_key_does_not_stand_in(id: str) -> None:
    view = in_doubt(per_id(id, portals=[NOWHERE]), group(), record())
    assert view.problem
    assert view.problem.file == f"psk.d/{id}.toml"
    resolved = derived(per_id(id, portals=[NOWHERE]), group(), record(), names={NOWHERE: [TARGET]})
    assert connection_of(resolved).key.name == id
    elsewhere = derived(per_id(id, portals=[NOWHERE]), group(), record(), names={NOWHERE: ["10.0.0.99"]})
    assert connection_of(elsewhere).key.name == "group"


def test_while_the_sources_key_may_be_for_the_portal_no_other_name_stands_in() -> None:
    in_doubt(per_id(SOURCE, portals=[NOWHERE]), per_id("db1"), record())


def test_the_flags_of_a_group_key_open_no_portal_while_an_explicit_key_may_be_for_it() -> None:
    in_doubt(per_id("db1", portals=[NOWHERE]), group(flags=CLEAR), record())


def test_a_policy_whose_key_may_be_for_the_portal_keeps_it_closed() -> None:
    in_doubt(per_id("db1", portals=[NOWHERE]), policy())
    in_doubt(per_id("db1", portals=[NOWHERE]), policy(psk="db1"))


def test_a_key_of_another_source_address_or_port_makes_no_doubt() -> None:
    desired = derived(
        per_id("10.0.0.99", portals=[NOWHERE]), per_id("db1", portals=[f"{NOWHERE}:3261"]), group(), record()
    )
    assert connection_of(desired).key.name == "group"


def test_a_portal_that_only_an_unresolved_name_could_cover_is_left_alone() -> None:
    assert not view_of(derived(per_id("db1", portals=[NOWHERE]), record())).managed


@pytest.mark.parametrize(("id", "left"), [("db1", {"10.0.0.4/31"}), ("10.0.0.5", {"db1", "10.0.0.4/32"})])
def test_who_may_have_a_key_for_the_served_portal_is_not_let_in_with_the_groups(
    id: str, left: set[str]
) -> None:
    served = serves(initiators=(identity("db1"), ipaddress.ip_network("10.0.0.4/31")))
    desired = derived(served, group(), per_id(id, portals=[NOWHERE]))
    assert {str(connection.remote_id) for connection in desired.connections} == left


# -- where portals come from


def test_a_plain_policy_protects_the_very_first_discovery() -> None:
    assert derived(group(), policy()).guarded == (portal(),)


def test_a_network_in_a_policy_names_no_portal_by_itself() -> None:
    assert derived(group(), policy("10.0.0.0/24")).portals == ()


def test_a_discovery_record_alone_makes_a_managed_portal() -> None:
    view = view_of(derived(group(), discovery()))
    assert view.managed
    assert view.connection is not None
    assert view.origins == ("discovery record send_targets/10.0.0.20,3260",)


def test_a_session_that_was_redirected_is_protected_where_it_really_goes() -> None:
    desired = derived(group(), record(TARGET), session("10.0.0.77", persistent=TARGET))
    assert desired.guarded == (portal(TARGET), portal("10.0.0.77"))
    assert connection_of(desired, "10.0.0.77").remote_address == address("10.0.0.77")


def test_a_session_to_a_known_portal_adds_no_second_seat() -> None:
    desired = derived(group(), record(net_ifacename="ens4"), session())
    assert [v.binding.oif for v in desired.portals] == ["ens4"]


def test_a_portal_of_an_offload_card_is_not_ours() -> None:
    assert derived(group(), record(transport="bnx2i")).portals == ()


def test_all_that_names_a_portal_is_told_once() -> None:
    (view,) = derived(group(), record(), record(), discovery(), policy()).portals
    assert len(view.origins) == len(set(view.origins)) == 3


def test_routes_are_asked_for_with_the_bound_interface_and_the_outer_address() -> None:
    lookup = Lookup(
        world(record(net_ifacename="ens4"), policy("10.0.0.0/24", tunnel_outer_remote=address("203.0.113.1")))
    )
    assert wanted_sources(lookup) == {(address(TARGET), "ens4"), (address("203.0.113.1"), "ens4")}


def test_candidates_come_in_a_stable_order() -> None:
    hosts = ["fd00::20", "10.0.0.3", "10.0.0.20"]
    bindings = [list(candidates(world(*map(record, order)))) for order in (hosts, hosts[::-1])]
    assert (
        bindings[0]
        == bindings[1]
        == [PortalBinding(portal(h)) for h in ("10.0.0.3", "10.0.0.20", "[fd00::20]")]
    )


# -- tunnel mode


def test_tunnel_mode_without_outer_addresses_runs_between_the_portals_addresses() -> None:
    connection = connection_of(derived(per_id(SOURCE, flags=choice(esp=EspMode.TUNNEL)), record()))
    assert connection.esp is EspMode.TUNNEL
    assert (connection.local_ts, connection.remote_ts) == ("dynamic[6]", "dynamic[6/3260]")


def test_an_outer_address_makes_a_tunnel_to_it_that_selects_the_portal() -> None:
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


def test_a_local_outer_address_may_be_given() -> None:
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
def test_outer_addresses_of_two_versions_close_the_portal(outer: dict[str, Any], addresses: str) -> None:
    view = view_of(derived(per_id("db1"), policy(**outer)))
    assert (view.closed, view.connection) == (True, None)
    assert view.problem == reported(
        "mixed-versions",
        f"the tunnel's outer addresses {addresses} differ in IP version",
        "set both tunnel_outer_local and tunnel_outer_remote",
        "portal.d/san.toml",
    )


def test_an_outer_address_without_a_route_closes_the_portal() -> None:
    outer = policy(tunnel_outer_remote=address("203.0.113.1"))
    view = view_of(derived(per_id("db1"), outer, sources={"203.0.113.1": None}))
    assert (view.closed, view.connection) == (True, None)
    assert view.problem == reported(
        "no-route",
        "the kernel has no route to the tunnel's outer address 203.0.113.1",
        "check with: ip route get 203.0.113.1",
        "portal.d/san.toml",
    )


def test_a_keys_transport_flag_contradicts_the_policys_outer_address() -> None:
    outer = policy(tunnel_outer_remote=address("203.0.113.1"))
    view = view_of(derived(per_id("db1", flags=choice(esp=EspMode.TRANSPORT)), outer))
    refused(view, "outer-without-tunnel", f"{TARGET}:3260 has a tunnel outer", "TUNNEL_MODE_PREFERRED")


# -- proposals and settings


def test_pfs_without_a_group_in_the_esp_proposals_is_refused() -> None:
    tuned = policy(tuning=Tuning(esp_proposals=("aes256gcm16",)), flags=choice(pfs=True))
    refused(view_of(derived(group(), tuned)), "pfs-without-group", "no DH group: aes256gcm16$", "append one")


def test_of_several_esp_proposals_those_without_a_group_are_named() -> None:
    mixed = Tuning(esp_proposals=("aes256gcm16", "aes256gcm16-ecp384"))
    asked = derived(group(), policy(tuning=mixed, flags=choice(pfs=True)))
    refused(view_of(asked), "pfs-without-group", "no DH group: aes256gcm16$", "append one")


def test_a_group_in_the_esp_proposals_without_pfs_is_refused() -> None:
    tuned = policy(tuning=Tuning(esp_proposals=("aes256gcm16-ecp384",)), flags=choice(pfs=False))
    view = view_of(derived(group(), tuned))
    refused(view, "group-without-pfs", "has a DH group: aes256gcm16-ecp384$", "take the group out")


def test_settings_that_contradict_a_keys_flags_are_refused_and_no_policy_is_named() -> None:
    without = Settings(tuning=Tuning(esp_proposals=("aes256gcm16",)))
    view = view_of(derived(per_id(SOURCE, flags=choice(pfs=True)), record(), settings=without))
    refused(view, "pfs-without-group", "no DH group", "append one", file="")


@pytest.mark.parametrize("ike", list(IkeMode))
@pytest.mark.parametrize("pfs", [True, False])
def test_default_esp_proposals_have_a_group_exactly_with_pfs(ike: IkeMode, pfs: bool) -> None:
    connection = connection_of(derived(per_id(SOURCE, flags=choice(ike, pfs=pfs)), record()))
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


def test_a_policys_settings_beat_the_presets_which_beat_the_defaults() -> None:
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


def test_only_the_kernels_esp_is_offered_long_sequence_numbers() -> None:
    flags = choice(esp=EspMode.TUNNEL)
    for in_kernel in (True, False):
        desired = derived(per_id(SOURCE, flags=flags), record(), user_space_esp=not in_kernel)
        assert any("-esn" in proposal for proposal in connection_of(desired).esp_proposals) is in_kernel


def test_user_space_esp_refuses_transport_mode_that_was_asked_for() -> None:
    flags = choice(esp=EspMode.TRANSPORT)
    view = view_of(derived(per_id(SOURCE, flags=flags), record(), user_space_esp=True))
    refused(view, "no-transport-mode", f"{TARGET}:3260 asks for transport", "TUNNEL_MODE_PREFERRED", file="")
    of_policy = derived(per_id(SOURCE), policy(flags=flags), record(), user_space_esp=True)
    refused(view_of(of_policy), "no-transport-mode", "kernel-libipsec", "TUNNEL_MODE_PREFERRED")


def test_the_peers_identity_is_its_address_unless_a_policy_says_otherwise() -> None:
    assert connection_of(derived(group(), record())).remote_id == identity(TARGET)
    named = policy(target_id=identity("san.example.com"))
    assert connection_of(derived(group(), named)).remote_id == identity("san.example.com")


# -- warnings


def test_a_group_key_in_use_is_warned_about_once() -> None:
    desired = derived(group(), record("10.0.0.20"), record("10.0.0.21"))
    warnings = [p for p in desired.problems if p.code == "group-key-in-use"]
    assert warnings == [
        Problem(
            code="group-key-in-use",
            message="a group key is in use: whoever has it can pose as the target (RFC 3723, 5.8.3)",
            hint="give each initiator a key of its own",
            file="psk.d/group.toml",
            severity=Severity.WARNING,
        )
    ]


def test_an_unused_group_key_is_not_warned_about() -> None:
    assert derived(group(), per_id(SOURCE), record()).problems == ()


def test_aggressive_mode_is_warned_about() -> None:
    desired = derived(per_id(SOURCE, flags=choice(IkeMode.AGGRESSIVE)), record())
    assert desired.problems == (
        Problem(
            code="aggressive-mode",
            message="aggressive mode with a pre-shared key lets a listener guess the key offline",
            hint="use IKEv2 (leave out both mode flags) where the target can",
            file=f"psk.d/{SOURCE}.toml",
            severity=Severity.WARNING,
        ),
    )


# -- the target role


def test_each_initiator_has_a_connection_of_its_own_with_its_identity_pinned() -> None:
    desired = derived(serves(), per_id("10.0.0.5"), per_id("db1.example.com"))
    assert {c.remote_id for c in desired.connections} == {identity("10.0.0.5"), identity("db1.example.com")}
    assert {c.local_id for c in desired.connections} == {identity(SOURCE)}
    assert {c.remote_address for c in desired.connections} == {None}
    assert len({c.name for c in desired.connections}) == 2
    assert desired.local_portals == (portal(SOURCE),)


def test_a_served_secret_is_owned_by_the_initiator_alone() -> None:
    desired = derived(serves(), per_id("10.0.0.5"), per_id("db1.example.com"))
    assert {e.owners for e in desired.secrets} == {(identity("10.0.0.5"),), (identity("db1.example.com"),)}


def test_the_group_key_serves_no_one() -> None:
    desired = derived(serves(), group())
    view = view_of(desired, SOURCE)
    assert (view.closed, view.connection) == (True, None)
    assert desired.secrets == ()
    assert view.problem is not None
    assert view.problem.code == "no-key"


def test_a_served_portal_that_the_group_key_is_named_for_stays_closed() -> None:
    desired = derived(serves(psk="group"), group(), per_id("10.0.0.5"))
    assert desired.connections == ()
    assert desired.local_portals == (portal(SOURCE),)


def test_two_keys_of_one_initiator_close_only_its_own_way_in() -> None:
    desired = derived(serves(), per_id("db1", "one"), per_id("DB1", "two"), per_id("db2"))
    assert [str(c.remote_id) for c in desired.connections] == ["db2"]
    (problem,) = desired.problems
    assert "psk.d/one.toml" in problem.message
    assert "psk.d/two.toml" in problem.message
    assert desired.local_portals == (portal(SOURCE),)


def test_an_initiators_key_serves_only_the_portals_it_names() -> None:
    desired = derived(serves("10.0.0.1", "10.0.0.2"), per_id("db1", portals=["10.0.0.2"]), per_id("db2"))
    assert [(str(c.binding.portal), str(c.remote_id)) for c in desired.connections] == [
        ("10.0.0.1:3260", "db2"),
        ("10.0.0.2:3260", "db1"),
        ("10.0.0.2:3260", "db2"),
    ]


def test_a_served_portal_selects_its_own_port_from_any_port() -> None:
    (connection,) = derived(serves("10.0.0.1:3261"), per_id("db1")).connections
    assert (connection.local_ts, connection.remote_ts) == ("dynamic[6/3261]", "dynamic[6]")


def test_a_target_id_is_what_the_served_portal_calls_itself() -> None:
    (connection,) = derived(serves(target_id=identity("san.example.com")), per_id("db1")).connections
    assert connection.local_id == identity("san.example.com")


def test_an_address_and_a_name_of_the_same_text_are_two_initiators() -> None:
    looks_like = per_id(IkeId.parse(IdType.ID_FQDN, "10.0.0.5"), "looks-like")
    desired = derived(serves(), per_id("10.0.0.5", "address"), looks_like)
    assert len({c.name for c in desired.connections}) == 2


def test_the_longest_identity_still_fits_into_a_vici_name() -> None:
    label = "a" * 63
    longest = f"{label}.{label}.{label}.{label}"[:255]
    (connection,) = derived(
        serves("[fd00:1111:2222:3333:4444:5555:6666:7777]:65535"), per_id(longest)
    ).connections
    assert len(connection.name.encode()) <= 255


def test_a_target_policy_that_names_only_a_network_is_not_passed_over_in_silence() -> None:
    desired = derived(serves("10.0.0.0/24"), per_id("db1"))
    assert desired.local_portals or desired.problems


def test_a_served_portal_whose_flags_ask_for_no_ipsec_is_open_and_says_so() -> None:
    desired = derived(serves(flags=CLEAR), per_id("db1"))
    assert desired.local_portals == ()
    assert [p.code for p in desired.problems] == ["clear-allowed"]


def test_one_initiator_that_must_use_ipsec_closes_the_served_portal() -> None:
    desired = derived(serves(), per_id("db1", flags=CLEAR), per_id("db2"))
    assert desired.local_portals == (portal(SOURCE),)


# -- the group key on the target role


def test_the_group_key_lets_in_only_the_initiators_that_the_policy_names() -> None:
    desired = derived(serves(initiators=(identity("db7"), identity("10.0.0.7"))), group())
    assert {c.remote_id for c in desired.connections} == {identity("db7"), identity("10.0.0.7")}
    assert {e.owners for e in desired.secrets} == {(identity("db7"),), (identity("10.0.0.7"),)}


@pytest.mark.parametrize("order", [1, -1])
def test_an_initiator_with_a_key_of_its_own_cannot_come_in_with_the_group_key(order: int) -> None:
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


def test_a_network_of_initiators_has_only_its_own_versions_addresses_cut_out() -> None:
    network = ipaddress.ip_network("fd00::/64")
    desired = derived(serves("fd00:1::1", initiators=(network,)), per_id("10.0.0.7"), group())
    assert network in {c.remote_id for c in desired.connections}


def test_a_served_portal_that_would_answer_under_the_initiators_identity_stays_closed() -> None:
    desired = derived(per_id(SOURCE), record(), serves(), per_id("db1"))
    assert [c.role for c in desired.connections] == [Role.INITIATOR]
    assert desired.local_portals == (portal(SOURCE),)
    (problem,) = desired.problems
    assert "target_id" in problem.hint


def test_an_identity_of_its_own_lets_a_served_portal_stand_beside_the_initiator() -> None:
    served = serves(target_id=identity("san.example.com"))
    desired = derived(per_id(SOURCE), record(), served, per_id("db1"))
    assert {c.role for c in desired.connections} == {Role.INITIATOR, Role.TARGET}


def test_names_that_main_mode_cannot_tell_apart_are_refused() -> None:
    flags = choice(IkeMode.MAIN)
    several = derived(serves(flags=flags), per_id("db1"), per_id("db2"))
    assert several.connections == ()
    assert {p.code for p in several.problems} == {"main-mode-names"}
    assert len(derived(serves(flags=flags), per_id("db1")).connections) == 1


def test_addresses_in_main_mode_are_told_apart_by_where_they_come_from() -> None:
    desired = derived(serves(flags=choice(IkeMode.MAIN)), per_id("10.0.0.5"), per_id("10.0.0.6"))
    assert {c.remote_address for c in desired.connections} == {address("10.0.0.5"), address("10.0.0.6")}


def test_networks_in_main_mode_are_told_apart_by_where_they_come_from() -> None:
    networks = tuple(map(ipaddress.ip_network, ("10.1.0.0/16", "10.2.0.0/16")))
    desired = derived(serves(flags=choice(IkeMode.MAIN), initiators=networks), group())
    assert {c.remote_address for c in desired.connections} == set(networks)


def test_a_portal_that_two_patterns_serve_is_served_once() -> None:
    desired = derived(serves(SOURCE, "10.0.0.0/24"), per_id("db1"))
    assert len([c for c in desired.connections if c.role is Role.TARGET]) == 1


def test_a_second_port_of_a_served_address_is_refused_since_charon_cannot_tell_them_apart() -> None:
    desired = derived(serves(f"{SOURCE}:3260", f"{SOURCE}:3261"), per_id("db1"))
    assert {c.binding.portal.port for c in desired.connections} == {3260}
    (problem,) = desired.problems
    assert (problem.code, problem.file) == ("served-twice", "portal.d/serves.toml")
    assert set(desired.local_portals) == {portal(f"{SOURCE}:3260"), portal(f"{SOURCE}:3261")}


def test_where_the_policy_names_an_explicit_key_the_group_key_lets_nobody_in() -> None:
    policy_of = serves(psk="db1", initiators=(identity("db1"), identity("db2")))
    desired = derived(policy_of, per_id("db1"), group())
    assert [c.key.name for c in desired.connections] == ["db1"]


# -- secrets of keys that nothing uses


def test_an_unused_key_waits_under_its_own_identity() -> None:
    desired = derived(per_id(SOURCE), per_id("10.0.0.99"), record())
    assert {e.owners: e.keys for e in desired.secrets} == {
        (identity(SOURCE), identity(TARGET)): (SOURCE,),
        (identity("10.0.0.99"),): ("10.0.0.99",),
    }


def test_an_unused_key_whose_identity_is_a_peers_is_not_loaded() -> None:
    # charon tries every key that matches either id: this one must not authenticate the target
    desired = derived(per_id(SOURCE), per_id(TARGET), record())
    assert [e.owners for e in desired.secrets] == [(identity(SOURCE), identity(TARGET))]


@pytest.mark.parametrize("end", [TARGET, "10.0.0.21", "10.0.0.22", SOURCE])
def test_an_unused_key_whose_identity_is_an_end_of_any_connection_is_not_loaded(end: str) -> None:
    named = (per_id("db1", portals=[TARGET]), per_id("db2", portals=["10.0.0.21"]))
    desired = derived(
        *named, group(portals=["10.0.0.22"]), per_id(end, portals=["192.0.2.1"]), record(), record("10.0.0.21"),
        record("10.0.0.22"),
    )  # fmt: skip
    assert len(desired.connections) == 3
    assert {e.keys for e in desired.secrets} == {("db1",), ("db2",), ("group",)}


def test_unused_keys_of_one_identity_are_not_loaded_names_ignoring_case() -> None:
    assert derived(per_id("db1", "one"), per_id("DB1", "two")).secrets == ()


def test_an_unused_group_key_is_not_loaded() -> None:
    assert derived(group()).secrets == ()


def test_ambiguous_named_keys_wait_but_none_is_used() -> None:
    desired = derived(per_id("a.example.com"), per_id("b.example.com"), record())
    assert {e.owners for e in desired.secrets} == {(identity("a.example.com"),), (identity("b.example.com"),)}
    assert desired.connections == ()


def test_on_a_host_of_both_roles_the_own_key_lets_no_initiator_in() -> None:
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


def test_an_identity_that_is_our_own_under_another_key_is_let_in_nowhere() -> None:
    # the secret [10.0.0.1] of such an initiator would match our own connection as well
    serving = serves(target_id=identity("san.example.com"))
    desired = derived(per_id(SOURCE), group(), policy(psk="group"), serving, record())
    assert [c.key.name for c in desired.connections] == ["group"]
    assert [p.code for p in desired.problems if p.portal == f"{SOURCE}:3260"] == ["shared-identity"]
    same = derived(per_id(SOURCE), serving, record())
    assert {c.role for c in same.connections} == {Role.INITIATOR, Role.TARGET}


def crossed(ike: IkeMode) -> Desired:
    """R1 shares a key with each of two identities of the host, one of which has another key for R2."""
    r1, other_portal_of_r1, r2 = "10.0.0.20:3260", "10.0.0.20:3261", "10.0.0.21:3260"
    keys = (per_id("a", name="a-r1"), per_id("a", name="a-r2"), per_id("b", name="b-r1"))
    uses = {r1: "a-r1", r2: "a-r2", other_portal_of_r1: "b-r1"}
    policies = (policy(at, name=key, psk=key, flags=choice(ike)) for at, key in uses.items())
    return derived(*keys, *policies, *(record(*split_portal(at)) for at in uses))


def split_portal(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def test_a_target_whose_key_would_let_it_pose_as_another_is_refused() -> None:
    # an IKEv2 peer is believed with every key that matches either id, so R1's, of [a, R1], would do for R2
    desired = crossed(IkeMode.V2)
    assert {c.key.name for c in desired.connections} == {"a-r2", "b-r1"}
    (problem,) = [p for p in desired.problems if p.code == "ambiguous-key"]
    assert (problem.portal, "pose as the others" in problem.message) == ("10.0.0.20:3260", True)
    assert portal("10.0.0.20") in desired.guarded


def test_with_ikev1_which_takes_the_best_match_only_the_same_keys_are_served() -> None:
    assert {c.key.name for c in crossed(IkeMode.AGGRESSIVE).connections} == {"a-r1", "a-r2", "b-r1"}


def test_the_same_world_gives_the_same_outcome() -> None:
    parts = (
        per_id(SOURCE),
        per_id("db1"),
        group(),
        policy(psk="db1"),
        record("fd00::20"),
        session("10.0.0.9"),
    )
    assert derived(*parts) == derived(*parts)


def test_a_portals_port_is_its_own() -> None:
    desired = derived(group(), record(port=3260), record(port=13260))
    assert {c.remote_ts for c in desired.connections} == {"dynamic[6/3260]", "dynamic[6/13260]"}
    assert desired.guarded == (Portal(address(TARGET), 3260), Portal(address(TARGET), 13260))


def test_every_rule_that_decided_leaves_a_sentence() -> None:
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
    view = view_of(derived(per_id(SOURCE, flags=flags), record()))
    assert view.reasons == (
        "no policy names this portal",
        "key psk.d/10.0.0.1.toml: its identity is the source address 10.0.0.1",
        "flags from the key psk.d/10.0.0.1.toml: 0x47 VALID IKE_IPSEC_ENABLED MAIN_MODE_ENABLED TUNNEL_MODE_PREFERRED",
        "identity 10.0.0.1 (ID_IPV4_ADDR) towards 10.0.0.20 (ID_IPV4_ADDR)",
        "IKE proposals from the built-in list: RFC 7146 and better, fastest first on this CPU",
        "ESP proposals from the built-in list: RFC 7146 and better, fastest first on this CPU",
    )


def test_a_warning_about_a_file_is_told_once_for_all_its_portals() -> None:
    aggressive = policy("10.0.0.0/24", flags=choice(IkeMode.AGGRESSIVE))
    desired = derived(per_id(SOURCE), aggressive, record(), record("10.0.0.21"))
    assert [(p.code, p.file) for p in desired.problems] == [("aggressive-mode", "portal.d/san.toml")]
    by_key = derived(per_id(SOURCE, flags=choice(IkeMode.AGGRESSIVE)), record(), record("10.0.0.21"))
    assert [(p.code, p.file) for p in by_key.problems] == [("aggressive-mode", "psk.d/10.0.0.1.toml")]


def test_a_views_key_is_named_by_file_and_by_the_identity_it_is_used_under() -> None:
    view = view_of(derived(per_id("db1.lab", name="db1"), record()))
    assert (view.key, view.key_path, view.identity) == ("db1", "psk.d/db1.toml", identity("db1.lab"))
    assert dataclasses.replace(view, key="") != view


@pytest.mark.parametrize(
    ("network", "left"), [("10.0.0.0/31", {"10.0.0.0/32"}), ("10.0.0.20/31", {"10.0.0.21/32"})]
)
def test_the_group_key_of_a_served_portal_is_no_key_of_our_own_connections_ends(
    network: str, left: set[str]
) -> None:
    served = serves("10.0.0.250", initiators=(ipaddress.ip_network(network),))
    own = per_id(SOURCE, portals=[TARGET])
    desired = derived(own, group(), served, record(), local=[SOURCE, "10.0.0.250"])
    assert connection_of(desired).key.name == SOURCE
    assert {str(c.remote_id) for c in desired.connections if c.role is Role.TARGET} == left
    shared = derived(group(), served, record(), local=[SOURCE, "10.0.0.250"])
    assert {str(c.remote_id) for c in shared.connections if c.role is Role.TARGET} == {network}


@pytest.mark.parametrize("outer", [None, "203.0.113.1"])
def test_another_source_address_is_another_connection_whatever_was_derived_before(outer: str | None) -> None:
    tunnel: dict[str, Any] = {"tunnel_outer_remote": address(outer)} if outer else {}
    deriver, before = Deriver(), world(per_id("db1"), policy(psk="db1", **tunnel), record())
    lookup, here = None, address(SOURCE)
    for source in (SOURCE, "10.0.0.6", SOURCE):
        there = {(address(V4), ""): here, (address(outer or V4), ""): address(source)}
        of = dataclasses.replace(before, sources=there)
        lookup = Lookup(of, lookup)
        (view,) = deriver.derive(lookup).portals
        assert view.connection
        assert view.connection.local_address == address(source)


IN_DOUBT = per_id("db1", portals=[f"{NOWHERE}:3261"])


@pytest.mark.parametrize(
    "other",
    [
        {"settings": Settings(tuning=Tuning(dpd_delay=3))},
        {"broken": broken(TARGET)},
        {"names": {NOWHERE: (address(TARGET),)}},
        {"local_addresses": frozenset({address(TARGET)})},
        {"user_space_esp": True},
        {"fast_aes": False},
        {"previously_managed": frozenset({(portal("192.0.2.1"), Role.INITIATOR)})},
        {"keys": (per_id(SOURCE), IN_DOUBT)},
        {"keys": (per_id("db2"), IN_DOUBT)},
        {"keys": (group(secret=b"another key of the group"), IN_DOUBT)},
        {"keys": (group(), IN_DOUBT, per_id("db3", portals=[NOWHERE]))},
        {"policies": (policy("10.0.0.0/24", flags=choice(IkeMode.MAIN)),)},
        {"records": (discovery(), record(port=3261), record("192.0.2.1"))},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_portal_is_decided_anew_whatever_else_is_so_and_back_again(other: dict[str, Any]) -> None:
    parts = (group(portals=["10.0.0.0/24"]), IN_DOUBT, record(), record(port=3261), record("192.0.2.1"))
    deriver, before = Deriver(), world(*parts)
    lookup, seen = None, []
    for of in (before, dataclasses.replace(before, **other), before):
        lookup = Lookup(of, lookup)
        seen.append(deriver.derive(lookup))
        assert seen[-1] == derive(Lookup(of))
    assert seen[0].portals != seen[1].portals


HERE = address(SOURCE)
FOUR = [f"10.0.0.{n}" for n in (21, 22, 23, 24)]
DB1, DB2, OTHERS = per_id("db1", portals=FOUR[:1]), per_id("db2", portals=FOUR[1:2]), group()


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (
            {"keys": (DB1, per_id("db2", portals=FOUR[1:2], secret=b"another key"), OTHERS)},
            [FOUR[0], *FOUR[2:]],
        ),
        ({"keys": (DB1, DB2, group(secret=b"another key"))}, FOUR[:2]),
        ({"sources": {(address(host), ""): HERE for host in FOUR[1:]}}, FOUR[1:]),
    ],
    ids=["key", "group", "route"],
)
def test_a_change_is_seen_where_it_counts_and_all_else_is_the_very_same(
    other: dict[str, Any], same: list[str]
) -> None:
    policies = (
        policy(FOUR[0], name="a", psk="db1"),
        policy(FOUR[1], name="b", psk="db2"),
        policy(FOUR[2], name="c"),
    )
    of = world(DB1, DB2, OTHERS, *policies, record(FOUR[3]))
    of = dataclasses.replace(of, sources={(address(host), ""): HERE for host in FOUR})
    deriver, lookup = Deriver(), Lookup(of)
    before = deriver.derive(lookup)
    lookup = Lookup(dataclasses.replace(of, **other), lookup)
    after = deriver.derive(lookup)
    assert after == derive(lookup)
    kept = [now for now, then in zip(after.portals, before.portals, strict=True) if now is then]
    assert [str(view.binding.portal.address) for view in kept] == same


def test_what_another_key_does_not_concern_is_the_very_same() -> None:
    deriver, of = Deriver(), world(per_id("db1"), policy(psk="db1"), group(), record())
    lookup = Lookup(of)
    before = deriver.derive(lookup)
    other = dataclasses.replace(of, keys=(*of.keys, per_id("db2")))
    after = deriver.derive(Lookup(other, lookup))
    assert after.portals[0] is before.portals[0]
    assert {id(entry) for entry in before.secrets} < {id(entry) for entry in after.secrets}


@pytest.mark.parametrize("other", [{"secret": Secret(b"another key of db1")}, {"name": "renamed"}])
def test_another_key_of_the_same_identity_is_another_secret_whatever_was_derived_before(
    other: dict[str, Any],
) -> None:
    deriver, waiting = Deriver(), per_id("db1")
    for key in (waiting, dataclasses.replace(waiting, **other)):
        lookup = Lookup(world(key))
        assert deriver.derive(lookup) == derive(lookup)


def test_the_entry_of_a_key_that_waits_is_made_once() -> None:
    deriver, lookup = Deriver(), Lookup(world(per_id("db1"), per_id("db2")))
    first = deriver.derive(lookup).secrets
    more = Lookup(world(*lookup.world.keys, per_id("db3")), lookup)
    assert [*map(id, first)] == [*map(id, deriver.derive(more).secrets[:2])]
