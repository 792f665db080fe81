"""Polls the daemon's status file until nothing is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from iscsi_ipsec.adapters import files
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, daemon_runs, try_status
from iscsi_ipsec.cli.progress import Progress
from iscsi_ipsec.service.paths import Paths

POLL = 0.1
"""Seconds between two reads of the status file."""


def shortened(lacking: list[str]) -> str:
    """What is missing, in one line."""
    return lacking[0] + (f", and {len(lacking) - 1} more" if len(lacking) > 1 else "")


def missing(paths: Paths, portals: list[str]) -> list[str]:
    """What is not in place yet, in words; empty when everything is."""
    if not daemon_runs(paths):
        return ["iscsi-ipsecd is not running"]
    document = try_status(paths)
    if document is None:
        return ["iscsi-ipsecd has no status yet"]
    lacking = [f"{path} has not been read in its present form" for path in unread(paths, document)]
    if not document["charon"]["reachable"]:
        lacking.append("charon is unreachable")
    if document["guard"]["wanted"] and not document["guard"]["installed"]:
        lacking.append("the guard is not installed")
    rows = document["portals"]
    lacking += [
        f"{portal} is not managed: no key or policy applies to it"
        for portal in portals
        if not any(row["portal"] == portal and row["managed"] for row in rows)
    ]
    for row in rows:
        if row["managed"] and not row["ready"] and (not portals or row["portal"] in portals):
            problem = row["problem"]["message"] if row["problem"] else "its connection is not loaded"
            lacking.append(f"{row['portal']}: {problem}")
    return lacking


def wait_until_none(timeout: float, lacking: Callable[[], list[str]], paths: Paths) -> None:
    """Return when nothing is lacking; :class:`CommandError` where there is no daemon or the time is over."""
    end = time.monotonic() + timeout
    with Progress() as progress:
        while True:
            if not daemon_runs(paths):
                raise CommandError(
                    Exit.NOT_RUNNING, "the file is changed, but iscsi-ipsecd is not running",
                    "start it with: systemctl start iscsi-ipsecd",
                )  # fmt: skip
            missing = lacking()
            if not missing:
                return
            if time.monotonic() >= end:
                document = try_status(paths)
                away = document is not None and not document["charon"]["reachable"]
                raise CommandError(
                    Exit.NO_CHARON if away else Exit.PROBLEMS,
                    f"the file is changed, but not in force after {timeout:g} s: " + "; ".join(missing),
                    "iscsi-ipsec status says more",
                )
            progress.show(f"waiting: {shortened(missing)}")
            time.sleep(POLL)


def unread(paths: Paths, document: dict[str, Any]) -> list[str]:
    """Files whose present form the daemon has not seen, also those that are gone but not for the daemon."""
    seen = {row["path"]: row["signature"] for row in document["files"] if row["kind"] != "settings"}
    now = {}
    for folders in (paths.psk_folders, paths.portal_folders):
        found = files.find_config(folders)
        now.update({file.path: file.stat.signature for file in found.files})
        for path in found.masked:
            now[path] = ""
        if found.missing or found.unusable:
            # kept as they were: the daemon cannot see more than we do
            lost = {*found.missing, *found.unusable}
            seen = {path: s for path, s in seen.items() if path in now or path.rpartition("/")[0] not in lost}
    return sorted(path for path in now.keys() | seen.keys() if now.get(path) != seen.get(path))
