"""Detours that the host's own routing, filters and kernel offer, under I/O on both IP versions and in both ESP modes.

Each is tried with charon stopped, when the guard alone holds, and then without the guard, which shows that it would
have let iSCSI out.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.vm import openiscsi
from tests.vm.full import only_full
from tests.vm.machine import Machine, wait_until
from tests.vm.stream import Stream
from tests.vm.test_faults import Scene, product, scene, streams  # noqa: F401  # fixtures
from tests.vm.test_first_session import esp_spis

pytestmark = only_full

DEVICE = "dev=$(ip -o -4 address show to 10.32.60.10 | awk '{print $2}')"
PATHS = ("10.32.60.20", "fd00:3260::20")


@dataclass(frozen=True, slots=True)
class Detour:
    """Commands that set up a detour on the initiator, and commands that remove it."""

    name: str
    set_up: str
    take_away: str

    def __str__(self) -> str:
        return self.name


DETOURS = (
    Detour(
        "a mark sends packets through another routing table",
        f"{DEVICE}; for f in -4 -6; do ip $f rule add fwmark 7 lookup 77; done;"
        " ip -4 route add 10.32.60.20 dev $dev table 77; ip -6 route add fd00:3260::20 dev $dev table 77;"
        " nft 'table inet detour { chain out { type route hook output priority mangle;"
        " tcp dport 3260 meta mark set 7; }; }'",
        "nft delete table inet detour; for f in -4 -6; do ip $f rule del fwmark 7; ip $f route flush table 77; done",
    ),
    Detour(
        "packets are larger than the path and are cut into fragments",
        f"{DEVICE}; sysctl -qw net.ipv4.ip_no_pmtu_disc=1; ip -4 route add 10.32.60.20/32 dev $dev mtu lock 700",
        f"{DEVICE}; ip -4 route del 10.32.60.20/32 dev $dev; sysctl -qw net.ipv4.ip_no_pmtu_disc=0",
    ),
    Detour(
        "connection tracking is switched off, and an early chain accepts",
        "nft 'table inet detour { chain out { type filter hook output priority raw; tcp dport 3260 notrack accept; };"
        " chain late { type filter hook output priority 0; policy accept; accept; };"
        " chain in { type filter hook input priority 0; policy accept; accept; }; }'",
        "nft delete table inet detour",
    ),
)


def try_both(initiator: Machine, within: str = "") -> None:
    """Try a connection to both portals; whether it comes up does not matter."""
    for address in PATHS:
        initiator.run(f"{within} timeout 4 bash -c '</dev/tcp/{address}/3260'", timeout=20)


def assert_open_without_guard(scene: Scene, within: str = "") -> None:  # noqa: F811
    """Assert that what was held would be seen without the guard: the control."""
    scene.product.run("systemctl stop iscsi-ipsecd && nft delete table inet iscsi_ipsec", check=True)
    scene.mark()

    def seen() -> bool:
        try_both(scene.product, within)
        return scene.in_clear() == {scene.product.ip, scene.product.ip6}

    wait_until(seen, 60, "both families' frames are seen without the guard")


@pytest.fixture(scope="module", autouse=True)
def patient(streams: tuple[Stream, Stream]) -> None:  # noqa: F811
    """Let no I/O fail for the minutes that a detour and its control take."""
    openiscsi.give_up_after(streams[0].machine, 900)


@pytest.mark.parametrize("detour", DETOURS, ids=str)
def test_a_detour_lets_nothing_out_unencrypted(scene: Scene, detour: Detour) -> None:  # noqa: F811
    initiator = scene.product
    initiator.run(detour.set_up, check=True)
    try:
        for stream in scene.streams:
            stream.wait_until_it_flows()
        initiator.run("systemctl stop strongswan", timeout=90, check=True)
        try_both(initiator)
        scene.assert_no_harm(detour.name)
        assert_open_without_guard(scene)
    finally:
        initiator.run("systemctl start iscsi-ipsecd strongswan", timeout=120, check=True)
        initiator.run(detour.take_away)
        scene.settle()


SAME_NAME = {
    "asleep": "nft 'add table inet iscsi_ipsec { flags dormant; }'",
    "emptied": "nft flush table inet iscsi_ipsec",
    "replaced": "nft 'delete table inet iscsi_ipsec; table inet iscsi_ipsec { chain x { }; }'",
}


@pytest.mark.parametrize("what", SAME_NAME)
def test_a_table_of_our_name_that_somebody_loads_is_replaced(scene: Scene, what: str) -> None:  # noqa: F811
    """The frames that pass until then are counted; charon's own policies are there, so there are none."""
    scene.product.run(SAME_NAME[what], check=True)
    scene.product.wait(
        "nft list table inet iscsi_ipsec | grep -q 'chain postrouting' && ! nft list table inet iscsi_ipsec | grep -q dormant"
    )
    try_both(scene.product)
    scene.settle()
    scene.assert_no_harm(f"a table of our name is {what}")


@pytest.mark.parametrize("what", ["state", "policy"])
def test_flushing_the_kernels_ipsec_again_and_again_lets_nothing_out(scene: Scene, what: str) -> None:  # noqa: F811
    scene.product.run(f"for n in $(seq 30); do ip xfrm {what} flush; sleep 1; done", timeout=90, check=True)
    scene.settle()
    scene.assert_no_harm(f"ip xfrm {what} flush, 30 times")


def test_what_a_container_sends_to_a_managed_portal_is_dropped_outside_its_sa(scene: Scene) -> None:  # noqa: F811
    """Packets of a second network namespace are routed, not sent, by this host."""
    initiator = scene.product
    initiator.run(
        f"{DEVICE}; ip netns add guest; ip link add veth0 type veth peer name eth0 netns guest;"
        " ip address add 192.0.2.1/24 dev veth0; ip link set veth0 up;"
        " ip -n guest address add 192.0.2.2/24 dev eth0; ip -n guest link set eth0 up;"
        " ip -n guest route add default via 192.0.2.1; sysctl -qw net.ipv4.ip_forward=1;"
        ' nft "table ip detour { chain post { type nat hook postrouting priority srcnat;'
        ' ip saddr 192.0.2.0/24 oifname $dev masquerade; }; }"',
        check=True,
    )
    attempt = "ip netns exec guest timeout 4 bash -c '</dev/tcp/10.32.60.20/{}'"
    try:
        assert initiator.run(attempt.format(22), timeout=30).rc == 0, "the guest reaches the target"
        initiator.run("systemctl stop strongswan", timeout=90, check=True)
        initiator.run(attempt.format(3260), timeout=30)
        scene.assert_no_harm("a container connects to the portal")
        initiator.run("systemctl stop iscsi-ipsecd && nft delete table inet iscsi_ipsec", check=True)
        scene.mark()
        initiator.run(attempt.format(3260), timeout=30)
        assert scene.in_clear(), "the control: it would be open"
    finally:
        initiator.run("systemctl start iscsi-ipsecd strongswan", timeout=120, check=True)
        initiator.run("nft delete table ip detour; ip netns del guest; sysctl -qw net.ipv4.ip_forward=0")
        scene.settle()


@contextmanager
def paused(machine: Machine) -> Iterator[None]:
    """Stop the machine's CPU, as a suspended or migrated VM."""
    domain = f"iscsi_ipsec_{machine.name}"

    def virsh(verb: str) -> None:
        subprocess.run(["virsh", "-c", "qemu:///system", verb, domain], check=True, capture_output=True)

    virsh("suspend")
    try:
        yield
    finally:
        virsh("resume")


@pytest.mark.parametrize("end", ["initiator", "target"])
def test_a_machine_that_stands_still_for_minutes_comes_back(scene: Scene, end: str) -> None:  # noqa: F811
    """Longer than the other end's DPD gives it, so the SAs are gone there."""
    before = esp_spis(scene.product)
    with paused(scene.product if end == "initiator" else scene.target):
        time.sleep(200 if end == "initiator" else 30)
    scene.settle()
    scene.assert_no_harm(f"the {end} stood still")
    if end == "initiator":
        assert esp_spis(scene.product) != before


def test_a_vrf_is_no_way_round(scene: Scene) -> None:  # noqa: F811
    initiator = scene.product
    initiator.run("systemctl stop strongswan", timeout=90, check=True)
    initiator.run(
        f"{DEVICE}; sysctl -qw net.ipv6.conf.$dev.keep_addr_on_down=1; ip link add red type vrf table 10;"
        " ip link set red up; ip link set $dev master red",
        check=True,
    )
    try:
        try_both(initiator, "ip vrf exec red")
        assert not scene.in_clear()
        assert_open_without_guard(scene, "ip vrf exec red")
    finally:
        initiator.run("systemctl start iscsi-ipsecd", timeout=120, check=True)
        initiator.run(f"{DEVICE}; ip link set $dev nomaster; ip link del red", check=True)
        initiator.run("systemctl start strongswan", timeout=120, check=True)
        scene.settle()
