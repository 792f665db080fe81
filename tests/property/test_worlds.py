"""Laws that hold in every world."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from iscsi_ipsec.base.identity import IkeId, Peer
from iscsi_ipsec.base.keys import GroupKey, Key, PerIdKey
from iscsi_ipsec.base.policy import IkeMode, Role
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.decide.derive import Deriver, derive
from iscsi_ipsec.core.decide.desired import Connection, Desired, SecretEntry
from iscsi_ipsec.core.decide.known_portals import wanted_names
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.policy_choice import NOWHERE, portals_of, rank
from iscsi_ipsec.core.decide.world import World
from iscsi_ipsec.core.guard import ruleset
from iscsi_ipsec.core.ike.charon_diff import plan
from iscsi_ipsec.core.ike.vici_messages import PREFIX
from iscsi_ipsec.core.report.portal_status import Observed, PortalRows
from iscsi_ipsec.core.report.schema import problem_row
from tests.support.examples import examples
from tests.support.values import encoded
from tests.support.worlds import CANARY, ModelCharon, shuffled, some_turned, worlds

# deriving is quick; the time goes into drawing
lightly = examples(30)

FOREIGN_SECRETS = {"vpn-key": ((), b""), "iscsi": ((), b"")}
FOREIGN_CONNS = {"vpn": frozenset({"net"}), "my-iscsi-ipsec-10.0.0.20-3260": frozenset({"x"})}
OURS_OF_OLD = {
    "iscsi-ipsec-10.0.0.20-3260": frozenset({"iscsi-ipsec-old"}),
    "iscsi-ipsec-10.9.9.9-3260": frozenset({"iscsi-ipsec-old"}),
}


def decide(of: World) -> Desired:
    return derive(Lookup(of))


@lightly
@given(worlds(), st.booleans(), st.booleans())
def test_an_applied_plan_leaves_nothing_to_do(of: World, foreign: bool, old: bool) -> None:
    secrets, connections = encoded(decide(of))
    charon = ModelCharon(
        {**(FOREIGN_SECRETS if foreign else {}), **({"iscsi-ipsec-old": ()} if old else {})},
        {**(FOREIGN_CONNS if foreign else {}), **(OURS_OF_OLD if old else {})},
    )
    for operation in plan(secrets, connections, charon.observe()):
        charon.apply(operation)
    assert plan(secrets, connections, charon.observe()) == ()
    assert {c for c in charon.conns if c.startswith(PREFIX)} == {c.name for c in connections}
    assert {s for s in charon.secrets if s.startswith(PREFIX)} == {s.id for s in secrets}


@lightly
@given(worlds(), worlds())
def test_from_any_world_to_any_other_nothing_foreign_is_touched_and_no_key_is_away(
    one: World, two: World
) -> None:
    charon = ModelCharon(FOREIGN_SECRETS, FOREIGN_CONNS)
    for of in (one, two, one):
        secrets, connections = encoded(decide(of))
        stays = {s.id for s in secrets} & charon.secrets.keys()
        for operation in plan(secrets, connections, charon.observe()):
            assert operation.item.startswith(PREFIX)
            if operation.command == "load-conn":
                assert {s.id for s in secrets} <= charon.secrets.keys()
            charon.apply(operation)
            assert stays <= charon.secrets.keys()
            assert charon.secrets.items() >= FOREIGN_SECRETS.items()
            assert charon.conns.items() >= FOREIGN_CONNS.items()
        assert plan(secrets, connections, charon.observe()) == ()


FIELDS = tuple(field.name for field in dataclasses.fields(World))


@lightly
@given(worlds(), worlds())
def test_an_earlier_derivation_never_changes_a_later_one(one: World, other: World) -> None:
    deriver, lookup = Deriver(), None
    for name in FIELDS:
        for of in (one, dataclasses.replace(one, **{name: getattr(other, name)})):
            lookup = Lookup(of, lookup)
            now, afresh = deriver.derive(lookup), derive(Lookup(of))
            assert now == afresh
            # identities are equal in any case, and sent as written
            assert [c.message for c in encoded(now)[1]] == [c.message for c in encoded(afresh)[1]]
            assert lookup.wanted_sources == Lookup(of).wanted_sources


@lightly
@given(worlds())
def test_an_explicit_key_always_beats_the_group_key(of: World) -> None:
    lookup = Lookup(of)
    for view in derive(lookup).portals:
        connection = view.connection
        if connection is None or not isinstance(connection.key, GroupKey):
            continue
        policy = next((p for p in of.policies if p.path == view.policy), None)
        if policy and policy.psk == connection.key.name:
            continue
        portal = view.binding.portal
        explicit = [k for k in of.keys if isinstance(k, PerIdKey) and lookup.keys.applies(k, portal)]
        explicit += [k for k, _ in lookup.keys.may_apply(portal)]
        if view.role is Role.TARGET:
            peer = connection.remote_id
            own = {k.id for k in explicit}
            assert peer not in own
            if not isinstance(peer, IkeId):
                assert not any(k.is_address and ipaddress.ip_address(k.text) in peer for k in own)
            continue
        source = of.sources.get((portal.address, view.binding.oif))
        assert not [k for k in explicit if not k.id.is_address or k.id.text == str(source)]


@lightly
@given(worlds())
def test_no_secret_is_owned_by_an_identity_that_is_not_its_own_or_its_peers(of: World) -> None:
    by_name = {key.name: key for key in of.keys}
    desired = decide(of)
    staged = {rotation.owners for rotation in desired.rotations}
    for entry in desired.secrets:
        assert entry.owners
        for name in entry.keys:
            key = by_name[name]
            assert entry.secret in valid(key) or entry.owners in staged
            uses = [c for c in desired.connections if c.key == key]
            if isinstance(key, PerIdKey):
                assert all(key.id in (c.local_id, c.remote_id) for c in uses)
            waiting = isinstance(key, PerIdKey) and entry.owners == (key.id,) and not uses
            assert waiting or any(entry.owners in (c.pair, (c.remote_id,)) for c in uses)


def valid(key: Key) -> set[Secret]:
    return {key.secret} | ({key.previous.secret} if key.previous else set())


def allowed(desired: Desired, connection: Connection) -> set[Secret]:
    """The connection's key, and the previous one where its ends are in a rotation."""
    both = {s for r in desired.rotations if connection in r.connections for s in r.in_order}
    return both | {connection.key.secret}


def fits(owner: Peer, id: Peer) -> int:
    """How well charon takes an owner for an identity (identification.c, matches)."""
    if not isinstance(id, IkeId):
        return 2 if owner == id else 0
    if isinstance(owner, IkeId):
        return 2 if owner == id else 0
    return 1 if id.is_address and ipaddress.ip_address(id.text) in owner else 0


def ranks(entry: SecretEntry, me: Peer, other: Peer) -> tuple[int, int]:
    """Charon's rank of a secret: the match on the other id comes first (credential_manager.c, get_shared)."""
    return max(fits(o, other) for o in entry.owners), max(fits(o, me) for o in entry.owners)


@lightly
@given(worlds().flatmap(some_turned))
def test_charons_own_ranking_picks_each_connections_key(of: World) -> None:
    desired = decide(of)
    first = {c.name: r.in_order[0] for r in desired.rotations for c in r.connections}
    for connection in desired.connections:
        if connection.role is Role.TARGET and connection.binding.portal.address not in of.local_addresses:
            continue
        # of equals charon takes the one that was loaded last
        found = [
            (ranks(e, connection.local_id, connection.remote_id), n, e.secret)
            for n, e in enumerate(desired.secrets)
        ]
        best, _, secret = max(found, key=lambda row: row[:2])
        assert best > (0, 0)
        assert {secret for rank, _, secret in found if rank == best} <= allowed(desired, connection)
        equals = {desired.secrets[n].owners for rank, n, _ in found if rank == best}
        if len(equals) == 1:  # else this host is a peer of its own, in both roles with one key
            assert secret == first.get(connection.name, connection.key.secret)


@lightly
@given(worlds().flatmap(lambda of: st.tuples(some_turned(of), some_turned(of))), st.data())
def test_the_key_that_takes_precedence_is_loaded_last_whatever_was_loaded_before(
    worlds_of_one: tuple[World, World], data: st.DataObject
) -> None:
    charon = ModelCharon({}, {})
    for of in worlds_of_one:
        for lost in data.draw(st.lists(st.sampled_from([*charon.secrets, "none"]), unique=True)):
            charon.secrets.pop(lost, None)
        desired = decide(of)
        secrets, connections = encoded(desired)
        for operation in plan(secrets, connections, charon.observe()):
            charon.apply(operation)
        order = [charon.secrets[s] for s in charon.secrets]
        entries = dict(zip(desired.secrets, secrets, strict=True))
        for entry, spelt in entries.items():
            if entry.over is not None:
                (below,) = [
                    s for e, s in entries.items() if (e.owners, e.secret) == (entry.owners, entry.over)
                ]
                assert spelt.above == below.id
                assert order.index(charon.secrets[below.id]) < order.index(charon.secrets[spelt.id])


@lightly
@given(worlds())
def test_no_target_is_believed_with_a_key_that_another_target_knows(of: World) -> None:
    """An IKEv2 peer is believed with any key that matches either id, an IKEv1 peer with the best match."""
    desired = decide(of)
    for connection in desired.connections:
        if connection.role is Role.INITIATOR and connection.ike is IkeMode.V2:
            me, other = connection.local_id, connection.remote_id
            matching = [e for e in desired.secrets if any(ranks(e, me, other))]
            # what names the peer is known to the peer itself
            strange = {e.secret for e in matching if not ranks(e, me, other)[0]}
            assert strange <= allowed(desired, connection)


@lightly
@given(worlds())
def test_no_two_secrets_have_the_same_owners_but_the_two_of_a_rotation(of: World) -> None:
    desired = decide(of)
    owners = [e.owners for e in desired.secrets if e.over is None]
    assert len(owners) == len(set(owners))
    for entry in desired.secrets:
        if entry.over is not None:
            (rotation,) = [r for r in desired.rotations if r.owners == entry.owners]
            assert (entry.secret, entry.over) == rotation.in_order


@lightly
@given(worlds())
def test_every_connection_finds_its_key_under_its_own_owners(of: World) -> None:
    desired = decide(of)
    previously_managed = {(entry.owners, entry.secret) for entry in desired.secrets}
    for connection in desired.connections:
        secret = connection.key.secret
        assert (connection.pair, secret) in previously_managed or (
            (connection.remote_id,),
            secret,
        ) in previously_managed


@lightly
@given(worlds())
def test_no_initiator_is_admitted_with_a_key_that_another_knows(of: World) -> None:
    """A responder tries every secret that matches either end (charon); each must be the peer's own."""
    desired = decide(of)
    for connection in desired.connections:
        if connection.role is Role.TARGET and connection.binding.portal.address in of.local_addresses:
            assert not [e for e in desired.secrets if connection.local_id in e.owners]
            # as an initiator towards the same peer we share another key with it, and with it alone
            own = [e.secret for e in desired.secrets if e.owners == (connection.remote_id,)]
            assert set(own) == allowed(desired, connection)


@lightly
@given(worlds())
def test_no_two_connections_have_one_name(of: World) -> None:
    names = [connection.name for connection in decide(of).connections]
    assert len(names) == len(set(names))
    assert all(name.startswith(PREFIX) and len(name.encode()) <= 255 for name in names)


@lightly
@given(worlds())
def test_the_guard_holds_every_closed_portal_and_every_connections(of: World) -> None:
    desired = decide(of)
    for view in desired.portals:
        guarded = desired.local_portals if view.role is Role.TARGET else desired.guarded
        if view.closed:
            assert view.binding.portal in guarded
        if view.connection:
            assert view.closed
    text = ruleset.guard_table(desired.guarded, desired.local_portals)
    for portal in (*desired.guarded, *desired.local_portals):
        assert f"{portal.address} . {portal.port}" in text


@lightly
@given(worlds())
def test_a_managed_portal_stays_closed_unless_flags_open_it(of: World) -> None:
    desired = decide(of)
    for portal, role in of.previously_managed:
        if role is Role.TARGET:
            views = [v for v in desired.portals if v.binding.portal == portal and v.role is role]
            assert portal in desired.local_portals or any(v.choice and not v.choice.required for v in views)
        elif portal.address not in of.local_addresses:
            views = [v for v in desired.portals if v.binding.portal == portal and v.role is role]
            assert portal in desired.guarded or any(v.choice and not v.choice.required for v in views)


@lightly
@given(worlds())
def test_require_ipsec_leaves_no_foreign_portal_open(of: World) -> None:
    desired = decide(of)
    if of.settings.require_ipsec:
        for view in desired.portals:
            assert view.closed or view.binding.portal.address in of.local_addresses


@lightly
@given(worlds())
def test_a_closed_portal_without_connection_says_why(of: World) -> None:
    for view in decide(of).portals:
        if view.closed and view.connection is None and not view.own_address:
            assert view.problem is not None
            assert view.problem.portal == str(view.binding.portal)


@lightly
@given(st.data())
def test_the_order_of_files_changes_nothing(data: st.DataObject) -> None:
    of = data.draw(worlds())
    one, two = decide(of), decide(data.draw(shuffled(of)))
    assert set(one.connections) == set(two.connections)
    assert set(one.secrets) == set(two.secrets)
    assert (one.guarded, one.local_portals) == (two.guarded, two.local_portals)
    assert set(one.problems) == set(two.problems)
    one_spelled, two_spelled = encoded(one), encoded(two)
    assert {(c.name, c.child) for c in one_spelled[1]} == {(c.name, c.child) for c in two_spelled[1]}


@lightly
@given(worlds())
def test_deriving_asks_only_for_routes_that_were_announced(of: World) -> None:
    lookup = Lookup(of)
    announced = lookup.wanted_sources
    asked: list[Any] = []
    sources = of.sources

    class Noting(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            asked.append(key)
            return sources.get(key, default)

    decide(dataclasses.replace(of, sources=Noting()))
    assert set(asked) <= announced
    assert wanted_names(of.records, of.broken, of.policies, of.keys).keys() <= {
        "san.example.com",
        "gone.example.com",
    }


@lightly
@given(worlds())
def test_no_form_of_any_value_shows_a_key(of: World) -> None:
    desired = decide(of)
    secrets, connections = encoded(desired)
    operations = plan(secrets, connections, ModelCharon({}, OURS_OF_OLD).observe())
    rows = PortalRows().rows(desired.portals, Observed())
    shown = [
        *(
            form(value)
            for value in (of, desired, secrets, connections, operations)
            for form in (repr, str, format)
        ),
        *(f"{value!s} {value!r} {value}" for value in (*of.keys, *desired.secrets, *desired.connections)),
        "%s %r" % (desired, secrets),  # noqa: UP031  # the way of logging
        json.dumps([rows, [problem_row(p) for p in desired.problems]]),
        json.dumps([c.message for c in connections]),
        json.dumps([s.message for s in secrets], default=repr),
        " ".join(o.text for o in operations),
        ruleset.guard_table(desired.guarded, desired.local_portals),
    ]
    assert not [text for text in shown if CANARY in text]


@lightly
@given(worlds())
def test_a_key_is_used_only_within_its_portals(of: World) -> None:
    for view in decide(of).portals:
        if view.connection and view.connection.key.portals:
            assert any(rank(of, p, view.binding.portal) != NOWHERE for p in view.connection.key.portals)


@lightly
@given(worlds())
def test_a_portal_closed_without_names_is_closed_with_them(of: World) -> None:
    """Whoever answers DNS opens nothing."""
    without = derive(Lookup(dataclasses.replace(of, names={})))
    desired = derive(Lookup(of))
    assert set(without.guarded) <= set(desired.guarded)
    assert set(without.local_portals) <= set(desired.local_portals)
    assert without.networks == desired.networks


@lightly
@given(worlds())
def test_an_address_of_this_hosts_own_opens_nothing(of: World) -> None:
    away = dataclasses.replace(of, local_addresses=frozenset())
    every = frozenset(binding.portal.address for binding in Lookup(away).candidates)
    here = derive(Lookup(dataclasses.replace(of, local_addresses=every)))
    named_by_keys = {p for key in of.keys for pattern in key.portals for p in portals_of(of, pattern)}
    assert set(derive(Lookup(away)).guarded) - named_by_keys <= set(here.guarded)


@lightly
@given(worlds())
def test_a_key_without_portals_manages_nothing_by_itself(of: World) -> None:
    of = dataclasses.replace(
        of, settings=dataclasses.replace(of.settings, require_ipsec=False), inherited=frozenset()
    )
    lookup = Lookup(of)
    held = {portal for portal, _ in of.previously_managed}
    for view in derive(lookup).portals:
        if view.role is Role.INITIATOR and view.managed and view.binding.portal not in held:
            assert view.policy or lookup.keys.cover(view.binding.portal)
