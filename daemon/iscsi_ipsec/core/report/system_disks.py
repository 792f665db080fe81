"""Finds file systems on iSCSI disks that the host needs to boot.

charon, the daemon and the programs that start them lie on these. While such a disk waits for an SA, no
program that could negotiate one can be loaded; so a managed portal must not serve them, and this is reported
before the next boot fails.

Law: pure. Mount tables come in as text, sessions as numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from iscsi_ipsec.base.iscsi import IscsiSession
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Problem

SYSTEM_FOLDERS = ("/", "/usr", "/etc", "/var")
"""The folders that strongSwan and the daemon are started from and write to."""

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A line of /proc/PID/mountinfo. ``device`` is "major:minor"; major 0 says nothing (btrfs), ``source`` may."""

    point: str
    device: str
    source: str


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """The mounts in the order in which they were made (proc(5)); unreadable lines are skipped."""
    mounts = []
    for line in text.split("\n"):
        before, dash, after = line.partition(" - ")
        fields, more = before.split(" "), after.split(" ")
        if dash and len(fields) >= 6 and len(more) >= 2:
            mounts.append(Mount(point=_plain(fields[4]), device=fields[2], source=_plain(more[1])))
    return tuple(mounts)


def _plain(text: str) -> str:
    """Undo the kernel's octal escapes of white space and backslashes."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)


def system_mounts(mounts: Iterable[Mount], folders: Iterable[str] = SYSTEM_FOLDERS) -> tuple[Mount, ...]:
    """The mounts that hold ``folders``, each once: of several on one point, the last made is the one seen."""
    seen = {mount.point: mount for mount in mounts}
    found: dict[str, Mount] = {}
    for folder in folders:
        point = folder
        while point not in seen and point != "/":
            point = point.rpartition("/")[0] or "/"
        if point in seen:
            found[point] = seen[point]
    return tuple(found.values())


def disk_problems(
    disks: Mapping[str, frozenset[int]], sessions: Iterable[IscsiSession], closed: frozenset[Portal]
) -> tuple[Problem, ...]:
    """The problems where a closed portal serves a mount point; ``disks`` maps mount points to session numbers."""
    return tuple(
        Problem(
            code="system-disk",
            message=f"{point} lies on a disk of {session.target} (iSCSI session {session.sid}): while it waits for an SA,"
            " nothing that could negotiate one can be started, so this host will not boot",
            hint="have IPsec for this portal done outside of this host, and exempt it by a policy of its own"
            ' with security_flags = ["VALID"]',
            portal=str(session.remote),
        )
        for point, sids in sorted(disks.items())
        for session in sessions
        if session.sid in sids and session.remote in closed
    )
