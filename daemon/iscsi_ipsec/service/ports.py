"""The ports of the loop: the Protocols through which the daemon reaches the world.

Law: Protocols only. ``service.main`` connects them with the adapters; tests connect them with
fakes that fail on purpose (``tests/support/fakes.py``). Any call through a port can fail: each method names
the errors that its caller must expect, and raises no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from iscsi_ipsec.adapters.nft import GuardState
from iscsi_ipsec.adapters.openiscsi import Records
from iscsi_ipsec.adapters.resolver import Answer, ResolveFailure
from iscsi_ipsec.adapters.state_db import LastGood, ManagedRecord
from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.charon_sa import CharonState, IkeSa
from iscsi_ipsec.base.errors import CharonRefused
from iscsi_ipsec.base.iscsi import IscsiSession, NodeRecord
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.base.xfrm import KernelPolicy, KernelState
from iscsi_ipsec.core.config.settings import Settings

if TYPE_CHECKING:  # its reader takes a port itself
    from iscsi_ipsec.service.config_files import ConfigFiles


class Clock(Protocol):
    """Time."""

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean anything."""
        ...

    def unix_ns(self) -> int:
        """Nanoseconds since 1970; an admin or NTP may turn it either way."""
        ...


class Charon(Protocol):
    """strongSwan's daemon. Every method raises :class:`CharonUnavailable` when charon cannot be reached or answers late."""

    def observe(self, *, thorough: bool = True) -> CharonState:
        """The secrets and connections that charon holds; not ``thorough``: connections are compared by name only."""
        ...

    def sas(self) -> tuple[IkeSa, ...]:
        """All IKE SAs of our connections, with their CHILD SAs."""
        ...

    def apply(
        self, messages: Iterable[tuple[str, Mapping[str, Any]]], progress: Callable[[], None] = ...
    ) -> tuple[CharonRefused | None, ...]:
        """Send (command, message) pairs in order; for each None, or charon's refusal."""
        ...

    def initiate(self, conn: str, child: str) -> None:
        """Begin to negotiate; returns at once. Raises :class:`CharonRefused` for a child that is not loaded."""
        ...

    def terminate(
        self,
        *,
        ike: str | None = None,
        ike_id: int | None = None,
        child_id: int | None = None,
        force: bool = False,
    ) -> int:
        """Delete the SAs selected; returns how many. ``force``: without waiting for the peer."""
        ...

    def close(self) -> None:
        """End the command session."""
        ...


class Xfrm(Protocol):
    """The kernel's IPsec. Both methods raise :class:`KernelUnavailable`: unknown, which is not "none"."""

    def policies(self) -> tuple[KernelPolicy, ...]:
        """The SPD; the same tuple while it says the same."""
        ...

    def states(self) -> tuple[KernelState, ...]:
        """The SAD, without keys."""
        ...


class Routing(Protocol):
    """The kernel's routes and addresses. Every method raises :class:`KernelUnavailable`."""

    def source_for(self, address: Address, oif_name: str = "") -> Address | None:
        """The source address towards ``address``, bound to that interface; None: no route."""
        ...

    def device_for(self, address: Address) -> str | None:
        """The interface that leads to ``address``; None: no route."""
        ...

    def local_addresses(self) -> frozenset[Address]:
        """All addresses of this host."""
        ...

    def iface_by_hwaddress(self, mac: str) -> str | None:
        """The interface that has this hardware address."""
        ...

    def close(self) -> None:
        """Close the socket."""
        ...


class Firewall(Protocol):
    """The guard's nftables table. Every method raises :class:`KernelUnavailable`."""

    def load(self, text: str) -> None:
        """Load an nftables text in one transaction."""
        ...

    def installed(self) -> GuardState | None:
        """The table as it is in the kernel; None: there is none."""
        ...

    def delete(self) -> None:
        """Delete the table, if there is one."""
        ...


class Names(Protocol):
    """Names to addresses. No method blocks or raises: a look-up runs elsewhere and wakes the loop."""

    def lookup(self, names: Iterable[str], *, anew: bool = False) -> Mapping[str, Answer]:
        """The known answers for these names; names that are not asked for are forgotten. ``anew``: none is taken for fresh."""
        ...

    def failures(self) -> tuple[ResolveFailure, ...]:
        """Names whose last look-up failed, also those that keep an older answer."""
        ...

    def stop(self) -> None:
        """End the look-ups."""
        ...


class OpenIscsi(Protocol):
    """open-iscsi's records and the kernel's sessions. Nothing raises; unreadable parts are listed in ``problems``."""

    def records(self, dirs: Sequence[str]) -> Records:
        """Node and discovery records of the databases in these folders."""
        ...

    def firmware(self) -> tuple[NodeRecord, ...]:
        """The portals that the firmware booted from."""
        ...

    def sessions(self) -> tuple[IscsiSession, ...]:
        """Every iSCSI connection of the kernel's initiator."""
        ...


class Store(Protocol):
    """State that survives the daemon and a reboot. Every method raises :class:`StateUnavailable`."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The damage that was found since the start."""
        ...

    @property
    def renewals(self) -> int:
        """How often the database had to begin empty since the start: its former content must be stored again."""
        ...

    @property
    def fresh(self) -> bool:
        """Whether there was no database, or a damaged one."""
        ...

    def repair(self) -> None:
        """Put the database back if it was damaged, removed or replaced."""
        ...

    def all_last_good(self) -> Mapping[str, LastGood]:
        """The last good content of every file, by path."""
        ...

    def put_last_good(self, items: Iterable[LastGood]) -> None:
        """Store or replace, all or none."""
        ...

    def drop_last_good(self, paths: Iterable[str]) -> None:
        """Forget these files."""
        ...

    def managed(self) -> Mapping[tuple[Portal, Role], ManagedRecord]:
        """Every portal that was managed and has not been released, for each role of this host."""
        ...

    def set_managed(self, records: Iterable[ManagedRecord]) -> None:
        """Store or replace, all or none."""
        ...

    def drop_managed(self, portals: Iterable[Portal]) -> None:
        """Forget these portals in both roles."""
        ...

    def names(self) -> Mapping[str, tuple[Address, ...]]:
        """The last addresses of every name."""
        ...

    def set_names(self, names: Mapping[str, tuple[Address, ...]]) -> None:
        """Store these names and forget all others."""
        ...

    def reqids(self) -> Mapping[str, int]:
        """The reqid of every connection that was given one."""
        ...

    def set_reqids(self, reqids: Mapping[str, int]) -> None:
        """Store or replace them, all or none."""
        ...

    def digest_key(self) -> bytes:
        """The key of the digests in charon's names; the same for ever."""
        ...


class Files(Protocol):
    """The admin's files. Reading raises nothing: a file that cannot be used is a problem beside the others."""

    opened: int

    def read(self, *, all_files: bool = True) -> ConfigFiles:
        """The content in force; not ``all_files``: look only at files that may have changed."""
        ...

    def read_settings(self) -> Settings:
        """The settings, ahead of all other files."""
        ...

    def forget(self) -> None:
        """Open every file again at the next read."""
        ...

    def save(self) -> Problem | None:
        """Store new good content; return a problem where that fails."""
        ...


class Watch(Protocol):
    """Events of folders."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Folders that cannot be watched; they are read at each regular pass."""
        ...

    def ensure(self, paths: Iterable[tuple[str, bool]]) -> bool:
        """Watch exactly these folders (True: with all below); whether a watch is new, and earlier events are lost."""
        ...

    def stop(self) -> None:
        """Watch nothing more."""
        ...


class Wakeups(Protocol):
    """The only way into the loop."""

    def wait(self, timeout: float) -> frozenset[str]:
        """The reasons that came within ``timeout`` seconds; none: it is over."""
        ...


class ServiceManager(Protocol):
    """systemd. Nothing raises; without systemd nothing happens."""

    def ready(self, status: str) -> None:
        """Report that startup is complete."""
        ...

    def status(self, text: str) -> None:
        """The line that ``systemctl status`` shows."""
        ...

    def stopping(self, status: str) -> None:
        """Report that shutdown begins."""
        ...

    def watchdog(self) -> None:
        """Report that the loop is alive."""
        ...

    def watchdog_interval(self) -> float | None:
        """Seconds between two :meth:`watchdog`; None: nobody expects any."""
        ...

    def charon_units(self) -> Mapping[str, str]:
        """The ActiveState of each unit of strongSwan by its name; empty if systemd does not say."""
        ...


class CharonLog(Protocol):
    """The subscription to charon's log."""

    def without_log(self) -> AbstractContextManager[None]:
        """Unsubscribe for the length of a ``with`` block: charon logs each of thousands of messages."""
        ...


class Producer(Protocol):
    """A thread that wakes the loop."""

    def start(self) -> None:
        """Begin."""
        ...

    def stop(self) -> None:
        """End."""
        ...
