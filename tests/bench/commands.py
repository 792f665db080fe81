"""Times that an admin waits: each command beside a running daemon, against an interpreter that does nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.living import quiet
from tests.bench.loading import LONG, timed
from tests.bench.report import Report
from tests.bench.shape import Shape, clean, fresh, key_name
from tests.support.netlab import Lab

ROUNDS = 5


def write_sessions(root: Path, source: str, portals: Sequence[str], count: int) -> Path:
    """A sysfs tree of so many iSCSI sessions, in turn to these portals."""
    for number in range(count):
        address, _, port = portals[number % len(portals)].rpartition(":")
        device = root / "devices" / f"host{number}"
        _make(root, "scsi_host", f"host{number}", device, proc_name="iscsi_tcp")
        _make(root, "iscsi_host", f"host{number}", device, ipaddress=source)
        below = device / f"session{number}"
        _make(
            root,
            "iscsi_session",
            f"session{number}",
            below,
            targetname="iqn.x:y",
            state="LOGGED_IN",
            ifacename="default",
            tpgt="1",
        )
        _make(
            root, "iscsi_connection", f"connection{number}:0", below / f"connection{number}:0", address=address, port=port,
            persistent_address=address, persistent_port=port, local_port=str(30_000 + number),
        )  # fmt: skip
    return root


def _make(root: Path, kind: str, name: str, device: Path, **values: str) -> None:
    folder = device / kind / name
    folder.mkdir(parents=True)
    for key, value in values.items():
        (folder / key).write_text(f"{value}\n")
    link = root / "class" / kind / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(folder)


def measure(lab: Lab, name: str, shape: Shape, report: Report, say: Callable[[str], None]) -> None:
    """The time of each command from its start to its end, in one run with that of Python alone."""
    say(f"commands, {shape}")
    charon, daemon = fresh(lab, name, shape)
    daemon.start(timeout=LONG)
    quiet(daemon)
    node, what = daemon.node, f"one command, {shape}"
    alone = [timed(lambda: node.run([sys.executable, "-c", "import argparse, json"])) for _ in range(ROUNDS)]
    base = report.add(what, "Python with argparse and json", alone, note="ratios are to this one")
    portal = daemon.status()["portals"][0]["portal"]
    key = str(daemon.psk / f"{key_name(0)}.toml")
    portals = [row["portal"] for row in daemon.status()["portals"]]
    sysfs = {
        count: write_sessions(daemon.folder / f"sys-{count}", node.at.v4, portals, count)
        for count in (1, 1000)
    }
    commands: tuple[tuple[str, tuple[str, ...], str], ...] = (
        ("status", ("status",), "0.25 s"),
        ("explain", ("explain", portal), "0.25 s"),
        ("psk list", ("psk", "list"), "0.25 s"),
        ("check of one file", ("check", key), "0.25 s"),
        ("verify of one session", ("verify", "--sysfs-dir", str(sysfs[1])), "0.6 s"),
        ("verify of 1,000 sessions", ("verify", "--sysfs-dir", str(sysfs[1000])), "3 s"),
    )
    for shown, words, target in commands:
        times = [timed(lambda words=words: daemon.cli(*words, timeout=LONG)) for _ in range(ROUNDS)]  # type: ignore[misc]  # mypy knows no defaults
        report.add(
            what, f"iscsi-ipsec {shown}", times, base=base, note=f"target on an idle machine: {target}"
        )
    clean(node, charon, daemon)
