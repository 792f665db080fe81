"""``release``: opens a portal that no file covers any more; the only way besides uninstalling."""

from __future__ import annotations

import argparse
import sys
import time

from iscsi_ipsec.adapters.atomic_write import write_private
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs, read_status
from iscsi_ipsec.cli.verbs.explain import rows_of
from iscsi_ipsec.service.paths import Paths

TIMEOUT, POLL = 10.0, 0.1


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser(
        "release", help="stop managing a portal that no file covers, and open it to clear text"
    )
    parser.add_argument("portal", metavar="PORTAL")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Ask the daemon, and wait until it has done so."""
    row = rows_of(read_status(paths), options.portal)[0]
    portal = row["portal"]
    if not row["problem"] or row["problem"]["code"] != "orphaned":
        if not row["managed"]:
            raise CommandError(Exit.PROBLEMS, f"{portal} is not managed")
        covered = row["policy"] or row["key_file"] or "a file"
        raise CommandError(Exit.PROBLEMS, f"{portal} is still covered by {covered}", "remove that first")
    write_private(f"{paths.requests_dir}/release-{portal.replace('/', '_')}", f"{portal}\n".encode())
    end = time.monotonic() + TIMEOUT
    while any(r["portal"] == portal and r["closed"] for r in read_status(paths)["portals"]):
        if time.monotonic() >= end:
            raise CommandError(
                Exit.PROBLEMS, f"the daemon has not released {portal} within {TIMEOUT:g} s", "see its journal"
            )
        time.sleep(POLL)
    sys.stdout.write(f"{portal} is released: its iSCSI traffic may now pass in clear\n")
    return Exit.FINE
