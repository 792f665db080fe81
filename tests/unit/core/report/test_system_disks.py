"""Which mounts the system needs, and the problem when one of them lies on an iSCSI disk."""

from __future__ import annotations

import ipaddress

import pytest

from iscsi_ipsec.base.iscsi import IscsiSession
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Severity
from iscsi_ipsec.core.report.system_disks import Mount, disk_problems, parse_mountinfo, system_mounts

PORTAL = Portal(ipaddress.ip_address("10.0.0.20"), 3260)
OTHER = Portal(ipaddress.ip_address("10.0.0.21"), 3260)

# as Linux 6.1 writes it: tagged and untagged mounts, a name with a blank, a pseudo file system
MOUNTINFO = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /proc rw,nosuid shared:12 - proc proc rw
40 22 8:1 / /var rw,relatime shared:20 master:3 - ext4 /dev/sda1 rw
41 22 8:17 / /srv/my\040disk rw,relatime - xfs /dev/sdb1 rw
42 22 0:44 /@home /home rw,relatime shared:25 - btrfs /dev/mapper/vg-home rw
43 22 0:50 / /run rw shared:30 - tmpfs - rw
44 22 0:51 / /tmp rw - tmpfs  rw
torn li
45 22 - ext4
too short - ext4 /dev/vdb rw
46 22 8:33 / /torn rw - ext4
"""


def session(sid: int, remote: Portal = PORTAL) -> IscsiSession:
    return IscsiSession(
        sid=sid, target="iqn.x:a", state="LOGGED_IN", iface="default", local_address=None, local_port=40000,
        remote=remote, persistent=None,
    )  # fmt: skip


def test_mounts_are_read_with_and_without_tags_and_with_the_kernels_escapes() -> None:
    mounts = parse_mountinfo(MOUNTINFO)

    assert [(m.point, m.device, m.source) for m in mounts] == [
        ("/", "254:0", "/dev/vda"),
        ("/proc", "0:21", "proc"),
        ("/var", "8:1", "/dev/sda1"),
        ("/srv/my disk", "8:17", "/dev/sdb1"),
        ("/home", "0:44", "/dev/mapper/vg-home"),
        ("/run", "0:50", "-"),
        ("/tmp", "0:51", ""),
    ]


@pytest.mark.parametrize("blank", ["\N{NO-BREAK SPACE}", "\N{LINE SEPARATOR}", "\v"])
def test_only_the_kernels_blanks_and_line_ends_part_a_mount_table(blank: str) -> None:
    odd = f"a{blank}b"
    assert parse_mountinfo(f"41 22 8:17 / /{odd} rw - cifs //host/{odd}\n") == (
        Mount(point=f"/{odd}", device="8:17", source=f"//host/{odd}"),
    )


def test_of_all_mounts_only_those_that_the_system_lies_on_count() -> None:
    assert [m.point for m in system_mounts(parse_mountinfo(MOUNTINFO))] == ["/", "/var"]


def test_a_folder_without_a_mount_of_its_own_belongs_to_the_one_above() -> None:
    mounts = [Mount(point="/", device="8:1", source=""), Mount(point="/var", device="8:2", source="")]

    assert [m.point for m in system_mounts(mounts, ["/var/lib/iscsi-ipsec", "/usr/lib"])] == ["/var", "/"]


def test_where_nothing_is_mounted_nothing_is_needed() -> None:
    assert system_mounts([Mount(point="/srv", device="8:1", source="")]) == ()


def test_of_two_mounts_on_one_point_the_last_is_the_one_that_is_seen() -> None:
    mounts = [Mount(point="/", device="0:2", source="rootfs"), Mount(point="/", device="8:1", source="")]

    assert [m.device for m in system_mounts(mounts)] == ["8:1"]


def test_system_disk_problem_names_the_portal_that_serves_the_root_and_its_session() -> None:
    (reported,) = disk_problems(
        {"/": frozenset({7})}, [session(7), session(8, OTHER)], frozenset({PORTAL, OTHER})
    )

    assert (reported.code, reported.portal, reported.severity) == (
        "system-disk",
        "10.0.0.20:3260",
        Severity.ERROR,
    )
    assert "/ lies on a disk of iqn.x:a (iSCSI session 7)" in reported.message
    assert 'security_flags = ["VALID"]' in reported.hint


def test_a_portal_that_is_not_closed_may_serve_what_it_likes() -> None:
    assert disk_problems({"/": frozenset({7})}, [session(7)], frozenset({OTHER})) == ()


def test_system_disk_problem_names_each_path_of_a_multipath_disk() -> None:
    sessions = [session(7), session(8, OTHER)]

    reported = disk_problems({"/var": frozenset({7, 8})}, sessions, frozenset({PORTAL, OTHER}))

    assert [p.portal for p in reported] == ["10.0.0.20:3260", "10.0.0.21:3260"]
