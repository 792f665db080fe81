"""``open-all``: opens every portal at once, for an emergency.

Stops the daemon first, which would close everything again, and prevents its start, at the next boot too; then
removes everything that it loaded into charon and nftables. Files and the memory of managed portals stay, so
that starting the daemon again closes the same portals.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time

from iscsi_ipsec.adapters import openiscsi
from iscsi_ipsec.cli import confirm
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs, daemon_runs, holder, last_status
from iscsi_ipsec.cli.impact import Impact
from iscsi_ipsec.cli.progress import Progress
from iscsi_ipsec.service.paths import Paths

UNITS = ("iscsi-ipsecd.service", "iscsi-ipsec-guard.service")
STOP_SECONDS, POLL = 30.0, 0.1
BACK = f"systemctl unmask {' '.join(UNITS)} && systemctl enable --now {' '.join(reversed(UNITS))}"
"""The commands that undo ``open-all``."""


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser(
        "open-all", help="stop the daemon and open every portal, now; sessions are unencrypted from then on",
        description="Stops the daemon, keeps it from being started again, and opens every portal. Running sessions go on,"
        " unencrypted; they are shown first. Files stay, and the way back is printed.",
    )  # fmt: skip
    confirm.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Ask, stop the daemon, unload, and list the sessions that are unencrypted now."""
    if os.geteuid() != 0:
        raise CommandError(Exit.NOT_PERMITTED, "only root may open portals", "run this as root")
    touched = Impact(paths, lambda row: row["closed"])
    lines = [
        "the daemon is stopped and kept from starting, and these portals are opened: nothing encrypts their traffic then",
        *(touched.lines() or ["  (none is known to be closed)"]),
    ]
    if not confirm.agreed(options, lines, ask=True):
        return Exit.FINE
    socket = ((last_status(paths) or {}).get("charon") or {}).get("socket") or ""
    _stop(paths)
    # after the question: its imports are needed only here
    from iscsi_ipsec.adapters.charon import Charon  # noqa: PLC0415
    from iscsi_ipsec.adapters.nft import Guard  # noqa: PLC0415
    from iscsi_ipsec.service.unload import unload_all  # noqa: PLC0415

    left = unload_all(paths, Charon(paths.vici_socket or socket), Guard())
    sys.stdout.write("every portal is open\n")
    for session in openiscsi.read_sessions(paths.sysfs_dir):
        sys.stdout.write(
            f"UNENCRYPTED from now on: session {session.sid} to {session.remote}, {session.target}\n"
        )
    sys.stdout.write(f"go back with: {BACK}\n")
    if left:
        raise CommandError(Exit.PROBLEMS, "not everything could be taken out: " + "; ".join(left), "")
    return Exit.FINE


def _stop(paths: Paths) -> None:
    """Stop the daemon so that nothing starts it again; :class:`CommandError` where it goes on."""
    if _is_systemds(paths):
        # a unit file in /etc itself cannot be masked: then it is disabled and stopped
        if _systemctl("mask", *UNITS):
            _systemctl("disable", *UNITS)
        _systemctl("stop", *UNITS)
    elif daemon_runs(paths) and (pid := holder(paths)):
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + STOP_SECONDS
    with Progress() as progress:
        while daemon_runs(paths):
            if time.monotonic() >= end:
                raise CommandError(
                    Exit.PROBLEMS, f"the daemon has not ended within {STOP_SECONDS:g} s, nothing was opened",
                    "systemctl kill --signal=KILL iscsi-ipsecd, then again",
                )  # fmt: skip
            progress.show("waiting for the daemon's end")
            time.sleep(POLL)


def _is_systemds(paths: Paths) -> bool:
    """Whether this is the machine's own instance, which its units start."""
    return (
        paths.runtime_dir == Paths().runtime_dir
        and os.path.isdir("/run/systemd/system")
        and shutil.which("systemctl") is not None
    )


def _systemctl(*words: str) -> int:
    systemctl = shutil.which("systemctl")
    return (
        subprocess.run([systemctl, *words], stdin=subprocess.DEVNULL, check=False).returncode
        if systemctl
        else 1
    )
