"""Resolves names to addresses in the background.

Law: the loop never waits for DNS, which may be down or may itself need the network that we protect. Answers are remembered; a name that fails
keeps its last good one, since forgetting it would open or close a portal for
a DNS outage.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from iscsi_ipsec.base.addresses import Address, is_of_one_host, parse_address

REASON = "names"

MAX_NAME = 1025
"""NI_MAXHOST."""
MAX_ANSWER = 64 * 1024
"""A thousand addresses, and more than any portal has."""
HELPER_TIMEOUT = 30.0
"""The C library's own time-outs end before."""

Resolve = Callable[[str], Iterable[Address]]


@dataclass(frozen=True, slots=True)
class ResolveFailure:
    """A name that never had an answer, and why."""

    name: str
    reason: str


Answer = tuple[Address, ...] | ResolveFailure | None
"""Addresses in a stable order; a failure; None while the first look-up runs."""


def system_resolve(name: str) -> tuple[Address, ...]:
    """Ask as open-iscsi does, with getaddrinfo(3). Raises :class:`OSError`.

    What is no host's address is left out (see :func:`_of_hosts`), IPv4-mapped ones come as IPv4.
    """
    answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    found = (parse_address(str(sockaddr[0])) for _, _, _, _, sockaddr in answers)
    return tuple(_of_hosts(address for address in found if address))


def _of_hosts(found: Iterable[Address]) -> set[Address]:
    """The addresses without link-local ones, whose links no policy can distinguish, and without those of many hosts or none."""
    return {a for a in found if is_of_one_host(a) and not (a.version == 6 and a.is_link_local)}


def resolve_through(path: str, name: str) -> tuple[Address, ...]:
    """Ask ``iscsi-ipsec-names.service`` at its socket; where there is none, look up here. Raises :class:`OSError`.

    Its answer is not trusted: it has talked to the network.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as helper:
        helper.settimeout(HELPER_TIMEOUT)
        try:
            helper.connect(path)
        except FileNotFoundError:
            return system_resolve(name)
        helper.sendall(name.encode("idna" if not name.isascii() else "ascii") + b"\n")
        answer = b""
        while data := helper.recv(MAX_ANSWER):
            answer += data
            if len(answer) > MAX_ANSWER:
                raise OSError("the answer is too long")
    return addresses_in(answer.decode("utf-8", "backslashreplace"))


def addresses_in(answer: str) -> tuple[Address, ...]:
    """The addresses of an answer; :class:`OSError` where there is none, or anything else."""
    found = []
    for line in answer.splitlines():
        kind, _, rest = line.partition(" ")
        if kind != "address":
            raise OSError(ascii(rest)[1:-1][:200] or "no answer")
        address = parse_address(rest)
        if address is None:
            raise OSError("the answer holds no address")
        found.append(address)
    return tuple(_of_hosts(found))


@dataclass(slots=True)
class _Name:
    addresses: tuple[Address, ...] = ()
    failure: ResolveFailure | None = None
    asked: float | None = None
    """When the look-up that runs was queued; None: none runs."""
    answered: float | None = None
    """When the last look-up ended, whether it failed or not."""


class Resolver:
    """Looks names up in a few threads. The methods are for one thread and never block."""

    def __init__(
        self,
        wake: Callable[[str], None],
        *,
        ttl: float = 60.0,
        retry: float = 5.0,
        timeout: float = 10.0,
        threads: int = 4,
        remembered: Mapping[str, tuple[Address, ...]] = MappingProxyType({}),
        resolve: Resolve = system_resolve,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``ttl``: seconds an answer counts before it is asked for again; ``retry``: the same for a failure.

        ``timeout``: seconds without an answer until a name counts as failed; the look-up itself runs on.
        ``remembered``: answers of an earlier run, which count until there is a newer one.
        """
        self._wake = wake
        self._ttl, self._retry, self._timeout = ttl, retry, timeout
        self._max_threads = threads
        self._remembered = remembered
        self._resolve = resolve
        self._clock = clock
        self._lock = threading.Lock()
        self._names: dict[str, _Name] = {}
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._stopped = False

    def lookup(self, names: Iterable[str], *, anew: bool = False) -> Mapping[str, Answer]:
        """The known answers for ``names``; unknown and old ones (with ``anew``: all) are looked up.

        Give all names that matter: the others are forgotten. A changed answer
        wakes with ``names``.
        """
        now = self._clock()
        wanted = set(names)
        with self._lock:
            self._names = {
                name: self._names.get(name) or _Name(self._remembered.get(name, ())) for name in wanted
            }
            for name, entry in self._names.items():
                if entry.asked is not None:
                    if now - entry.asked >= self._timeout and entry.failure is None:
                        entry.failure = ResolveFailure(name, f"no answer within {self._timeout:g} s")
                elif (
                    anew
                    or entry.answered is None
                    or now - entry.answered >= (self._retry if entry.failure else self._ttl)
                ):
                    self._ask(name, entry, now)
            return {name: entry.addresses or entry.failure for name, entry in self._names.items()}

    def failures(self) -> tuple[ResolveFailure, ...]:
        """Names whose last look-up failed, also those that keep an older answer."""
        with self._lock:
            return tuple(entry.failure for _, entry in sorted(self._names.items()) if entry.failure)

    def stop(self) -> None:
        """End the threads; one that hangs in the system's resolver ends with the process."""
        with self._lock:
            self._stopped = True
            for _ in self._threads:
                self._queue.put(None)

    def _ask(self, name: str, entry: _Name, now: float) -> None:
        if self._stopped:
            return
        entry.asked = now
        self._queue.put(name)
        if self._queue.qsize() > self._idle and len(self._threads) < self._max_threads:
            thread = threading.Thread(target=self._work, name=f"resolver-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            name = self._queue.get()
            with self._lock:
                self._idle -= 1
                if name is None or self._stopped:
                    return
            self._keep(name, self._answer(name))

    def _answer(self, name: str) -> tuple[Address, ...] | ResolveFailure:
        try:
            found = set(self._resolve(name))
        except (OSError, UnicodeError) as err:  # UnicodeError: the idna codec on labels that are too long
            return ResolveFailure(name, (err.strerror if isinstance(err, OSError) else "") or str(err))
        if not found:
            return ResolveFailure(name, "the name has no address")
        return tuple(sorted(found, key=lambda a: (a.version, int(a))))

    def _keep(self, name: str, answer: tuple[Address, ...] | ResolveFailure) -> None:
        with self._lock:
            entry = self._names.get(name)
            if entry is None:
                return  # forgotten meanwhile
            before = (entry.addresses, entry.failure)
            entry.asked, entry.answered = None, self._clock()
            if isinstance(answer, ResolveFailure):
                entry.failure = answer
            else:
                entry.addresses, entry.failure = answer, None
            changed = before != (entry.addresses, entry.failure)
        if changed and not self._stopped:
            self._wake(REASON)
