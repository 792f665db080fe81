"""Keeps the guard in force: the nftables table in the kernel, and the file that is loaded at boot.

Law: the table is replaced in one transaction and only removed by the setting ``guard = false``; a change by
others is undone.
"""

from __future__ import annotations

import contextlib
import logging
import os

from iscsi_ipsec.adapters.atomic_write import write_private
from iscsi_ipsec.adapters.files import FileStat
from iscsi_ipsec.adapters.netlink import GuardMonitor
from iscsi_ipsec.adapters.nft import GuardState
from iscsi_ipsec.base.errors import KernelUnavailable, NotPermitted, StateUnavailable
from iscsi_ipsec.base.memo import Memo
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.printable import plural
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.desired import Desired
from iscsi_ipsec.core.guard import ruleset
from iscsi_ipsec.service.managed_portals import read_text
from iscsi_ipsec.service.pass_schedule import GUARD
from iscsi_ipsec.service.ports import Firewall
from iscsi_ipsec.service.problems import fields, state_problem

_log = logging.getLogger(__name__)

GUARD_REASONS = frozenset({GUARD})
"""Wakeups after which the table in the kernel is compared with the loaded one; restore() handles the monitor's wakeups."""


class GuardReconciler:
    """Remembers the table as it was loaded, to see a change by others. ``loads`` counts for tests and metrics."""

    def __init__(self, guard: Firewall, path: str) -> None:
        self._guard, self._path = guard, path
        self._text = ""
        self._state: GuardState | None = None
        self._written: tuple[str, FileStat | None] | None = None
        self._wanted, self._with_earlier = Memo(_table), Memo(_table)
        self.loads = 0

    def restore(self, *, gone: bool) -> None:
        """Load the table again if somebody changed it, before the pass does anything else.

        ``gone``: the table is known to be deleted, so it is not read first.
        """
        if not self._text:
            return
        try:
            if not gone and (now := self._guard.installed()) == self._state:
                self._state = now  # with its counters of now
                return
            self._load_again()
        except KernelUnavailable:
            self._state = None  # reconcile() tries again, and reports it

    def reconcile(
        self,
        desired: Desired,
        settings: Settings,
        reasons: frozenset[str],
        problems: list[Problem],
        earlier: frozenset[tuple[Portal, int]] = frozenset(),
    ) -> GuardState | None:
        """Bring kernel and file to the desired state; return the table's state, None where there is no table.

        ``earlier``: portals with other reqids that SAs of their connections have. These pass as long as
        they live; the file does not have them, since after a boot another program may use those reqids.
        """
        if not settings.guard:
            self._drop(reasons, problems)
            return None
        said = (settings.guard_devices, settings.guard_forward, settings.guard_rdma)
        for_boot = self._wanted(desired, *said, frozenset())
        text = self._with_earlier(desired, *said, earlier) if earlier else for_boot
        try:
            self._load(text, len(desired.guarded) + len(desired.local_portals), reasons)
        except KernelUnavailable as err:
            self._state = None
            problems.append(
                Problem(
                    code="guard-missing",
                    message=f"the guard cannot be loaded, so a lost SA may mean unencrypted traffic: {err}",
                    hint="is nftables installed, and may this program use it?",
                )
            )
        try:
            self._keep_file(for_boot)
        except (NotPermitted, StateUnavailable) as err:
            problems.append(state_problem(err))
        return self._state

    def _load(self, text: str, portals: int, reasons: frozenset[str]) -> None:
        if text == self._text and self._state is not None:
            if not reasons & GUARD_REASONS:
                return
            if (now := self._guard.installed()) == self._state:
                self._state = now
                return
            self._load_again()
            return
        self._guard.load(text)
        self.loads += 1
        self._state = self._guard.installed()
        self._text = text
        _log.info("guard loaded for %s", plural(portals, "portal"))

    def _load_again(self) -> None:
        self._guard.load(self._text)
        self.loads += 1
        self._state = self._guard.installed()
        _log.warning(
            "guard was changed by someone else and has been loaded again", extra=fields(note="guard-changed")
        )

    def _keep_file(self, text: str) -> None:
        """Write the file unless it is as we wrote it; without it the next boot would begin unprotected."""
        if self._written == (text, FileStat.at(self._path)):
            return
        if read_text(self._path) != text:
            write_private(self._path, text.encode())
        self._written = (text, FileStat.at(self._path))

    def _drop(self, reasons: frozenset[str], problems: list[Problem]) -> None:
        if not reasons & (GUARD_REASONS | GuardMonitor.reasons) and not self._text:
            return
        try:
            if self._guard.installed() is not None:
                self._guard.delete()
                _log.warning(
                    "guard removed: the settings say guard = false", extra=fields(note="guard-removed")
                )
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._text, self._state = "", None
        except (KernelUnavailable, OSError) as err:
            problems.append(state_problem(err))


def _table(
    desired: Desired,
    devices: tuple[str, ...],
    forward: bool,
    rdma: bool,
    earlier: frozenset[tuple[Portal, int]],
) -> str:
    return ruleset.guard_table(
        desired.guarded,
        desired.local_portals,
        devices,
        sas=desired.own_sas | earlier,
        networks=desired.networks,
        clear_exceptions=desired.clear_exceptions,
        forward=forward,
        rdma=rdma,
    )
