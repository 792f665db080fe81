"""Reads the inputs of a pass and makes its decisions, before anything is changed.

Law: observing changes nothing but caches; the ``plan`` verb observes with the same code as the daemon. Only :meth:`Observer.save` writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from iscsi_ipsec.adapters.inotify import FileWatch
from iscsi_ipsec.adapters.netlink import RouteMonitor
from iscsi_ipsec.adapters.openiscsi import Records
from iscsi_ipsec.adapters.resolver import ResolveFailure
from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.errors import KernelUnavailable, StateUnavailable
from iscsi_ipsec.base.iscsi import NodeRecord
from iscsi_ipsec.base.memo import Memo
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.decide.derive import Deriver
from iscsi_ipsec.core.decide.desired import Connection, Desired, Rotation, RotationId
from iscsi_ipsec.core.decide.known_portals import kept_names, wanted_names
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.world import ManagedBefore, World
from iscsi_ipsec.core.ike.vici_messages import (
    EncodedConnection,
    EncodedSecret,
    encode_connection,
    encode_secret,
    presented_ids,
)
from iscsi_ipsec.core.report.system_disks import disk_problems
from iscsi_ipsec.service.config_files import ConfigFiles
from iscsi_ipsec.service.connection_reqids import ConnectionReqids
from iscsi_ipsec.service.credential_decryption import PENDING
from iscsi_ipsec.service.pass_schedule import FILES, RELOAD, ROUTES
from iscsi_ipsec.service.paths import NODES_DIRS, Paths
from iscsi_ipsec.service.ports import Files, Names, OpenIscsi, Routing, Store
from iscsi_ipsec.service.problems import kernel_problem, state_problem
from iscsi_ipsec.service.source_addresses import SourceAddresses

ROUTE_REASONS = frozenset({RouteMonitor.reason, ROUTES})
"""Wakeups after which the kernel is asked anew for addresses."""

FILE_REASONS = frozenset({FileWatch.reason, FILES})
"""Wakeups after which every file is checked for changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The observations and decisions of a pass, before it changes anything.

    ``unknown``: the kernel has not reported this host's addresses or interfaces since the start, or a key is
    still being decrypted, so it is not known that anything is superfluous. ``unanswered``: the same for some
    routes.
    """

    config: ConfigFiles
    world: World
    desired: Desired
    secrets: tuple[EncodedSecret, ...]
    connections: tuple[EncodedConnection, ...]
    problems: tuple[Problem, ...]
    unknown: bool = False
    unanswered: bool = False

    def rotations(self) -> tuple[tuple[Rotation, tuple[EncodedConnection, ...]], ...]:
        """The rotations under way with their encoded connections."""
        if not self.desired.rotations:
            return ()
        by_name = {encoded.name: encoded for encoded in self.connections}
        return tuple((r, tuple(by_name[c.name] for c in r.connections)) for r in self.desired.rotations)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decided:
    """The last decision, and everything it depended on: with 10,000 keys, deciding anew costs more than looking."""

    generation: int
    lookup: Lookup
    told_apart: tuple[object, ...]
    wanted: frozenset[tuple[Address, str]]
    sources: Mapping[tuple[Address, str], Address | None]
    desired: Desired
    known: Mapping[str, tuple[Connection, Rotation | None, EncodedConnection]]
    secrets: tuple[EncodedSecret, ...]
    connections: tuple[EncodedConnection, ...]


def _decision_inputs(world: World) -> tuple[object, ...]:
    """The parts of a world, besides files and source addresses, by which two worlds differ.

    Not ``reqids``: they grow by what the last decision gave, and the next gives the same.
    """
    return (
        world.records, world.sessions, world.names, world.local_addresses, world.previously_managed,
        world.inherited, world.user_space_esp, world.algorithms, world.fast_aes, world.previous_key_first,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Records:
    """The records of open-iscsi's databases in these folders, and the same with interfaces named."""

    dirs: tuple[str, ...]
    found: Records
    bound: tuple[NodeRecord, ...]


class Observer:
    """Observes in each pass, and caches answers and decisions that are still valid.

    ``plugins`` and ``algorithms`` are those of the charon that was last seen: user-space ESP has
    no traps and no transport mode.
    """

    def __init__(
        self,
        *,
        paths: Paths,
        reader: Files,
        store: Store,
        routes: Routing,
        resolver: Names,
        open_iscsi: OpenIscsi,
        system_disks: Callable[[], Mapping[str, frozenset[int]]],
        reqids: ConnectionReqids,
        fast_aes: bool,
        plugins: frozenset[str] = frozenset(),
        algorithms: frozenset[str] = frozenset(),
    ) -> None:
        self._paths, self._reader, self._store = paths, reader, store
        self._routes, self._resolver, self._fast_aes = routes, resolver, fast_aes
        self.plugins, self.algorithms = plugins, algorithms
        self._open_iscsi, self._system_disks = open_iscsi, system_disks
        self._records: _Records | None = None
        self._wanted_names = Memo(wanted_names)
        self._sources = SourceAddresses(routes)
        self._local: frozenset[Address] | None = None
        self._local_doubtful = True
        self._interfaces: dict[str, str] = {}
        self._bound_doubtful = self._unbound = False
        self._deriver = Deriver()
        self._decided: _Decided | None = None
        self._digest_key: bytes | None = None
        self._keys_known = False
        self._saved_names: Mapping[str, tuple[Address, ...]] | None = None
        self._reqids = reqids
        self._names_before: Mapping[str, tuple[Address, ...]] | None = None

    def save(self, snapshot: Snapshot, problems: list[Problem]) -> None:
        """Keep the names' addresses: without DNS the next start must decide as this one did."""
        if snapshot.world.names == self._saved_names:
            return
        try:
            if self._saved_names is not None or self._store.names() != snapshot.world.names:
                self._store.set_names(snapshot.world.names)
            self._saved_names = snapshot.world.names
        except StateUnavailable as err:
            problems.append(state_problem(err))

    def save_reqids(self, desired: Desired, problems: list[Problem]) -> None:
        """Keep the connections' reqids, before they are in charon and in the guard."""
        self._reqids.keep(desired.reqids, problems)

    def nodes_dirs(self, config: ConfigFiles) -> tuple[str, ...]:
        """Where open-iscsi's databases are: the option, the settings, or both usual places."""
        return self._paths.nodes_dirs or config.settings.nodes_dirs or NODES_DIRS

    def observe(
        self,
        reasons: frozenset[str],
        previously_managed: ManagedBefore,
        previous_key_first: Mapping[RotationId, bool] | None = None,
    ) -> Snapshot:
        """Read everything and decide. ``previously_managed``: portals that were managed before; ``previous_key_first``: as in the world."""
        config = self._reader.read(all_files=bool(reasons & FILE_REASONS))
        problems: list[Problem] = [*config.problems, *self._store.problems]
        if reasons & ROUTE_REASONS:
            self._sources.forget(reasons)
        if reasons & ROUTE_REASONS or self._local_doubtful or not self._local:
            self._ask_local_addresses(problems)
        local = self._local or frozenset()
        records = self._known_records(config, reasons)
        problems.extend(records.found.problems)
        world = World(
            settings=config.settings,
            keys=config.keys,
            policies=config.policies,
            broken=config.broken,
            records=records.bound,
            sessions=self._open_iscsi.sessions(),
            local_addresses=local,
            previously_managed=previously_managed.portals,
            inherited=previously_managed.inherited,
            user_space_esp="kernel-libipsec" in self.plugins,
            algorithms=self.algorithms,
            fast_aes=self._fast_aes,
            previous_key_first=previous_key_first or {},
            reqids=self._reqids.known,
            foreign_reqids=self._reqids.foreign,
        )
        world = dataclasses.replace(world, names=self._names(world, problems, anew=RELOAD in reasons))
        before, lookup = self._decided, None
        if before and before.generation == config.generation and before.told_apart == _decision_inputs(world):
            # the same questions; the kernel's answers may still have changed
            wanted = before.wanted
        else:
            lookup = Lookup(world, before.lookup if before else None)
            wanted = lookup.wanted_sources
        world = dataclasses.replace(
            world, sources=self._sources.lookup(wanted, problems, local, world.sessions)
        )
        if not before or lookup or before.sources != world.sources:
            lookup = (lookup or Lookup(world, before.lookup if before else None)).with_sources(world)
            before = self._decide(config.generation, lookup, wanted)
        return Snapshot(
            config=config,
            world=world,
            desired=before.desired,
            secrets=before.secrets,
            connections=before.connections,
            problems=(*problems, *before.desired.problems, *self._disk_problems(world, before.desired)),
            unknown=self._local is None or self._unbound or self._keys_are_unknown(config),
            unanswered=bool(self._sources.unanswered),
        )

    def _known_records(self, config: ConfigFiles, reasons: frozenset[str]) -> _Records:
        """The records of its databases and of the firmware; the same object as long as they say the same."""
        dirs = self.nodes_dirs(config)
        known = self._records
        if (
            known
            and known.dirs == dirs
            and not known.found.torn
            and not self._bound_doubtful
            and not reasons & (FILE_REASONS | ROUTE_REASONS)
        ):
            return known
        self._bound_doubtful = self._unbound = False
        found = self._open_iscsi.records(dirs)
        firmware = self._open_iscsi.firmware()
        bound = (*(self._bound(record) for record in found.records), *firmware)
        if known and known.bound == bound:
            bound = known.bound
        self._records = _Records(dirs, found, bound)
        return self._records

    def _disk_problems(self, world: World, desired: Desired) -> tuple[Problem, ...]:
        if not world.sessions:
            return ()
        disks = self._system_disks()
        return disk_problems(disks, world.sessions, frozenset(desired.guarded))

    def presented_in(self, snapshot: Snapshot, secrets: frozenset[str]) -> dict[RotationId, bool]:
        """For each rotation whether the previous key takes precedence, as far as the secrets in charon show it."""
        presented_keys = {}
        for rotation in snapshot.desired.rotations:
            new, old = presented_ids(rotation, self._key_of_digests())
            if {new, old} & secrets:
                presented_keys[rotation.rotation_id] = new not in secrets
        return presented_keys

    def _decide(self, generation: int, lookup: Lookup, wanted: frozenset[tuple[Address, str]]) -> _Decided:
        """Derive and encode, reusing what is encoded already."""
        world, desired = lookup.world, self._deriver.derive(lookup)
        digest_key = self._key_of_digests()
        # by the identities of entries, which the encoded secrets keep alive: by their hashes a changed key among 10,000
        # takes 110 ms of CPU in place of 80. An equal entry that is another object is encoded again, to the same
        known = {id(encoded.entry): encoded for encoded in self._decided.secrets} if self._decided else {}
        staged = {c.name: rotation for rotation in desired.rotations for c in rotation.connections}
        before = self._decided.known if self._decided else {}
        connections = {}
        for connection in desired.connections:
            name, rotation = connection.name, staged.get(connection.name)
            was, reqid = before.get(name), desired.reqids[name]
            if was is None or was[0] != connection or was[1] != rotation or was[2].reqid != reqid:
                was = connection, rotation, encode_connection(connection, reqid, digest_key, rotation)
            connections[name] = was
        self._decided = _Decided(
            generation=generation,
            lookup=lookup,
            told_apart=_decision_inputs(world),
            wanted=wanted,
            sources=world.sources,
            desired=desired,
            secrets=tuple(known.get(id(e)) or encode_secret(e, digest_key) for e in desired.secrets),
            known=connections,
            connections=tuple(known for _, _, known in connections.values()),
        )
        return self._decided

    def _key_of_digests(self) -> bytes:
        """Read once: names in charon rest on it, and a disk that fails later must not stop a pass."""
        if self._digest_key is None:
            self._digest_key = self._store.digest_key()
        return self._digest_key

    def _keys_are_unknown(self, config: ConfigFiles) -> bool:
        """Whether the first decryption of a key since the start is still running; later the last good key is in force."""
        if not self._keys_known:
            pending = {problem.file for problem in config.problems if problem.code == PENDING}
            self._keys_known = not any(row.path in pending and row.state == "refused" for row in config.rows)
        return not self._keys_known

    def _ask_local_addresses(self, problems: list[Problem]) -> None:
        """Ask the kernel for this host's addresses; where it does not answer, those that it named last stay."""
        try:
            self._local = self._routes.local_addresses()
            self._local_doubtful = False
        except KernelUnavailable as err:
            problems.append(kernel_problem(err))
            self._local_doubtful = True

    def _bound(self, record: NodeRecord) -> NodeRecord:
        """Name the interface that open-iscsi will bind to, where the record gives its hardware address."""
        if record.net_ifacename or not record.hwaddress:
            return record
        try:
            self._interfaces[record.hwaddress] = self._routes.iface_by_hwaddress(record.hwaddress) or ""
        except KernelUnavailable:
            self._unbound = self._unbound or record.hwaddress not in self._interfaces
            self._bound_doubtful = True
        return dataclasses.replace(record, net_ifacename=self._interfaces.get(record.hwaddress, ""))

    def _names(
        self, world: World, problems: list[Problem], *, anew: bool
    ) -> Mapping[str, tuple[Address, ...]]:
        files = self._wanted_names(world.records, world.broken, world.policies, world.keys)
        answers = self._resolver.lookup(files, anew=anew)
        for name, answer in answers.items():
            if isinstance(answer, ResolveFailure):
                problems.append(
                    Problem(
                        code="name-not-resolved",
                        message=f"the name {name} does not resolve ({answer.reason}): its portals cannot be protected yet",
                        hint="write the address, or fix DNS or /etc/hosts",
                        file=files[name],
                    )
                )
        stale = {
            f.name: f.reason for f in self._resolver.failures() if isinstance(answers.get(f.name), tuple)
        }
        problems.extend(
            Problem(
                code="name-stale",
                message=f"the name {name} does not resolve any more ({reason}): its last addresses stay in force",
                hint="fix DNS or /etc/hosts",
                file=files[name],
                severity=Severity.WARNING,
            )
            for name, reason in sorted(stale.items())
        )
        now = {name: answer for name, answer in answers.items() if isinstance(answer, tuple)}
        if self._names_before is None:
            self._names_before = {}
            with contextlib.suppress(StateUnavailable):  # save() reports it
                self._names_before = self._store.names()
        self._names_before = kept_names(self._names_before, now, world.sessions, world.records)
        return self._names_before
