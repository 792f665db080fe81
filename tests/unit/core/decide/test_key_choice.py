"""Which key a portal gets, and what is refused where the files leave doubt."""

from __future__ import annotations

import re
from typing import Any

import pytest

from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.keys import GroupKey
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.decide.desired import PortalView
from tests.support.values import (
    CLEAR,
    SOURCE,
    TARGET,
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
    view_of,
)

# -- which key


V4, V6 = "10.0.0.20", "[fd00::20]:3260"


def test_pick_key_takes_the_key_of_the_source_address() -> None:
    connection = connection_of(managed(per_id(SOURCE), record()))
    assert (connection.key.name, connection.local_id) == (SOURCE, identity(SOURCE))


def test_pick_key_prefers_the_policys_psk_to_the_key_of_the_source_address() -> None:
    desired = derived(per_id(SOURCE), per_id("db1"), group(), policy(psk="db1"))
    assert connection_of(desired).key.name == "db1"


def test_pick_key_prefers_the_key_of_the_source_address_to_a_named_one_and_the_group_key() -> None:
    assert connection_of(managed(group(), per_id("db1"), per_id(SOURCE), record())).key.name == SOURCE


@pytest.mark.parametrize("id", ["db1.example.com", "db1@example.com"])
def test_pick_key_prefers_the_only_named_key_to_the_group_key(id: str) -> None:
    connection = connection_of(managed(group(), per_id(id), per_id("10.0.0.99"), record()))
    assert connection.local_id == identity(id)


def test_pick_key_never_takes_the_key_of_another_address() -> None:
    view = view_of(derived(per_id("10.0.0.99"), record()))
    assert view.connection is None
    assert not view.managed


def test_pick_key_takes_the_group_key_under_the_source_address() -> None:
    connection = connection_of(managed(group(), per_id("10.0.0.99"), record()))
    assert isinstance(connection.key, GroupKey)
    assert connection.local_id == identity(SOURCE)


def test_pick_key_takes_no_fqdn_that_looks_like_the_source_address() -> None:
    looks_like = per_id(IkeId.parse(IdType.ID_FQDN, SOURCE), "looks-like")
    desired = managed(looks_like, per_id(SOURCE, "address"), record())
    assert connection_of(desired).key.name == "address"


@pytest.mark.parametrize(("number", "end"), [(5, ".toml"), (6, ".toml and more")])
def test_exactly_one_names_at_most_five_files(number: int, end: str) -> None:
    view = view_of(managed(*(per_id(f"host{n}.lab") for n in range(number)), record()))
    assert view.problem is not None
    assert re.search(rf"lab{re.escape(end)}$", view.problem.message)


def test_pick_key_refuses_several_named_keys_and_the_portal_stays_closed() -> None:
    view = view_of(managed(per_id("a.example.com"), per_id("b.example.com"), group(), record()))

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
def test_pick_key_refuses_two_keys_of_one_rank_and_names_both_files(keys: tuple[GroupKey, GroupKey]) -> None:
    desired = managed(*keys, record())
    view = view_of(desired)
    assert view.closed
    assert view.connection is None
    assert view.problem is not None
    assert "psk.d/one.toml" in view.problem.message
    assert "psk.d/two.toml" in view.problem.message
    assert portal() in desired.guarded


def test_pick_key_takes_the_policys_psk_where_several_named_keys_apply() -> None:
    desired = derived(per_id("a.example.com"), per_id("b.example.com"), policy(psk="b.example.com"))
    assert connection_of(desired).key.name == "b.example.com"


def test_exactly_one_keeps_the_message_short_for_a_thousand_keys() -> None:
    view = view_of(managed(*(per_id(f"host{n}.example.com") for n in range(1000)), record()))
    assert view.problem is not None
    assert len(view.problem.message) < 500
    assert "and more" in view.problem.message


def test_exactly_one_names_the_files_alike_in_whatever_order_they_were_read() -> None:
    keys = [per_id(f"host{n}.example.com") for n in range(9)]
    there, back = view_of(derived(*keys, record())), view_of(derived(*keys[::-1], record()))
    assert there.problem == back.problem


def test_pick_key_takes_no_key_outside_of_its_portals() -> None:
    key = per_id("db1", portals=["10.0.0.0/24"])
    desired = managed(key, group(), record(TARGET), record("10.0.1.20"))
    assert connection_of(desired, TARGET).key.name == "db1"
    assert connection_of(desired, "10.0.1.20").key.name == "group"


def test_pick_key_compares_a_keys_portals_with_their_port() -> None:
    desired = managed(
        per_id("db1", portals=[f"{TARGET}:3261"]), group(), record(port=3260), record(port=3261)
    )
    assert connection_of(desired, f"{TARGET}:3260").key.name == "group"
    assert connection_of(desired, f"{TARGET}:3261").key.name == "db1"


def test_pick_key_refuses_a_psk_without_a_file_in_force() -> None:
    view = view_of(derived(per_id(SOURCE), group(), policy(psk="gone")))
    assert (view.closed, view.connection) == (True, None)
    assert view.problem is not None
    assert (view.problem.code, view.problem.file) == ("missing-key", "portal.d/san.toml")
    assert "psk.d/gone.toml" in view.problem.hint


def test_pick_key_refuses_a_psk_whose_portals_leave_out_the_portal() -> None:
    view = view_of(derived(per_id("db1", portals=["10.9.0.0/16"]), group(), policy(psk="db1")))
    assert (view.closed, view.connection) == (True, None)
    assert view.problem is not None
    assert (view.problem.code, view.problem.file) == ("key-not-for-portal", "portal.d/san.toml")
    assert f"portals leave out {TARGET}:3260" in view.problem.message
    assert view.problem.hint == "add the portal to the key's portals"


def test_pick_key_takes_the_group_key_that_the_policy_names() -> None:
    connection = connection_of(derived(per_id(SOURCE), group(), policy(psk="group")))
    assert connection.key.name == "group"
    assert connection.local_id == identity(SOURCE)


def test_pick_key_gives_the_rule_that_decided_as_reason() -> None:
    assert any("source address 10.0.0.1" in r for r in view_of(managed(per_id(SOURCE), record())).reasons)
    assert any("policy names it" in r for r in view_of(managed(per_id("a"), policy(psk="a"))).reasons)
    assert any("the group key" in r for r in view_of(managed(group(), record())).reasons)


@pytest.mark.parametrize(("source", "reported"), [(SOURCE, SOURCE), (None, "(no route)")])
def test_pick_key_gives_the_source_address_without_a_key_as_reason(source: str | None, reported: str) -> None:
    elsewhere = per_id("10.0.0.9", portals=["10.9.0.0/16"])
    reasons = view_of(managed(elsewhere, group(), record(), sources={TARGET: source})).reasons
    assert f"no address key is for the source address {reported}" in reasons


def test_pick_key_takes_the_key_of_the_ipv6_source_for_an_ipv6_portal() -> None:
    desired = managed(per_id(SOURCE), per_id("fd00::1"), record(V4), record("fd00::20"))
    assert connection_of(desired, V4).local_id == identity(SOURCE)
    assert connection_of(desired, V6).local_id == identity("fd00::1")


def test_pick_key_follows_a_changed_route() -> None:
    keys = (per_id("10.0.0.1"), per_id("10.0.0.2"), record())
    assert connection_of(managed(*keys, sources={TARGET: "10.0.0.1"})).key.name == "10.0.0.1"
    assert connection_of(managed(*keys, sources={TARGET: "10.0.0.2"})).key.name == "10.0.0.2"


def test_pick_key_without_a_route_opens_no_portal_that_the_key_of_its_source_closes() -> None:
    parts = (per_id(SOURCE, flags=choice()), group(flags=CLEAR), record())
    assert derived(*parts, previously_managed=[TARGET]).guarded == (portal(),)
    assert derived(*parts, previously_managed=[TARGET], sources={TARGET: None}).guarded == (portal(),)


# -- names in a key's portals that have no address yet


NOWHERE = "nowhere.example.com"


def in_doubt(*parts: Any, **more: Any) -> PortalView:
    """The view of a portal that an unresolved name keeps closed."""
    desired = managed(*parts, **more)
    view = view_of(desired)
    assert view.problem
    assert view.problem.code == "name-not-resolved"
    assert NOWHERE in view.problem.message
    assert (view.closed, view.connection, desired.guarded) == (True, None, (portal(),))
    return view


@pytest.mark.parametrize("listed", [(TARGET, NOWHERE), (NOWHERE, TARGET), (NOWHERE, "10.0.0.0/24")])
def test_pick_key_takes_a_key_for_its_other_portals_while_a_name_is_unresolved(
    listed: tuple[str, ...],
) -> None:
    desired = derived(per_id("db1", portals=listed), group(), record())
    assert connection_of(desired).key.name == "db1"
    assert desired.problems == ()


@pytest.mark.parametrize("id", ["db1", SOURCE])
def test_pick_key_refuses_the_group_key_while_an_explicit_key_may_apply(id: str) -> None:
    view = in_doubt(per_id(id, portals=[NOWHERE]), group(), record())
    assert view.problem
    assert view.problem.file == f"psk.d/{id}.toml"
    resolved = managed(per_id(id, portals=[NOWHERE]), group(), record(), names={NOWHERE: [TARGET]})
    assert connection_of(resolved).key.name == id
    elsewhere = managed(per_id(id, portals=[NOWHERE]), group(), record(), names={NOWHERE: ["10.0.0.99"]})
    assert connection_of(elsewhere).key.name == "group"


def test_pick_key_refuses_a_named_key_while_the_key_of_the_source_may_apply() -> None:
    in_doubt(per_id(SOURCE, portals=[NOWHERE]), per_id("db1"), record())


def test_pick_key_opens_no_portal_by_a_group_keys_flags_while_an_explicit_key_may_apply() -> None:
    in_doubt(per_id("db1", portals=[NOWHERE]), group(flags=CLEAR), record())


def test_pick_key_refuses_a_policys_portal_while_its_key_may_apply() -> None:
    in_doubt(per_id("db1", portals=[NOWHERE]), policy())
    in_doubt(per_id("db1", portals=[NOWHERE]), policy(psk="db1"))


def test_pick_key_has_no_doubt_about_a_key_of_another_source_address_or_port() -> None:
    desired = managed(
        per_id("10.0.0.99", portals=[NOWHERE]), per_id("db1", portals=[f"{NOWHERE}:3261"]), group(), record()
    )
    assert connection_of(desired).key.name == "group"


def test_pick_key_leaves_a_portal_alone_that_only_an_unresolved_name_could_cover() -> None:
    assert not view_of(derived(per_id("db1", portals=[NOWHERE]), record())).managed
