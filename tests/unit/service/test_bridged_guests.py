"""Guests beside the guard: reported for each bridge that leads to a closed portal, and asked for seldom."""

from __future__ import annotations

from pathlib import Path

import pytest

from iscsi_ipsec.service.bridged_guests import BridgedGuests
from iscsi_ipsec.service.observe import ROUTE_REASONS
from tests.support.fakes import NO_BUFFERS, FakeClock, FakeRouting
from tests.support.service_host import Host
from tests.support.values import address, per_id, policy, portal, record

BRIDGE = {"br0": ("vnet0", "vnet1")}
SAN = portal("10.0.0.20")


@pytest.fixture
def routing() -> FakeRouting:
    routing = FakeRouting(FakeClock())
    routing.devices = {address("10.0.0.20"): "br0", address("10.0.0.21"): "br0"}
    return routing


def test_a_bridge_with_guests_that_leads_to_a_closed_portal_is_reported(routing: FakeRouting) -> None:
    closed = (SAN, portal("10.0.0.21"), portal("10.0.0.99"))
    (problem,) = BridgedGuests(routing, lambda: BRIDGE).problems(closed, network_changed=True)
    assert problem.code == "bridged-guests"
    assert "vnet0, vnet1" in problem.message
    assert "10.0.0.20:3260, 10.0.0.21:3260" in problem.message
    assert "10.0.0.99" not in problem.message


def test_without_guests_or_closed_portals_no_route_is_asked_for(routing: FakeRouting) -> None:
    assert BridgedGuests(routing, dict).problems((SAN,), network_changed=True) == ()
    assert BridgedGuests(routing, lambda: BRIDGE).problems((), network_changed=True) == ()
    assert not routing.calls


def test_the_answer_is_kept_until_the_network_or_what_is_closed_changes(routing: FakeRouting) -> None:
    bridged, closed = BridgedGuests(routing, lambda: BRIDGE), (SAN,)
    first = bridged.problems(closed, network_changed=True)
    assert bridged.problems(closed, network_changed=False) == first
    assert routing.calls["device_for"] == 1
    routing.devices = {}
    assert bridged.problems(closed, network_changed=True) == ()


def test_a_route_that_cannot_be_asked_for_hides_no_other(routing: FakeRouting) -> None:
    routing.fail(NO_BUFFERS, "device_for")
    assert BridgedGuests(routing, lambda: BRIDGE).problems((SAN,), network_changed=True) == ()


def test_many_guests_are_counted(routing: FakeRouting) -> None:
    guests = {"br0": tuple(f"vnet{number}" for number in range(20))}
    (problem,) = BridgedGuests(routing, lambda: guests).problems((SAN,), network_changed=True)
    assert "vnet2 and 17 more" in problem.message


def test_a_host_that_leaves_guests_alone_reports_none(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.bridges = {"eth0": ("vnet0",)}
    host.put(per_id("10.0.0.1", "db1"), policy(), record())
    assert "bridged-guests" in host.codes(host.run())
    settings = host.files.says.settings
    host.files.put(per_id("10.0.0.1", "db1"), policy(), settings=type(settings)(guard_forward=False))
    assert "bridged-guests" not in host.codes(host.run(*ROUTE_REASONS))
