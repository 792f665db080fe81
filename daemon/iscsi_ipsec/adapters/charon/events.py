"""Receives charon's events in a thread and a session of their own.

Law: events are hints. The thread reconnects for ever; after each connection
it calls ``on_up`` *after* it has subscribed, so whoever then looks at the
whole state misses nothing. It calls its three callbacks and touches nothing
else; what a callback raises is logged and goes no further.
"""

from __future__ import annotations

import contextlib
import logging
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vici.protocol import Packet

from iscsi_ipsec.adapters.charon.wire import Received, Session, as_text, encode_registration
from iscsi_ipsec.base.errors import CharonUnavailable

EVENTS = ("ike-updown", "child-updown", "ike-rekey", "child-rekey", "log")
"""Only ``log`` says why a negotiation failed; no other event does (strongSwan 5.9.8)."""

FIRST_DELAY, LAST_DELAY = 0.2, 2.0
"""Seconds between attempts to connect: the first, doubling up to the last."""

MAX_DEPTH = 8
"""An ``ike-updown`` event has 3 levels of sections; a deeper one than this is not understood."""

_log = logging.getLogger(__name__)


class CharonEvents(threading.Thread):
    """Calls ``on_event(name, message)`` for each of charon's ``EVENTS``, until :meth:`stop`.

    A message is str to str, tuple of str, or mapping. ``on_up`` and
    ``on_down`` alternate, beginning with ``on_up``. ``timeout`` (seconds)
    bounds connecting, subscribing and the rest of a packet that has begun.
    """

    def __init__(
        self,
        socket_path: str,
        on_event: Callable[[str, Mapping[str, Any]], None],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        *,
        timeout: float = 5.0,
        delays: tuple[float, float] = (FIRST_DELAY, LAST_DELAY),
    ) -> None:
        super().__init__(name="charon-events", daemon=True)
        self._path, self._timeout, self._delays = socket_path, timeout, delays
        self._on_event, self._on_up, self._on_down = on_event, on_up, on_down
        self._stopping = threading.Event()
        self._session: Session | None = None
        self._listening: Session | None = None

    @contextlib.contextmanager
    def without_log(self) -> Iterator[None]:
        """From another thread: charon sends no log events inside, so look at all of its state afterwards.

        It logs at least one line for each message that it gets, and sending these takes as long as the
        messages themselves.
        """
        muted = self._listening
        if muted is not None:
            muted.say(encode_registration("log", register=False))
        try:
            yield
        finally:
            # a session begun meanwhile has subscribed by itself, and twice would bring each line twice
            if muted is not None and muted is self._listening:
                muted.say(encode_registration("log"))

    def stop(self) -> None:
        """End the thread and wait for it; from a callback: end it after the callback."""
        self._stopping.set()
        if (session := self._session) is not None:
            session.abort()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(self._timeout + 1)

    def run(self) -> None:
        """Connect, listen, wait a little, again."""
        first, last = self._delays
        delay = first
        while not self._stopping.is_set():
            if self._connect_and_listen():
                delay = first
            self._stopping.wait(delay)
            delay = min(2 * delay, last)

    def _connect_and_listen(self) -> bool:
        """Whether it came as far as being subscribed."""
        subscribed = False
        session = None
        try:
            session = self._session = Session(self._path, self._timeout)
            if self._stopping.is_set():  # stop() may have looked before there was one
                return False
            early = self._subscribe(session)
            subscribed = True
            self._listening = session
            self._call(self._on_up)
            for received in early:
                self._deliver(session, received)
            self._listen(session)
        except CharonUnavailable as err:
            if subscribed and not self._stopping.is_set():
                _log.info("charon's event session ended: %s", err.reason)
        finally:
            self._listening = None
            if session is not None:
                session.close()
            if subscribed:
                self._call(self._on_down)
        return subscribed

    def _subscribe(self, session: Session) -> list[Received]:
        """Register for all events; return those that arrived in between."""
        early = []
        session.send(encode_registration(event) for event in EVENTS)
        deadline = time.monotonic() + self._timeout
        for event in EVENTS:
            while (received := session.receive(deadline)).kind == Packet.EVENT:
                early.append(received)
            if received.kind == Packet.EVENT_UNKNOWN:
                _log.info("charon has no event %s", event)
            elif received.kind != Packet.EVENT_CONFIRM:
                raise session.out_of_step(received, f"the registration of {event}")
        return early

    def _listen(self, session: Session) -> None:
        poll = select.poll()
        poll.register(session, select.POLLIN)
        while not self._stopping.is_set():
            if not session.pending():
                poll.poll()  # as long as it takes; once a packet has begun, the timeout holds
            received = session.receive()
            if received.kind == Packet.EVENT:
                self._deliver(session, received)

    def _deliver(self, session: Session, received: Received) -> None:
        try:
            message = _decoded(session.decode(received), MAX_DEPTH)
        except ValueError:
            return  # a name that is not UTF-8, or nesting beyond reason: none of our names
        self._call(self._on_event, received.event, message)

    def _call(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            callback(*args)
        except Exception as err:  # noqa: BLE001  # a callback's bug must not end the thread
            _log.error("a callback of charon's events failed: %s", type(err).__name__)


def _decoded(section: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Bytes to str throughout; :class:`ValueError` beyond ``depth`` levels."""
    if depth == 0:
        raise ValueError("too many levels")
    decoded: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, bytes):
            decoded[name] = as_text(value)
        elif isinstance(value, list):
            decoded[name] = tuple(map(as_text, value))
        else:
            decoded[name] = _decoded(value, depth - 1)
    return decoded
