"""The guard on every path of a packet out of this host: its own, translated, and routed for others.

This kernel may have no ESP, so nothing passes here; what passes inside an SA is shown in tests/vm.
Each way is tried without the guard first: it would be open.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from iscsi_ipsec.adapters.nft import Guard
from iscsi_ipsec.base.portal import parse_portal
from iscsi_ipsec.core.guard.ruleset import guard_table
from tests.support.netlab import Lab, Namespace, Node

PORTAL6 = "fd00:10::2"
OWN, PORTAL, OTHER = "10.10.0.1", "10.10.0.2", "10.10.0.99"
GUEST, GATEWAY = "10.30.0.2", "10.30.0.1"
NAT = "table ip nat { chain out { type nat hook output priority -100; %s; }; chain post { type nat hook postrouting priority 100; %s; }; }"

WAYS = {
    "direct": ("", PORTAL, 3260),
    "another address": (NAT % (f"ip daddr {OTHER} dnat to {PORTAL}", ""), OTHER, 3260),
    "another port": (NAT % (f"tcp dport 3999 dnat to {PORTAL}:3260", ""), PORTAL, 3999),
    "IPv6": ("", PORTAL6, 3260),
}


def load(node: Node, *, forward: bool = True, rdma: bool = False) -> None:
    portals = [parse_portal(PORTAL), parse_portal(PORTAL6)]
    text = guard_table(
        portals, [], sas=[(portal, 0x49000001) for portal in portals], forward=forward, rdma=rdma
    )
    node.inside(lambda: Guard().load(text))


def opens(space: Namespace, address: str, port: int = 3260) -> bool:
    def knock() -> bool:
        try:
            with socket.create_connection((address, port), 1.0):
                return True
        except OSError:
            return False

    return space.inside(knock)


@pytest.fixture
def initiator(lab: Lab) -> Iterator[Node]:
    """The initiator's node; what a test loads into its nftables goes with it. A server listens at the portal."""
    node = lab.node("initiator")
    with (
        lab.node("target").inside(lambda: socket.create_server(("::", 3260), family=socket.AF_INET6, dualstack_ipv6=True)),
    ):  # fmt: skip
        yield node
    node.run(["nft", "flush", "ruleset"])


@pytest.fixture
def guest(lab: Lab, initiator: Node) -> Iterator[Namespace]:
    """A guest behind the initiator, which routes for it."""
    space = Namespace("guest")
    initiator.ip("link", "add", "tap0", "type", "veth", "peer", "name", "eth0", "netns", space.name)
    initiator.ip("address", "add", f"{GATEWAY}/24", "dev", "tap0")
    initiator.ip("link", "set", "tap0", "up")
    space.ip("address", "add", f"{GUEST}/24", "dev", "eth0")
    space.ip("link", "set", "eth0", "up")
    space.ip("route", "add", "default", "via", GATEWAY)
    initiator.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])
    lab.node("target").ip("route", "replace", "10.30.0.0/24", "via", OWN)
    yield space
    initiator.ip("link", "del", "tap0")
    initiator.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=0"])
    space.close()


@pytest.mark.parametrize(("nat", "address", "port"), WAYS.values(), ids=WAYS)
def test_a_packet_is_judged_by_the_address_that_it_leaves_with(
    lab: Lab, initiator: Node, nat: str, address: str, port: int
) -> None:
    if nat:
        initiator.run(["nft", nat])
    assert opens(initiator, address, port), "the control: without a guard the way is open"
    load(initiator)
    mark = lab.wire.mark()
    assert not opens(initiator, address, port)
    assert not lab.wire.tcp(since=mark), "nothing was sent, and not only no answer let in"


@pytest.mark.parametrize("masquerade", ["", "masquerade"])
def test_what_is_routed_for_a_guest_is_dropped_unless_the_settings_leave_it_alone(
    initiator: Node, guest: Namespace, masquerade: str
) -> None:
    if masquerade:
        initiator.run(["nft", NAT % ("", f'ip saddr {GUEST} oifname "eth0" masquerade')])
    assert opens(guest, PORTAL), "the control: without a guard the way is open"
    load(initiator, forward=False)
    assert opens(guest, PORTAL)
    assert not opens(initiator, PORTAL), "its own packets are judged as ever"
    load(initiator)
    assert not opens(guest, PORTAL)


def test_a_session_that_a_guest_has_already_gets_no_answer_any_more(
    initiator: Node, guest: Namespace, lab: Lab
) -> None:
    with lab.node("target").inside(lambda: socket.create_server((PORTAL, 3261))) as server:
        client = guest.inside(lambda: socket.create_connection((PORTAL, 3261), 2.0))
        with client, server.accept()[0] as end:
            portal = parse_portal(f"{PORTAL}:3261")
            initiator.inside(lambda: Guard().load(guard_table([portal], [])))
            end.send(b"unencrypted data for the guest")
            client.settimeout(1.0)
            with pytest.raises(TimeoutError):
                client.recv(64)
            state = initiator.inside(Guard().installed)
            assert state
            assert state.dropped["prerouting"] > 0


def test_other_ports_of_the_portal_are_left_alone(initiator: Node, guest: Namespace, lab: Lab) -> None:
    load(initiator)
    with lab.node("target").inside(lambda: socket.create_server((PORTAL, 22))):
        assert opens(initiator, PORTAL, 22)
        assert opens(guest, PORTAL, 22)


@pytest.mark.parametrize("address", [PORTAL, PORTAL6])
def test_rdma_over_udp_is_dropped_both_ways_where_the_settings_say_so(
    lab: Lab, initiator: Node, address: str
) -> None:
    """UDP 4791 stands for soft-RoCE, which sends its packets through the same hooks (rxe_net.c, ip_local_out)."""

    def bound(port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        end = socket.socket(family, socket.SOCK_DGRAM)
        end.bind(("", port))
        end.settimeout(0.5)
        return end

    def arrives(sender: socket.socket, receiver: socket.socket, to: str, port: int) -> bool:
        try:
            sender.sendto(b"rdma", (to, port))
            return receiver.recv(16) == b"rdma"
        except (PermissionError, TimeoutError):  # dropped on its way out, or in
            return False

    target, own = lab.node("target"), "fd00:10::1" if ":" in address else OWN
    with (
        initiator.inside(lambda: bound(4791)) as near, target.inside(lambda: bound(4791)) as far,
        initiator.inside(lambda: bound(4790)) as other, target.inside(lambda: bound(4790)) as far_other,
    ):  # fmt: skip
        load(initiator)
        assert arrives(near, far, address, 4791), "it is left alone unless the settings say so"
        assert arrives(far, near, own, 4791)
        load(initiator, rdma=True)
        assert not arrives(near, far, address, 4791)
        assert not arrives(far, near, own, 4791)
        assert arrives(other, far_other, address, 4790), "another port"
