"""The recorder of frames on the wire: the truth about what crossed unencrypted.

It listens in the hub namespace and keeps what comes *from* a node at its port, before any
forwarding: a frame counts once, and counts even when it arrives nowhere.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.netlab.space import Hub

ISCSI = 3260
SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_OUTGOING = 4
SO_RCVBUFFORCE = 33
SNAPLEN = 128
TCP, UDP, ESP = 6, 17, 50
NON_ESP_MARKER = b"\0\0\0\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One IP packet as it crossed the wire. kind: tcp, udp, esp, esp-udp, or a protocol number."""

    time: float
    kind: str
    src: str
    dst: str
    sport: int
    dport: int
    length: int

    def __str__(self) -> str:
        return f"{self.kind} {self.src}:{self.sport} > {self.dst}:{self.dport} ({self.length} bytes)"


def parse_frame(data: bytes, length: int, now: float) -> Frame | None:
    """Read an Ethernet frame; None for what is not IP (ARP and the like)."""
    ethertype = data[12:14]
    packet = data[14:]
    if ethertype == b"\x08\x00" and len(packet) >= 20:
        protocol, src, dst = packet[9], packet[12:16], packet[16:20]
        first = not struct.unpack_from("!H", packet, 6)[0] & 0x1FFF
        payload = packet[(packet[0] & 15) * 4 :]
    elif ethertype == b"\x86\xdd" and len(packet) >= 40:
        protocol, src, dst, first = packet[6], packet[8:24], packet[24:40], True
        payload = packet[40:]
    else:
        return None
    sport = dport = 0
    kind = {TCP: "tcp", UDP: "udp", ESP: "esp"}.get(protocol, str(protocol))
    if not first:
        kind = f"{kind}-fragment"
    elif protocol in (TCP, UDP) and len(payload) >= 4:
        sport, dport = struct.unpack_from("!HH", payload)
        if (
            protocol == UDP
            and 4500 in (sport, dport)
            and len(payload) >= 12
            and payload[8:12] != NON_ESP_MARKER
        ):
            kind = "esp-udp"
    return Frame(
        time=now,
        kind=kind,
        src=str(ipaddress.ip_address(src)),
        dst=str(ipaddress.ip_address(dst)),
        sport=sport,
        dport=dport,
        length=length,
    )


class Wire:
    """Records from construction until close(). mark() gives a point to count from."""

    def __init__(self, hub: Hub) -> None:
        self._frames: list[Frame] = []
        self._lock = threading.Lock()
        self._dropped = 0
        self._socket = hub.packet_socket()
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        self._socket.setblocking(False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="wire", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _follow(self) -> None:
        while not self._stop.is_set():
            if select.select([self._socket], [], [], 0.1)[0]:
                self._drain()

    def _drain(self) -> None:
        """Take over all that the kernel has queued, so that a mark means *now*."""
        with self._lock:
            while True:
                try:
                    data, (link, _, pkttype, _, _) = self._socket.recvfrom(SNAPLEN, socket.MSG_TRUNC)[:2]
                except BlockingIOError:
                    return
                if pkttype == PACKET_OUTGOING or not link.startswith("port"):
                    continue  # the same frame again, on its way out of the bridge
                frame = parse_frame(data, len(data), time.time())
                if frame is not None:
                    self._frames.append(frame)

    @property
    def dropped(self) -> int:
        """Frames the recorder missed because the kernel's queue was full: 0, or counts prove nothing."""
        raw = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self._dropped += struct.unpack("II", raw)[1]  # the kernel resets its counter on reading
        return self._dropped

    def mark(self) -> int:
        self._drain()
        return len(self._frames)

    def frames(self, since: int = 0) -> list[Frame]:
        self._drain()
        return self._frames[since:]

    def tcp(self, port: int = ISCSI, since: int = 0) -> list[Frame]:
        """Unencrypted TCP frames from or to *port*."""
        return [f for f in self.frames(since) if f.kind == "tcp" and port in (f.sport, f.dport)]

    def esp(self, since: int = 0) -> list[Frame]:
        """ESP frames, bare or in UDP."""
        return [f for f in self.frames(since) if f.kind in ("esp", "esp-udp")]

    def ike(self, since: int = 0) -> list[Frame]:
        return [
            f
            for f in self.frames(since)
            if f.kind == "udp" and not {500, 4500}.isdisjoint((f.sport, f.dport))
        ]

    def summary(self, since: int = 0) -> dict[str, int]:
        return dict(Counter(self._labels(since)))

    def _labels(self, since: int) -> Iterator[str]:
        for frame in self.frames(since):
            if frame.kind == "tcp" and ISCSI in (frame.sport, frame.dport):
                yield "tcp/3260 unencrypted"
            elif frame.kind == "udp" and not {500, 4500}.isdisjoint((frame.sport, frame.dport)):
                yield "ike"
            else:
                yield frame.kind
