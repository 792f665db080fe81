"""Tunnel mode with outer addresses of its own, through a gateway that the portal is behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm import farend, gateway, openiscsi
from tests.vm.combination import CONFIG
from tests.vm.farend import Peer
from tests.vm.full import only_full
from tests.vm.machine import Machine
from tests.vm.test_first_session import assert_only_esp, policy, portal_status
from tests.vm.wire import Wire

KEY = "gateway, not a secret: 0123456789abcdef"
KEY_FILE = f'id_type = "ID_IPV4_ADDR"\nid = "{{id}}"\nkey = "{KEY}"\n'
INNER = "10.98.0.10"
NOBODY = "10.32.60.99"


@pytest.fixture(scope="module")
def gateways(target: Machine) -> Iterator[Machine]:
    """The target VM as a gateway to a portal that is not on the wire."""
    gateway.open_gateway(target)
    yield target
    gateway.close_gateway(target)
    farend.configure_charon(target, "")


@pytest.fixture(autouse=True)
def clean(ready: Machine, gateways: Machine) -> Iterator[None]:
    """End each test without session, route and inner address."""
    yield
    openiscsi.forget_everything(ready)
    ready.run(f"ip route del {gateway.NETWORK}; ip address del {INNER}/32 dev lo")
    gateways.run(f"ip route del {INNER}")


def gateway_peer(gateways: Machine, ready: Machine, inner: str) -> Peer:
    """The gateway's connection."""
    return Peer(
        name="gateway", local=gateways.ip, remote=ready.ip, key=KEY, mode="tunnel",
        local_ts=f"{gateway.PORTAL}/32[6/3260]", remote_ts=f"{inner}/32[6]",
    )  # fmt: skip


def assert_only_the_gateway_is_heard_of(wire: Wire, since: float, near: str, outer: str) -> None:
    """Assert that the wire carried ESP between the outer addresses, and nothing of what is in it."""
    assert_only_esp(wire, since, near, outer)
    assert {frame.source for frame in wire.esp(since)} == {near, outer}
    inner = {gateway.PORTAL, INNER}
    shown = [frame for frame in wire.frames(since) if {frame.source, frame.destination} & inner]
    assert not shown, shown[:3]


def test_a_portal_behind_a_gateway_is_reached_through_a_tunnel_to_its_outer_address(
    ready: Machine, gateways: Machine, wire: Wire
) -> None:
    """SetTunnelModeOuterAddress: by the verb, over what a policy for the whole network says."""
    farend.configure_charon(gateways, farend.swanctl_conf(gateway_peer(gateways, ready, ready.ip)))
    ready.write(f"{CONFIG}/psk.d/db1.toml", KEY_FILE.format(id=ready.ip), 0o600)
    ready.write(f"{CONFIG}/portal.d/inside.toml", policy(gateway.NETWORK, flags='psk = "db1"\n'), 0o600)
    mark = wire.mark()

    ready.run(f"iscsi-ipsec tunnel-address set {gateway.PORTAL} {gateways.ip}", check=True)
    ready.wait("iscsi-ipsec status --json | grep -q no-route", timeout=30)
    reported = portal_status(ready, f"{gateway.PORTAL}:3260")["problem"]
    ready.run(f"ip route add {gateway.NETWORK} via {gateways.ip}", check=True)
    ready.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)
    openiscsi.discover(ready, gateway.PORTAL)
    openiscsi.write_and_read_back(ready, openiscsi.login(ready, gateway.PORTAL))
    row = portal_status(ready, f"{gateway.PORTAL}:3260")
    explained = ready.run(f"iscsi-ipsec explain {gateway.PORTAL}")
    verified = ready.run("iscsi-ipsec verify")

    assert reported["code"] == "no-route"
    assert f"ip route add {gateway.PORTAL} via {gateways.ip}" in reported["hint"]
    assert (row["protected"], row["mode"], row["problem"]) == (True, "tunnel", None)
    assert (row["local_address"], row["remote_address"]) == (ready.ip, gateways.ip)
    assert f"{ready.ip} to {gateways.ip}" in explained.out, str(explained)
    assert verified.rc == 0, str(verified)
    assert_only_the_gateway_is_heard_of(wire, mark, ready.ip, gateways.ip)


@only_full
def test_the_inner_addresses_may_differ_from_the_outer_ones_at_both_ends(
    ready: Machine, gateways: Machine, wire: Wire
) -> None:
    """The route gives the inner source and nothing else: its next hop is nobody's address."""
    farend.configure_charon(gateways, farend.swanctl_conf(gateway_peer(gateways, ready, INNER)))
    gateways.run(f"ip route add {INNER} via {ready.ip}", check=True)
    ready.run(f"ip address add {INNER}/32 dev lo", check=True)
    ready.run(f"ip route add {gateway.NETWORK} via {NOBODY} src {INNER}", check=True)
    ready.write(f"{CONFIG}/psk.d/db1.toml", KEY_FILE.format(id=ready.ip), 0o600)
    ready.write(f"{CONFIG}/portal.d/inside.toml", policy(gateway.NETWORK, flags='psk = "db1"\n'), 0o600)
    mark = wire.mark()

    set_outer = f"iscsi-ipsec tunnel-address set {gateway.PORTAL} {gateways.ip} --local {ready.ip}"
    ready.run(set_outer, check=True)
    ready.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)
    openiscsi.discover(ready, gateway.PORTAL)
    openiscsi.write_and_read_back(ready, openiscsi.login(ready, gateway.PORTAL))
    row = portal_status(ready, f"{gateway.PORTAL}:3260")
    verified = ready.run("iscsi-ipsec verify")
    openiscsi.forget_everything(ready)
    removed = ready.run(f"iscsi-ipsec tunnel-address remove {gateway.PORTAL}")

    assert (row["protected"], row["mode"], row["problem"]) == (True, "tunnel", None)
    assert (row["local_address"], row["remote_address"]) == (ready.ip, gateways.ip)
    assert verified.rc == 0, str(verified)
    assert INNER in verified.out, str(verified)
    assert removed.rc == 0, str(removed)
    assert_only_the_gateway_is_heard_of(wire, mark, ready.ip, gateways.ip)
