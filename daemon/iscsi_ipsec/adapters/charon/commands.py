"""The command session: lists charon's contents and SAs, and changes them.

Law: it decides nothing. Callers hand over complete messages and get frozen
values back. VICI answers carry no request ids, so a session on which anything
went wrong is closed and the next call dials again: it can never read the
answer of an earlier call. No event is ever subscribed to here but those that a
command streams as its answer.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from iscsi_ipsec.adapters.charon.answers import (
    answer_of,
    bare_requests,
    collect,
    decoded,
    item_of,
    outcome,
    raw_answer,
    refusal,
    require_field,
    stream,
    too_long,
)
from iscsi_ipsec.adapters.charon.state import parse_ike_sa
from iscsi_ipsec.adapters.charon.wire import (
    Received,
    Session,
    encode_request,
    subsection,
    text,
    texts,
)
from iscsi_ipsec.base.charon_sa import CharonState, IkeSa
from iscsi_ipsec.base.errors import CharonRefused

OWN_PREFIX = "iscsi-ipsec-"
"""The prefix of the names of our connections, children and secrets."""

_OWN = OWN_PREFIX.encode()

WINDOW = 64
"""Requests written as one piece. The next piece is written before the answers to this one are
read: charon works on it while we read, and never waits for us."""

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
        self._conns: dict[bytes, _Conns] = {}
        self._listed: _Listed | None = None
        self._secrets: tuple[bytes, frozenset[str]] | None = None
        self._seen: tuple[object, CharonState] | None = None
        self._algorithms: frozenset[str] | None = None

    def observe(self, *, thorough: bool = True) -> CharonState:
        """The contents of charon; the same object as long as charon's answers are the same.

        Not ``thorough``: connections are taken to be as they were listed last as long as charon has
        the same ones by name. A list with all their settings costs as much as everything else.
        """
        return self._on_session(lambda session: self._observe(session, thorough))

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
        self._listed = self._algorithms = None  # the next one may be another charon's

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
                return too_long(command, item), {}
            session.send([request])
            answer = answer_of(session, command)
            return refusal(command, item, answer), answer or {}

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
                        (command, item_of(message), request is not None)
                        for (command, message), request in zip(window, requests, strict=True)
                    ]
                )
            if not under_way:
                return tuple(results)
            if window and len(under_way) == 1:
                continue
            for command, item, sent in under_way.popleft():
                refused = outcome(session, command, item) if sent else too_long(command, item)
                results.append(refused)
            progress()

    def _observe(self, session: Session, thorough: bool) -> CharonState:
        listing = stream("list-conns", "list-conn") if thorough or self._listed is None else []
        session.send(
            [
                *bare_requests(
                    *(["get-algorithms"] if self._algorithms is None else []), "stats", "get-conns"
                ),
                *listing,
                *bare_requests("get-shared", "version"),
            ]
        )
        if self._algorithms is None:
            self._algorithms = _named_in(answer_of(session, "get-algorithms") or {})
        plugins = frozenset(texts(require_field(session, "stats", "plugins"), "plugins"))
        # names are asked for before the list: a change in between makes them differ next time
        names = raw_answer(session, "get-conns").payload
        listed = self._list(session, names) if listing else self._listed
        secrets, answer = self._own_secrets(session)
        version = text(require_field(session, "version", "version") if answer is None else answer, "version")
        if listed is None or listed.names != names:
            session.send(stream("list-conns", "list-conn"))
            listed = self._list(session, names)
        self._listed = listed
        # there are thousands of names; an answer of the same bytes gives the same value
        said = (version, plugins, secrets, listed.conns, listed.foreign, self._algorithms)
        if self._seen is None or self._seen[0] != said:
            state = CharonState(
                version=version,
                plugins=plugins,
                secrets=secrets,
                conns=listed.conns,
                foreign_conns=listed.foreign,
                algorithms=self._algorithms,
            )
            self._seen = said, state
        return self._seen[1]

    def _list(self, session: Session, names: bytes) -> _Listed:
        """All connections with their children, from the stream under way; equal events are decoded once."""
        events = collect(session, "list-conns", "list-conn")
        digests = tuple(_digest(event.payload) for event in events)
        if self._listed is not None and self._listed.digests == digests:
            return self._listed if self._listed.names == names else replace(self._listed, names=names)
        self._conns = {
            digest: self._conns.get(digest) or _connections(session, event)
            for digest, event in zip(digests, events, strict=True)
        }
        conns: dict[str, frozenset[str]] = {}
        foreign = 0
        for digest in digests:
            ours, others = self._conns[digest]
            foreign += others
            for name, children in ours:
                conns[name] = conns[name] | children if name in conns else children
        return _Listed(names, digests, MappingProxyType(conns), foreign)

    def _own_secrets(self, session: Session) -> tuple[frozenset[str] | None, Mapping[str, Any] | None]:
        """The ids of our secrets, or None and the answer that came in place of this one.

        charon drops an answer over 512 KiB without a word, and goes on with the next request.
        """
        received = raw_answer(session, "get-shared")
        payload = received.payload
        known = self._secrets
        if known is None or known[0] != payload:
            answer = decoded(session, received, "get-shared")
            if "version" in answer:
                self._secrets = None
                return None, answer
            if "keys" not in answer:
                raise session.malformed("get-shared", "lacks keys")
            ids = frozenset(name for name in texts(answer, "keys") if name.startswith(OWN_PREFIX))
            self._secrets = known = payload, ids
        return known[1], None

    def _sas(self, session: Session) -> tuple[IkeSa, ...]:
        session.send(stream("list-sas", "list-sa"))
        sas = []
        for received in collect(session, "list-sas", "list-sa"):
            event = _event(session, received) or {}
            for name in event:
                if not name.startswith(OWN_PREFIX):
                    continue
                try:
                    sas.append(parse_ike_sa(name, subsection(event, name)))
                except ValueError as err:
                    raise session.malformed("list-sas", f"has a value we cannot read: {err}") from err
        return tuple(sas)


_Conns: TypeAlias = tuple[tuple[tuple[str, frozenset[str]], ...], int]
"""Our connections that an event names, with their children, and the number of others."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """A list of all connections. ``names``: what ``get-conns`` said right before; ``digests``: of the events."""

    names: bytes
    digests: tuple[bytes, ...]
    conns: Mapping[str, frozenset[str]]
    foreign: int


def _named_in(answer: Mapping[str, Any]) -> frozenset[str]:
    """The algorithms that ``get-algorithms`` names, of every kind."""
    return frozenset(name for kind in answer for name in subsection(answer, kind))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _connections(session: Session, received: Received) -> _Conns:
    event = _event(session, received)
    if event is None:
        return (), 1
    ours = tuple(
        (name, frozenset(subsection(subsection(event, name), "children")))
        for name in event
        if name.startswith(OWN_PREFIX)
    )
    return ours, len(event) - len(ours)


def _event(session: Session, received: Received) -> dict[str, Any] | None:
    """An event's message; None: it does not concern us, and may even have a name that is not UTF-8.

    Such a name must not keep us from seeing the others.
    """
    if _OWN not in received.payload:
        return None
    try:
        return session.decode(received)
    except UnicodeDecodeError:
        return None
