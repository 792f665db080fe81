"""``clear-cache``: Windows' ClearCache.

Makes the daemon look at everything again: files, open-iscsi's database,
routes, the guard in the kernel, and what charon has; whatever differs is put
right. Nothing that is right is reloaded, and no SA ends. It is the SIGHUP of
``systemctl reload iscsi-ipsecd``, and returns when that has been done.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs, read_status
from iscsi_ipsec.cli.progress import Progress
from iscsi_ipsec.cli.waiting import POLL
from iscsi_ipsec.service.paths import Paths


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser(
        "clear-cache", help="make the daemon look at everything again and put right what differs"
    )
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="S", help="seconds to wait at most (%(default)g)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Signal the daemon that holds the lock, and wait for the end of its next pass."""
    before = read_status(paths)
    just_started = CommandError(Exit.NOT_RUNNING, "iscsi-ipsecd has just been restarted", "try again")
    # a status that an earlier daemon left may name a process that is someone else's by now
    if before["pid"] != _holder(paths):
        raise just_started
    try:
        os.kill(before["pid"], signal.SIGHUP)
    except PermissionError:
        raise CommandError(
            Exit.NOT_PERMITTED, f"you may not signal the daemon, process {before['pid']}", "run this as root"
        ) from None
    except ProcessLookupError:
        raise just_started from None
    end = time.monotonic() + options.timeout
    with Progress() as progress:
        while True:
            now = read_status(paths)
            if now["pid"] != before["pid"] or now["generation"] > before["generation"]:
                break
            if time.monotonic() >= end:
                raise CommandError(
                    Exit.PROBLEMS,
                    f"the daemon has not done so within {options.timeout:g} s",
                    "see its journal",
                )
            progress.show("waiting for the daemon's next pass")
            time.sleep(POLL)
    if not now["charon"]["reachable"]:
        raise CommandError(Exit.NO_CHARON, "charon cannot be reached", "systemctl status strongswan")
    sys.stdout.write("the daemon has looked at everything again\n")
    return Exit.FINE


def _holder(paths: Paths) -> int | None:
    """The process that holds the lock, as it wrote itself into the file."""
    try:
        with open(paths.lock_file, encoding="ascii") as lock:
            return int(lock.read(32))
    except (OSError, ValueError):
        return None
