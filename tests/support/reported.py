"""A command against a status file and a lock of the test's making, with the fixtures that make them."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from iscsi_ipsec.cli.main import main
from iscsi_ipsec.core.decide.desired import Desired
from iscsi_ipsec.core.report.portal_status import Observed, PortalRows
from iscsi_ipsec.core.report.schema import SCHEMA, problem_row
from tests.support.fake_charon import FakeCharon
from tests.support.values import SOURCE, child_sa, derived, encoded, ike_sa, managed, per_id, record, session

NOBODY = 65534
FINE, PROBLEMS, USAGE, NOT_RUNNING, NO_CHARON, NOT_PERMITTED = range(6)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")

GOOD = managed(per_id(SOURCE), record(), session())
ORPHANED = derived(record(), previously_managed=["10.0.0.20"])


@dataclass
class Answer:
    code: int
    out: str
    err: str


class Instance:
    """Folders of one instance, and what a daemon would leave in them."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self._capsys = root, capsys
        for folder in ("etc/psk.d", "etc/portal.d", "run/requests", "state"):
            (root / folder).mkdir(mode=0o700, parents=True)
        self.socket = str(root / "charon.vici")
        self._lock: IO[str] | None = None

    @property
    def places(self) -> list[str]:
        return [
            *("--config-dir", str(self.root / "etc"), "--runtime-dir", str(self.root / "run")),
            *("--vendor-dir", str(self.root / "usr"), "--state-dir", str(self.root / "state")),
            *("--vici-socket", self.socket, "--sysfs-dir", str(self.root / "sys")),
        ]

    def call(self, *words: str, places: Sequence[str] | None = None) -> Answer:
        self._capsys.readouterr()
        try:
            code = main([*(self.places if places is None else places), *words])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        out, err = self._capsys.readouterr()
        return Answer(code, out, err)

    def run_daemon(self) -> None:
        self._lock = (self.root / "run/daemon.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def end_daemon(self) -> None:
        if self._lock:
            self._lock.close()

    def report(self, desired: Desired = GOOD, **more: Any) -> dict[str, Any]:
        """Write a status document, as a daemon that sees its portals protected."""
        conns = encoded(desired)[1]
        observed = Observed(
            sas=tuple(ike_sa(child_sa(c.child, n, conn=c.name), conn=c.name) for n, c in enumerate(conns)),
            sessions=(session(),),
            loaded=frozenset(c.name for c in conns),
            guarded=frozenset(desired.guarded),
            children={c.name: c.child for c in conns},
            charon_reachable=True,
        )
        rows = PortalRows().rows(desired.portals, observed)
        document: dict[str, Any] = {
            "schema": SCHEMA, "version": "0", "pid": 1, "generation": 1, "time": 0,
            "charon": {"socket": self.socket, "reachable": True, "settled": True, "version": "5.9.8", "foreign_connections": 0},
            "guard": {"wanted": True, "devices": [], "installed": True, "portals": [str(p) for p in desired.guarded], "dropped": 0,
                      "networks": [*map(str, desired.networks)], "opened": [*map(str, desired.clear_exceptions)]},
            "portals": rows, "keys": [], "files": [], "problems": [problem_row(p) for p in desired.problems],
            **more,
        }  # fmt: skip
        beside = self.root / "run/.status.json"
        beside.write_text(json.dumps(document))
        beside.rename(self.root / "run/status.json")
        return document

    def write(self, path: str, text: str, mode: int = 0o600) -> Path:
        at = self.root / path
        at.write_text(text)
        at.chmod(mode)
        return at


@pytest.fixture
def instance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Instance]:
    instance = Instance(tmp_path, capsys)
    yield instance
    instance.end_daemon()


@pytest.fixture
def running(instance: Instance) -> Instance:
    instance.run_daemon()
    instance.report()
    return instance


@pytest.fixture
def charon(running: Instance) -> Iterator[FakeCharon]:
    # a Unix socket's path has at most 107 bytes, which pytest's tmp_path may exceed
    with tempfile.TemporaryDirectory(prefix="vici-") as folder:
        running.socket = f"{folder}/charon.vici"
        with FakeCharon(Path(running.socket)) as fake:
            yield fake


def write_session(sysfs: Path, sid: int, address: str, port: int = 3260, disk: str = "sdx") -> Path:
    """An iSCSI session with a disk, laid out as the kernel does; the disk's folder."""
    device = sysfs / f"devices/platform/host{sid}/session{sid}"
    rows = {
        f"class/iscsi_session/session{sid}": {"targetname": "iqn.2026-01.com.example:disk", "state": "LOGGED_IN"},
        f"class/iscsi_connection/connection{sid}:0": {
            "address": address, "port": str(port), "persistent_address": address, "persistent_port": str(port),
            "local_port": "45678",
        },
    }  # fmt: skip
    for folder, files in rows.items():
        (sysfs / folder).mkdir(parents=True)
        for name, text in files.items():
            (sysfs / folder / name).write_text(f"{text}\n")
    block = device / f"target{sid}:0:0/{sid}:0:0:0/block/{disk}"
    block.mkdir(parents=True)
    (block / "stat").write_text("100 0 2048 5 100 0 4096 5 0 5 10 0 0 0 0 0 0\n")
    (sysfs / "class/block").mkdir(parents=True, exist_ok=True)
    (sysfs / "class/block" / disk).symlink_to(block)
    return block
