"""One pass: look at everything, decide, make charon and the kernel agree, tell.

Law: level-triggered. Nothing is done because something happened; a pass
compares what is wanted with what is, and whatever was missed, wiped or
meddled with is put right. The few things remembered between passes are
caches, or listed in :class:`Reconciler`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from iscsi_ipsec.adapters import kernel, openiscsi
from iscsi_ipsec.adapters.charon import Charon
from iscsi_ipsec.adapters.filewrite import write_private
from iscsi_ipsec.adapters.guard import Guard, GuardState
from iscsi_ipsec.adapters.netlink import GuardMonitor, RouteMonitor, Routes
from iscsi_ipsec.adapters.resolver import ResolveFailure, Resolver
from iscsi_ipsec.adapters.store import ManagedRecord, Store
from iscsi_ipsec.base.errors import CharonRefused, CharonUnavailable, KernelUnavailable, StateUnavailable
from iscsi_ipsec.base.model import Address, NodeRecord, Portal, Problem, Role, Severity, Start
from iscsi_ipsec.base.sa import CharonState, IkeSa
from iscsi_ipsec.core import nft
from iscsi_ipsec.core.derive import derive
from iscsi_ipsec.core.desired import Desired
from iscsi_ipsec.core.messages import SpelledConnection, SpelledSecret, spell_connection, spell_secret
from iscsi_ipsec.core.plan import Operation, plan
from iscsi_ipsec.core.status import Observed
from iscsi_ipsec.core.upkeep import (
    Attempts,
    Initiate,
    SaOperation,
    TerminateChild,
    TerminateIke,
    Upheld,
    next_due,
    plan_sas,
)
from iscsi_ipsec.core.world import Lookup, World, wanted_names, wanted_sources
from iscsi_ipsec.shell.evidence import Evidence
from iscsi_ipsec.shell.inventory import FileReader, Inventory
from iscsi_ipsec.shell.paths import Paths

_log = logging.getLogger(__name__)

ROUTE_REASONS = frozenset({RouteMonitor.reason, "start", "resync", "reload"})
GUARD_REASONS = frozenset({GuardMonitor.reason, "start", "resync", "reload"})

LARVAL_GRACE = 2
"""Seconds that charon is left alone with an acquire before we initiate ourselves."""

UNSETTLED_LOOK = 0.2
"""Seconds until charon's unit is asked again whether it has finished starting."""

UNSETTLED_AT_MOST = 20.0
"""Seconds after which a unit that still starts is loaded all the same; what it wipes is loaded again."""

AFTERLOOK = 2.0
"""Seconds after which a change is looked at once more: a late swanctl --load-all makes no event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a pass saw and decided, before it changed anything."""

    inventory: Inventory
    world: World
    desired: Desired
    secrets: tuple[SpelledSecret, ...]
    connections: tuple[SpelledConnection, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a pass left behind. ``look_again`` is in seconds."""

    look: Look
    observed: Observed
    charon: CharonState | None
    guard: GuardState | None
    problems: tuple[Problem, ...]
    operations: tuple[Operation, ...]
    settled: bool
    look_again: float
    counters: _Counters


@dataclass(slots=True)
class _Counters:
    """What was done since the start, for tests, benchmarks and metrics."""

    passes: int = 0
    vici_writes: int = 0
    guard_loads: int = 0
    initiations: int = 0
    failures: dict[str, int] = field(default_factory=dict)


class Reconciler:
    """Runs passes. Main thread only.

    Remembered between passes: attempts to bring SAs up (their backoff), the
    keys that connections had (so that a removed key's SAs end at once), the
    guard's state as it was loaded, and caches of look-ups.
    """

    def __init__(
        self,
        *,
        paths: Paths,
        reader: FileReader,
        store: Store,
        charon: Charon,
        guard: Guard,
        routes: Routes,
        resolver: Resolver,
        evidence: Evidence,
        charon_settled: Callable[[], bool],
        fast_aes: bool,
        plugins: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths, self._reader, self._store = paths, reader, store
        self._charon, self._guard, self._routes = charon, guard, routes
        self._resolver, self._evidence = resolver, evidence
        self._charon_settled, self._fast_aes, self._clock = charon_settled, fast_aes, clock
        self._records = openiscsi.RecordCache()
        self._sources: dict[tuple[Address, str], Address | None] = {}
        self._local: frozenset[Address] = frozenset()
        self._held: dict[Portal, ManagedRecord] | None = None
        self._plugins = plugins
        self._attempts: dict[str, Attempts] = {}
        self._keys_used: dict[str, tuple[str, str]] = {}
        self._revoked: frozenset[str] = frozenset()
        self._unsettled_since: float | None = None
        self._guard_text = ""
        self._guard_state: GuardState | None = None
        self.counters = _Counters()

    # -- looking

    def nodes_dirs(self, inventory: Inventory) -> tuple[str, ...]:
        """Where open-iscsi's databases are: the option, the settings, or both usual places."""
        return self._paths.nodes_dirs or inventory.settings.nodes_dirs or ("/etc/iscsi", "/var/lib/iscsi")

    def look(self, reasons: frozenset[str]) -> Look:
        """Read everything and decide; changes nothing outside of caches."""
        inventory = self._reader.read()
        problems: list[Problem] = [*inventory.problems, *self._store.problems]
        records = openiscsi.read_records(self.nodes_dirs(inventory), self._records)
        problems.extend(records.problems)
        if reasons & ROUTE_REASONS or not self._local:
            self._sources.clear()
            self._local = self._local_addresses(problems)
        bound = tuple(self._bound(record) for record in records.records)
        world = World(
            settings=inventory.settings,
            keys=inventory.keys,
            policies=inventory.policies,
            records=(*bound, *openiscsi.read_firmware(self._paths.sysfs_dir)),
            sessions=openiscsi.read_sessions(self._paths.sysfs_dir),
            local_addresses=self._local,
            held=frozenset((r.portal, r.role) for r in self._held_records(problems).values()),
            user_space_esp="kernel-libipsec" in self._plugins,
            fast_aes=self._fast_aes,
        )
        world = dataclasses.replace(world, names=self._names(world, problems))
        lookup = Lookup(world)
        world = dataclasses.replace(world, sources=self._source_addresses(lookup, problems))
        lookup = Lookup(world)
        desired = derive(lookup)
        digest_key = self._store.digest_key()
        return Look(
            inventory=inventory,
            world=world,
            desired=desired,
            secrets=tuple(spell_secret(entry, digest_key) for entry in desired.secrets),
            connections=tuple(spell_connection(c, digest_key) for c in desired.connections),
            problems=(*problems, *desired.problems),
        )

    def _local_addresses(self, problems: list[Problem]) -> frozenset[Address]:
        try:
            return self._routes.local_addresses()
        except KernelUnavailable as err:
            problems.append(_kernel_problem(err))
            return frozenset()

    def _bound(self, record: NodeRecord) -> NodeRecord:
        """Name the interface that open-iscsi will bind to, where the record gives its hardware address."""
        if record.net_ifacename or not record.hwaddress:
            return record
        with contextlib.suppress(KernelUnavailable):
            return dataclasses.replace(
                record, net_ifacename=self._routes.iface_by_hwaddress(record.hwaddress) or ""
            )
        return record

    def _held_records(self, problems: list[Problem]) -> dict[Portal, ManagedRecord]:
        if self._held is None:
            try:
                self._held = dict(self._store.managed())
                if self._store.problems:  # it was damaged: what the guard held was managed
                    self._held |= self._from_guard_file()
            except StateUnavailable as err:
                problems.append(_state_problem(err))
                return {}
        return self._held

    def _from_guard_file(self) -> dict[Portal, ManagedRecord]:
        guarded, served = nft.parse_elements(_read_text(self._paths.guard_file) or "")
        records = [
            ManagedRecord(portal=portal, role=role, since=int(time.time()), why="the guard held it")
            for portals, role in ((guarded, Role.INITIATOR), (served, Role.TARGET))
            for portal in portals
        ]
        self._store.set_managed(records)
        return {record.portal: record for record in records}

    def _names(self, world: World, problems: list[Problem]) -> Mapping[str, tuple[Address, ...]]:
        answers = self._resolver.lookup(wanted_names(world))
        for name, answer in answers.items():
            if isinstance(answer, ResolveFailure):
                problems.append(
                    Problem(
                        code="name-not-resolved",
                        message=f"the name {name} does not resolve ({answer.reason}): its portals cannot be protected yet",
                        hint="write the address, or mend DNS or /etc/hosts",
                    )
                )
        return {name: answer for name, answer in answers.items() if isinstance(answer, tuple)}

    def _source_addresses(
        self, lookup: Lookup, problems: list[Problem]
    ) -> Mapping[tuple[Address, str], Address | None]:
        wanted = wanted_sources(lookup)
        self._sources = {key: value for key, value in self._sources.items() if key in wanted}
        try:
            for address, oif in wanted - self._sources.keys():
                self._sources[address, oif] = self._routes.source_for(address, oif)
        except KernelUnavailable as err:
            problems.append(_kernel_problem(err))
        return dict(self._sources)

    # -- a pass

    def run(self, reasons: frozenset[str]) -> Outcome:
        """One whole pass. Raises only what is a bug."""
        self.counters.passes += 1
        problems: list[Problem] = []
        self._grant_releases(problems)
        look = self.look(reasons)
        guard_state = self._keep_guard(look, reasons, problems)
        self._remember_managed(look, problems)
        state: CharonState | None = None
        sas: tuple[IkeSa, ...] = ()
        operations: tuple[Operation, ...] = ()
        settled = True
        try:
            state = self._charon.observe()
            if state.plugins != self._plugins:
                self._plugins = state.plugins
                look = self.look(frozenset())
            operations = plan(look.secrets, look.connections, state)
            if operations:
                settled = self._has_settled()
                if settled:
                    self._apply(operations, look, problems)
                    state = self._charon.observe()
            if settled:
                sas = self._keep_sas(look, state)
        except CharonUnavailable as err:
            state, settled = None, True
            self._attempts.clear()
            problems.append(
                Problem(
                    code="charon-unreachable",
                    message=f"charon cannot be reached at {err.socket_path}: {err.reason}",
                    hint="systemctl status strongswan; guarded portals stay closed meanwhile",
                )
            )
        if saved := self._reader.save():
            problems.append(saved)
        observed = self._observed(look, state, sas, guard_state)
        return Outcome(
            look=look,
            observed=observed,
            charon=state,
            guard=guard_state,
            problems=tuple(dict.fromkeys((*look.problems, *problems))),
            operations=operations,
            settled=settled,
            look_again=self._look_again(look, bool(operations), settled, state),
            counters=self.counters,
        )

    def _has_settled(self) -> bool:
        """Whether charon's unit is done with starting or reloading, or takes longer than we wait."""
        if self._charon_settled():
            self._unsettled_since = None
            return True
        now = self._clock()
        if self._unsettled_since is None:
            self._unsettled_since = now
        return now - self._unsettled_since > UNSETTLED_AT_MOST

    def _look_again(self, look: Look, changed: bool, settled: bool, state: CharonState | None) -> float:
        if not settled:
            return UNSETTLED_LOOK
        again = look.inventory.settings.resync_interval
        if state is None:
            again = min(again, 1.0)
        if changed:
            again = min(again, AFTERLOOK)
        due = next_due(self._attempts)
        if due is not None:
            again = min(again, max(0.05, due - self._clock()))
        return again

    def _observed(
        self, look: Look, state: CharonState | None, sas: tuple[IkeSa, ...], guard: GuardState | None
    ) -> Observed:
        children = {c.name: c.child for c in look.connections}
        loaded = frozenset(
            c.name for c in look.connections if state and state.conns.get(c.name) == frozenset({c.child})
        )
        if state and not {s.id for s in look.secrets} <= state.secrets:
            missing = {s.id for s in look.secrets} - state.secrets
            pairs = {
                e.owners for e, s in zip(look.desired.secrets, look.secrets, strict=True) if s.id in missing
            }
            loaded -= {c.name for c in look.desired.connections if {c.pair, (c.remote_id,)} & pairs}
        guarded = frozenset(p for portals in guard.sets.values() for p in portals) if guard else frozenset()
        for ike in sas:
            for child in ike.children:
                if child.state == "INSTALLED" and child.child_name == children.get(ike.conn):
                    self._evidence.settle(ike.conn, child.age)
        return Observed(
            sas=sas,
            sessions=look.world.sessions,
            loaded=loaded,
            struggling=frozenset(name for name, attempt in self._attempts.items() if attempt.count > 1),
            guarded=guarded,
            guard_wanted=look.inventory.settings.guard,
            children=children,
            causes=self._evidence.causes(),
            charon_reachable=state is not None,
        )

    # -- the guard

    def _keep_guard(self, look: Look, reasons: frozenset[str], problems: list[Problem]) -> GuardState | None:
        settings = look.inventory.settings
        if not settings.guard:
            self._drop_guard(reasons, problems)
            return None
        text = nft.guard_table(look.desired.guarded, look.desired.served, settings.guard_devices)
        try:
            if text == self._guard_text and self._guard_state is not None:
                if not reasons & GUARD_REASONS:
                    return self._guard_state
                if (now := self._guard.installed()) == self._guard_state:
                    return now
            self._guard.load(text)
            self.counters.guard_loads += 1
            self._guard_state = self._guard.installed()
            if text != self._guard_text:
                _log.info(
                    "guard loaded for %d portals", len(look.desired.guarded) + len(look.desired.served),
                )  # fmt: skip
            else:
                _log.warning("guard was changed by someone else and has been loaded again")
            self._guard_text = text
        except KernelUnavailable as err:
            self._guard_state = None
            problems.append(
                Problem(
                    code="guard-missing",
                    message=f"the guard cannot be loaded, so a lost SA may mean clear text: {err}",
                    hint="is nftables installed, and may this program use it?",
                )
            )
        try:
            if _read_text(self._paths.guard_file) != text:
                write_private(self._paths.guard_file, text.encode())
        except OSError as err:
            problems.append(_state_problem(err))
        return self._guard_state

    def _drop_guard(self, reasons: frozenset[str], problems: list[Problem]) -> None:
        if not reasons & GUARD_REASONS and not self._guard_text:
            return
        try:
            if self._guard.installed() is not None:
                self._guard.delete()
                _log.warning("guard removed: the settings say guard = false")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._paths.guard_file)
            self._guard_text, self._guard_state = "", None
        except (KernelUnavailable, OSError) as err:
            problems.append(_state_problem(err))

    # -- what outlives us

    def _remember_managed(self, look: Look, problems: list[Problem]) -> None:
        """Store newly managed portals before their connections exist: from now on they never open by themselves."""
        held = self._held_records(problems)
        news = []
        for view in look.desired.portals:
            if view.managed and view.closed and view.seat.portal not in held:
                why = view.policy or view.key_path
                news.append(
                    ManagedRecord(portal=view.seat.portal, role=view.role, since=int(time.time()), why=why)
                )
        if not news:
            return
        try:
            self._store.set_managed(news)
            held.update({record.portal: record for record in news})
        except StateUnavailable as err:
            problems.append(_state_problem(err))

    def _grant_releases(self, problems: list[Problem]) -> None:
        """Do what ``iscsi-ipsec release`` asked for: each request is a file that holds one portal."""
        try:
            names = sorted(os.listdir(self._paths.requests_dir))
        except OSError:
            return
        held = self._held_records(problems)
        for name in names:
            path = os.path.join(self._paths.requests_dir, name)
            text = (_read_text(path) or "").strip()
            for portal in [p for p in held if str(p) == text]:
                try:
                    self._store.drop_managed([portal])
                    del held[portal]
                    _log.warning("portal %s released on request", portal, extra=_fields(portal=str(portal)))
                except StateUnavailable as err:
                    problems.append(_state_problem(err))
                    return
            with contextlib.suppress(OSError):
                os.unlink(path)

    # -- charon

    def _apply(self, operations: tuple[Operation, ...], look: Look, problems: list[Problem]) -> None:
        self.counters.vici_writes += len(operations)
        results = self._charon.apply([(op.command, op.message) for op in operations])
        for operation, refused in zip(operations, results, strict=True):
            if refused is None:
                _log.info("%s", _past(operation), extra=_fields(item=operation.item))
            else:
                problems.append(_refused_problem(operation, refused, look))

    def _keep_sas(self, look: Look, state: CharonState) -> tuple[IkeSa, ...]:
        sas = self._charon.sas()
        upheld = self._upheld(look, state)
        self._note_revoked(look, sas)
        operations, self._attempts = plan_sas(upheld, sas, self._attempts, self._clock(), self._revoked)
        for operation in operations:
            self._do(operation)
        return self._charon.sas() if operations else sas

    def _upheld(self, look: Look, state: CharonState) -> list[Upheld]:
        waiting = _waiting_destinations()
        with_session = {session.remote for session in look.world.sessions}
        upheld = []
        for connection, spelled in zip(look.desired.connections, look.connections, strict=True):
            if spelled.name not in state.conns:
                continue
            upheld.append(
                Upheld(
                    name=spelled.name,
                    child=spelled.child,
                    key_part=spelled.key_part,
                    initiator=connection.role is Role.INITIATOR,
                    wanted_now=connection.start is Start.START
                    or connection.user_space_esp
                    or connection.seat.portal in with_session
                    or connection.remote_address in waiting,
                )
            )
        return upheld

    def _note_revoked(self, look: Look, sas: tuple[IkeSa, ...]) -> None:
        paths = {key.path for key in look.world.keys}
        now_used = {
            c.name: (c.key.path, s.key_part)
            for c, s in zip(look.desired.connections, look.connections, strict=True)
        }
        in_use = {part for _, part in now_used.values()}
        revoked = {part for path, part in self._keys_used.values() if path not in paths} | self._revoked
        alive = {child.child_name for ike in sas for child in ike.children}
        self._revoked = frozenset(
            part for part in revoked - in_use if any(name.startswith(part) for name in alive)
        )
        self._keys_used = now_used

    def _do(self, operation: SaOperation) -> None:
        try:
            match operation:
                case Initiate(conn=conn, child=child):
                    self.counters.initiations += 1
                    self._charon.initiate(conn, child)
                    _log.info("negotiation of %s begun", conn, extra=_fields(item=conn))
                case TerminateIke(conn=conn, ike_id=ike_id, force=force, why=why):
                    self._charon.terminate(ike_id=ike_id, force=force)
                    _log.info("IKE SA %s of %s ended: %s", ike_id, conn, why, extra=_fields(item=conn))
                case TerminateChild(conn=conn, child_id=child_id, why=why):
                    self._charon.terminate(child_id=child_id)
                    _log.info("CHILD SA %s of %s ended: %s", child_id, conn, why, extra=_fields(item=conn))
        except CharonRefused as refused:
            _log.warning("charon refused: %s", refused.reason, extra=_fields(item=refused.item))


def _waiting_destinations() -> frozenset[Address]:
    """Outer addresses for which the kernel has asked for an SA and got none so far."""
    try:
        return frozenset(s.dst for s in kernel.states() if s.larval and s.age >= LARVAL_GRACE)
    except KernelUnavailable:  # a kernel without XFRM: user-space ESP does without it
        return frozenset()


def _past(operation: Operation) -> str:
    """The operation's text as a fact: "loaded secret ..."."""
    verb, _, rest = operation.text.partition(" ")
    return f"{verb}ed {rest}"


def _refused_problem(operation: Operation, refused: CharonRefused, look: Look) -> Problem:
    connection = next((c for c in look.desired.connections if c.name == operation.item), None)
    return Problem(
        code="charon-refused",
        message=f"charon refused {operation.command} of {operation.item}: {refused.reason}",
        hint="compare the proposals and addresses in the policy with what this charon supports",
        portal=str(connection.seat.portal) if connection else "",
    )


def _kernel_problem(err: Exception) -> Problem:
    return Problem(
        code="kernel-unavailable", message=str(err), hint="is this program root with CAP_NET_ADMIN?"
    )


def _state_problem(err: Exception) -> Problem:
    return Problem(
        code="state-unsaved",
        message=f"state cannot be kept for a restart: {err}",
        hint="check space and rights of the state folder",
        severity=Severity.ERROR,
    )


def _read_text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(1 << 20)
    except (OSError, UnicodeDecodeError):
        return None


def _fields(portal: str = "", item: str = "") -> dict[str, Any]:
    fields = {"ISCSI_PORTAL": portal, "IPSEC_CONNECTION": item}
    return {"fields": {name: value for name, value in fields.items() if value}}
