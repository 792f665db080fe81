"""The lab of a chaos run: two machines, somebody else's things, and a process that tries to connect without pause."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.chaos.hand import LabHand
from tests.chaos.oracle import Conn
from tests.chaos.scene import NEVER_NAMED, PORTALS, SECOND_SOURCE, SOURCE
from tests.support.netlab import Charon, Daemon, Frame, Lab, Node, wait_until
from tests.support.netlab.process import run

PORT = 3260
IKE_PROPOSALS = [
    "aes256gcm16-prfsha384-ecp384",
    "aes128gcm16-prfsha256-ecp256",
    "aes256-sha256-modp2048",
    "aes256-sha384-ecp384",
]

FOREIGN_CONF = """\
connections {
  foreign {
    remote_addrs = 192.0.2.7
    local { auth = psk
      id = me.lab }
    remote { auth = psk
      id = you.lab }
    children { foreign { mode = transport
      start_action = trap
      remote_ts = 192.0.2.7/32[6/99] } }
  }
}
secrets {
  ike-foreign {
    id = you.lab
    secret = "the foreign secret, long enough"
  }
}
"""
FOREIGN_TABLE = """\
table inet foreign {
  set friends {
    type ipv4_addr
    elements = { 192.0.2.7 }
  }
  chain input {
    type filter hook input priority 5; policy accept;
    ip saddr @friends accept
  }
}
"""
SIGNS_OF_FAILURE = (
    "AUTHENTICATION_FAILED", "NO_PROPOSAL_CHOSEN", "giving up after", "no shared key found", "INVALID",
    "calculated HASH does not", "MAC mismatched",
)  # fmt: skip
_LOADED = re.compile(r"loaded IKE shared key with id '([^']*)' for: (.*)$", re.MULTILINE)


class Knocker:
    """Tries TCP connections to portals all the time, and from them: none of it may leave unencrypted."""

    PAUSE = 0.004

    def __init__(self, here: Node, there: Node) -> None:
        self.closed: frozenset[str] = frozenset()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=node.inside, args=(work,), name="knocker", daemon=True)
            for node, work in ((here, self._knock), (there, self._knock_back))
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _knock(self) -> None:
        while not self._stop.wait(self.PAUSE):
            for address in sorted(self.closed):
                knock(address)

    def _knock_back(self) -> None:
        while not self._stop.wait(self.PAUSE * 10):
            for address in sorted(self.closed):
                if ":" not in address:
                    with contextlib.suppress(OSError), _tcp(address) as end:
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                        end.bind((address, PORT))
                        end.connect_ex((SOURCE, 9))


def _tcp(address: str) -> socket.socket:
    end = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    end.setblocking(False)
    return end


def knock(address: str) -> None:
    """Begin a connection and forget it: the SYN leaves now or never."""
    with contextlib.suppress(OSError), _tcp(address) as end:
        end.connect_ex((address, PORT))


def answers(address: str, timeout: float = 3.0) -> bool:
    """Whether a TCP connection comes about."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as end:
        end.settimeout(timeout)
        try:
            end.connect((address, PORT))
        except OSError:
            return False
        return True


def source_of(address: str) -> str | None:
    """The address from which the kernel would send; None without a route."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as end:
        try:
            end.connect((address, PORT))
        except OSError:
            return None
        return str(end.getsockname()[0])


@dataclass(slots=True)
class Stage:
    lab: Lab
    here: Node
    there: Node
    charon: Charon
    far: Charon
    daemon: Daemon
    hand: LabHand
    knocker: Knocker
    owners: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Owners of our secrets by id, from charon's log."""
    guard_rules: str = ""
    """The guard's table as it is on a good day, without elements."""
    _log_read: int = 0
    _far_conns: int = 0

    # -- what is --------------------------------------------------------------------------------

    def source_of(self, address: str) -> str | None:
        return self.here.inside(lambda: source_of(address))

    def answers(self, address: str) -> bool:
        return self.here.inside(lambda: answers(address))

    def knock(self, addresses: Iterable[str]) -> None:
        self.here.inside(lambda: list(map(knock, sorted(addresses))))

    def read_owners(self) -> None:
        size = self.charon.log_mark()
        for ident, owners in _LOADED.findall(self.charon.log_text(self._log_read)):
            self.owners[ident] = tuple(owner.strip("'") for owner in owners.split(", "))
        self._log_read = size

    def in_clear(self, since: int, closed: frozenset[str]) -> list[Frame]:
        """TCP frames of closed portals that left this host."""
        return [f for f in self.lab.wire.tcp(since=since) if f.dst in closed and f.src not in closed]

    # -- the far end ----------------------------------------------------------------------------

    def authenticates(self, conn: Conn) -> bool:
        """Whether a far end that knows this key for these two identities, and no other key, believes us."""
        name = f"far{self._far_conns}"
        self._far_conns += 1
        self.far.load_conn(
            name,
            {
                "version": conn.version,
                "aggressive": "yes" if conn.aggressive else "no",
                "local_addrs": [conn.portal],
                "remote_addrs": [conn.source],
                "proposals": IKE_PROPOSALS,
                "local": {"auth": "psk", "id": vici_id(conn.remote_id)},
                "remote": {"auth": "psk", "id": vici_id(conn.local_id)},
            },
        )
        self.far.load_psk("only", conn.key.encode(), [vici_id(conn.remote_id), vici_id(conn.local_id)])
        try:
            return any(self._comes_up(conn.name) for _ in range(3))
        finally:
            self.far.unload_psk("only")
            with self.far.vici() as session:
                session.unload_conn({"name": name})
            self.far.forget_sas()

    def _comes_up(self, name: str) -> bool:
        self.forget(name)
        mark = self.charon.log_mark()
        self.charon.start_initiate(ike=name)

        def verdict() -> str:
            if any(at == name and sa["state"] == b"ESTABLISHED" for at, sa in self.charon.sas()):
                return "up"
            said = [line for line in self.charon.log_text(mark).splitlines() if f"<{name}|" in line]
            return "refused" if any(sign in line for line in said for sign in SIGNS_OF_FAILURE) else ""

        try:
            return wait_until(verdict, f"{name} comes up or is refused", detail=self.charon.tail) == "up"
        finally:
            self.forget(name)

    def forget(self, name: str) -> None:
        with self.charon.vici() as session, contextlib.suppress(Exception):
            list(session.terminate({"ike": name, "force": "yes", "timeout": "1000"}))


def vici_id(ident: str) -> str:
    return ident if ":" in ident or ident.replace(".", "").isdigit() else f"fqdn:{ident}"


@contextlib.contextmanager
def make_stage() -> Iterator[Stage]:
    """Both machines with all that is foreign on them; the daemon is not started yet."""
    with Lab("initiator", "target") as lab, contextlib.ExitStack() as stack:
        here, there = lab.node("initiator"), lab.node("target")
        for address in {*PORTALS, *NEVER_NAMED} - {there.at.v4, there.at.v6}:
            there.add_address(address)
        here.add_address(SECOND_SOURCE)
        stack.enter_context(_listening(there))
        charon, far = lab.ike_only("initiator"), lab.ike_only("target")
        daemon = lab.daemon("initiator", charon)
        hand = LabHand(here, charon, daemon)
        for folder in ("run/psk.d", "run/portal.d", "iscsi/nodes", "iscsi/send_targets"):
            hand.mkdir(folder)
        # not in the node: `ip netns exec` has mounts of its own, which end with the command
        run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", str(daemon.state)])
        stack.callback(run, ["umount", "-l", str(daemon.state)], check=False)
        charon.load_all(FOREIGN_CONF)
        here.run(["nft", "-f", "-"], text=FOREIGN_TABLE)
        knocker = Knocker(here, there)
        stack.callback(knocker.close)
        yield Stage(lab, here, there, charon, far, daemon, hand, knocker)


@contextlib.contextmanager
def _listening(node: Node) -> Iterator[None]:
    """Portals that take any TCP connection."""

    def listen() -> socket.socket:
        end = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        end.bind(("::", PORT))
        end.listen(64)
        return end

    listener = node.inside(listen)

    def accept() -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                listener.accept()[0].close()

    thread = threading.Thread(target=accept, name="listener", daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
