"""``wait``: returns when keys, policies and guard are in place for what the files say now."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from iscsi_ipsec.adapters import files
from iscsi_ipsec.base.portal import parse_portal
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs, daemon_runs, print_json, try_status
from iscsi_ipsec.cli.progress import Progress
from iscsi_ipsec.service.paths import Paths

POLL = 0.1
"""Seconds between two looks at the status file."""


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser("wait", help="block until keys, policies and guard are in place")
    parser.add_argument("portals", nargs="*", metavar="PORTAL", help="default: all managed portals")
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="seconds to wait at most (%(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="what is missing, for machines")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Poll until nothing is missing or the time is over."""
    try:
        portals = [str(parse_portal(text)) for text in options.portals]
    except ValueError as err:
        raise CommandError(Exit.USAGE, str(err)) from err
    end = time.monotonic() + options.timeout
    with Progress() as progress:
        while True:
            lacking = missing(paths, portals)
            if not lacking or time.monotonic() >= end:
                break
            progress.tell(f"waiting: {shortened(lacking)}")
            time.sleep(POLL)
    if options.json:
        print_json({"ready": not lacking, "missing": lacking})
    else:
        for line in lacking:
            sys.stderr.write(f"missing: {line}\n")
    return Exit.PROBLEMS if lacking else Exit.FINE


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
