"""A charon that does what a test asks, on a real Unix socket, in a thread per client.

It speaks VICI's packets (strongSwan, src/libcharon/plugins/vici/README.md). By default it answers as charon
would; `on(name, act)` makes it act otherwise, for a command by its name,
for a registration by `register:<event>`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from vici.protocol import FiniteStream, Message, Packet

from tests.support.netlab.waiting import wait_until


def frame(packet: bytes) -> bytes:
    return struct.pack("!I", len(packet)) + packet


def response(message: Mapping[str, Any]) -> bytes:
    return frame(bytes([Packet.CMD_RESPONSE]) + Message.serialize(message))


def event(name: str, message: Mapping[str, Any]) -> bytes:
    return frame(bytes([Packet.EVENT, len(name)]) + name.encode() + Message.serialize(message))


CONFIRM = frame(bytes([Packet.EVENT_CONFIRM]))
UNKNOWN_EVENT = frame(bytes([Packet.EVENT_UNKNOWN]))
UNKNOWN_COMMAND = frame(bytes([Packet.CMD_UNKNOWN]))


@dataclass(frozen=True)
class Request:
    name: str
    message: Mapping[str, Any] = field(default_factory=dict)


class ClientGone(Exception):
    pass


class Client:
    """The fake's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def respond(self, message: Mapping[str, Any]) -> None:
        self.send(response(message))

    def hang_up(self) -> None:
        raise ClientGone

    def read(self) -> Request:
        (length,) = struct.unpack("!I", self._exactly(4))
        packet = self._exactly(length)
        name = packet[2 : 2 + packet[1]].decode()
        if packet[0] == Packet.CMD_REQUEST:
            return Request(name, Message.deserialize(FiniteStream(packet[2 + len(name) :])))
        return Request(f"{'register' if packet[0] == Packet.EVENT_REGISTER else 'unregister'}:{name}")

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.sock.recv(count - len(data))
            if not more:
                raise ClientGone
            data += more
        return data


Act = Callable[[Client, Request], None]

CONN = {
    "local_addrs": ["10.0.0.1"],
    "remote_addrs": ["10.0.0.2"],
    "version": "IKEv2",
    "children": {"iscsi-ipsec-00aa": {"mode": "TRANSPORT", "local-ts": ["dynamic[6]"]}},
}


class FakeCharon:
    """Listens at `path` from the start; a `with` block ends it."""

    def __init__(self, path: Path, *, window: int = 1) -> None:
        """`window`: how many requests are read before the first is answered."""
        self.path = str(path)
        self.window = window
        self.requests: list[Request] = []
        self.clients: list[Client] = []
        self.secrets = ["iscsi-ipsec-1", "someone-elses"]
        self.conns: list[Mapping[str, Any]] = [
            {"iscsi-ipsec-10.0.0.2-3260": CONN},
            {"home": {"children": {}}},
        ]
        self.sas: list[Mapping[str, Any]] = []
        self._acts: dict[str, Act] = {}
        self._ended = threading.Event()
        self._listen()

    def _listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(16)
        self._threads = [threading.Thread(target=self._accept, args=(self._listener,), daemon=True)]
        self._threads[0].start()

    def on(self, name: str, act: Act) -> None:
        self._acts[name] = act

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """As charon dies: every connection ends, the socket file stays."""
        self._ended.set()
        with contextlib.suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in list(self.clients):
            self.drop(client)
        for thread in list(self._threads):
            thread.join(10)
            assert not thread.is_alive(), "the fake charon hangs"

    def restart(self) -> None:
        self.close()
        Path(self.path).unlink()
        self.clients.clear()
        self._ended.clear()
        self._listen()

    def drop(self, client: Client) -> None:
        with contextlib.suppress(OSError):  # its thread was faster
            client.sock.shutdown(socket.SHUT_RDWR)

    def until_ended(self) -> None:
        """For an act that freezes: waits for the end of the test's `with` block."""
        self._ended.wait(30)

    def asked(self, name: str) -> list[Request]:
        return [request for request in self.requests if request.name == name]

    def wait_for_client(self, number: int = 1) -> Client:
        wait_until(lambda: len(self.clients) >= number, f"client {number} connects")
        return self.clients[number - 1]

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            client = Client(sock)
            self.clients.append(client)
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: Client) -> None:
        try:
            with client.sock:
                while True:
                    requests = [client.read() for _ in range(self.window)]
                    self.requests += requests
                    for request in requests:
                        self._acts.get(request.name, self._answer)(client, request)
        except (ClientGone, OSError):
            pass

    def _answer(self, client: Client, request: Request) -> None:
        match request.name:
            case "version":
                client.respond({"daemon": "charon-systemd", "version": "5.9.8"})
            case "stats":
                client.respond({"uptime": {"running": "1 second"}, "plugins": ["vici", "kernel-netlink"]})
            case "get-algorithms":
                client.respond({"encryption": {"AES_CBC": "aes"}, "ke": {"CURVE_25519": "curve25519"}})
            case "get-shared":
                client.respond({"keys": self.secrets})
            case "get-conns":
                client.respond({"conns": [name for conn in self.conns for name in conn]})
            case "list-conns":
                for conn in self.conns:
                    client.send(event("list-conn", conn))
                client.respond({})
            case "list-sas":
                for sa in self.sas:
                    client.send(event("list-sa", sa))
                client.respond({})
            case name if name.startswith(("register:", "unregister:")):
                client.send(CONFIRM)
            case _:
                client.respond({"success": "yes"})
