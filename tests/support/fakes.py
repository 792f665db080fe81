"""Plain fakes behind the ports of ``service``: they hold state, count calls, and fail when a test says so.

No fake decides anything. What charon, the kernel and nft really do is tested with the real ones
(tests/wire, tests/real, tests/vm).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from iscsi_ipsec.adapters.nft import GuardState
from iscsi_ipsec.adapters.openiscsi import Records
from iscsi_ipsec.adapters.resolver import Answer, ResolveFailure
from iscsi_ipsec.adapters.state_db import LastGood, ManagedRecord
from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.charon_sa import CharonState, IkeSa
from iscsi_ipsec.base.errors import CharonRefused, CharonUnavailable, KernelUnavailable, StateUnavailable
from iscsi_ipsec.base.iscsi import IscsiSession, NodeRecord
from iscsi_ipsec.base.keys import GroupKey, Key, PerIdKey
from iscsi_ipsec.base.policy import PortalPolicy, Role
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.base.xfrm import KernelPolicy, KernelState
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.guard.ruleset import parse_elements
from iscsi_ipsec.service.config_files import ConfigFiles
from tests.support.values import DIGEST_KEY, SOURCE, address

AWAY = CharonUnavailable("/run/charon.vici", "connection refused")
NO_BUFFERS = KernelUnavailable("rtnetlink: no buffer space available")
READ_ONLY = StateUnavailable("/var/lib/iscsi-ipsec/state.db", "read-only file system")


class FakeClock:
    """A clock that moves only when the test moves it."""

    def __init__(self, at: float = 1000.0) -> None:
        self.at = at

    def monotonic(self) -> float:
        return self.at

    def unix_ns(self) -> int:
        return int((1_800_000_000 + self.at) * 10**9)

    def advance(self, seconds: float) -> None:
        self.at += seconds


class Fake:
    """Counts calls; ``errors`` maps a method's name to what it raises, ``slow`` to the seconds it takes."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.errors: dict[str, Exception] = {}
        self.slow: dict[str, float] = {}
        self.calls = Counter[str]()

    def _call(self, method: str) -> None:
        self.calls[method] += 1
        self.clock.advance(self.slow.get(method, 0.0))
        if method in self.errors:
            raise self.errors[method]

    def fail(self, error: Exception, *methods: str) -> None:
        """These methods raise it from now on."""
        self.errors.update(dict.fromkeys(methods, error))

    def recover(self) -> None:
        """Nothing fails and nothing is slow any more."""
        self.errors.clear()
        self.slow.clear()


class FakeCharon(Fake):
    """Holds names as charon does; ``refuses`` maps an item's name to the reason.

    ``refuses_proposal``: an ESP proposal that no connection is taken with.
    ``breaks_after``: the number of messages of one :meth:`apply` that have an effect before it fails.
    """

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.secrets: set[str] = set()
        self.conns: dict[str, frozenset[str]] = {}
        self.messages: dict[str, Mapping[str, Any]] = {}
        self.sas_now: tuple[IkeSa, ...] = ()
        self.plugins: frozenset[str] = frozenset()
        self.algorithms: frozenset[str] = frozenset()
        self.refuses: dict[str, str] = {}
        self.refuses_proposal = ""
        self.breaks_after: int | None = None
        self.log: list[tuple[str, str]] = []

    def observe(self, *, thorough: bool = True) -> CharonState:
        self._call("observe")
        return CharonState(
            version="5.9.8", plugins=self.plugins, secrets=frozenset(self.secrets), conns=dict(self.conns),
            foreign_conns=0, algorithms=self.algorithms,
        )  # fmt: skip

    def sas(self) -> tuple[IkeSa, ...]:
        self._call("sas")
        return self.sas_now

    def apply(
        self, messages: Iterable[tuple[str, Mapping[str, Any]]], progress: Callable[[], None] = lambda: None
    ) -> tuple[CharonRefused | None, ...]:
        self._call("apply")
        results: list[CharonRefused | None] = []
        for number, (command, message) in enumerate(messages):
            if number == self.breaks_after:
                raise AWAY
            item = str(message.get("id") or message.get("name") or next(iter(message)))
            self.log.append((command, item))
            reason = self.refuses.get(item) or self._mistake(command, message.get(item))
            refused = CharonRefused(command, item, reason) if reason else None
            results.append(refused)
            if refused is None:
                self._take(command, item, message)
        return tuple(results)

    def _mistake(self, command: str, settings: Any) -> str:
        if command != "load-conn" or not self.refuses_proposal:
            return ""
        proposals = [p for child in settings["children"].values() for p in child["esp_proposals"]]
        return "invalid value for: esp_proposals" if self.refuses_proposal in proposals else ""

    def _take(self, command: str, item: str, message: Mapping[str, Any]) -> None:
        match command:
            case "load-shared":
                self.secrets.add(item)
            case "unload-shared":
                self.secrets.discard(item)
            case "load-conn":
                self.messages[item] = message[item]
                self.conns[item] = frozenset(message[item]["children"])
            case "unload-conn":
                self.conns.pop(item, None)

    def initiate(self, conn: str, child: str) -> None:
        self._call("initiate")
        self.log.append(("initiate", conn))
        if child not in self.conns.get(conn, ()):
            raise CharonRefused("initiate", child, "no such child")

    def terminate(
        self,
        *,
        ike: str | None = None,
        ike_id: int | None = None,
        child_id: int | None = None,
        force: bool = False,
    ) -> int:
        self._call("terminate")
        self.log.append(("terminate", f"ike {ike_id}" if ike_id is not None else f"child {child_id}"))
        before = len(self.sas_now)
        self.sas_now = tuple(
            replace(sa, children=tuple(c for c in sa.children if c.unique_id != child_id))
            for sa in self.sas_now
            if sa.unique_id != ike_id
        )
        return before - len(self.sas_now)

    def close(self) -> None:
        self._call("close")

    def ended(self) -> list[str]:
        """The terminated SAs, in order."""
        return [item for command, item in self.log if command == "terminate"]

    def commands(self) -> list[str]:
        """The commands so far, in order."""
        return [command for command, _ in self.log]

    def without_log(self) -> contextlib.AbstractContextManager[None]:
        self.calls["without_log"] += 1
        return contextlib.nullcontext()


class FakeXfrm(Fake):
    """The SPD and the SAD as a test sets them."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.policies_now: tuple[KernelPolicy, ...] = ()
        self.states_now: tuple[KernelState, ...] = ()

    def policies(self) -> tuple[KernelPolicy, ...]:
        self._call("policies")
        return self.policies_now

    def states(self) -> tuple[KernelState, ...]:
        self._call("states")
        return self.states_now


class FakeRouting(Fake):
    """Everything is reached from SOURCE (IPv6: fd00::1) but for ``sources``; ``unanswered`` look-ups fail."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.sources: dict[tuple[Address, str], Address | None] = {}
        self.devices: dict[Address, str] = {}
        self.unanswered: dict[Address, Exception] = {}
        self.interfaces: dict[str, str] = {}
        self.local: frozenset[Address] = frozenset({address(SOURCE), address("fd00::1")})

    def source_for(self, address_: Address, oif_name: str = "") -> Address | None:
        self._call("source_for")
        if address_ in self.unanswered:
            raise self.unanswered[address_]
        return self.sources.get((address_, oif_name), address(SOURCE if address_.version == 4 else "fd00::1"))

    def device_for(self, address_: Address) -> str | None:
        self._call("device_for")
        return self.devices.get(address_, "eth0")

    def local_addresses(self) -> frozenset[Address]:
        self._call("local_addresses")
        return self.local

    def iface_by_hwaddress(self, mac: str) -> str | None:
        self._call("iface_by_hwaddress")
        return self.interfaces.get(mac)

    def close(self) -> None:
        self._call("close")


class FakeFirewall(Fake):
    """Holds the text that was loaded last. ``text`` empty: there is no table."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.text = ""

    def load(self, text: str) -> None:
        self._call("load")
        self.text = text

    def installed(self) -> GuardState | None:
        self._call("installed")
        return guard_state(self.text) if self.text else None

    def delete(self) -> None:
        self._call("delete")
        self.text = ""

    def closed(self) -> frozenset[Portal]:
        """The remote portals that the table holds closed."""
        return frozenset(parse_elements(self.text)[0])


def guard_state(text: str) -> GuardState:
    """The kernel's state after a text was loaded; two different texts are two states."""
    remote, own = parse_elements(text)
    sets = {
        f"{kind}{version}": frozenset(p for p in portals if p.address.version == version)
        for kind, portals in (("portals", remote), ("served", own))
        for version in (4, 6)
    }
    return GuardState(
        sets=sets,
        reqids={},
        other_elements={},
        definitions=frozenset({text}),
        rules={},
        dropped={"output": 0},
    )


class FakeNames(Fake):
    """``answers`` are given at once; a name without one is unknown yet."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.answers: dict[str, Answer] = {}
        self.failed: tuple[ResolveFailure, ...] = ()

    def lookup(self, names: Iterable[str], *, anew: bool = False) -> Mapping[str, Answer]:
        self._call("lookup anew" if anew else "lookup")
        return {name: self.answers.get(name) for name in names}

    def failures(self) -> tuple[ResolveFailure, ...]:
        return self.failed

    def stop(self) -> None:
        self._call("stop")


class FakeOpenIscsi(Fake):
    """Records and sessions as a test sets them."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.found = Records()
        self.firmware_records: tuple[NodeRecord, ...] = ()
        self.sessions_now: tuple[IscsiSession, ...] = ()

    def records(self, dirs: Sequence[str]) -> Records:
        self._call("records")
        return self.found

    def firmware(self) -> tuple[NodeRecord, ...]:
        return self.firmware_records

    def sessions(self) -> tuple[IscsiSession, ...]:
        self._call("sessions")
        return self.sessions_now


class FakeStore(Fake):
    """A database in memory."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.problems: tuple[Problem, ...] = ()
        self.renewals = 0
        self.fresh = True
        self.files: dict[str, LastGood] = {}
        self.portals: dict[tuple[Portal, Role], ManagedRecord] = {}
        self.addresses: Mapping[str, tuple[Address, ...]] = {}
        self.numbers: dict[str, int] = {}

    def repair(self) -> None:
        self._call("repair")

    def all_last_good(self) -> Mapping[str, LastGood]:
        self._call("all_last_good")
        return dict(self.files)

    def put_last_good(self, items: Iterable[LastGood]) -> None:
        self._call("put_last_good")
        self.files.update({item.path: item for item in items})

    def drop_last_good(self, paths: Iterable[str]) -> None:
        self._call("drop_last_good")
        for path in paths:
            self.files.pop(path, None)

    def managed(self) -> Mapping[tuple[Portal, Role], ManagedRecord]:
        self._call("managed")
        return dict(self.portals)

    def set_managed(self, records: Iterable[ManagedRecord]) -> None:
        self._call("set_managed")
        self.portals.update({(record.portal, record.role): record for record in records})

    def drop_managed(self, portals: Iterable[Portal]) -> None:
        self._call("drop_managed")
        dropped = set(portals)
        self.portals = {at: record for at, record in self.portals.items() if at[0] not in dropped}

    def names(self) -> Mapping[str, tuple[Address, ...]]:
        self._call("names")
        return dict(self.addresses)

    def set_names(self, names: Mapping[str, tuple[Address, ...]]) -> None:
        self._call("set_names")
        self.addresses = dict(names)

    def reqids(self) -> Mapping[str, int]:
        self._call("reqids")
        return dict(self.numbers)

    def set_reqids(self, reqids: Mapping[str, int]) -> None:
        self._call("set_reqids")
        self.numbers.update(reqids)

    def digest_key(self) -> bytes:
        self._call("digest_key")
        return DIGEST_KEY


class FakeFiles(Fake):
    """The admin's files as values; :meth:`put` is an edit."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.opened = 0
        self.says = ConfigFiles(
            generation=1, settings=Settings(), keys=(), policies=(), broken=(), rows=(), problems=(), watched=()
        )  # fmt: skip

    def put(self, *parts: Key | PortalPolicy, **more: Any) -> None:
        """From now on the files hold these keys and policies (and ``settings``, ``broken``, ``expires_in``)."""
        self.says = replace(
            self.says,
            generation=self.says.generation + 1,
            keys=tuple(p for p in parts if isinstance(p, PerIdKey | GroupKey)),
            policies=tuple(p for p in parts if isinstance(p, PortalPolicy)),
            **more,
        )

    def read(self, *, all_files: bool = True) -> ConfigFiles:
        self._call("read")
        return self.says

    def read_settings(self) -> Settings:
        return self.says.settings

    def forget(self) -> None:
        self._call("forget")

    def save(self) -> Problem | None:
        self._call("save")
        return None


class FakeWatch(Fake):
    """``new``: what :meth:`ensure` answers next."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.problems: tuple[Problem, ...] = ()
        self.new = False
        self.watched: list[frozenset[tuple[str, bool]]] = []

    def ensure(self, paths: Iterable[tuple[str, bool]]) -> bool:
        self._call("ensure")
        self.watched.append(frozenset(paths))
        return self.new

    def stop(self) -> None:
        self._call("stop")


class FakeWakeups:
    """Wakeups at set moments of a fake clock; waiting moves the clock."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.coming: list[tuple[float, str]] = []
        self._next = 0
        self.waits: list[float] = []

    def at(self, moment: float, *reasons: str) -> None:
        """Wake at this moment of the clock; moments are given in their order."""
        self.coming += [(moment, reason) for reason in reasons]

    def wait(self, timeout: float) -> frozenset[str]:
        self.waits.append(timeout)
        end = self.clock.at + timeout
        if self._next == len(self.coming) or self.coming[self._next][0] > end:
            self.clock.at = end
            return frozenset()
        self.clock.at = max(self.clock.at, self.coming[self._next][0])
        woken = set()
        while self._next < len(self.coming) and self.coming[self._next][0] <= self.clock.at:
            woken.add(self.coming[self._next][1])
            self._next += 1
        return frozenset(woken)


class FakeServiceManager(Fake):
    """Takes down what systemd is notified of."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.units = {"strongswan.service": "active"}
        self.interval: float | None = None
        self.said: list[tuple[str, str]] = []
        self.pings: list[float] = []

    def ready(self, status: str) -> None:
        self.said.append(("ready", status))

    def status(self, text: str) -> None:
        self.said.append(("status", text))

    def stopping(self, status: str) -> None:
        self.said.append(("stopping", status))

    def watchdog(self) -> None:
        self.pings.append(self.clock.at)

    def watchdog_interval(self) -> float | None:
        return self.interval

    def charon_units(self) -> Mapping[str, str]:
        self._call("charon_units")
        return self.units


def silences(pings: Iterable[float], until: float) -> Iterator[float]:
    """The pauses between pings, the last one up to ``until``."""
    moments = [*pings, until]
    return (after - before for before, after in pairwise(moments))
