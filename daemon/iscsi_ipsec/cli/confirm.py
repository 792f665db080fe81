"""Show before you cut: what a change touches, then a question on a terminal, or ``--yes`` in a script.

Law: what touches nothing that is up is never asked about; what does is never done without a yes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from iscsi_ipsec.cli.daemon_client import CommandError, Exit


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--yes`` and ``--dry-run``."""
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask, though something is up")
    add_dry_run(parser)


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """``--dry-run`` alone, for what cuts nothing."""
    parser.add_argument(
        "-n", "--dry-run", action="store_true", help="show what would be done, and change nothing"
    )


def agreed(options: argparse.Namespace, lines: Iterable[str], *, ask: bool) -> bool:
    """Whether to go on; False after a dry run. :class:`CommandError` after a no, or where nobody can be asked.

    ``lines`` are what the change does and touches; ``ask`` whether anything is up there.
    """
    for line in lines:
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    if options.dry_run:
        sys.stdout.write("nothing was changed (--dry-run)\n")
        return False
    if not ask or options.yes:
        return True
    if not has_terminal():
        raise CommandError(
            Exit.PROBLEMS, "nothing was changed: something is up there, and no terminal to ask on",
            "--yes does it all the same, --dry-run only shows it",
        )  # fmt: skip
    sys.stderr.write("Go on? [y/N] ")
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        answer = ""
        sys.stderr.write("\n")
    if answer.strip().lower() not in ("y", "yes"):
        raise CommandError(Exit.PROBLEMS, "nothing was changed")
    return True


def has_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()
