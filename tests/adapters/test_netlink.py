"""Routes, addresses and the two monitors, in a namespace of their own."""

from __future__ import annotations

import ipaddress
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iscsi_ipsec.adapters.netlink import GuardMonitor, RouteMonitor, Routes
from iscsi_ipsec.adapters.netlink.monitor import NFT_MSG_DELTABLE, tables
from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.errors import KernelUnavailable
from tests.support.netlab.space import Namespace
from tests.support.netlab.waiting import holds_for, wait_until

T = TypeVar("T")


def asked(space: Namespace, ask: Callable[[Routes], T]) -> T:
    """Open, ask and close in one thread, as the adapter's law has it."""

    def within() -> T:
        routes = Routes()
        try:
            return ask(routes)
        finally:
            routes.close()

    return space.inside(within)


def address(text: str) -> Address:
    return ipaddress.ip_address(text)


def source(space: Namespace, to: str, oif: str = "") -> str | None:
    found = asked(space, lambda routes: routes.source_for(address(to), oif))
    return None if found is None else str(found)


@pytest.mark.parametrize(
    ("to", "expected"),
    [("10.0.0.9", "10.0.0.1"), ("fd00::9", "fd00::1"), ("10.0.0.1", "10.0.0.1"), ("127.0.0.1", "127.0.0.1")],
)
def test_the_source_is_the_one_the_kernel_would_take(space: Namespace, to: str, expected: str) -> None:
    assert source(space, to) == expected


def test_the_source_of_a_route_is_honoured(space: Namespace) -> None:
    space.ip("address", "add", "10.0.0.77/24", "dev", "v0")
    space.ip("route", "add", "10.5.0.0/16", "via", "10.0.0.9", "src", "10.0.0.77")
    assert source(space, "10.5.0.1") == "10.0.0.77"


@pytest.mark.parametrize("to", ["192.0.2.1", "2001:db8::1"])
def test_without_a_route_there_is_no_source(space: Namespace, to: str) -> None:
    assert source(space, to) is None


@pytest.mark.parametrize("kind", ["unreachable", "prohibit", "blackhole"])
@pytest.mark.parametrize("to", ["10.6.0.1", "fd06::1"])
def test_behind_a_route_that_refuses_there_is_no_source(space: Namespace, kind: str, to: str) -> None:
    network = "10.6.0.0/16" if "." in to else "fd06::/64"
    space.ip("route", "add", kind, network)
    assert source(space, to) is None


def test_an_interface_limits_the_lookup(space: Namespace) -> None:
    space.ip("link", "add", "w0", "type", "veth")
    space.ip("address", "add", "10.0.0.200/24", "dev", "w0")
    space.ip("link", "set", "w0", "up")
    assert source(space, "10.0.0.9", "v0") == "10.0.0.1"
    assert source(space, "10.0.0.9", "w0") == "10.0.0.200"


def test_an_interface_that_does_not_exist_reaches_nothing(space: Namespace) -> None:
    assert source(space, "10.0.0.9", "nosuch0") is None


def test_a_link_that_went_down_reaches_nothing(space: Namespace) -> None:
    space.ip("link", "set", "v0", "down")
    assert source(space, "10.0.0.9") is None


def test_all_local_addresses_are_listed(space: Namespace) -> None:
    space.ip("link", "add", "p0", "type", "veth")
    space.ip("address", "add", "10.8.0.1", "peer", "10.8.0.2", "dev", "p0")
    found = asked(space, lambda routes: routes.local_addresses())
    assert {address("10.0.0.1"), address("fd00::1"), address("127.0.0.1"), address("10.8.0.1")} <= found
    assert address("10.8.0.2") not in found


def test_thousands_of_addresses_are_listed(space: Namespace) -> None:
    """In many datagrams."""
    wanted = [f"10.9.{n // 250}.{n % 250 + 1}" for n in range(2000)]
    space.run(["ip", "-batch", "-"], text="".join(f"address add {each}/32 dev v0\n" for each in wanted))
    found = asked(space, lambda routes: routes.local_addresses())
    assert {address(each) for each in wanted} <= found


def test_an_interface_is_found_among_hundreds(space: Namespace) -> None:
    space.run(
        ["ip", "-batch", "-"], text="".join(f"link add w{n} type veth peer name x{n}\n" for n in range(100))
    )
    space.ip("link", "set", "x77", "address", "02:00:00:00:ab:cd")
    assert asked(space, lambda routes: routes.iface_by_hwaddress("02:00:00:00:ab:cd")) == "x77"


def test_an_interface_is_found_by_its_hardware_address_in_any_case(space: Namespace) -> None:
    space.ip("link", "set", "v0", "address", "02:00:00:00:ab:cd")
    assert asked(space, lambda routes: routes.iface_by_hwaddress("02:00:00:00:AB:CD")) == "v0"
    assert asked(space, lambda routes: routes.iface_by_hwaddress("02:00:00:00:00:99")) is None


def test_of_two_interfaces_with_one_hardware_address_the_older_is_taken(space: Namespace) -> None:
    space.ip("link", "set", "v0", "address", "02:00:00:00:ab:cd")
    space.ip("link", "add", "a0", "address", "02:00:00:00:ab:cd", "type", "veth")
    assert asked(space, lambda routes: routes.iface_by_hwaddress("02:00:00:00:ab:cd")) == "v0"


def test_many_questions_go_over_one_socket(space: Namespace) -> None:
    def ask(routes: Routes) -> set[Address | None]:
        return {routes.source_for(address(f"10.0.0.{n}")) for n in range(2, 200)}

    assert asked(space, ask) == {address("10.0.0.1")}


def test_after_close_the_next_question_opens_again(space: Namespace) -> None:
    def ask(routes: Routes) -> Address | None:
        routes.source_for(address("10.0.0.9"))
        routes.close()
        routes.close()
        return routes.source_for(address("10.0.0.9"))

    assert asked(space, ask) == address("10.0.0.1")


def test_a_socket_that_broke_is_a_typed_error_and_then_replaced(space: Namespace) -> None:
    def ask(routes: Routes) -> Address | None:
        routes.source_for(address("10.0.0.9"))
        assert routes._open is not None
        routes._open.close()
        with pytest.raises(KernelUnavailable, match="Bad file descriptor"):
            routes.source_for(address("10.0.0.9"))
        return routes.source_for(address("10.0.0.9"))

    assert asked(space, ask) == address("10.0.0.1")


# -- monitors -----------------------------------------------------------------------------------


class Woken:
    """Counts wakeups by reason."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)

    def until_more_than(self, count: int) -> None:
        wait_until(lambda: len(self.reasons) > count, f"more than {count} wakeups")

    def settled(self) -> int:
        """The count once nothing more comes."""
        count = -1
        while count != len(self.reasons):
            count = len(self.reasons)
            holds_for(lambda: len(self.reasons) == count, 0.2)  # noqa: B023  # called before count changes
        return len(self.reasons)


Start = Callable[..., tuple[RouteMonitor | GuardMonitor, Woken]]


@pytest.fixture
def start(space: Namespace) -> Iterator[Start]:
    started: list[RouteMonitor | GuardMonitor] = []

    def start(
        kind: type[RouteMonitor | GuardMonitor], wake: Woken | None = None, **options: int
    ) -> tuple[RouteMonitor | GuardMonitor, Woken]:
        woken = wake or Woken()

        def begin() -> RouteMonitor | GuardMonitor:
            monitor = kind(woken, **options)
            monitor.start()  # a thread is born into the namespace of its parent
            return monitor

        started.append(space.inside(begin))
        return started[-1], woken

    yield start
    for monitor in started:
        monitor.stop()
        assert not monitor.is_alive()


@pytest.mark.parametrize("kind", [RouteMonitor, GuardMonitor])
def test_a_monitor_wakes_once_it_listens(start: Start, kind: type[RouteMonitor | GuardMonitor]) -> None:
    _, woken = start(kind)
    woken.until_more_than(0)
    assert woken.settled() == 1


@pytest.mark.parametrize(
    "change",
    [
        ("address", "add", "10.0.0.50/24", "dev", "v0"),
        ("-6", "address", "add", "fd00::50/64", "dev", "v0"),
        ("route", "add", "10.9.0.0/16", "via", "10.0.0.9"),
        ("-6", "route", "add", "fd09::/64", "via", "fd00::9"),
        ("rule", "add", "from", "10.0.0.1", "lookup", "100"),
        ("-6", "rule", "add", "from", "fd00::1", "lookup", "100"),
        ("link", "set", "v0", "down"),
        ("link", "add", "d0", "type", "veth"),
    ],
    ids=" ".join,
)
def test_the_route_monitor_hears_every_change(
    space: Namespace, start: Start, change: tuple[str, ...]
) -> None:
    _, woken = start(RouteMonitor)
    woken.until_more_than(0)
    before = woken.settled()
    space.ip(*change)
    woken.until_more_than(before)
    assert set(woken.reasons) == {"network"}


def test_the_route_monitor_survives_lost_messages(space: Namespace, start: Start) -> None:
    """More messages than its buffer holds, while it is held up: ENOBUFS, and it goes on."""
    hold, release = threading.Event(), threading.Event()

    class Slow(Woken):
        def __call__(self, reason: str) -> None:
            super().__call__(reason)
            if hold.is_set():
                release.wait(20)

    monitor, woken = start(RouteMonitor, Slow(), receive_buffer=2048)
    woken.until_more_than(0)
    before = woken.settled()
    hold.set()
    lines = "".join(f"address add 10.3.{n >> 8}.{n & 255}/32 dev v0\n" for n in range(2000))
    space.run(["ip", "-batch", "-"], text=lines)
    hold.clear()
    release.set()
    flood = woken.settled()

    assert before < flood < before + 2000, "nothing was lost: the test shows nothing"
    assert monitor.is_alive()
    space.ip("address", "add", "10.0.0.50/24", "dev", "v0")
    woken.until_more_than(flood)


GUARD = "table inet iscsi_ipsec { set portals4 { type ipv4_addr . inet_service; }; chain output { }; }"


@pytest.mark.parametrize(
    "change",
    [
        "delete table inet iscsi_ipsec",
        "flush ruleset",
        "add element inet iscsi_ipsec portals4 { 10.0.0.2 . 3260 }",
        "add rule inet iscsi_ipsec output accept",
        "add chain inet iscsi_ipsec more",
        "delete chain inet iscsi_ipsec output",
        "add table inet iscsi_ipsec { flags dormant; }",
    ],
)
def test_the_guard_monitor_hears_every_change_of_the_table(
    space: Namespace, start: Start, change: str
) -> None:
    space.run(["nft", GUARD])
    _, woken = start(GuardMonitor)
    woken.until_more_than(0)
    before = woken.settled()
    space.run(["nft", change])
    woken.until_more_than(before)
    assert set(woken.reasons) <= GuardMonitor.reasons


@pytest.mark.parametrize("how", ["flush ruleset", "delete table inet iscsi_ipsec"])
def test_the_guard_monitor_tells_a_table_that_is_gone_from_one_that_was_replaced(
    space: Namespace, start: Start, how: str
) -> None:
    space.run(["nft", GUARD])
    _, woken = start(GuardMonitor)
    woken.until_more_than(0)
    before = woken.settled()
    space.run(["nft", f"{GUARD}; delete table inet iscsi_ipsec; {GUARD}"])
    woken.until_more_than(before)
    woken.settled()
    assert set(woken.reasons) == {"guard"}
    space.run(["nft", how])
    wait_until(lambda: "guard-gone" in woken.reasons, "it is reported")


def test_the_guard_monitor_is_deaf_to_other_tables(space: Namespace, start: Start) -> None:
    _, woken = start(GuardMonitor)
    woken.until_more_than(0)
    before = woken.settled()
    space.run(["nft", GUARD.replace("iscsi_ipsec", "iscsi_ipsec2")])
    space.run(["nft", "delete table inet iscsi_ipsec2"])
    space.run(["nft", GUARD])  # the sign that the others have been heard
    woken.until_more_than(before)
    own = woken.settled() - before
    space.run(["nft", GUARD.replace("iscsi_ipsec", "other")])
    assert woken.settled() - before == own
    assert own == 1  # one transaction is one datagram


@pytest.mark.parametrize("kind", [RouteMonitor, GuardMonitor])
def test_stop_ends_a_monitor_at_once(start: Start, kind: type[RouteMonitor | GuardMonitor]) -> None:
    monitor, woken = start(kind)
    woken.until_more_than(0)
    began = time.monotonic()
    monitor.stop()
    assert not monitor.is_alive()
    assert time.monotonic() - began < 1


def test_a_callback_that_raises_does_not_end_the_monitor(space: Namespace, start: Start) -> None:
    class Raising(Woken):
        def __call__(self, reason: str) -> None:
            super().__call__(reason)
            raise RuntimeError("a bug")

    monitor, woken = start(RouteMonitor, Raising())
    woken.until_more_than(0)
    before = woken.settled()
    space.ip("link", "add", "d0", "type", "veth")
    woken.until_more_than(before)
    assert monitor.is_alive()


def test_a_monitor_that_may_not_listen_tries_again_until_it_is_stopped(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[float] = []

    def refuse(self: RouteMonitor) -> None:
        attempts.append(time.monotonic())
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(RouteMonitor, "_subscribed", refuse)
    monitor, woken = start(RouteMonitor)
    wait_until(lambda: len(attempts) > 1, "a second attempt")
    assert monitor.is_alive()
    assert woken.reasons == []


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_any_bytes_name_some_tables_or_none(data: bytes) -> None:
    assert all(name in data for _, name in tables(data))


def test_the_table_of_a_notification_is_found_behind_other_messages() -> None:
    name = b"iscsi_ipsec\0"
    attribute = struct.pack("=HH", 4 + len(name), 1) + name
    body = bytes(4) + attribute
    other = struct.pack("=IHHII", 20, 0x0A0F, 0, 0, 0) + bytes(4)
    whole = other + struct.pack("=IHHII", 16 + len(body), 0x0A02, 0, 0, 0) + body
    assert list(tables(whole)) == [(NFT_MSG_DELTABLE, b"iscsi_ipsec")]
    assert list(tables(whole[:-1])) == []
