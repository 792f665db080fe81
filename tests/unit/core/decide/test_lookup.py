"""The parts of an earlier index that are reused, and the routes that are asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.core.decide.lookup import Lookup
from tests.support.values import (
    TARGET,
    address,
    broken,
    per_id,
    policy,
    portal,
    record,
    session,
    world,
)

BEFORE = Lookup(world(per_id("db1"), policy(), policy("10.0.0.0/24", name="net"), record()))


@pytest.mark.parametrize(
    ("other", "taken"),
    [
        ({"keys": ()}, True),
        ({"sources": {}}, True),
        ({"records": (record("10.0.0.99"),)}, False),
        ({"policies": ()}, False),
        ({"broken": broken("10.0.0.99")}, False),
        ({"names": {"san.lab": (address("10.0.0.99"),)}}, False),
        ({"sessions": (session("10.0.0.99"),)}, False),
        ({"previously_managed": frozenset({(portal("10.0.0.99"), Role.INITIATOR)})}, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_lookup_gathers_portals_again_only_where_their_inputs_differ(
    other: dict[str, object], taken: bool
) -> None:
    of = replace(BEFORE.world, **other)  # type: ignore[arg-type]  # one field of many
    anew, after = Lookup(of), Lookup(of, BEFORE)
    assert (after.candidates is BEFORE.candidates) is (after.wanted_sources is BEFORE.wanted_sources) is taken
    assert (after.candidates, after.wanted_sources) == (anew.candidates, anew.wanted_sources)
    for at in map(portal, (TARGET, "10.0.0.99")):
        assert after.policies.policy_for(at, Role.INITIATOR) == anew.policies.policy_for(at, Role.INITIATOR)


def test_with_sources_keeps_what_other_routes_do_not_change() -> None:
    before, of = BEFORE.world, replace(BEFORE.world, sources={(address(TARGET), ""): address("10.0.0.6")})
    lookup = BEFORE.with_sources(of)
    assert lookup.world is of
    assert BEFORE.world is before
    assert lookup.candidates is BEFORE.candidates
    assert lookup.policies.policy_for(portal(), Role.INITIATOR) is BEFORE.policies.policy_for(
        portal(), Role.INITIATOR
    )


def test_wanted_sources_have_the_bound_interface_and_the_outer_address() -> None:
    lookup = Lookup(
        world(record(net_ifacename="ens4"), policy("10.0.0.0/24", tunnel_outer_remote=address("203.0.113.1")))
    )
    assert lookup.wanted_sources == {(address(TARGET), "ens4"), (address("203.0.113.1"), "ens4")}
