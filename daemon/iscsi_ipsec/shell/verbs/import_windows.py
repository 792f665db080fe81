"""``import``: what Windows was told about keys and portals, as files."""

from __future__ import annotations

import argparse

from iscsi_ipsec.shell.client import CommandError, Exit, Verbs
from iscsi_ipsec.shell.paths import Paths


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser("import", help="turn Windows' settings into files")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Not there yet."""
    del options, paths
    raise CommandError(Exit.USAGE, "not there yet")
