"""The run's model of the machine, which faults change along with the machine itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.chaos.oracle import Expected, World, candidates, decide
from tests.chaos.shelf import Shelf

PORTALS = ("10.10.0.2", "10.10.0.21", "10.10.0.22", "10.10.0.23", "10.10.0.25", "fd00:10::2", "fd00:10::21")
"""Addresses of the far end that files and records may name."""

NEVER_NAMED = ("10.10.0.40", "10.10.0.29", "10.10.0.26")
"""Addresses of the far end that nothing names one by one; the last two lie in networks of policies."""

NETWORKS = {"n1": "10.10.0.24/29", "n2": "10.10.0.28/30"}
SOURCE, SECOND_SOURCE = "10.10.0.1", "10.10.0.101"

SourceOf = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Rec:
    """A record of open-iscsi's, whole or torn."""

    address: str
    torn: bool = False


@dataclass(slots=True)
class Scene:
    shelf: Shelf = field(default_factory=Shelf)
    records: dict[str, Rec] = field(default_factory=dict)
    records_known: dict[str, str] = field(default_factory=dict)
    away: dict[str, dict[str, object]] = field(default_factory=dict)
    """Folders that were moved away, with what lay in them."""
    opened: set[str] = field(default_factory=set)
    """Folders that others may write to."""
    held: set[str] = field(default_factory=set)
    held_stored: set[str] = field(default_factory=set)
    inherited: set[str] = field(default_factory=set)
    """Held portals that only the guard's file names, until a file covers them."""
    inherited_stored: set[str] = field(default_factory=set)
    daemon_up: bool = True
    charon_up: bool = True
    link_up: bool = True
    guard_up: bool = True
    """False while nobody is there to repair a guard that was tampered with."""
    guard_file: set[str] = field(default_factory=set)
    """Portals in the file from which the guard is loaded at boot."""
    expected: Expected = field(default_factory=Expected)
    """As of the last settling with the daemon running."""

    # -- the daemon looks, ends, begins ---------------------------------------------------------

    def adopt(self, source_of: SourceOf) -> Expected:
        """The daemon has looked: what must be now."""
        self.shelf.adopt()
        known: dict[str, str] = {}
        for path, rec in self.records.items():
            if not rec.torn:
                known[path] = rec.address
            elif path in self.records_known:
                known[path] = self.records_known[path]
        self.records_known = known
        world = World(
            keys=self.shelf.keys(),
            policies=self.shelf.policies(),
            settings=self.shelf.settings(),
            records=frozenset(known.values()),
            held=frozenset(self.held),
            sources={},
            broken=self.shelf.broken(),
            inherited=frozenset(self.inherited),
        )
        world.sources = {portal: source_of(portal) for portal in candidates(world)}
        self.expected = decide(world)
        self.held |= {portal for portal, row in self.expected.rows.items() if row.managed and row.closed}
        self.inherited = {portal for portal in self.inherited if not world.covered(portal)}
        if not self.shelf.disk_full:
            self.held_stored, self.inherited_stored = set(self.held), set(self.inherited)
            self.guard_file = set(self.expected.closed)
        return self.expected

    def state_lost(self, *, removed: bool) -> None:
        """state.db is damaged or gone. A running daemon still knows what it held; else the guard's file has it."""
        if removed and self.daemon_up:
            return  # it is still open, and put back as it was
        self.shelf.state_lost(running=self.daemon_up)
        if not self.daemon_up:
            self.held = self.held_stored = set(self.guard_file)
            self.inherited = self.inherited_stored = set(self.guard_file)

    def daemon_ended(self) -> None:
        self.daemon_up = False
        self.shelf.daemon_ended()
        self.records_known.clear()
        self.held, self.inherited = set(self.held_stored), set(self.inherited_stored)

    def daemon_begins(self) -> None:
        self.daemon_up = self.guard_up = True

    # -- what faults ask ------------------------------------------------------------------------

    def exists(self, folder: str) -> bool:
        """Whether a folder is where it belongs; that others may write to it does not matter."""
        return not any(folder == gone or folder.startswith(f"{gone}/") for gone in self.away)

    def reckon_lost(self) -> None:
        """Folders that cannot be used, from the missing ones and those that others may write."""
        folders = ("etc", "etc/psk.d", "etc/portal.d", "run/psk.d", "run/portal.d")
        self.shelf.lost = {
            folder
            for folder in folders
            if not self.exists(folder)
            or any(folder == opened or folder.startswith(f"{opened}/") for opened in self.opened)
        }
