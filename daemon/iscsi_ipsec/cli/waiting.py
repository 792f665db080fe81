"""Polls the daemon's status file until nothing is missing."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

from iscsi_ipsec.adapters import files
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, daemon_runs, try_status
from iscsi_ipsec.cli.progress import Progress
from iscsi_ipsec.service.paths import Paths

MAX_TIMEOUT = 7 * 86400.0
"""Seconds; a longer time is a typing error."""

POLL = 0.1
"""Seconds between two reads of the status file."""


def add_timeout(parser: argparse.ArgumentParser, default: float) -> None:
    """The option ``--timeout``."""
    parser.add_argument(
        "--timeout", type=seconds, default=default, metavar="S", help="seconds to wait at most (%(default)g)"
    )


def seconds(text: str) -> float:
    """A time to wait; 0 is allowed, NaN and negative numbers are not."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_TIMEOUT:  # false for NaN too
        raise argparse.ArgumentTypeError(f"must be a number of seconds from 0 to {MAX_TIMEOUT:.0f}")
    return value


def shortened(lacking: list[str]) -> str:
    """The missing things in one line."""
    return lacking[0] + (f", and {len(lacking) - 1} more" if len(lacking) > 1 else "")


def missing(paths: Paths, portals: list[str]) -> list[str]:
    """The things that are not in place yet, in words; empty when everything is."""
    if not daemon_runs(paths):
        return ["iscsi-ipsecd is not running"]
    document = try_status(paths)
    if document is None:
        return ["iscsi-ipsecd has no status yet"]
    lacking = [
        f"the daemon has not read the current version of {path} yet" for path in unread(paths, document)
    ]
    if not document["charon"]["reachable"]:
        lacking.append("charon is unreachable")
    if document["guard"]["wanted"] and not document["guard"]["installed"]:
        lacking.append("the guard is not installed")
    rows = document["portals"]
    lacking += [
        f"{portal} is not managed: no policy and no key's portals name it"
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
    """Files whose current version the daemon has not read, and deleted files that it still has."""
    seen = {row["path"]: row["signature"] for row in document["files"]}
    now = {}
    with contextlib.suppress(OSError):
        now[paths.settings_file] = files.stat_config(paths.settings_file).signature
    for folders in (paths.psk_folders, paths.portal_folders):
        found = files.find_config(folders)
        now.update({file.path: file.stat.signature for file in found.files})
        for path in found.masked:
            now[path] = ""
        if found.missing or found.unusable:
            # their last content stays in force: the daemon cannot see more than we do
            lost = {*found.missing, *found.unusable}
            seen = {path: s for path, s in seen.items() if path in now or path.rpartition("/")[0] not in lost}
    return sorted(path for path in now.keys() | seen.keys() if now.get(path) != seen.get(path))


# -- one key


def not_yet_in_force(paths: Paths, path: str, name: str) -> list[str]:
    """Why charon does not have this key yet, in words; portals that use it are not waited for."""
    document = try_status(paths)
    row = next((row for row in document["files"] if row["path"] == path), None) if document else None
    if document is None or row is None or path in unread(paths, document):
        return [f"the daemon has not read the current version of {path} yet"]
    lacking = []
    if row["state"] != "ok" or all(key["name"] != name for key in document["keys"]):
        reported = [p["message"] for p in document["problems"] if p["file"] == path]
        lacking += reported or [f"{path} is not in force"]
    if not document["charon"]["reachable"]:
        lacking.append("charon is unreachable")
    elif not document["charon"]["settled"]:
        lacking.append("charon is still starting")
    # a secret that charon refused is not named by its key; a refused connection has its portal
    lacking += [
        p["message"] for p in document["problems"] if p["code"] == "charon-refused" and not p["portal"]
    ]
    return lacking


def not_yet_gone(paths: Paths, path: str) -> list[str]:
    """Why charon still has a removed key, in words."""
    document = try_status(paths)
    if document is None or any(row["path"] == path for row in document["files"]):
        return [f"the daemon has not noticed yet that {path} is gone"]
    return [] if document["charon"]["reachable"] else ["charon is unreachable"]


def key_is_unused(paths: Paths, name: str) -> bool:
    """Whether the running daemon says that no connection uses the key."""
    document = try_status(paths) if daemon_runs(paths) else None
    if document is None:
        return False
    return any(key["name"] == name and not key.get("in_use", True) for key in document["keys"])
