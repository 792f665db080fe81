"""From a mount to the iSCSI sessions below it, in trees as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from iscsi_ipsec.adapters.block_devices import sessions_below, sessions_below_system
from iscsi_ipsec.core.report.system_disks import Mount


class Sysfs:
    """Block devices as Linux shows them: dev/block and class/block lead to devices/..."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _add(self, path: str, number: str) -> Path:
        real = self.root / "devices" / path
        (real / "slaves").mkdir(parents=True)
        for folder, name in (("dev/block", number), ("class/block", real.name)):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            (self.root / folder / name).symlink_to(real)
        return real

    def iscsi_disk(self, name: str, number: str, sid: int) -> Path:
        return self._add(f"platform/host2/session{sid}/target2:0:0/2:0:0:{sid}/block/{name}", number)

    def local_disk(self, name: str, number: str) -> Path:
        return self._add(f"pci0000:00/0000:00:04.0/virtio1/block/{name}", number)

    def partition(self, disk: Path, name: str, number: str) -> Path:
        real = self._add(f"{disk.relative_to(self.root / 'devices')}/{name}", number)
        (real / "slaves").rmdir()  # a partition has none of its own
        (real / "partition").write_text("1\n")
        return real

    def made_of(self, name: str, number: str, *parts: Path) -> Path:
        real = self._add(f"virtual/block/{name}", number)
        for part in parts:
            (real / "slaves" / part.name).symlink_to(part)
        return real


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys")


def below(sysfs: Sysfs, device: str, source: str = "") -> set[int]:
    return set(sessions_below(str(sysfs.root), Mount(point="/", device=device, source=source)))


def test_a_disk_and_its_partition_lead_to_their_session(sysfs: Sysfs) -> None:
    disk = sysfs.iscsi_disk("sda", "8:0", sid=3)
    sysfs.partition(disk, "sda1", "8:1")

    assert below(sysfs, "8:0") == below(sysfs, "8:1") == {3}


def test_a_local_disk_leads_to_none(sysfs: Sysfs) -> None:
    disk = sysfs.local_disk("vda", "254:0")
    sysfs.partition(disk, "vda1", "254:1")

    assert below(sysfs, "254:0") == below(sysfs, "254:1") == set()


def test_multipath_below_lvm_leads_to_all_of_its_sessions(sysfs: Sysfs) -> None:
    paths = [sysfs.iscsi_disk("sda", "8:0", sid=3), sysfs.iscsi_disk("sdb", "8:16", sid=4)]
    multipath = sysfs.made_of("dm-0", "253:0", *paths)
    sysfs.made_of("dm-1", "253:1", multipath)

    assert below(sysfs, "253:1") == {3, 4}


def test_a_partition_of_a_raid_of_partitions_leads_to_the_session_of_one_half(sysfs: Sysfs) -> None:
    remote = sysfs.partition(sysfs.iscsi_disk("sda", "8:0", sid=5), "sda1", "8:1")
    local = sysfs.partition(sysfs.local_disk("vdb", "254:16"), "vdb1", "254:17")
    raid = sysfs.made_of("md0", "9:0", remote, local)
    sysfs.partition(raid, "md0p1", "259:0")

    assert below(sysfs, "259:0") == {5}


def test_a_file_system_without_a_device_number_is_found_by_its_source(sysfs: Sysfs) -> None:
    sysfs.iscsi_disk("sda", "8:0", sid=3)

    assert below(sysfs, "0:44", "/dev/sda") == {3}
    assert below(sysfs, "0:44", "overlay") == below(sysfs, "0:44", "/dev/gone") == set()


def test_devices_that_are_made_of_each_other_end_the_search(sysfs: Sysfs) -> None:
    one = sysfs.made_of("dm-0", "253:0")
    two = sysfs.made_of("dm-1", "253:1", one)
    (one / "slaves" / "dm-1").symlink_to(two)

    assert below(sysfs, "253:0") == set()


def test_a_mount_table_is_read_only_for_mounts_that_the_system_needs(sysfs: Sysfs, tmp_path: Path) -> None:
    sysfs.local_disk("vda", "254:0")
    sysfs.iscsi_disk("sda", "8:0", sid=3)
    sysfs.iscsi_disk("sdb", "8:16", sid=4)
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(
        "22 1 254:0 / / rw - ext4 /dev/vda rw\n"
        "23 22 8:0 / /var rw shared:3 - ext4 /dev/sda rw\n"
        "24 22 8:16 / /srv rw shared:4 - ext4 /dev/sdb rw\n"
    )

    assert sessions_below_system(str(sysfs.root), str(mountinfo)) == {"/var": frozenset({3})}
    assert sessions_below_system(str(sysfs.root), str(tmp_path / "none")) == {}


def test_the_mount_table_of_this_machine_is_understood() -> None:
    """Whatever it is: a root on iSCSI would be the only surprise."""
    assert sessions_below_system("/sys") == {}
