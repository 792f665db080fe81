"""One lab: nodes on a wire, and whatever was started on them, gone at the end whatever happened."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.netlab.charon import Charon
from tests.support.netlab.daemon import Daemon
from tests.support.netlab.iscsi import TARGET_NAME, Initiator, Target
from tests.support.netlab.kernel import Esp, available_esp
from tests.support.netlab.process import Child
from tests.support.netlab.space import Hub, Node, remove_leftovers
from tests.support.netlab.wire import Wire


class Lab:
    """`with Lab("initiator", "target") as lab:` - nodes are numbered 1, 2, ... in that order."""

    def __init__(self, *names: str, keep: bool = False) -> None:
        self._names = names
        self._keep = keep
        self._stack = ExitStack()
        self._nodes: dict[str, Node] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            remove_leftovers()
            # below /run: short, for the path of a socket must stay under 108 bytes, and writable
            # by root alone all the way up, as folders with keys have to be
            self.folder = Path(tempfile.mkdtemp(prefix="inl-", dir="/run"))
            if not self._keep:
                stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.hub = Hub()
            stack.callback(self.hub.close)
            for number, name in enumerate(self._names, 1):
                node = Node(name, number, self.hub)
                stack.callback(node.close)
                self._nodes[name] = node
            self.wire = Wire(self.hub)
            stack.callback(self.wire.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def node(self, name: str) -> Node:
        return self._nodes[name]

    def subfolder(self, stem: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{stem}-", dir=self.folder))

    def charon(
        self,
        name: str,
        *,
        esp: Esp | None = None,
        aggressive_psk: bool = True,
        retransmit_tries: int = 2,
        retransmit_timeout: float = 0.5,
        log_level: int = 1,
    ) -> Charon:
        """A charon with the data path the kernel allows."""
        charon = Charon(
            self.node(name),
            self.subfolder("c"),
            esp=available_esp() if esp is None else esp,
            aggressive_psk=aggressive_psk,
            retransmit_tries=retransmit_tries,
            retransmit_timeout=retransmit_timeout,
            log_level=log_level,
        )
        self._stack.callback(charon.kill)
        return charon

    def ike_only(self, name: str, *, aggressive_psk: bool = True, log_level: int = 1) -> Charon:
        """A charon for tests of keys, ids and modes: an IKE SA needs no ESP, and 10 ms."""
        return self.charon(name, esp=Esp.NONE, aggressive_psk=aggressive_psk, log_level=log_level)

    def target(self, name: str, *addresses: str, target_name: str = TARGET_NAME) -> Target:
        target = Target(self.node(name), self.subfolder("t"), list(addresses), name=target_name)
        self._stack.callback(target.stop)
        return target

    def initiator(self, name: str) -> Initiator:
        return Initiator(node=self.node(name))

    def daemon(self, name: str, charon: Charon) -> Daemon:
        """The daemon for a node's charon, not started yet."""
        daemon = Daemon(self.node(name), self.subfolder("d"), charon.socket)
        self._stack.callback(daemon.close)
        return daemon

    def adopt(self, child: Child) -> Child:
        """End *child* with the lab at the latest."""
        self._stack.callback(child.kill)
        return child
