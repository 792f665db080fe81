"""Real iSCSI in user space: tgtd as the target, libiscsi's tools as the initiator."""

from __future__ import annotations

import ipaddress
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.netlab.process import Child, EndedAtOnceError, Result
from tests.support.netlab.space import Node
from tests.support.netlab.waiting import wait_until

TARGET_NAME = "iqn.2026-01.lab.netlab:disk"
INITIATOR_NAME = "iqn.2026-01.lab.netlab:initiator"
LUN_BYTES = 8 << 20
_control_ports = itertools.count(1)


def portal_text(address: str, port: int = 3260) -> str:
    """`10.0.0.1:3260`, `[fd00::1]:3260`."""
    bare = ipaddress.ip_address(address)
    return f"[{bare}]:{port}" if bare.version == 6 else f"{bare}:{port}"


class Target:
    """A tgtd of its own with one small disk, on the given addresses of a node."""

    def __init__(self, node: Node, folder: Path, addresses: list[str], *, name: str = TARGET_NAME) -> None:
        self.node = node
        self.name = name
        self.addresses = tuple(addresses)
        self.log = folder / "log"
        self._control = str(next(_control_ports))
        self._env = {"TGT_IPC_SOCKET": str(folder / "ipc")}
        disk = folder / "disk"
        with disk.open("wb") as handle:
            handle.truncate(LUN_BYTES)
        first, *others = [f"portal={portal_text(address)}" for address in addresses]
        self._child: Child = node.spawn(
            ["tgtd", "-D", "-C", self._control, "-p", str(folder / "pid"), "--iscsi", first],
            log=self.log,
            env=self._env,
        )
        try:
            wait_until(
                lambda: self._admin("--op", "show", "--mode", "sys", check=False).ok,
                "tgtd answers",
                detail=self._child.output,
            )
            for portal in others:
                self._admin("--op", "new", "--mode", "portal", "--param", portal)
            self._admin("--op", "new", "--mode", "target", "--tid", "1", "--targetname", name)
            self._admin(
                "--op",
                "new",
                "--mode",
                "logicalunit",
                "--tid",
                "1",
                "--lun",
                "1",
                "--backing-store",
                str(disk),
            )
            self._admin("--op", "bind", "--mode", "target", "--tid", "1", "--initiator-address", "ALL")
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        return self._child.pid

    def _admin(self, *words: str, check: bool = True) -> Result:
        if not self._child.running:
            raise EndedAtOnceError(f"tgtd ended\n{self._child.output()}")
        argv = ["tgtadm", "-C", self._control, "--lld", "iscsi", *words]
        return self.node.run(argv, check=check, env=self._env)

    def sessions(self) -> list[str]:
        """Names of the initiators that are logged in now."""
        shown = self._admin("--op", "show", "--mode", "target").out
        return re.findall(r"Initiator: (\S+)", shown)

    def stop(self) -> None:
        self._child.kill()  # tgtd ignores SIGTERM while a target exists


@dataclass(frozen=True, slots=True, kw_only=True)
class Initiator:
    """libiscsi in a node: each call is one whole iSCSI session with login and logout."""

    node: Node
    name: str = INITIATOR_NAME

    def discover(self, address: str, *, port: int = 3260, timeout: float = 15.0) -> Result:
        """SendTargets, and a login to each target found to list its disks."""
        url = f"iscsi://{portal_text(address, port)}/"
        return self.node.run(["iscsi-ls", "-i", self.name, "-s", url], timeout=timeout, check=False)

    def inquire(self, address: str, target: str, *, port: int = 3260, timeout: float = 15.0) -> Result:
        """Login and INQUIRY of LUN 1."""
        url = f"iscsi://{portal_text(address, port)}/{target}/1"
        return self.node.run(["iscsi-inq", "-i", self.name, url], timeout=timeout, check=False)

    def read(self, address: str, target: str, *, seconds: int = 1, port: int = 3260) -> Result:
        """Read the disk for some seconds (iscsi-perf)."""
        url = f"iscsi://{portal_text(address, port)}/{target}/1"
        argv = ["iscsi-perf", "-i", self.name, "-m", "8", "-b", "8", "-t", str(seconds), url]
        return self.node.run(argv, timeout=seconds + 15, check=False)

    def read_in_background(
        self, address: str, target: str, log: Path, *, seconds: int, port: int = 3260
    ) -> Child:
        """The same while something else happens; its exit code says whether I/O ever failed."""
        url = f"iscsi://{portal_text(address, port)}/{target}/1"
        argv = ["iscsi-perf", "-i", self.name, "-m", "4", "-b", "8", "-t", str(seconds), url]
        return self.node.spawn(argv, log=log)
