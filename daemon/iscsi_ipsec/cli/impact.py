"""Shows what a change would cut: SAs, iSCSI sessions and their present I/O at the portals that it touches.

Law: reads only. Facts that it cannot read are left out, and never prevent a change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from iscsi_ipsec.adapters import openiscsi
from iscsi_ipsec.adapters.block_devices import bytes_moved, disks_of_sessions, mounts_of_sessions
from iscsi_ipsec.base.portal import PortalPattern, PortalRange, parse_portal
from iscsi_ipsec.base.printable import plural
from iscsi_ipsec.cli.daemon_client import last_status
from iscsi_ipsec.cli.output import size, span
from iscsi_ipsec.service.paths import Paths

Row = Mapping[str, Any]

MEASURED_SECONDS = 0.5
_SHOWN_AT_MOST = 20


class Impact:
    """The portals in question, from the daemon's last status, with the kernel's sessions of this moment."""

    def __init__(self, paths: Paths, chosen: Callable[[Row], bool]) -> None:
        self._sysfs = paths.sysfs_dir
        document = last_status(paths) or {"portals": []}
        self.rows: tuple[Row, ...] = tuple(row for row in document["portals"] if chosen(row))
        self._sessions: dict[str, list[Any]] = {}
        if self.rows:
            for session in openiscsi.read_sessions(self._sysfs):
                self._sessions.setdefault(str(session.remote), []).append(session)

    @property
    def is_live(self) -> bool:
        """Whether anything is up there that could be cut."""
        return any(row["sa"] or self._of(row) for row in self.rows)

    def sids(self) -> tuple[int, ...]:
        """The numbers of the sessions."""
        return tuple(dict.fromkeys(session.sid for row in self.rows for session in self._of(row)))

    def _of(self, row: Row) -> Sequence[Any]:
        return self._sessions.get(row["portal"], ()) if row["role"] == "initiator" else ()

    def lines(self) -> list[str]:
        """One line for each portal, one for each of its sessions."""
        lines = []
        disks, moved = self._io() if self.is_live else ({}, {})
        mounts = mounts_of_sessions(self._sysfs) if self.sids() else {}
        for row in self.rows[:_SHOWN_AT_MOST]:
            sa, sessions = row["sa"], self._of(row)
            up = f"an SA of {span(sa['age'])}, {size(sa['bytes_in'] + sa['bytes_out'])}" if sa else "no SA"
            peer = f" from {row['identity']}" if row["role"] == "target" and row["identity"] else ""
            lines.append(f"  {row['portal']}{peer}: {up}, {plural(len(sessions), 'iSCSI session')}")
            for session in sessions:
                parts = [" ".join(disks.get(session.sid, ())) or "no disk"]
                if session.sid in moved:
                    parts.append(f"{size(moved[session.sid])}/s now")
                if session.sid in mounts:
                    parts.append(f"mounted on {', '.join(mounts[session.sid])}")
                lines.append(f"    session {session.sid}, {session.target}: {', '.join(parts)}")
        if len(self.rows) > _SHOWN_AT_MOST:
            lines.append(f"  and {plural(len(self.rows) - _SHOWN_AT_MOST, 'more portal')}")
        return lines

    def _io(self) -> tuple[Mapping[int, Sequence[str]], Mapping[int, float]]:
        """The sessions' disks, and how many bytes a second they move."""
        everybodys = disks_of_sessions(self._sysfs)
        disks = {sid: everybodys[sid] for sid in self.sids() if sid in everybodys}
        if not disks:
            return {}, {}

        def counts() -> dict[int, int]:
            return {
                sid: sum(bytes_moved(self._sysfs, disk) for disk in names) for sid, names in disks.items()
            }

        before, start = counts(), time.monotonic()
        time.sleep(MEASURED_SECONDS)
        passed = time.monotonic() - start
        return disks, {sid: (count - before[sid]) / passed for sid, count in counts().items()}


def served_by(path: str) -> Callable[[Row], bool]:
    """The portals that the daemon gives this file's key."""
    return lambda row: row["key_file"] == path


def opened_now(patterns: Iterable[PortalPattern]) -> Callable[[Row], bool]:
    """The portals that these patterns name and that are reached unencrypted now: they would be closed."""
    ranges = [pattern for pattern in patterns if isinstance(pattern, PortalRange)]
    return lambda row: (
        bool(ranges)
        and row["role"] == "initiator"
        and not row["closed"]
        and any(pattern.contains(parse_portal(row["portal"])) for pattern in ranges)
    )
