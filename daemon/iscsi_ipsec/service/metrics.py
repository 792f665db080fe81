"""Writes ``metrics.prom`` for node_exporter's textfile collector.

Law: everyone may read the file, so it holds no key, no identity, no SPI. Its
only open-ended label is the portal; SAs come and go and have none.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from socket import IPPROTO_ESP
from typing import Any, Protocol

from iscsi_ipsec.adapters.atomic_write import write_atomic
from iscsi_ipsec.base.errors import IscsiIpsecError, KernelUnavailable
from iscsi_ipsec.base.iscsi import TCP_DRIVER
from iscsi_ipsec.base.memo import Memo
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.portal import parse_portal
from iscsi_ipsec.base.xfrm import KernelPolicy
from iscsi_ipsec.core.report.prometheus_text import Family, Kind, exposed
from iscsi_ipsec.service.ports import Clock, Xfrm

_log = logging.getLogger(__name__)

MODE = 0o644
"""node_exporter runs as a user of its own."""

KERNEL_LOOK, KERNEL_LOOK_AT_MOST = 5.0, 60.0
"""Seconds between two reads of the kernel's policies, which only a number here depends on."""

KERNEL_LOOK_SHARE = 10_000
"""With thousands of policies the pause is this many times the time of the last read, so that reading takes a ten-thousandth of the time."""

_PREFIX = "iscsi_ipsec_"


class Counters(Protocol):
    """The reconciler's counters since its start."""

    passes: int
    vici_writes: int
    guard_loads: int
    initiations: int
    files_opened: int
    seconds: float
    last_seconds: float
    failures: Mapping[str, int]


class Metrics:
    """Writes the file after each pass; remembers when one last was as it should be.

    Series of portals are made anew when a row differs, those of the daemon each time.
    """

    def __init__(self, path: str, xfrm: Xfrm, clock: Clock) -> None:
        self._path, self._xfrm, self._clock = path, xfrm, clock
        self._look_at = clock.monotonic()
        self._in_kernel: tuple[KernelPolicy, ...] = ()
        self._selected, self._demanded = Memo(_selected), Memo(_demanded)
        self._per_portal = Memo(portal_exposition)
        self._last_success = 0
        self._failed = False

    def write(self, status: Mapping[str, Any], counters: Counters) -> None:
        """Write the file anew. That it cannot be written is logged once and stops nothing."""
        charon, guard = status["charon"], status["guard"]
        if charon["reachable"] and charon["settled"] and (guard["installed"] or not guard["wanted"]):
            self._last_success = status["time"]
        try:
            in_kernel = self._count_in_kernel(status["portals"])
            text = daemon_exposition(status, counters, self._last_success, in_kernel)
            write_atomic(self._path, text + self._per_portal(status["portals"]), MODE)
            self._failed = False
        except IscsiIpsecError as err:
            if not self._failed:
                _log.error("metrics cannot be written: %s", err)
            self._failed = True

    def _count_in_kernel(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Connections whose policy is in the kernel, which is asked now and then."""
        began = self._clock.monotonic()
        if began >= self._look_at:
            with contextlib.suppress(KernelUnavailable):
                self._in_kernel = self._xfrm.policies()
            pause = (self._clock.monotonic() - began) * KERNEL_LOOK_SHARE
            self._look_at = began + min(max(KERNEL_LOOK, pause), KERNEL_LOOK_AT_MOST)
        demanded = self._demanded(self._in_kernel)
        return sum(selector in demanded for selector in self._selected(rows))


def _demanded(policies: Iterable[KernelPolicy]) -> frozenset[str]:
    """Selectors towards which the kernel demands ESP."""
    return frozenset(
        f"{p.dst} {p.dport}"
        for p in policies
        if p.direction == "out" and p.tmpl_proto == IPPROTO_ESP and not p.restricted
    )


def _selected(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(_selector(row["portal"]) for row in _trapping(rows))


def _trapping(rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Rows of connections that have a policy in the kernel when all is well."""
    return (
        row for row in rows
        if row["connection"] and row["role"] == Role.INITIATOR.value and not row["user_space_esp"]
    )  # fmt: skip


def _selector(text: str) -> str:
    """A portal as the selector of its policy: the network of one host, and the port."""
    portal = parse_portal(text)
    return f"{ipaddress.ip_network(portal.address)} {portal.port}"


def exposition(status: Mapping[str, Any], counters: Counters, last_success: int, in_kernel: int = 0) -> bytes:
    """The status document and the counters in Prometheus' text format."""
    return daemon_exposition(status, counters, last_success, in_kernel) + portal_exposition(status["portals"])


def daemon_exposition(
    status: Mapping[str, Any], counters: Counters, last_success: int, in_kernel: int
) -> bytes:
    """The families without a portal's label."""
    return exposed(
        (
            *_families(status, counters, last_success),
            _connections(status["portals"], in_kernel),
            _failures(counters.failures),
        )
    )


def portal_exposition(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The families with a portal's label."""
    return exposed(_per_portal(row for row in rows if row["managed"]))


def _gauge(name: str, status: str, *labels: str) -> Family:
    return Family(_PREFIX + name, Kind.GAUGE, status, labels)


def _counter(name: str, status: str, *labels: str) -> Family:
    return Family(_PREFIX + name + "_total", Kind.COUNTER, status, labels)


def _families(status: Mapping[str, Any], counters: Counters, last_success: int) -> Iterable[Family]:
    def gauge(name: str, text: str, value: float) -> Family:
        family = _gauge(name, text)
        family.add(value)
        return family

    rows, charon, guard = status["portals"], status["charon"], status["guard"]
    managed = [row for row in rows if row["managed"]]
    info = _gauge("build_info", "The daemon's version.", "version")
    info.add(1, status["version"])
    yield info
    yield gauge(
        "portals_managed", "Portals to which a key or policy applies, or applied before.", len(managed)
    )
    yield gauge(
        "portals_protected", "Managed portals whose packets an SA carries now, in the mode asked for.",
        sum(row["protected"] for row in managed),
    )  # fmt: skip
    yield gauge(
        "portals_closed", "Portals that pass nothing outside IPsec.", sum(row["closed"] for row in rows)
    )
    yield gauge(
        "portals_blocked", "Closed portals that have no usable connection: nothing passes at all.",
        sum(row["closed"] and not row["connection"] for row in rows),
    )  # fmt: skip
    yield gauge(
        "portals_in_clear", "Known portals that may be reached unencrypted.", sum(not row["closed"] for row in rows)
    )  # fmt: skip
    yield gauge(
        "sessions_in_clear", "iSCSI connections to portals that are not closed and have no SA, and offloaded ones.",
        len(
            {
                s["sid"]
                for row in rows
                for s in row["sessions"]
                if not row["protected"] and (not row["closed"] or s["transport"] not in (None, TCP_DRIVER))
            }
        ),
    )  # fmt: skip
    yield gauge("keys", "Keys in force.", len(status["keys"]))
    yield _problems(status["problems"])
    yield gauge("charon_reachable", "Whether charon answered in the last pass.", charon["reachable"])
    yield gauge("guard_wanted", "Whether the settings ask for the guard.", guard["wanted"])
    yield gauge("guard_installed", "Whether the guard is in the kernel.", guard["installed"])
    if guard["dropped"] is not None:
        yield gauge(
            "guard_dropped_packets", "Packets that the guard has dropped since it was last loaded.", guard["dropped"]
        )  # fmt: skip
    for name, text, value in (
        ("passes", "Looks at the whole state since the start.", counters.passes),
        ("vici_writes", "Secrets and connections loaded into or unloaded from charon.", counters.vici_writes),
        ("guard_loads", "Times that the guard was loaded into the kernel.", counters.guard_loads),
        ("initiations", "Negotiations that the daemon began itself.", counters.initiations),
        ("files_opened", "Files of the configuration opened since the start.", counters.files_opened),
        ("pass_seconds", "Time that all passes took together.", counters.seconds),
    ):
        counter = _counter(name, text)
        counter.add(value)
        yield counter
    yield gauge("last_pass_seconds", "Time that the last pass took.", counters.last_seconds)
    yield gauge(
        "last_success_timestamp_seconds", "When everything was last in place after a pass; 0: not yet.", last_success
    )  # fmt: skip


def _connections(rows: Iterable[Mapping[str, Any]], in_kernel: int) -> Family:
    """Wanted and actual numbers of connections: without drift the three are equal."""
    rows = list(_trapping(rows))
    family = _gauge(
        "connections",
        "Connections as an initiator that the files ask for (wanted), that are ready in charon and the guard (loaded), and whose policy is in the kernel (kernel).",
        "where",
    )
    family.add(len(rows), "wanted")
    family.add(sum(row["ready"] for row in rows), "loaded")
    family.add(in_kernel, "kernel")
    return family


def _failures(counts: Mapping[str, int]) -> Family:
    family = _counter(
        "negotiation_failures", "Negotiations that failed since the start, by the code of the cause.", "cause"
    )
    for code, count in sorted(counts.items()):
        family.add(count, code)
    return family


def _problems(rows: Iterable[Mapping[str, Any]]) -> Family:
    family = _gauge("problems", "Problems now, by code.", "code", "severity")
    for (code, severity), count in sorted(Counter((row["code"], row["severity"]) for row in rows).items()):
        family.add(count, code, severity)
    return family


def _per_portal(rows: Iterable[Mapping[str, Any]]) -> Iterable[Family]:
    """One series per portal, role and bound interface: two of the same labels make a collector refuse the file."""
    labels = ("portal", "role", "interface")
    protected = _gauge("portal_protected", "Whether an SA carries the portal's packets.", *labels)
    sessions = _gauge("portal_sessions", "The kernel's iSCSI sessions to the portal.", *labels)
    age = _gauge("sa_age_seconds", "Age of the portal's SA.", *labels)
    volume = _gauge("sa_bytes", "Bytes that the portal's present SA has carried.", *labels, "direction")
    for row in {(row["portal"], row["role"], row["interface"]): row for row in rows}.values():
        values = (row["portal"], row["role"], row["interface"])
        protected.add(row["protected"], *values)
        sessions.add(len(row["sessions"]), *values)
        if sa := row["sa"]:
            age.add(sa["age"], *values)
            volume.add(sa["bytes_in"], *values, "in")
            volume.add(sa["bytes_out"], *values, "out")
    return protected, sessions, age, volume
