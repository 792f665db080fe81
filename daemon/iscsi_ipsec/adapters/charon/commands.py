"""The command session: look at charon, and make it hold something else.

Law: it decides nothing. Callers hand over complete messages and get frozen
values back. VICI answers carry no request ids, so a session on which anything
went wrong is closed and the next call dials again: it can never read the
answer of an earlier call. No event is ever subscribed to here but those that a
command streams as its answer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeVar

from vici.protocol import Packet

from iscsi_ipsec.adapters.charon.state import parse_ike_sa
from iscsi_ipsec.adapters.charon.wire import (
    Session,
    as_text,
    encode_registration,
    encode_request,
    subsection,
    text,
    texts,
)
from iscsi_ipsec.base.errors import CharonRefused
from iscsi_ipsec.base.sa import CharonState, IkeSa
from iscsi_ipsec.base.secret import Secret

OWN_PREFIX = "iscsi-ipsec-"
"""What the names of our connections, children and secrets begin with."""

WINDOW = 64
"""Requests written as one piece. The next piece is written before the answers to this one are
read: charon works on it while we read, and never waits for us."""

STREAM_TIMEOUTS = 12
"""A streamed answer as a whole may take this many times the timeout of one packet."""

T = TypeVar("T")


class Charon:
    """The command session. One thread only.

    Every method raises :class:`CharonUnavailable` when the socket is gone,
    when no answer came within ``timeout`` seconds or when the answer makes no
    sense; the session is closed then, and the next call dials again.
    """

    def __init__(self, socket_path: str = "", timeout: float = 5.0) -> None:
        self.socket_path = socket_path
        self.timeout = timeout
        self._session: Session | None = None

    def observe(self) -> CharonState:
        """What charon holds now, in one round trip."""
        return self._on_session(self._observe)

    def sas(self) -> tuple[IkeSa, ...]:
        """All IKE_SAs of our connections, with their CHILD_SAs."""
        return self._on_session(self._sas)

    def apply(
        self, messages: Iterable[tuple[str, Mapping[str, Any]]], progress: Callable[[], None] = lambda: None
    ) -> tuple[CharonRefused | None, ...]:
        """Send (command, message) pairs in order; one result each: None for success.

        Messages hold str, bytes, Secret, lists and mappings, and are taken one window at a
        time; ``progress`` is called after each window of answers. After
        :class:`CharonUnavailable` it is unknown how many had an effect.
        """
        return self._on_session(lambda session: self._apply(session, messages, progress))

    def initiate(self, conn: str, child: str) -> None:
        """Have charon begin to negotiate a child; returns at once, without the outcome.

        Raises :class:`CharonRefused` when charon has no such child.
        """
        refused, _ = self._command("initiate", {"ike": conn, "child": child, "timeout": "-1"}, child)
        if refused:
            raise refused

    def terminate(
        self,
        *,
        ike: str | None = None,
        ike_id: int | None = None,
        child_id: int | None = None,
        force: bool = False,
    ) -> int:
        """Have charon delete the SAs selected; returns at once, with the number selected.

        ``force`` drops an IKE_SA without waiting for the peer. No such SA is
        no error (it is what the caller wants) and returns 0.
        """
        if ike is None and ike_id is None and child_id is None:
            raise ValueError("terminate needs a selector")
        message = {"timeout": "-1"}
        if ike is not None:
            message["ike"] = ike
        if ike_id is not None:
            message["ike-id"] = str(ike_id)
        if child_id is not None:
            message["child-id"] = str(child_id)
        if force:
            message["force"] = "yes"
        refused, answer = self._command("terminate", message, ike or f"#{ike_id or child_id}")
        matches = answer.get("matches")
        if refused and matches != b"0":
            raise refused
        return int(matches) if isinstance(matches, bytes) and matches.isdigit() and len(matches) < 10 else 0

    def close(self) -> None:
        """Close the session, if there is one."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _on_session(self, work: Callable[[Session], T]) -> T:
        if self._session is not None and not self._session.is_quiet():
            self.close()  # charon was restarted, or said something nobody asked for
        session = self._session or Session(self.socket_path, self.timeout)
        self._session = session
        try:
            return work(session)
        except BaseException:
            self.close()
            raise

    def _command(
        self, command: str, message: Mapping[str, Any], item: str
    ) -> tuple[CharonRefused | None, Mapping[str, Any]]:
        def work(session: Session) -> tuple[CharonRefused | None, Mapping[str, Any]]:
            request = encode_request(command, message)
            if request is None:
                return _too_long(command, item), {}
            session.send([request])
            answer = _answer(session, command)
            return _refusal(command, item, answer), answer or {}

        return self._on_session(work)

    def _apply(
        self,
        session: Session,
        messages: Iterable[tuple[str, Mapping[str, Any]]],
        progress: Callable[[], None],
    ) -> tuple[CharonRefused | None, ...]:
        results: list[CharonRefused | None] = []
        queue = iter(messages)
        under_way: deque[list[tuple[str, str, bool]]] = deque()
        while True:
            if window := list(islice(queue, WINDOW)):
                requests = [encode_request(command, message) for command, message in window]
                session.send(request for request in requests if request is not None)
                under_way.append(
                    [
                        (command, _item(message), request is not None)
                        for (command, message), request in zip(window, requests, strict=True)
                    ]
                )
            if not under_way:
                return tuple(results)
            if window and len(under_way) == 1:
                continue
            for command, item, sent in under_way.popleft():
                results.append(
                    _refusal(command, item, _answer(session, command)) if sent else _too_long(command, item)
                )
            progress()

    def _observe(self, session: Session) -> CharonState:
        # get-shared comes last: charon drops an answer over 512 KiB without
        # a word, and then only the timeout is missing its packet.
        session.send(
            [
                *_requests("version", "stats"),
                *_stream("list-conns", "list-conn"),
                *_requests("get-shared"),
            ]
        )
        version = _must(session, "version", "version")
        stats = _must(session, "stats", "plugins")
        conns: dict[str, frozenset[str]] = {}
        foreign = 0
        for event in _collect(session, "list-conns", "list-conn"):
            if event is None:
                foreign += 1
                continue
            for name in event:
                if name.startswith(OWN_PREFIX):
                    children = subsection(subsection(event, name), "children")
                    conns[name] = conns.get(name, frozenset()) | frozenset(children)
                else:
                    foreign += 1
        shared = _must(session, "get-shared", "keys")
        return CharonState(
            version=text(version, "version"),
            plugins=frozenset(texts(stats, "plugins")),
            secrets=frozenset(name for name in texts(shared, "keys") if name.startswith(OWN_PREFIX)),
            conns=MappingProxyType(conns),
            foreign_conns=foreign,
        )

    def _sas(self, session: Session) -> tuple[IkeSa, ...]:
        session.send(_stream("list-sas", "list-sa"))
        sas = []
        for event in _collect(session, "list-sas", "list-sa"):
            for name in event or ():
                if not name.startswith(OWN_PREFIX):
                    continue
                try:
                    sas.append(parse_ike_sa(name, subsection(event or {}, name)))
                except ValueError as err:
                    raise session.malformed("list-sas", f"has a value we cannot read: {err}") from err
        return tuple(sas)


def _requests(*commands: str) -> list[Secret]:
    # a command name alone always fits, so None cannot occur
    return [request for command in commands if (request := encode_request(command, {})) is not None]


def _stream(command: str, event: str) -> list[Secret]:
    return [encode_registration(event), *_requests(command), encode_registration(event, register=False)]


def _answer(session: Session, command: str) -> dict[str, Any] | None:
    """The next command's answer; None: charon does not know the command. Stray events are passed over."""
    deadline = time.monotonic() + session.timeout
    while (received := session.receive(deadline)).kind == Packet.EVENT:
        pass
    if received.kind == Packet.CMD_UNKNOWN:
        return None
    if received.kind != Packet.CMD_RESPONSE:
        raise session.out_of_step(received, command)
    try:
        return session.decode(received)
    except UnicodeDecodeError as err:
        raise session.malformed(command, "has a name that is not UTF-8") from err


def _must(session: Session, command: str, name: str) -> dict[str, Any]:
    answer = _answer(session, command)
    if answer is None:
        raise session.malformed(command, "is that charon does not know it")
    if name not in answer:
        raise session.malformed(command, f"lacks {name}")
    return answer


def _collect(session: Session, command: str, event: str) -> list[dict[str, Any] | None]:
    """The events that ``_stream(command, event)`` brings; None for one with a name that is not UTF-8.

    Such a name cannot be ours, and must not keep us from seeing the others.
    """
    _confirmed(session, event)
    events: list[dict[str, Any] | None] = []
    end = time.monotonic() + STREAM_TIMEOUTS * session.timeout
    while (received := session.receive(min(end, time.monotonic() + session.timeout))).kind == Packet.EVENT:
        if received.event == event:
            try:
                events.append(session.decode(received))
            except UnicodeDecodeError:
                events.append(None)
    if received.kind != Packet.CMD_RESPONSE:
        raise session.out_of_step(received, command)
    _confirmed(session, event)
    return events


def _confirmed(session: Session, event: str) -> None:
    deadline = time.monotonic() + session.timeout
    while (received := session.receive(deadline)).kind == Packet.EVENT:
        pass
    if received.kind != Packet.EVENT_CONFIRM:
        raise session.out_of_step(received, f"the registration of {event}")


def _refusal(command: str, item: str, answer: dict[str, Any] | None) -> CharonRefused | None:
    if answer is None:
        return CharonRefused(command, item, "charon does not know this command")
    if answer.get("success", b"yes") == b"yes":
        return None
    return CharonRefused(command, item, text(answer, "errmsg") or "no reason given")


def _too_long(command: str, item: str) -> CharonRefused:
    return CharonRefused(command, item, "longer than VICI can carry (65,535 bytes a value, 255 a name)")


def _item(message: Mapping[str, Any]) -> str:
    """What a message is about: ``id`` (secrets), ``name`` (unloading), else its first section's name."""
    for name in ("id", "name", "ike", "child"):
        value = message.get(name)
        if isinstance(value, bytes):
            return as_text(value)
        if isinstance(value, str):
            return value
    return next((name for name, value in message.items() if isinstance(value, Mapping)), "")
