"""A private charon: own configuration, own VICI socket, own log, in a node's namespace.

It shares nothing with a charon of the system; default paths such as /run/charon.vici are
never used. Besides VICI, `swanctl` works as an admin would use it, from files of its own.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import vici

from tests.support.netlab.kernel import Esp
from tests.support.netlab.process import Child, EndedAtOnceError, Result
from tests.support.netlab.space import Node
from tests.support.netlab.waiting import wait_until

BINARY = "/usr/sbin/charon-systemd"
PLUGINS = (
    "random nonce aes sha1 sha2 hmac kdf gmp curve25519 openssl gcm {kernel}kernel-netlink "
    "socket-default updown vici"
)

CONFIGURATION = """\
charon-systemd {{
  load = {plugins}
  install_virtual_ip = no
  i_dont_care_about_security_and_use_aggressive_mode_psk = {aggressive_psk}
  retransmit_tries = {retransmit_tries}
  retransmit_timeout = {retransmit_timeout}
  retransmit_base = 1.5
  filelog {{
    log {{
      path = {log}
      time_format = %b %d %T
      ike_name = yes
      append = yes
      flush_line = yes
      default = {log_level}
    }}
  }}
  journal {{
    default = -1
  }}
  plugins {{
    vici {{
      socket = unix://{socket}
    }}
    kernel-libipsec {{
      load = {libipsec}
    }}
  }}
}}
swanctl {{
  load = random nonce aes sha1 sha2 hmac openssl
}}
"""

Tree = dict[str, Any]  # a VICI message: values are bytes, lists of bytes, or trees


class Charon:
    """Starts on construction; terminate(), kill() and start() are an admin's hand on it."""

    def __init__(
        self,
        node: Node,
        folder: Path,
        *,
        esp: Esp = Esp.NONE,
        aggressive_psk: bool = True,
        retransmit_tries: int = 2,
        retransmit_timeout: float = 0.5,
        log_level: int = 1,
    ) -> None:
        self.node = node
        self.folder = folder
        self.esp = esp
        self.socket = folder / "vici"
        self.log = folder / "log"
        self.swanctl_dir = folder / "swanctl"
        self.swanctl_dir.mkdir(mode=0o700)
        self.strongswan_conf = folder / "strongswan.conf"
        self._options: dict[str, object] = {
            "plugins": PLUGINS.format(kernel="kernel-libipsec " if esp is Esp.LIBIPSEC else ""),
            "libipsec": "yes" if esp is Esp.LIBIPSEC else "no",
            "aggressive_psk": "yes" if aggressive_psk else "no",
            "retransmit_tries": retransmit_tries,
            "retransmit_timeout": retransmit_timeout,
            "log_level": log_level,
            "log": self.log,
            "socket": self.socket,
        }
        self._child: Child | None = None
        self.start()

    # -- its life ---------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self._child is not None, "charon was never started"
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    def start(self) -> None:
        """Start, and return when VICI answers."""
        assert not self.running, "charon runs already"
        self.strongswan_conf.write_text(CONFIGURATION.format_map(self._options))
        env = {"STRONGSWAN_CONF": str(self.strongswan_conf)}
        self._child = self.node.spawn([BINARY], log=self.folder / "stdout", env=env)
        wait_until(self._answers, f"charon in {self.node.label} answers", interval=0.005, detail=self.tail)

    def _answers(self) -> bool:
        if not self.running:
            raise EndedAtOnceError(f"charon in {self.node.label} ended at once\n{self.tail()}")
        try:
            self.version()
        except OSError:
            return False
        return True

    def terminate(self) -> None:
        """A clean stop: charon deletes its SAs and policies."""
        if self._child is not None:
            self._child.terminate()

    def kill(self) -> None:
        """A crash: the kernel keeps what charon installed, the socket file stays."""
        if self._child is not None:
            self._child.kill()

    def set_option(self, name: str, value: object) -> None:
        """Change a setting of the configuration file; reload() or a restart makes it live."""
        assert name in self._options, name
        self._options[name] = value
        self.strongswan_conf.write_text(CONFIGURATION.format_map(self._options))

    # -- VICI -------------------------------------------------------------------------------

    @contextmanager
    def vici(self, *, timeout: float = 10.0) -> Iterator[Any]:
        """A fresh session: after an error a session must not be used again."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(timeout)
            connection.connect(str(self.socket))
            yield vici.Session(connection)
        finally:
            connection.close()

    def version(self) -> str:
        with self.vici() as session:
            return bytes(session.version()["version"]).decode()

    def secrets(self) -> frozenset[str]:
        """Ids of the loaded secrets that have one."""
        with self.vici() as session:
            return frozenset(key.decode() for key in session.get_shared().get("keys", []))

    def connections(self) -> dict[str, Tree]:
        with self.vici() as session:
            return {name: tree for item in session.list_conns() for name, tree in item.items()}

    def sas(self) -> list[tuple[str, Tree]]:
        """(connection, IKE SA) of every IKE SA."""
        with self.vici() as session:
            return [(name, tree) for item in session.list_sas() for name, tree in item.items()]

    def children(self) -> list[Tree]:
        """Every CHILD SA in state INSTALLED."""
        return [
            child
            for _, sa in self.sas()
            for child in sa.get("child-sas", {}).values()
            if child["state"] == b"INSTALLED"
        ]

    def plugins(self) -> frozenset[str]:
        with self.vici() as session:
            return frozenset(name.decode() for name in session.stats()["plugins"])

    def load_conn(self, name: str, settings: Mapping[str, object]) -> None:
        with self.vici() as session:
            session.load_conn({name: settings})

    def load_psk(self, ident: str, data: bytes, owners: Sequence[str] = ()) -> None:
        """No owners is what VICI makes of it: %any."""
        message: dict[str, object] = {"id": ident, "type": "IKE", "data": data}
        if owners:
            message["owners"] = list(owners)
        with self.vici() as session:
            session.load_shared(message)

    def unload_psk(self, ident: str) -> None:
        with self.vici() as session:
            session.unload_shared({"id": ident})

    def initiate(self, *, ike: str, child: str | None = None, timeout: float = 4.0) -> bool:
        """Bring up an IKE SA alone (enough to test keys, ids and modes) or with a child."""
        with self.vici(timeout=timeout + 5) as session:
            message = {"ike": ike, "timeout": str(int(timeout * 1000))}
            if child is not None:
                message["child"] = child
            try:
                list(session.initiate(message))
            except vici.exception.CommandException:
                return False
            return True

    def start_initiate(self, *, ike: str, child: str | None = None) -> None:
        """The same without waiting for what becomes of it."""
        message = {"ike": ike, "timeout": "-1"} | ({"child": child} if child else {})
        with self.vici() as session:
            list(session.initiate(message))

    def forget_sas(self) -> None:
        """End every IKE SA without a word to the peer waiting for an answer."""
        with self.vici() as session:
            for name in {name for name, _ in self.sas()}:
                with suppress(vici.exception.CommandException):  # the peer's delete may be faster
                    list(session.terminate({"ike": name, "force": "yes", "timeout": "2000"}))

    # -- swanctl: the far end's admin, and the one who gets in the way -----------------------

    def swanctl(self, *words: str, check: bool = True) -> Result:
        env = {"STRONGSWAN_CONF": str(self.strongswan_conf), "SWANCTL_DIR": str(self.swanctl_dir)}
        return self.node.run(["swanctl", *words, "--uri", f"unix://{self.socket}"], env=env, check=check)

    def write_swanctl(self, text: str) -> Path:
        path = self.swanctl_dir / "swanctl.conf"
        path.touch(mode=0o600)
        path.write_text(text)
        return path

    def load_all(self, text: str | None = None, *, check: bool = True) -> Result:
        """`swanctl --load-all`: everything that is not in swanctl.conf is unloaded by it."""
        if text is not None:
            self.write_swanctl(text)
        path = self.swanctl_dir / "swanctl.conf"
        if not path.exists():
            self.write_swanctl("")
        return self.swanctl("--load-all", "--noprompt", "--file", str(path), check=check)

    # -- its log ----------------------------------------------------------------------------

    def log_text(self, since: int = 0) -> str:
        try:
            with self.log.open("rb") as handle:
                handle.seek(since)
                return handle.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def log_mark(self) -> int:
        try:
            return self.log.stat().st_size
        except FileNotFoundError:
            return 0

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])
