"""``status``: shows one row per portal, then the host's problems with what to do about each."""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
from collections.abc import Iterable
from typing import Any

from iscsi_ipsec.adapters import openiscsi
from iscsi_ipsec.adapters.charon import Charon
from iscsi_ipsec.adapters.nft import Guard
from iscsi_ipsec.base.charon_sa import ChildSa
from iscsi_ipsec.base.errors import CharonUnavailable, KernelUnavailable
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.printable import plural
from iscsi_ipsec.cli import status_view
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs, read_status
from iscsi_ipsec.cli.output import has_colour, paint, print_json, print_table, width
from iscsi_ipsec.core.report.schema import has_errors, session_row
from iscsi_ipsec.service.paths import Paths

_CLEAR_SCREEN = "\x1b[H\x1b[2J"


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser(
        "status", help="one row per portal, and every problem in words",
        description="Shows each portal's state, then every problem, errors first, with what to do about it."
        " Exit 1 if there is an error, or a session whose data is unencrypted.",
    )  # fmt: skip
    parser.add_argument(
        "-w", "--wide", action="store_true", help="all columns, uncut, and each problem by itself"
    )
    parser.add_argument("--json", action="store_true", help="the daemon's whole status document")
    parser.add_argument("--watch", action="store_true", help="show it anew every second until interrupted")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Show the status once, or again and again."""
    if not options.watch:
        return _show(options, paths)
    # raised as an exception, Ctrl-C could be lost, for instance in a destructor: so the loop waits for the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        while True:
            shown = io.StringIO()
            try:
                with contextlib.redirect_stdout(_Painted(shown)):
                    _show(options, paths)
            except CommandError as err:
                if err.code is not Exit.NOT_RUNNING:
                    raise
                shown.write(f"{err.message}\n")  # it may be back in a moment: an upgrade, a restart
            # in one piece, so that a terminal never shows half of it
            sys.stdout.write((_CLEAR_SCREEN if has_colour(sys.stdout) else "") + shown.getvalue())
            sys.stdout.flush()
            if signal.sigtimedwait({signal.SIGINT}, 1):
                return Exit.FINE
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _show(options: argparse.Namespace, paths: Paths) -> Exit:
    document = read_status(paths)
    reachable = refresh(document, paths)
    if options.json:
        print_json(document)
    else:
        _print(document, wide=options.wide)
    if not reachable:
        return Exit.NO_CHARON
    bare = any(map(status_view.is_unencrypted, document["portals"]))
    return Exit.PROBLEMS if bare or has_errors(document["problems"]) else Exit.FINE


def refresh(document: dict[str, Any], paths: Paths) -> bool:
    """Update sessions, ages and counts; False where charon does not answer."""
    with contextlib.suppress(KernelUnavailable):  # then the daemon's last report is shown
        guard = Guard().installed()
        document["guard"]["installed"] = guard is not None
        document["guard"]["dropped"] = sum(guard.dropped.values()) if guard else None
    refresh_sessions(document, paths)
    try:
        charon = Charon(paths.vici_socket or document["charon"]["socket"])
        children = [child for ike in charon.sas() for child in ike.children]
        charon.close()
    except CharonUnavailable:
        document["charon"]["reachable"] = False
        return False
    for row in document["portals"]:
        if row["sa"]:
            _refresh_row(row["sa"], children)
    return True


def refresh_sessions(document: dict[str, Any], paths: Paths) -> None:
    """The kernel's iSCSI sessions of this moment."""
    by_portal: dict[str, list[dict[str, Any]]] = {}
    for session in openiscsi.read_sessions(paths.sysfs_dir):
        by_portal.setdefault(str(session.remote), []).append(session_row(session))
    for row in document["portals"]:
        row["sessions"] = by_portal.get(row["portal"], []) if row["role"] == Role.INITIATOR.value else []


def _refresh_row(sa: dict[str, Any], children: Iterable[ChildSa]) -> None:
    """The numbers of the SA, or of the one that has replaced it since; the next pass reports one that vanished."""
    same = [c for c in children if c.unique_id == sa["child_id"]]
    successors = [c for c in children if c.child_name == sa["child"] and c.reqid == sa["reqid"]]
    if not (same or successors):
        return
    child = same[0] if same else min(successors, key=lambda c: c.age)
    sa.update(
        child_id=child.unique_id, age=child.age, bytes_in=child.bytes_in, bytes_out=child.bytes_out,
        state=child.state, spi_in=child.spi_in, spi_out=child.spi_out,
    )  # fmt: skip


def _print(document: dict[str, Any], *, wide: bool) -> None:
    rows, out = document["portals"], sys.stdout.write
    if rows:
        print_table(
            status_view.WIDE if wide else status_view.NARROW,
            [status_view.cells(row, wide=wide) for row in rows],
            [status_view.colour_of(row) for row in rows],
            None if wide else width(),
        )
    else:
        out(
            "no portals yet: open-iscsi has no records and no policy names an address\n"
            "  name one in a file of /etc/iscsi-ipsec/portal.d, or run: iscsiadm -m discovery -t st -p ADDRESS\n"
        )
    charon, keys = document["charon"], document["keys"]
    out(f"\nportals {status_view.totals(rows)}\n")
    out(f"guard   {status_view.guard_text(document['guard'])}\n")
    out(
        f"charon  strongSwan {charon['version']} at {charon['socket']}\n"
        if charon["reachable"]
        else f"charon  unreachable at {charon['socket']}\n"
    )
    out(f"keys    {len(keys)}, {sum(1 for k in keys if k['in_use'])} in use{_rotations(keys)}\n")
    problems = status_view.unencrypted_problems(rows)
    bare = {problem["portal"] for problem in problems}
    problems += [p for p in document["problems"] if p["code"] != "not-protected" or p["portal"] not in bare]
    if not problems:
        return
    out("\n")
    for text, colour in status_view.problem_lines(problems, wide=wide):
        out(paint(text, colour) + "\n")
    errors = sum(1 for problem in problems if problem["severity"] == "error")
    out(f"\n{plural(errors, 'error')}, {plural(len(problems) - errors, 'warning')}")
    portal = next((p["portal"] for p in problems if p["portal"]), None)
    out(f"; more about one: iscsi-ipsec explain '{portal}'\n" if portal else "\n")


def _rotations(keys: list[dict[str, Any]]) -> str:
    """How many keys have a previous one beside them, and until when at most."""
    until = [key["previous_until"] for key in keys if key["previous_until"]]
    return f", {len(until)} with a previous key until {max(until)}" if until else ""


class _Painted(io.TextIOBase):
    """A buffer that takes colours as the terminal does to which it is written later."""

    def __init__(self, into: io.StringIO) -> None:
        self._into, self._terminal = into, sys.stdout.isatty()

    def write(self, text: str) -> int:
        return self._into.write(text)

    def isatty(self) -> bool:
        return self._terminal
