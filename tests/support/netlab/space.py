"""Network namespaces joined by one wire.

Every node is a namespace of its own with one veth; the other ends meet on a bridge in a hub
namespace which only carries frames. That makes the hub the place where "the wire" can be
recorded: what a node's own packet tap shows of inbound ESP may already be decrypted.

Names carry the pid of the process that made them, so that parallel runs don't collide and
names left by a killed run can be recognised and removed.
"""

from __future__ import annotations

import ctypes
import ipaddress
import itertools
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.support.netlab.process import Child, Result, run

T = TypeVar("T")

# Debian's AppArmor profiles for charon and swanctl know their usual files only. They go by
# the program's path; a private instance with files of its own asks to be left out of them.
_APPARMOR = Path("/proc/self/attr/apparmor/exec")
_UNCONFINED = ("sh", "-c", f'{{ echo "exec unconfined" > {_APPARMOR}; }} 2>/dev/null; exec "$@"', "sh")

PREFIX = "inl"
NETNS_DIR = Path("/run/netns")
CLONE_NEWNET = 0x40000000
_serial = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)

QUIET_KERNEL = (  # no waiting for duplicate address detection, no router solicitations on the wire
    "net.ipv6.conf.all.disable_ipv6=0",
    "net.ipv6.conf.default.disable_ipv6=0",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv6.conf.default.accept_ra=0",
    "net.ipv6.conf.default.router_solicitations=0",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
)


class Namespace:
    """One network namespace."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.name = f"{PREFIX}-{os.getpid()}-{next(_serial)}-{label}"
        run(["ip", "netns", "add", self.name])
        try:
            self.ip("link", "set", "lo", "up")
            self.run(["sysctl", "-q", "-e", "-w", *QUIET_KERNEL], check=False)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        run(["ip", "netns", "del", self.name], check=False)

    def ip(self, *words: str, check: bool = True) -> Result:
        return run(["ip", "-n", self.name, *words], check=check)

    def argv(self, command: Sequence[str]) -> list[str]:
        unconfined = _UNCONFINED if _APPARMOR.exists() else ()
        return ["ip", "netns", "exec", self.name, *unconfined, *(str(word) for word in command)]

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float = 20.0,
        check: bool = True,
        text: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        return run(self.argv(command), timeout=timeout, check=check, text=text, env=env)

    def spawn(self, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> Child:
        """Start a process here; `ip netns exec` becomes it, so the pid is its own."""
        return Child(self.argv(command), log=log, env=env)

    def inside(self, act: Callable[[], T]) -> T:
        """Call *act* in this namespace. A thread of its own enters and dies: ours never moves.

        Sockets belong for life to the namespace they are made in, so *act* usually makes one.
        """
        box: list[T] = []
        fault: list[BaseException] = []

        def enter() -> None:
            try:
                with (NETNS_DIR / self.name).open() as handle:
                    if _libc.setns(handle.fileno(), CLONE_NEWNET):
                        code = ctypes.get_errno()
                        raise OSError(code, os.strerror(code), self.name)
                box.append(act())
            except BaseException as err:  # noqa: BLE001  # handed over to the caller's thread
                fault.append(err)

        thread = threading.Thread(target=enter, name=f"setns-{self.label}")
        thread.start()
        thread.join()
        if fault:
            raise fault[0]
        return box[0]

    def packet_socket(self) -> socket.socket:
        """A raw socket that sees every frame on every link of this namespace."""
        return self.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """A node's addresses: on the wire, and inside (what a tunnel joins, on no wire at all)."""

    v4: str
    v6: str
    inner_v4: str
    inner_v6: str


def addresses_of(number: int) -> Addresses:
    """Node *number* (1, 2, ...) of a lab; all private ranges, and only inside its namespaces."""
    return Addresses(
        v4=f"10.10.0.{number}",
        v6=f"fd00:10::{number:x}",
        inner_v4=f"10.20.{number}.1",
        inner_v6=f"fd00:20:{number:x}::1",
    )


class Node(Namespace):
    """A machine of the lab: a namespace with the link `eth0` on the wire."""

    def __init__(self, label: str, number: int, hub: Hub) -> None:
        super().__init__(label)
        self.number = number
        self.at = addresses_of(number)
        try:
            hub.plug(self)
            self.ip("address", "add", f"{self.at.v4}/24", "dev", "eth0")
            self.ip("-6", "address", "add", f"{self.at.v6}/64", "dev", "eth0", "nodad")
            self.ip("address", "add", f"{self.at.inner_v4}/32", "dev", "lo")
            self.ip("-6", "address", "add", f"{self.at.inner_v6}/128", "dev", "lo", "nodad")
            self.ip("link", "set", "eth0", "up")
        except BaseException:
            self.close()
            raise

    def add_address(self, address: str) -> None:
        """One more address on the wire, e.g. for a second identity of the same machine."""
        wide = 64 if ipaddress.ip_address(address).version == 6 else 24
        nodad = ["nodad"] if wide == 64 else []
        self.ip("address", "add", f"{address}/{wide}", "dev", "eth0", *nodad)

    def route(self, destination: str, *, via: str, source: str) -> None:
        self.ip("route", "replace", destination, "via", via, "src", source)


class Hub(Namespace):
    """The wire: a bridge that joins the nodes' veths, in a namespace without any address."""

    def __init__(self) -> None:
        super().__init__("hub")
        try:
            self.run(
                [
                    "sysctl",
                    "-q",
                    "-e",
                    "-w",
                    "net.ipv6.conf.all.disable_ipv6=1",
                    "net.ipv6.conf.default.disable_ipv6=1",
                ],
                check=False,
            )
            self.ip(
                "link",
                "add",
                "wire",
                "type",
                "bridge",
                "stp_state",
                "0",
                "forward_delay",
                "0",
                "mcast_snooping",
                "0",
            )
            self.ip("link", "set", "wire", "up")
        except BaseException:
            self.close()
            raise

    def plug(self, node: Node) -> None:
        port = self.port_of(node)
        self.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", node.name)
        self.ip("link", "set", port, "master", "wire", "up")

    def port_of(self, node: Node) -> str:
        return f"port{node.number}"

    def pull(self, node: Node) -> None:
        """Pull a node's cable: what it sends still leaves it, and gets nowhere."""
        self.ip("link", "set", self.port_of(node), "nomaster")

    def push_in(self, node: Node) -> None:
        self.ip("link", "set", self.port_of(node), "master", "wire")


def remove_leftovers() -> None:
    """Delete namespaces whose maker is gone (its processes died with it, see process.py)."""
    if not NETNS_DIR.is_dir():
        return
    for path in NETNS_DIR.glob(f"{PREFIX}-*"):
        maker = path.name.split("-")[1]
        if maker.isdigit() and not Path("/proc", maker).exists():
            run(["ip", "netns", "del", path.name], check=False)
