"""``clear-cache``: Windows' ClearCache.

Makes the daemon read everything again: files, open-iscsi's database,
routes, the guard in the kernel, and the contents of charon, and corrects differences. Host names are looked
up anew; a later answer that differs takes effect when it comes. Nothing else is reloaded, and no SA ends. It does the same as ``systemctl reload
iscsi-ipsecd`` (SIGHUP), but returns when the daemon has done it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import sys
import time
from typing import Any

from iscsi_ipsec.adapters.atomic_write import write_private
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs, holder, read_status
from iscsi_ipsec.cli.progress import Progress
from iscsi_ipsec.cli.waiting import POLL, add_timeout
from iscsi_ipsec.service.paths import RELOAD_REQUEST, Paths


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser(
        "clear-cache", help="make the daemon read everything again and correct differences"
    )
    add_timeout(parser, 10.0)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Signal the daemon that holds the lock, and wait for the end of its next pass."""
    before = read_status(paths)
    just_started = CommandError(Exit.NOT_RUNNING, "iscsi-ipsecd has just been restarted", "try again")
    # a status that an earlier daemon left may name a process that is someone else's by now
    if before["pid"] != holder(paths):
        raise just_started
    # a pass may be under way that looked before the signal: the request is deleted by the one after it
    request = f"{paths.requests_dir}/{RELOAD_REQUEST}{secrets.token_hex(8)}"
    write_private(request, b"")
    try:
        now = _ask(request, before["pid"], options.timeout, paths)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(request)
        raise
    if not now["charon"]["reachable"]:
        raise CommandError(Exit.NO_CHARON, "charon cannot be reached", "systemctl status strongswan")
    sys.stdout.write("the daemon has read everything again\n")
    return Exit.FINE


def _ask(request: str, pid: int, timeout: float, paths: Paths) -> dict[str, Any]:
    """Signal the daemon and wait until the request is gone; the status after that."""
    just_started = CommandError(Exit.NOT_RUNNING, "iscsi-ipsecd has just been restarted", "try again")
    try:
        os.kill(pid, signal.SIGHUP)
    except PermissionError:
        raise CommandError(
            Exit.NOT_PERMITTED, f"you may not signal the daemon, process {pid}", "run this as root"
        ) from None
    except ProcessLookupError:
        raise just_started from None
    end = time.monotonic() + timeout
    with Progress() as progress:
        while os.path.exists(request):
            if read_status(paths)["pid"] != pid:
                raise just_started
            if time.monotonic() >= end:
                raise CommandError(
                    Exit.PROBLEMS, f"the daemon has not done so within {timeout:g} s", "see its journal"
                )
            progress.show("waiting for the daemon's next pass")
            time.sleep(POLL)
    return read_status(paths)
