"""Finds the iSCSI sessions below a mounted file system, from the mount table and sysfs. Read only.

Law: decides nothing (:mod:`~iscsi_ipsec.core.report.system_disks` does). An entry that vanishes while it is
read is skipped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from iscsi_ipsec.core.report.system_disks import Mount, parse_mountinfo, system_mounts

MOUNTINFO = "/proc/self/mountinfo"

_SECTOR = 512

MAX_DEPTH = 16
"""Layers of LVM, RAID, multipath and encryption below a file system; more is a loop."""


def sessions_below_system(sysfs: str, mountinfo: str = MOUNTINFO) -> dict[str, frozenset[int]]:
    """Mount points that the system needs, with the iSCSI sessions below; those without are left out."""
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
            mounts = parse_mountinfo(file.read())
    except OSError:
        return {}
    below = {mount.point: sessions_below(sysfs, mount) for mount in system_mounts(mounts)}
    return {point: sids for point, sids in below.items() if sids}


def disks_of_sessions(sysfs: str) -> dict[int, tuple[str, ...]]:
    """The disks that came over each iSCSI session, by name."""
    disks: dict[int, list[str]] = {}
    folder = os.path.join(sysfs, "class/block")
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    for name in names:
        real = os.path.realpath(os.path.join(folder, name))
        match = re.search(r"/session(\d+)/", real)
        if match and not os.path.exists(os.path.join(real, "partition")):
            disks.setdefault(int(match[1]), []).append(name)
    return {sid: tuple(found) for sid, found in disks.items()}


def bytes_moved(sysfs: str, disk: str) -> int:
    """The bytes read from and written to a disk since it appeared (Documentation/block/stat.rst), 0 if it is gone."""
    try:
        with open(os.path.join(sysfs, "class/block", disk, "stat"), encoding="ascii") as file:
            fields = file.read().split()
        return (int(fields[2]) + int(fields[6])) * _SECTOR
    except (OSError, ValueError, IndexError):
        return 0


def mounts_of_sessions(sysfs: str, mountinfo: str = MOUNTINFO) -> dict[int, tuple[str, ...]]:
    """The mount points that rest on each iSCSI session."""
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
            mounts = parse_mountinfo(file.read())
    except OSError:
        return {}
    points: dict[int, list[str]] = {}
    for mount in mounts:
        for sid in sessions_below(sysfs, mount):
            points.setdefault(sid, []).append(mount.point)
    return {sid: tuple(found) for sid, found in points.items()}


def sessions_below(sysfs: str, mount: Mount) -> frozenset[int]:
    """The iSCSI sessions whose disks a mount's block device is made of."""
    if not mount.device.startswith("0:"):
        device = os.path.join(sysfs, "dev/block", mount.device)
    elif mount.source.startswith("/dev/"):  # btrfs: /dev/mapper/... is a link to ../dm-0
        device = os.path.join(sysfs, "class/block", os.path.basename(os.path.realpath(mount.source)))
    else:
        return frozenset()
    return frozenset(_sessions(device, MAX_DEPTH))


def _sessions(device: str, depth: int) -> Iterator[int]:
    """The sessions of a disk, of a partition's disk, or of all its parts.

    A disk that came over iSCSI is ``.../hostH/sessionS/targetT/H:C:T:L/block/sdX`` in sysfs.
    """
    real = os.path.realpath(device)
    match = re.search(r"/session(\d+)/", real)
    if match:
        yield int(match[1])
        return
    if os.path.exists(os.path.join(real, "partition")):
        real = os.path.dirname(real)
    slaves = os.path.join(real, "slaves")
    try:
        names = os.listdir(slaves) if depth else []
    except OSError:
        return
    for name in names:
        yield from _sessions(os.path.join(slaves, name), depth - 1)
