"""A daemon without its world: the parts of ``service`` connected with fakes, passes made by hand."""

from __future__ import annotations

from pathlib import Path

from iscsi_ipsec.base.iscsi import IscsiSession, NodeRecord
from iscsi_ipsec.base.keys import Key
from iscsi_ipsec.base.policy import PortalPolicy
from iscsi_ipsec.core.decide.desired import Desired
from iscsi_ipsec.service.bridged_guests import BridgedGuests
from iscsi_ipsec.service.connection_reqids import ConnectionReqids
from iscsi_ipsec.service.guard import GuardReconciler
from iscsi_ipsec.service.ike_failure_log import IkeFailureLog
from iscsi_ipsec.service.managed_portals import ManagedPortals
from iscsi_ipsec.service.observe import Observer
from iscsi_ipsec.service.pass_schedule import RESYNC, START
from iscsi_ipsec.service.paths import Paths
from iscsi_ipsec.service.preexisting_sessions import PreexistingSessions
from iscsi_ipsec.service.reconciler import Outcome, Reconciler
from tests.support.fakes import (
    FakeCharon,
    FakeClock,
    FakeFiles,
    FakeFirewall,
    FakeNames,
    FakeOpenIscsi,
    FakeRouting,
    FakeServiceManager,
    FakeStore,
    FakeXfrm,
)
from tests.support.values import child_sa, ike_sa, kernel_policy, kernel_state


class Host:
    """One host whose world is made of fakes; ``start`` connects the daemon's parts anew, as a restart does."""

    def __init__(self, folder: Path) -> None:
        self.clock = clock = FakeClock()
        self.charon, self.xfrm = FakeCharon(clock), FakeXfrm(clock)
        self.routing, self.names = FakeRouting(clock), FakeNames(clock)
        self.firewall, self.store = FakeFirewall(clock), FakeStore(clock)
        self.open_iscsi, self.files = FakeOpenIscsi(clock), FakeFiles(clock)
        self.service_manager = FakeServiceManager(clock)
        self.woken: list[str] = []
        self.bridges: dict[str, tuple[str, ...]] = {}
        self.paths = Paths(
            config_dir=str(folder / "etc"), runtime_dir=str(folder / "run"), state_dir=str(folder / "state")
        )
        for path in ("etc", "run/requests", "state"):
            (folder / path).mkdir(parents=True, mode=0o700)
        self.start()

    def start(self) -> None:
        """Begin as a daemon that was just started: nothing is remembered but what the store and the files hold."""
        self.failure_log = IkeFailureLog(self.woken.append, self.clock.monotonic)
        self.observer = Observer(
            paths=self.paths, reader=self.files, store=self.store, routes=self.routing, resolver=self.names,
            open_iscsi=self.open_iscsi, system_disks=dict, reqids=ConnectionReqids(self.store, self.xfrm), fast_aes=True,
        )  # fmt: skip
        self.managed = ManagedPortals(self.paths, self.store, self.clock)
        self.reconciler = Reconciler(
            observer=self.observer,
            reader=self.files,
            managed=self.managed,
            guard=GuardReconciler(self.firewall, self.paths.guard_file),
            earlier=PreexistingSessions(self.paths.earlier_file),
            bridged=BridgedGuests(self.routing, lambda: self.bridges),
            charon=self.charon,
            failure_log=self.failure_log,
            charon_log=self.charon,
            service_manager=self.service_manager,
            xfrm=self.xfrm,
            clock=self.clock,
        )
        self._reasons = frozenset({START})

    def put(self, *parts: Key | PortalPolicy | NodeRecord | IscsiSession) -> None:
        """Set the files, records and sessions that the next passes read."""
        self.files.put(*(p for p in parts if not isinstance(p, NodeRecord | IscsiSession)))
        records = tuple(p for p in parts if isinstance(p, NodeRecord))
        self.open_iscsi.found = type(self.open_iscsi.found)(records=records)
        self.open_iscsi.sessions_now = tuple(p for p in parts if isinstance(p, IscsiSession))

    def run(self, *reasons: str) -> Outcome:
        """One pass: the first is a start, later ones are regular unless ``reasons`` says what woke them."""
        outcome = self.reconciler.run(frozenset(reasons) or self._reasons)
        self._reasons = frozenset({RESYNC})
        self._follow(outcome.snapshot.desired)
        return outcome

    def _follow(self, desired: Desired) -> None:
        """The kernel holds a policy for each connection of charon's and both states of each CHILD SA."""
        children = [child for sa in self.charon.sas_now for child in sa.children]
        self.xfrm.policies_now = tuple(
            kernel_policy(c.local_address, c.binding.portal, desired.reqids[c.name])
            for c in desired.connections
            if c.name in self.charon.conns
        )
        self.xfrm.states_now = tuple(
            kernel_state(spi, child.reqid) for child in children for spi in (child.spi_in, child.spi_out)
        )

    def establish(self) -> None:
        """Every loaded connection that has no SA gets one, as after negotiations that succeeded."""
        up = {sa.conn for sa in self.charon.sas_now}
        for number, (conn, children) in enumerate(sorted(self.charon.conns.items()), len(up) + 1):
            if conn not in up:
                (child,) = children
                reqid = int(self.charon.messages[conn]["children"][child]["reqid"])
                spis = {"spi_in": f"c1{number:06x}", "spi_out": f"c2{number:06x}", "reqid": reqid}
                sa = ike_sa(child_sa(child, number, conn, **spis), unique_id=number, conn=conn)
                self.charon.sas_now += (sa,)
        self.xfrm.states_now = tuple(
            kernel_state(spi, child.reqid)
            for sa in self.charon.sas_now
            for child in sa.children
            for spi in (child.spi_in, child.spi_out)
        )

    def codes(self, outcome: Outcome) -> set[str]:
        """The codes of the problems of a pass."""
        return {problem.code for problem in outcome.problems}
