"""Sends requests and takes their answers off the session: single ones, streams of events, refusals.

Law: an answer is taken off the session whole, in its turn, and an answer that makes no sense is
:class:`CharonUnavailable`; the caller interprets it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from vici.protocol import Message, Packet

from iscsi_ipsec.adapters.charon.wire import (
    Received,
    Session,
    as_text,
    encode_registration,
    encode_request,
    text,
)
from iscsi_ipsec.base.errors import CharonRefused
from iscsi_ipsec.base.secret import Secret

STREAM_TIMEOUTS = 12
"""A streamed answer as a whole may take this many times the timeout of one packet."""

_FINE = Message.serialize({"success": "yes"})
"""charon's answer to nearly every command; thousands of them need not be decoded."""


def bare_requests(*commands: str) -> list[Secret]:
    """Commands without a message."""
    # a command name alone always fits, so None cannot occur
    return [request for command in commands if (request := encode_request(command, {})) is not None]


def stream(command: str, event: str) -> list[Secret]:
    """A command whose answer is a stream of events, and what begins and ends their coming."""
    return [encode_registration(event), *bare_requests(command), encode_registration(event, register=False)]


def _received(session: Session, command: str) -> Received:
    """The next command's answer as it came. Stray events are passed over."""
    deadline = time.monotonic() + session.timeout
    while (received := session.receive(deadline)).kind == Packet.EVENT:
        pass
    if received.kind not in (Packet.CMD_RESPONSE, Packet.CMD_UNKNOWN):
        raise session.out_of_step(received, command)
    return received


def raw_answer(session: Session, command: str) -> Received:
    """The answer to a command that every charon knows."""
    received = _received(session, command)
    if received.kind == Packet.CMD_UNKNOWN:
        raise session.malformed(command, "is that charon does not know it")
    return received


def decoded(session: Session, received: Received, command: str) -> dict[str, Any]:
    """An answer's message."""
    try:
        return session.decode(received)
    except UnicodeDecodeError as err:
        raise session.malformed(command, "has a name that is not UTF-8") from err


def answer_of(session: Session, command: str) -> dict[str, Any] | None:
    """The next command's answer; None: charon does not know the command."""
    received = _received(session, command)
    return None if received.kind == Packet.CMD_UNKNOWN else decoded(session, received, command)


def outcome(session: Session, command: str, item: str) -> CharonRefused | None:
    """The next answer as a result: None for success."""
    received = _received(session, command)
    if received.kind == Packet.CMD_RESPONSE and received.payload == _FINE:
        return None
    unknown = received.kind == Packet.CMD_UNKNOWN
    return refusal(command, item, None if unknown else decoded(session, received, command))


def require_field(session: Session, command: str, name: str) -> dict[str, Any]:
    """The next command's answer, which must say this."""
    answer = decoded(session, raw_answer(session, command), command)
    if name not in answer:
        raise session.malformed(command, f"lacks {name}")
    return answer


def collect(session: Session, command: str, event: str) -> list[Received]:
    """The events that ``stream(command, event)`` brings."""
    _confirmed(session, event)
    events: list[Received] = []
    end = time.monotonic() + STREAM_TIMEOUTS * session.timeout
    while (received := session.receive(min(end, time.monotonic() + session.timeout))).kind == Packet.EVENT:
        if received.event == event:
            events.append(received)
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


def refusal(command: str, item: str, answer: dict[str, Any] | None) -> CharonRefused | None:
    """The refusal in an answer, None for success; ``answer`` None: charon does not know it."""
    if answer is None:
        return CharonRefused(command, item, "charon does not know this command")
    if answer.get("success", b"yes") == b"yes":
        return None
    return CharonRefused(command, item, text(answer, "errmsg") or "no reason given")


def too_long(command: str, item: str) -> CharonRefused:
    """The refusal of a message that VICI cannot carry."""
    return CharonRefused(command, item, "longer than VICI can carry (65,535 bytes a value, 255 a name)")


def item_of(message: Mapping[str, Any]) -> str:
    """The object that a message is about: ``id`` (secrets), ``name`` (unloading), else its first section's name."""
    for name in ("id", "name", "ike", "child"):
        value = message.get(name)
        if isinstance(value, bytes):
            return as_text(value)
        if isinstance(value, str):
            return value
    return next((name for name, value in message.items() if isinstance(value, Mapping)), "")
