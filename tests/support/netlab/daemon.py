"""The daemon under test: a real process in a node's namespace, on folders of its own."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.netlab.process import Child, EndedAtOnceError, Result
from tests.support.netlab.space import Node
from tests.support.netlab.waiting import wait_until

CHECKOUT = Path(__file__).resolve().parents[3]
COMMANDS = {"iscsi-ipsecd": "service", "iscsi-ipsec": "cli"}  # the package whose main it is


def command(name: str) -> list[str]:
    """The installed command beside this interpreter, or the same from the checkout."""
    script = Path(sys.executable).with_name(name)
    if script.exists():
        return [str(script)]
    source = f"import sys; from iscsi_ipsec.{COMMANDS[name]}.main import main; sys.exit(main())"
    path = os.pathsep.join(filter(None, (str(CHECKOUT / "daemon"), os.environ.get("PYTHONPATH"))))
    return ["env", f"PYTHONPATH={path}", sys.executable, "-c", source]


class Daemon:
    """Folders exist at once, the process from start() on."""

    def __init__(self, node: Node, folder: Path, vici_socket: Path) -> None:
        self.node = node
        self.folder = folder
        self.config = folder / "etc"
        self.psk = self.config / "psk.d"
        self.portal = self.config / "portal.d"
        self.runtime = folder / "run"
        self.state = folder / "lib"
        self.vendor = folder / "usr"
        self.nodes = folder / "iscsi"
        self.sysfs = folder / "sys"
        # not beside the other folders: the daemon watches their parent, and would hear itself talk
        self.log = folder / "out" / "log"
        self.log.parent.mkdir()
        folders = (
            self.config,
            self.psk,
            self.portal,
            self.runtime,
            self.state,
            self.vendor,
            self.nodes,
            self.sysfs,
        )
        for path in folders:
            path.mkdir(mode=0o700)
        self.options = (
            *("--config-dir", str(self.config)),
            *("--runtime-dir", str(self.runtime)),
            *("--state-dir", str(self.state)),
            *("--vendor-dir", str(self.vendor)),
            *("--vici-socket", str(vici_socket)),
            *("--nodes-dir", str(self.nodes)),
            *("--sysfs-dir", str(self.sysfs)),
        )
        self._notify_path = folder / "notify"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self._notify_path))
        self._said: list[str] = []
        self.alive: list[float] = []
        """When it said that it is alive, by :func:`time.monotonic`."""
        # the kernel holds about ten datagrams; then sd_notify(3) blocks, and the daemon with it
        self._listener = threading.Thread(target=self._listen, name="notify", daemon=True)
        self._listener.start()
        self._child: Child | None = None

    # -- its life ---------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int:
        assert self._child is not None, "the daemon was never started"
        return self._child.pid

    def start(self, *more: str, wait: bool = True, timeout: float = 60.0, watchdog: float = 0.0) -> None:
        """Start as systemd would (Type=notify, WatchdogSec=*watchdog*) and return at READY=1."""
        assert not self.running, "the daemon runs already"
        self.notifications()
        self._said.clear()
        argv = [*command("iscsi-ipsecd"), *self.options, *more]
        env = {"NOTIFY_SOCKET": str(self._notify_path)}
        if watchdog:
            env["WATCHDOG_USEC"] = str(int(watchdog * 1_000_000))
        self._child = self.node.spawn(argv, log=self.log, env=env)
        if wait:
            wait_until(self._ready, "the daemon says READY=1", timeout=timeout, detail=self.tail)

    def _ready(self) -> bool:
        if not self.running:
            raise EndedAtOnceError(f"the daemon ended at once\n{self.tail()}")
        return "READY=1" in self.notifications()

    def notifications(self) -> list[str]:
        """Everything said by sd_notify since the start."""
        return list(self._said)

    def _listen(self) -> None:
        with self._notify:
            while said := self._notify.recv(4096):
                lines = said.decode().split("\n")
                self._said += lines
                if "WATCHDOG=1" in lines:
                    self.alive.append(time.monotonic())

    def terminate(self) -> int:
        return self._child.terminate(grace=10) if self._child else 0

    def kill(self) -> None:
        if self._child:
            self._child.kill()

    def send(self, signal: int) -> None:
        assert self._child is not None, "the daemon was never started"
        self._child.send(signal)

    def close(self) -> None:
        if "COVERAGE_RUN" in os.environ:
            self.terminate()  # who is killed leaves no count of what was run
        self.kill()
        if self._listener.is_alive():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.sendto(b"", str(self._notify_path))  # ends the listener
            self._listener.join()
            self._notify.close()

    def tail(self, lines: int = 40) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    # -- the admin's files ------------------------------------------------------------------

    def put(self, path: Path, text: str) -> Path:
        """Drop a file as an admin's tool would: whole, or not at all."""
        fresh = path.with_name(f".{path.name}.new")
        fresh.touch(mode=0o600)
        fresh.write_text(text)
        fresh.replace(path)
        return path

    def put_key(self, name: str, text: str) -> Path:
        return self.put(self.psk / f"{name}.toml", text)

    def put_portal(self, name: str, text: str) -> Path:
        return self.put(self.portal / f"{name}.toml", text)

    def put_settings(self, text: str) -> Path:
        return self.put(self.config / "iscsi-ipsecd.toml", text)

    # -- what it says -----------------------------------------------------------------------

    def cli(self, *words: str, check: bool = False, timeout: float = 30.0, text: str | None = None) -> Result:
        """The command `iscsi-ipsec`, on the same folders."""
        verb, *rest = words
        argv = [*command("iscsi-ipsec"), verb, *self.options, *rest]
        return self.node.run(argv, check=check, timeout=timeout, text=text)

    def status(self) -> Mapping[str, Any]:
        """status.json as it is now; empty before the first pass."""
        try:
            status: dict[str, Any] = json.loads((self.runtime / "status.json").read_text())
        except FileNotFoundError:
            return {}
        return status

    def metric(self, name: str) -> int:
        """A counter of metrics.prom as it is now; 0 before the first pass."""
        try:
            text = (self.runtime / "metrics.prom").read_text()
        except FileNotFoundError:
            return 0
        line = next(line for line in text.splitlines() if line.startswith(f"iscsi_ipsec_{name}_total "))
        return int(float(line.split()[1]))

    def passes(self) -> int:
        """How many passes it has made; status.json is only written where something changed."""
        return self.metric("passes")

    def settle(self, quiet: float = 0.7, *, timeout: float = 20.0) -> None:
        """Return when no pass was made for *quiet* seconds.

        Passes of the start go on for a moment, and would heal by chance what a test
        breaks meanwhile.
        """
        seen: list[tuple[int, float]] = []

        def silent() -> bool:
            passes = self.passes()
            if not passes or not seen or seen[-1][0] != passes:
                seen.append((passes, time.monotonic()))
            return time.monotonic() - seen[-1][1] >= quiet

        wait_until(silent, "the daemon has nothing more to do", timeout=timeout, detail=self.tail)

    def row(self, portal: str) -> Mapping[str, Any]:
        """The status of one portal; empty when it has none."""
        rows = [row for row in self.status().get("portals", []) if row["portal"] == portal]
        return rows[0] if rows else {}

    def problems(self) -> list[str]:
        """All problems in words, those of portals too."""
        status = self.status()
        found = [*status.get("problems", []), *(row.get("problem") for row in status.get("portals", []))]
        return [problem["message"] for problem in found if problem]
