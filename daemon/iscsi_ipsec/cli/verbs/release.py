"""``release``: opens a portal that no file covers any more; only ``open-all`` opens portals too."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from iscsi_ipsec.adapters.atomic_write import write_private
from iscsi_ipsec.cli import confirm
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs, read_status
from iscsi_ipsec.cli.impact import Impact
from iscsi_ipsec.cli.verbs.explain import named_portal, rows_of
from iscsi_ipsec.core.decide.initiator import REQUIRED
from iscsi_ipsec.service.paths import Paths

TIMEOUT, REPORTED_WITHIN, POLL = 10.0, 2.0, 0.1


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser(
        "release", help="stop managing a portal that no file covers, and open it to unencrypted traffic",
        description="Forgets a portal that no file covers any more, and opens it: its sessions are unencrypted from"
        " then on. They are shown first.",
    )  # fmt: skip
    parser.add_argument("portal", metavar="PORTAL")
    confirm.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Ask the daemon to release the portal, and wait until it has done so."""
    named = named_portal(options.portal)
    rows = rows_of(read_status(paths), named)
    portal = str(named)
    _refuse_covered(rows)
    touched = Impact(paths, lambda row: row["portal"] == portal)
    lines = [f"{portal} is opened: from then on nothing encrypts its traffic", *touched.lines()]
    if not confirm.agreed(options, lines if touched.is_live else (), ask=touched.is_live):
        return Exit.FINE
    request = f"{paths.requests_dir}/release-{portal.replace('/', '_')}"
    write_private(request, f"{portal}\n".encode())
    if not _until(lambda: not os.path.exists(request), TIMEOUT):
        raise CommandError(
            Exit.PROBLEMS, f"the daemon has not released {portal} within {TIMEOUT:g} s", "see its journal"
        )
    # the pass that granted it writes its status at the end; under require_ipsec that may say the same as before
    _until(lambda: not _is_orphaned(_closed(paths, portal)), TIMEOUT)
    _until(lambda: not _closed(paths, portal), REPORTED_WITHIN)
    if left := _closed(paths, portal):
        message, hint = _why_closed(left)
        raise CommandError(Exit.PROBLEMS, f"{portal} is forgotten, but stays closed: {message}", hint)
    sys.stdout.write(f"{portal} is released: its iSCSI traffic may now pass unencrypted\n")
    return Exit.FINE


def _closed(paths: Paths, portal: str) -> dict[str, Any] | None:
    """The portal's row, where it is closed."""
    rows = read_status(paths)["portals"]
    return next((row for row in rows if row["portal"] == portal and row["closed"]), None)


def _is_orphaned(row: dict[str, Any] | None) -> bool:
    return bool(row and row["problem"] and row["problem"]["code"] == "orphaned")


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(POLL)
    return True


def _refuse_covered(rows: list[dict[str, Any]]) -> None:
    """:class:`CommandError` where a file still covers the portal, or nothing manages it."""
    portal = rows[0]["portal"]
    for row in rows:
        if row["covered"]:
            covered = row["policy"] or row["key_file"] or "a file"
            raise CommandError(
                Exit.PROBLEMS, f"{portal} is still covered by {covered}",
                f"take {portal} out of that file first, or remove the file",
            )  # fmt: skip
        if REQUIRED in row["reasons"]:
            raise CommandError(
                Exit.PROBLEMS, f"{portal} is managed since require_ipsec is set and the key {row['key']} applies",
                "set require_ipsec = false first; it then stays closed until it is released",
            )  # fmt: skip
    if not any(row["managed"] for row in rows):
        closed = next((row for row in rows if row["closed"]), None)
        raise CommandError(
            Exit.PROBLEMS, f"{portal} is not managed", _why_closed(closed)[1] if closed else ""
        )


def _why_closed(row: dict[str, Any]) -> tuple[str, str]:
    problem = row["problem"] or {"message": f"{row['portal']} is closed", "hint": ""}
    return problem["message"], problem["hint"] or ""
