"""Shows what a change would cut and asks for confirmation: on a terminal with a question, in a script by ``--yes``.

Law: a change that touches no SA and no session is never asked about; any other is never made without a yes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from iscsi_ipsec.cli.daemon_client import CommandError, Exit


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--yes`` and ``--dry-run``."""
    parser.add_argument(
        "-y", "--yes", action="store_true", help="do not ask, even if SAs or sessions are touched"
    )
    add_dry_run(parser)


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """``--dry-run`` alone, for changes that cut nothing."""
    parser.add_argument(
        "-n", "--dry-run", action="store_true", help="show what would be done, and change nothing"
    )


def agreed(options: argparse.Namespace, lines: Iterable[str], *, ask: bool) -> bool:
    """Whether to go on; False after a dry run. :class:`CommandError` after a no, or where nobody can be asked.

    ``lines`` show what the change does and touches; ``ask``: whether it touches an SA or a session.
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
            Exit.PROBLEMS, "nothing was changed: the change would touch SAs or sessions, and there is no terminal to ask on",
            "--yes makes the change without asking, --dry-run only shows it",
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
