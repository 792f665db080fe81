"""``status``: one row per portal, then every problem with what to do."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from typing import Any

from iscsi_ipsec.adapters import openiscsi
from iscsi_ipsec.adapters.charon import Charon
from iscsi_ipsec.adapters.nft import Guard
from iscsi_ipsec.base.charon_sa import ChildSa
from iscsi_ipsec.base.errors import CharonUnavailable, KernelUnavailable
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.cli.daemon_client import (
    CommandError,
    Exit,
    Verbs,
    paint,
    print_json,
    print_table,
    read_status,
)
from iscsi_ipsec.core.report.schema import has_errors, sentence, session_row
from iscsi_ipsec.service.paths import Paths

_HEAD = (
    "PORTAL",
    "ROLE",
    "IDENTITY",
    "KEY",
    "IKE",
    "MODE",
    "PFS",
    "CIPHER",
    "AGE",
    "BYTES",
    "SESSIONS",
    "STATE",
)
_CLEAR_SCREEN = "\x1b[H\x1b[2J"


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser("status", help="one row per portal, and every problem in words")
    parser.add_argument("--json", action="store_true", help="the daemon's whole status document")
    parser.add_argument("--watch", action="store_true", help="show it anew every second until interrupted")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Show the status once, or again and again."""
    if not options.watch:
        return _show(options, paths)
    # as an exception Ctrl-C could come up where it is lost, such as in a destructor: it is waited for
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        while True:
            sys.stdout.write(_CLEAR_SCREEN if sys.stdout.isatty() else "")
            try:
                _show(options, paths)
            except CommandError as err:
                if err.code is not Exit.NOT_RUNNING:
                    raise
                sys.stdout.write(f"{err.message}\n")  # it may be back in a moment: an upgrade, a restart
            sys.stdout.flush()
            if signal.sigtimedwait({signal.SIGINT}, 1):
                return Exit.FINE
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _show(options: argparse.Namespace, paths: Paths) -> Exit:
    document = read_status(paths)
    reachable = _refresh(document, paths)
    if options.json:
        print_json(document)
    else:
        _print(document)
    if not reachable:
        return Exit.NO_CHARON
    return Exit.PROBLEMS if has_errors(document["problems"]) else Exit.FINE


def _refresh(document: dict[str, Any], paths: Paths) -> bool:
    """Bring ages and counts up to now; False where charon does not answer."""
    with contextlib.suppress(KernelUnavailable):  # then the daemon's last look has to do
        guard = Guard().installed()
        document["guard"]["installed"] = guard is not None
        document["guard"]["dropped"] = sum(guard.dropped.values()) if guard else None
    try:
        charon = Charon(paths.vici_socket or document["charon"]["socket"])
        children = {child.unique_id: child for ike in charon.sas() for child in ike.children}
        charon.close()
    except CharonUnavailable:
        document["charon"]["reachable"] = False
        return False
    by_portal: dict[str, list[dict[str, Any]]] = {}
    for session in openiscsi.read_sessions(paths.sysfs_dir):
        by_portal.setdefault(str(session.remote), []).append(session_row(session))
    for row in document["portals"]:
        row["sessions"] = by_portal.get(row["portal"], []) if row["role"] == Role.INITIATOR.value else []
        if row["sa"]:
            _refresh_row(row, children.get(row["sa"]["child_id"]))
    return True


def _refresh_row(row: dict[str, Any], child: ChildSa | None) -> None:
    if child is not None:  # a vanished one is told by the daemon's next pass
        row["sa"].update(age=child.age, bytes_in=child.bytes_in, bytes_out=child.bytes_out, state=child.state)


def _print(document: dict[str, Any]) -> None:
    rows = document["portals"]
    if rows:
        print_table(_HEAD, [_cells(row) for row in rows], {n: _is_bad(row) for n, row in enumerate(rows)})
    else:
        sys.stdout.write("no portals yet: open-iscsi has no records and no policy names an address\n")
    guard, charon = document["guard"], document["charon"]
    sys.stdout.write(f"\nguard   {_guard_words(guard)}\n")
    sys.stdout.write(
        f"charon  strongSwan {charon['version']} at {charon['socket']}\n"
        if charon["reachable"]
        else f"charon  unreachable at {charon['socket']}\n"
    )
    sys.stdout.write(
        f"keys    {len(document['keys'])}, {sum(1 for k in document['keys'] if k['in_use'])} in use"
        f"{_rotations(document['keys'])}\n"
    )
    if document["problems"]:
        sys.stdout.write("\n")
    for problem in document["problems"]:
        colour = 31 if problem["severity"] == "error" else 33
        sys.stdout.write(paint(f"{problem['severity']}: {sentence(problem)}", colour) + "\n")


def _rotations(keys: list[dict[str, Any]]) -> str:
    """How many keys have a previous one beside them, and until when at most."""
    until = [key["previous_until"] for key in keys if key["previous_until"]]
    return f", {len(until)} with a previous key until {max(until)}" if until else ""


def _guard_words(guard: dict[str, Any]) -> str:
    if not guard["wanted"]:
        return "off (guard = false): a lost SA may mean clear text"
    if not guard["installed"]:
        return "MISSING: a lost SA may mean clear text"
    return f"in place for {len(guard['portals'])} portals, {guard['dropped']} packets dropped"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    sa = row["sa"]
    interface = f" ({row['interface']})" if row["interface"] else ""
    return (
        row["portal"] + interface,
        row["role"],
        row["identity"] or "-",
        row["key"] or "-",
        row["ike"] or "-",
        (sa["mode"] if sa else row["mode"]) or "-",
        "-" if row["pfs"] is None else "yes" if row["pfs"] else "no",
        sa["cipher"] if sa else "-",
        _span(sa["age"]) if sa else "-",
        _size(sa["bytes_in"] + sa["bytes_out"]) if sa else "-",
        str(len(row["sessions"])),
        state_word(row),
    )


def state_word(row: dict[str, Any]) -> str:
    """The row's state in one word or two."""
    if row["protected"]:
        return "protected" if not row["problem"] else f"protected, {row['problem']['code']}"
    if row["problem"]:
        return str(row["problem"]["code"])
    if not row["managed"]:
        return "in clear (not managed)"
    return "ready" if row["ready"] else "not ready"


def _is_bad(row: dict[str, Any]) -> bool:
    return bool(row["problem"]) and row["problem"]["severity"] == "error"


def _span(seconds: int) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "K", "M", "G"):
        if size < 1024:
            return f"{size:.0f}{unit}" if unit == "B" else f"{size:.1f}{unit}"
        size /= 1024
    return f"{size:.1f}T"
