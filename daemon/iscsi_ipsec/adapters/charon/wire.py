"""One VICI connection: framing with deadlines, without any meaning.

Law: the packet types and the encoding of messages are :mod:`vici`'s; the
socket is ours, because the library drops the socket's timeout after the first
byte of a packet and would wait for ever on a charon that stops in the middle.
Every failure leaves here as :class:`CharonUnavailable`. A key is revealed only inside :func:`encode_request`; what comes out is a :class:`Secret` again,
so that no frame of a traceback holds one.

Framing (strongSwan, src/libcharon/plugins/vici/README.md): a 32-bit length in
network order, then one byte of type, for named types one byte of length and
the name, then the message.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vici.exception import DeserializationException
from vici.protocol import (
    FiniteStream,
    Message,
    Packet,
    Transport,
)

from iscsi_ipsec.base.errors import CharonUnavailable
from iscsi_ipsec.base.secret import Secret

SOCKETS = ("/run/charon.vici", "/var/run/charon.vici", "/run/strongswan/charon.vici")
"""Where distributions put the socket (Debian and SUSE; older; Fedora)."""

MAX_PACKET_BYTES: int = Transport.MAX_SEGMENT
"""charon ignores longer requests and drops longer answers (vici_socket.h, 5.9.8)."""

_LENGTH = struct.Struct("!I")


class _StrictStream(FiniteStream):  # type: ignore[misc]  # vici has no types
    """The library's stream, but a read past the end is an error, not a short value."""

    def read(self, size: int | None = -1, /) -> bytes:
        data: bytes = super().read(size)
        if size is not None and size >= 0 and len(data) != size:
            raise DeserializationException("the message ends in the middle of an element")
        return data


@dataclass(frozen=True, slots=True)
class Received:
    """One packet: ``kind`` is one of ``vici.protocol.Packet``'s constants; ``event`` the name of an event."""

    kind: int
    event: str
    payload: bytes


def encode_request(command: str, message: Mapping[str, Any]) -> Secret | None:
    """One framed request, or None if VICI cannot carry it.

    A value may have 65,535 bytes, a name 255, the whole request
    ``MAX_PACKET_BYTES``. Values are str, bytes, :class:`Secret`, or lists and
    mappings of these; anything else is a :class:`TypeError`.
    """
    _check_types(message)
    try:
        # no local variable holds what is revealed: tracebacks show locals
        framed = Secret(_framed(Packet.request(command, Message.serialize(_revealed(message)))))
    except (struct.error, UnicodeEncodeError, RecursionError):
        # Not re-raised, and no exception is raised in here: its context
        # would keep the library's frames alive, and they hold the key.
        return None
    return framed if len(framed) <= MAX_PACKET_BYTES + _LENGTH.size else None


def encode_registration(event: str, *, register: bool = True) -> Secret:
    """One framed (de-)registration of an event."""
    return Secret(_framed(Packet.register_event(event) if register else Packet.unregister_event(event)))


def _framed(packet: bytes) -> bytes:
    return _LENGTH.pack(len(packet)) + packet


def _check_types(value: object) -> None:
    if isinstance(value, (str, bytes, Secret)):  # first, as most are
        return
    if isinstance(value, Mapping):
        for inner in value.values():
            _check_types(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            if not isinstance(inner, str) and isinstance(inner, (Mapping, list, tuple)):
                raise TypeError("a VICI list holds values only")
            _check_types(inner)
    else:
        raise TypeError(f"a VICI message cannot hold a {type(value).__name__}")


def _revealed(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, Mapping):
        return {name: _revealed(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_revealed(inner) for inner in value]
    return value


def default_socket() -> str:
    """The first of ``SOCKETS`` that exists, else the first."""
    return next((path for path in SOCKETS if Path(path).exists()), SOCKETS[0])


class Session:
    """A connection to charon's VICI socket. The first failure closes it for good.

    Not for two threads at once. ``timeout`` (seconds) is the longest wait for
    one packet as a whole, for a connection, and for one write. An empty path
    is where this system's charon has its socket, which may appear later.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self.path = path = path or default_socket()
        self.timeout = timeout
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(path)
        except (OSError, ValueError) as err:  # ValueError: a NUL in the path
            self.close()
            raise CharonUnavailable(path, _os_reason(err)) from err

    def fileno(self) -> int:
        """For :func:`select.select`; packets may also wait in our own buffer (:meth:`pending`)."""
        return self._socket.fileno()

    def pending(self) -> bool:
        """Whether :meth:`receive` has bytes to begin with, without reading the socket."""
        return bool(self._buffer)

    def is_quiet(self) -> bool:
        """Whether nothing waits to be read: neither the end of the stream nor a packet nobody asked for."""
        if self._buffer:
            return False
        try:
            poll = select.poll()  # not select(): a busy process may have descriptors above 1023
            poll.register(self._socket, select.POLLIN)
            return not poll.poll(0)
        except (OSError, ValueError):
            return False

    def send(self, packets: Iterable[Secret]) -> None:
        """Write packets as one piece, within ``timeout``."""
        try:
            self._socket.settimeout(self.timeout)
            self._socket.sendall(b"".join(packet.reveal() for packet in packets))
        except OSError as err:
            raise self._failed(_os_reason(err)) from err

    def say(self, packet: Secret) -> None:
        """Send from another thread; on failure the session is aborted, which wakes the reader."""
        try:
            self._socket.send(packet.reveal())
        except OSError:
            self.abort()

    def receive(self, deadline: float | None = None) -> Received:
        """Read one packet, at the latest by ``deadline`` (:func:`time.monotonic`; default: ``timeout`` from now)."""
        if deadline is None:
            deadline = time.monotonic() + self.timeout
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size, deadline))
        if not 0 < length <= MAX_PACKET_BYTES:
            raise self._failed(f"a packet of {length} bytes was announced")
        packet = self._take(length, deadline)
        kind = packet[0]
        if kind != Packet.EVENT:
            return Received(kind, "", packet[1:])
        name = packet[2 : 2 + packet[1]] if length > 1 else b""
        if length < 2 or len(name) != packet[1]:
            raise self._failed("an event without its name")
        return Received(kind, name.decode("ascii", "backslashreplace"), packet[2 + len(name) :])

    def decode(self, received: Received) -> dict[str, Any]:
        """The message of a packet: str to bytes, list of bytes, or dict.

        :class:`UnicodeDecodeError`: an element's *name* is not UTF-8. Only
        names that others chose can be so, and it concerns this message only,
        hence the session stays open.
        """
        try:
            message: dict[str, Any] = Message.deserialize(_StrictStream(received.payload))
        except UnicodeDecodeError:
            raise
        except (DeserializationException, struct.error) as err:
            raise self._failed("a message that is not VICI") from err
        return message

    def out_of_step(self, received: Received, command: str) -> CharonUnavailable:
        """Close, and return the error for a packet that is no answer to ``command``."""
        return self._failed(f"packet type {received.kind} as the answer to {command}")

    def malformed(self, command: str, what: str) -> CharonUnavailable:
        """Close, and return the error for an answer to ``command`` that lacks what it must have."""
        return self._failed(f"the answer to {command} {what}")

    def abort(self) -> None:
        """From another thread: make whatever waits on this session fail at once."""
        with contextlib.suppress(OSError):  # it was closed or not yet connected: nothing waits
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        self._buffer.clear()
        self._socket.close()

    def _take(self, count: int, deadline: float) -> bytes:
        while len(self._buffer) < count:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise self._failed(f"no answer within {self.timeout:g} s")
            try:
                self._socket.settimeout(remaining)
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            except OSError as err:
                raise self._failed(_os_reason(err)) from err
            if not data:
                raise self._failed("charon closed the connection")
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _failed(self, reason: str) -> CharonUnavailable:
        self.close()
        return CharonUnavailable(self.path, reason)


def _os_reason(err: OSError | ValueError) -> str:
    if isinstance(err, TimeoutError):
        return "timed out"
    return (isinstance(err, OSError) and err.strerror) or str(err) or type(err).__name__


def text(section: Mapping[str, Any], name: str) -> str:
    """A value as text, empty if absent; bytes that are not UTF-8 become escapes."""
    value = section.get(name, b"")
    return as_text(value) if isinstance(value, bytes) else ""


def texts(section: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A list's values as text, empty if absent."""
    value = section.get(name)
    return tuple(map(as_text, value)) if isinstance(value, list) else ()


def number(section: Mapping[str, Any], name: str) -> int | None:
    """A decimal value, None if absent; :class:`ValueError` if it is something else."""
    value = section.get(name)
    if value is None:
        return None
    if not isinstance(value, bytes) or len(value) > 20:
        raise ValueError(f"{name} is not a number")
    return int(value)


def subsection(section: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section in a section, empty if absent."""
    value = section.get(name)
    return value if isinstance(value, dict) else {}


def as_text(value: bytes) -> str:
    """Text of charon, losslessly enough to show and to compare with our own ASCII names."""
    return value.decode("utf-8", "backslashreplace")
