"""Bridges with guests, in a tree as sysfs has it and in the kernel's own."""

from __future__ import annotations

from pathlib import Path

from iscsi_ipsec.adapters.guest_bridges import guest_bridges
from tests.support.netlab.space import Namespace


def device(sysfs: Path, name: str, *inside: str) -> None:
    for item in inside:
        (sysfs / "class/net" / name / item).mkdir(parents=True)


def test_taps_and_veths_are_guests_and_hardware_vlans_and_bonds_are_not(tmp_path: Path) -> None:
    device(tmp_path, "br0", "bridge", "brif/eth0", "brif/vnet0", "brif/veth1", "brif/eth0.7", "brif/bond0")
    device(tmp_path, "br1", "bridge", "brif/eth1")
    device(tmp_path, "eth0", "device", "queues")
    device(tmp_path, "eth1", "device", "queues")
    device(tmp_path, "vnet0", "tun_flags", "queues")
    device(tmp_path, "veth1", "queues")
    device(tmp_path, "eth0.7", "lower_eth0", "queues")
    device(tmp_path, "bond0", "bonding", "queues")
    assert guest_bridges(str(tmp_path)) == {"br0": ("veth1", "vnet0")}


def test_without_sysfs_there_is_none(tmp_path: Path) -> None:
    assert guest_bridges(str(tmp_path)) == {}


def test_the_kernels_own_tree_is_read(space: Namespace) -> None:
    space.ip("link", "add", "br0", "type", "bridge")
    space.ip("link", "add", "guest0", "type", "veth", "peer", "name", "far0")
    space.ip("link", "set", "guest0", "master", "br0")
    # ip netns exec mounts the namespace's own sysfs
    shown = space.run(["ls", "/sys/class/net/br0/brif", "/sys/class/net/guest0"]).out
    assert "guest0" in shown
    assert "tun_flags" not in shown
    assert "lower_" not in shown
