"""The rivals: a bare VICI client, one by one and pipelined, on messages that are ready in memory.

Their messages are given, and they check nothing but that charon agreed, so they are as fast as
this library can be. Run as a process of its own: ``python -m tests.bench.rivals MODE SOCKET FILE``.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from itertools import islice
from pathlib import Path

import vici
from vici.protocol import Message, Packet, Transport

from tests.bench.shape import Messages, load

WINDOW = 64


def sequential(connection: socket.socket, messages: Messages) -> None:
    """As python-vici is meant to be used: a request, its answer, the next request."""
    session = vici.Session(connection)
    calls = {"load-shared": session.load_shared, "load-conn": session.load_conn}
    for command, message in messages:
        calls[command](message)


def pipelined(connection: socket.socket, messages: Messages) -> None:
    """A window of requests is written before their answers are read."""
    transport = Transport(connection)
    queue = iter(messages)
    while window := tuple(islice(queue, WINDOW)):
        packets = [Packet.request(command, Message.serialize(message)) for command, message in window]
        connection.sendall(b"".join(struct.pack("!I", len(packet)) + packet for packet in packets))
        for _ in packets:
            answer = Packet.parse(transport.receive())
            if Message.deserialize(answer.payload).get("success") != b"yes":
                raise RuntimeError("charon refused a message of the bare client")


MODES = {"sequential": sequential, "pipelined": pipelined}


def main(mode: str, path: str, file: str) -> int:
    messages = load(Path(file))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    began = time.perf_counter()
    MODES[mode](connection, messages)
    sys.stdout.write(json.dumps({"seconds": time.perf_counter() - began}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
