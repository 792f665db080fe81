"""A portal that was closed stays closed, in the kernel and in the file for the next boot, whatever address or role changes."""

from __future__ import annotations

import socket
from pathlib import Path

from iscsi_ipsec.adapters.nft import Guard
from iscsi_ipsec.base.portal import Portal, parse_portal
from iscsi_ipsec.core.guard.ruleset import parse_elements
from tests.support.admin import ROW, key_file, portal_file
from tests.support.ike import KEY_A
from tests.support.netlab import Charon, Daemon, Lab, Node, wait_until

VIP = "10.10.0.77"


def in_kernel(node: Node, name: str) -> frozenset[Portal]:
    state = node.inside(Guard().installed)
    return state.sets[name] if state else frozenset()


def in_file(daemon: Daemon) -> tuple[tuple[Portal, ...], tuple[Portal, ...]]:
    path = Path(daemon.state) / "guard.nft"
    return parse_elements(path.read_text()) if path.exists() else ((), ())


def knock(node: Node, address: str, times: int = 20) -> None:
    """Try to connect, again and again: each attempt would be a SYN on the wire."""

    def tries() -> None:
        for _ in range(times):
            with socket.socket() as client:
                client.setblocking(False)
                client.connect_ex((address, 3260))

    node.inside(tries)


def test_a_portal_whose_address_was_this_hosts_for_a_while_is_closed_afterwards(
    lab: Lab, charon: Charon, daemon: Daemon
) -> None:
    """A floating VIP, or a DHCP server that hands out the portal's address."""
    node, vip = daemon.node, parse_portal(VIP)
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("vip", portal_file(VIP))
    daemon.start()
    wait_until(lambda: vip in in_kernel(node, "portals4"), "the portal is closed", detail=daemon.tail)
    node.add_address(VIP)
    try:
        wait_until(
            lambda: not daemon.row(f"{VIP}:3260").get("connection"), "no connection", detail=daemon.tail
        )
        daemon.settle()
        assert vip in in_kernel(node, "portals4")
        assert vip in in_file(daemon)[0]
        daemon.terminate()
    finally:
        node.ip("address", "del", f"{VIP}/24", "dev", "eth0")
    lab.node("target").add_address(VIP)
    try:
        mark = lab.wire.mark()
        knock(node, VIP)
        assert not lab.wire.tcp(since=mark)
        node.run(["nft", "delete", "table", "inet", "iscsi_ipsec"])
        knock(node, VIP)
        assert lab.wire.tcp(since=mark), "the control: without the guard they are on the wire"
    finally:
        lab.node("target").ip("address", "del", f"{VIP}/24", "dev", "eth0")


def test_a_portal_is_remembered_in_every_role_that_it_had(lab: Lab, charon: Charon, daemon: Daemon) -> None:
    node, portal = daemon.node, parse_portal(ROW)
    daemon.put_key("a", key_file("a.lab", KEY_A))
    policy = daemon.put_portal("san", portal_file() + 'role = "target"\n')  # a mistake, corrected below
    daemon.start()
    wait_until(lambda: portal in in_kernel(node, "served4"), "closed as served", detail=daemon.tail)
    daemon.put_portal("san", portal_file())
    wait_until(lambda: portal in in_kernel(node, "portals4"), "closed as reached", detail=daemon.tail)
    policy.unlink()
    (Path(daemon.psk) / "a.toml").unlink()
    daemon.settle()
    for name in ("portals4", "served4"):
        assert portal in in_kernel(node, name), name
    assert [portal in portals for portals in in_file(daemon)] == [True, True]
