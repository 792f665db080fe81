"""Records every frame between the VMs, on the bridge that joins them.

Its law: the record is made outside the VMs.  A packet socket inside a machine shows what its
IPsec stack has yet to encrypt or has already decrypted; only the wire shows what crossed it.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

ETH_P_ALL = 0x0003
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_STATISTICS, PACKET_MR_PROMISC = 263, 1, 6, 1
SO_TIMESTAMPNS = 35
SO_RCVBUFFORCE = 33
# Enough of a frame to name it; the payload is nobody's business here.
SNAPLEN = 256

ETH_IPV4, ETH_ARP, ETH_IPV6 = 0x0800, 0x0806, 0x86DD
TCP, UDP, ESP = 6, 17, 50
PROTOCOLS = {1: "icmp", 2: "igmp", 4: "ipip", 41: "ipip6", 50: "esp", 51: "ah", 58: "icmp6"}
# hop-by-hop, routing, destination options: each says how long it is
IPV6_EXTENSIONS = {0, 43, 60}
IPV6_FRAGMENT = 44
IKE_NATT_PORT = 4500

ANYONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame on the wire."""

    time: float
    kind: str  # "esp", "udp/500", "tcp/3260", "arp", ...
    source: str = ""
    destination: str = ""
    protocol: int = 0
    ports: tuple[int, ...] = ()  # source and destination; none in a later fragment
    length: int = 0

    def __str__(self) -> str:
        ports = ":".join(map(str, self.ports))
        return f"{self.time:.6f} {self.kind} {self.source}>{self.destination} {ports} {self.length}"


def parse(frame: bytes, *, at: float = 0.0, length: int | None = None) -> Frame:
    """Name a frame by its outermost headers, as a passive listener would see it."""
    size = len(frame) if length is None else length
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype == ETH_IPV4 and len(frame) >= 34:
        packet = frame[14:]
        source, destination = str(IPv4Address(packet[12:16])), str(IPv4Address(packet[16:20]))
        protocol, payload = packet[9], packet[(packet[0] & 15) * 4 :]
        first = int.from_bytes(packet[6:8], "big") & 0x1FFF == 0
    elif ethertype == ETH_IPV6 and len(frame) >= 54:
        packet = frame[14:]
        source, destination = str(IPv6Address(packet[8:24])), str(IPv6Address(packet[24:40]))
        protocol, payload, first = packet[6], packet[40:], True
        while protocol in IPV6_EXTENSIONS and len(payload) >= 8:
            protocol, payload = payload[0], payload[(payload[1] + 1) * 8 :]
        if protocol == IPV6_FRAGMENT and len(payload) >= 8:
            first = int.from_bytes(payload[2:4], "big") >> 3 == 0
            protocol, payload = payload[0], payload[8:]
    else:
        kind = "arp" if ethertype == ETH_ARP else f"ethertype/{ethertype:#06x}"
        return Frame(time=at, kind=kind, length=size)
    ports: tuple[int, ...] = ()
    if protocol in (TCP, UDP) and first and len(payload) >= 4:
        ports = struct.unpack(">HH", payload[:4])
    return Frame(
        time=at,
        kind=_kind(protocol, ports, payload),
        source=source,
        destination=destination,
        protocol=protocol,
        ports=ports,
        length=size,
    )


def _kind(protocol: int, ports: tuple[int, ...], payload: bytes) -> str:
    if protocol not in (TCP, UDP):
        return PROTOCOLS.get(protocol, f"protocol/{protocol}")
    name = "tcp" if protocol == TCP else "udp"
    if not ports:
        return f"{name}/fragment"
    # RFC 3948: on this port four zero bytes mark IKE, anything longer than a keepalive is ESP
    if IKE_NATT_PORT in ports and protocol == UDP and len(payload) > 12 and any(payload[8:12]):
        return "esp-in-udp"
    return f"{name}/{min(ports)}"


class Wire(threading.Thread):
    """The record, from `start()` on, of all that crosses one bridge.

    Frames carry the kernel's receive time and marks are times too, so a frame that was under
    way when a mark was set falls on its right side.
    """

    def __init__(self, bridge: str, pcap: Path) -> None:
        super().__init__(name="wire", daemon=True)
        self.pcap = pcap
        self._frames: list[Frame] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._lost = 0
        self._file = pcap.open("wb")
        # the nanosecond flavour of the classic format, Ethernet
        self._file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, SNAPLEN, 1))
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        # A bridge shows itself what it forwards between its ports only if it is promiscuous.
        index = socket.if_nametoindex(bridge)
        request = struct.pack("iHH8s", index, PACKET_MR_PROMISC, 0, b"")
        self._socket.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, request)
        self._socket.bind((bridge, ETH_P_ALL))

    def run(self) -> None:
        """Keep the socket's buffer empty."""
        while not self._stopping.wait(0.05):
            self._drain()

    def stop(self) -> None:
        """Stop recording and close the record."""
        self._stopping.set()
        self.join()
        self._drain()
        self._socket.close()
        self._file.close()

    def mark(self) -> float:
        """Return a point in time, for `since=`."""
        return time.time()

    def frames(self, since: float = 0.0) -> Iterator[Frame]:
        """Yield what crossed the wire from `since` until now."""
        self._drain()
        if self._lost:
            raise RuntimeError(f"the record has a hole: {self._lost} frames lost")
        for frame in self._frames[:]:
            if frame.time >= since:
                yield frame

    def tcp(self, port: int, since: float = 0.0, sent_by: frozenset[str] = ANYONE) -> list[Frame]:
        """Return the frames of clear-text TCP to or from a port.

        Fragments that hide their ports count too: nothing here should make any.
        """
        return [
            frame
            for frame in self.frames(since)
            if frame.protocol == TCP
            and (port in frame.ports or not frame.ports)
            and (not sent_by or frame.source in sent_by)
        ]

    def esp(self, since: float = 0.0) -> list[Frame]:
        """Return the frames that carried ESP, bare or in UDP."""
        return [frame for frame in self.frames(since) if frame.kind in ("esp", "esp-in-udp")]

    def summary(self, since: float = 0.0) -> dict[str, int]:
        """Count what was on the wire: `{"esp": 812, "udp/500": 4, "tcp/3260": 0, ...}`."""
        return dict(Counter(frame.kind for frame in self.frames(since)))

    def _drain(self) -> None:
        with self._lock:
            while True:
                try:
                    data, control, flags, _ = self._socket.recvmsg(
                        SNAPLEN, 128, socket.MSG_DONTWAIT | socket.MSG_TRUNC
                    )
                except BlockingIOError:
                    break
                second, nanosecond = _timestamp(control)
                length = max(len(data), SNAPLEN if flags & socket.MSG_TRUNC else 0)
                self._file.write(struct.pack("<IIII", second, nanosecond, len(data), length) + data)
                self._frames.append(parse(data, at=second + nanosecond / 1e9, length=length))
            self._file.flush()
            # reading the counters clears them
            _, lost = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
            self._lost += lost


def _timestamp(control: list[tuple[int, int, bytes]]) -> tuple[int, int]:
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            size = ctypes.sizeof(ctypes.c_long)
            second, nanosecond = struct.unpack("ll", data[: 2 * size])
            return second, nanosecond
    now = time.time_ns()
    return now // 10**9, now % 10**9
