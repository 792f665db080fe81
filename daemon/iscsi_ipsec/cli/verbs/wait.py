"""``wait``: returns when keys, policies and guard are in place for what the files say now."""

from __future__ import annotations

import argparse
import sys
import time

from iscsi_ipsec.base.portal import parse_portal
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs, daemon_runs, not_running
from iscsi_ipsec.cli.output import print_json
from iscsi_ipsec.cli.progress import Progress
from iscsi_ipsec.cli.waiting import POLL, add_timeout, missing, shortened
from iscsi_ipsec.service.paths import Paths


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser("wait", help="block until keys, policies and guard are in place")
    parser.add_argument("portals", nargs="*", metavar="PORTAL", help="default: all managed portals")
    add_timeout(parser, 30.0)
    parser.add_argument("--json", action="store_true", help="what is missing, as JSON")
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
            progress.show(f"waiting: {shortened(lacking)}")
            time.sleep(POLL)
    if lacking and not daemon_runs(paths):
        raise not_running()
    if options.json:
        print_json({"ready": not lacking, "missing": lacking})
    else:
        for line in lacking:
            sys.stderr.write(f"missing: {line}\n")
    return Exit.PROBLEMS if lacking else Exit.FINE
