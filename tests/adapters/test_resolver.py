"""Names are resolved beside the loop, and a bad resolver does no harm."""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from iscsi_ipsec.adapters.resolver import Answer, ResolveFailure, Resolver, system_resolve
from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.wakeups import Wakeups

PATIENCE = 10.0


def addresses(*texts: str) -> tuple[Address, ...]:
    return tuple(ipaddress.ip_address(text) for text in texts)


class World:
    """A name service whose every answer the test gives, a clock that it turns, and the resolver."""

    def __init__(self, **options: float | dict[str, tuple[Address, ...]]) -> None:
        self.wakeups = Wakeups()
        self.now = 1000.0
        self.asked: queue.Queue[str] = queue.Queue()
        self.answers: dict[str, queue.Queue[Callable[[], tuple[Address, ...]]]] = {}
        self.resolver = Resolver(
            self.wakeups.wake,
            resolve=self._resolve,
            clock=lambda: self.now,
            **options,  # type: ignore[arg-type]  # threads is an int
        )

    def _answers(self, name: str) -> queue.Queue[Callable[[], tuple[Address, ...]]]:
        return self.answers.setdefault(name, queue.Queue())

    def _resolve(self, name: str) -> tuple[Address, ...]:
        self.asked.put(name)
        return self._answers(name).get()()

    def answer(self, name: str, *texts: str) -> None:
        """Wait until the name is asked for, and answer."""
        assert self.asked.get(timeout=PATIENCE) == name
        self._answers(name).put(lambda: addresses(*texts))

    def fail(self, name: str, error: Exception) -> None:
        assert self.asked.get(timeout=PATIENCE) == name

        def raise_it() -> tuple[Address, ...]:
            raise error

        self._answers(name).put(raise_it)

    def woken(self) -> bool:
        return self.wakeups.wait(PATIENCE) == {"names"}

    def get(self, name: str) -> Answer:
        return self.resolver.lookup([name])[name]

    def settle(self) -> None:
        """Wait until no look-up runs."""
        deadline = time.monotonic() + PATIENCE
        while any(entry.asked is not None for entry in self.resolver._names.values()):
            assert time.monotonic() < deadline
            threading.Event().wait(0.005)


@pytest.fixture
def world() -> Iterator[World]:
    one = World(ttl=60, retry=5, timeout=10)
    yield one
    one.resolver.stop()
    for answers in one.answers.values():
        answers.put(lambda: ())


def test_a_name_is_pending_until_it_is_answered_and_the_answer_wakes(world: World) -> None:
    assert world.get("san") is None
    world.answer("san", "fd00::20", "10.0.0.21", "10.0.0.20", "10.0.0.20")
    assert world.woken()
    assert world.get("san") == addresses("10.0.0.20", "10.0.0.21", "fd00::20")


def test_an_answer_of_an_earlier_run_counts_until_there_is_a_newer_one() -> None:
    world = World(remembered={"san": addresses("10.0.0.20")})
    assert world.get("san") == addresses("10.0.0.20")
    world.fail("san", socket.gaierror(socket.EAI_AGAIN, "no DNS at boot"))
    assert world.woken()
    assert world.get("san") == addresses("10.0.0.20")
    assert [failure.name for failure in world.resolver.failures()] == ["san"]
    world.now += 5
    world.get("san")
    world.answer("san", "10.0.0.21")
    assert world.woken()
    assert world.get("san") == addresses("10.0.0.21")
    world.resolver.stop()


def test_an_answer_is_asked_for_again_only_when_it_is_old(world: World) -> None:
    world.get("san")
    world.answer("san", "10.0.0.20")
    assert world.woken()
    world.now += 59
    world.get("san")
    assert world.asked.empty()
    world.now += 2
    assert world.get("san") == addresses("10.0.0.20")
    world.answer("san", "10.0.0.21")
    assert world.woken()
    assert world.get("san") == addresses("10.0.0.21")


def test_an_answer_that_is_not_old_is_asked_for_again_by_who_wants_it_anew(world: World) -> None:
    world.get("san")
    world.answer("san", "10.0.0.20")
    assert world.woken()
    world.now += 1
    assert world.resolver.lookup(["san"], anew=True)["san"] == addresses("10.0.0.20")
    world.resolver.lookup(["san"], anew=True)  # one is in flight
    world.answer("san", "10.0.0.21")
    assert world.woken()
    assert world.get("san") == addresses("10.0.0.21")
    assert world.asked.empty()


def test_the_same_answer_in_another_order_wakes_nobody(world: World) -> None:
    world.get("san")
    world.answer("san", "10.0.0.20", "10.0.0.21")
    assert world.woken()
    world.now += 61
    world.get("san")
    world.answer("san", "10.0.0.21", "10.0.0.20")
    world.settle()
    assert world.wakeups.wait(0) == frozenset()


def test_a_name_in_flight_is_not_asked_for_twice(world: World) -> None:
    for _ in range(5):
        assert world.get("san") is None
    world.answer("san", "10.0.0.20")
    assert world.woken()
    assert world.asked.empty()


def test_a_name_that_fails_keeps_its_last_good_answer_and_says_so(world: World) -> None:
    world.get("san")
    world.answer("san", "10.0.0.20")
    assert world.woken()
    world.now += 61
    world.get("san")
    world.fail("san", socket.gaierror(-3, "Temporary failure in name resolution"))
    assert world.woken()
    assert world.get("san") == addresses("10.0.0.20")
    assert world.resolver.failures() == (ResolveFailure("san", "Temporary failure in name resolution"),)
    world.now += 6
    world.get("san")
    world.answer("san", "10.0.0.20")
    world.settle()
    assert world.resolver.failures() == ()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (UnicodeError("label too long"), "label too long"),
        (OSError("odd"), "odd"),
    ],
)
def test_a_name_that_never_had_an_answer_is_a_failure_and_is_retried(
    world: World, error: Exception, reason: str
) -> None:
    world.get("san")
    world.fail("san", error)
    assert world.woken()
    assert world.get("san") == ResolveFailure("san", reason)
    world.now += 6
    world.get("san")
    world.answer("san", "10.0.0.20")
    assert world.woken()
    assert world.get("san") == addresses("10.0.0.20")


def test_the_same_failure_again_wakes_nobody(world: World) -> None:
    for _ in range(2):
        world.get("san")
        world.fail("san", socket.gaierror(-2, "Name or service not known"))
        world.settle()
        world.now += 6
    assert world.wakeups.wait(0) == {"names"}
    world.get("san")
    world.fail("san", socket.gaierror(-2, "Name or service not known"))
    world.settle()
    assert world.wakeups.wait(0) == frozenset()


def test_a_name_without_addresses_is_a_failure(world: World) -> None:
    world.get("san")
    world.answer("san")
    assert world.woken()
    assert world.get("san") == ResolveFailure("san", "the name has no address")


def test_a_hanging_resolver_blocks_neither_lookup_nor_stop() -> None:
    world = World(threads=2, timeout=10)
    begin = time.monotonic()
    names = [f"san{n}" for n in range(50)]
    assert set(world.resolver.lookup(names).values()) == {None}
    world.now += 11
    reported = world.resolver.lookup(names)
    assert reported["san0"] == ResolveFailure("san0", "no answer within 10 s")
    world.resolver.stop()
    assert time.monotonic() - begin < 5
    for answers in list(world.answers.values()):
        answers.put(lambda: ())


def test_a_late_answer_is_taken_all_the_same(world: World) -> None:
    world.get("san")
    world.now += 11
    assert isinstance(world.get("san"), ResolveFailure)
    world.answer("san", "10.0.0.20")
    assert world.woken()
    assert world.get("san") == addresses("10.0.0.20")


def test_no_more_threads_than_allowed_work_at_once_and_all_names_get_their_turn() -> None:
    world = World(threads=2)
    names = {f"san{n}" for n in range(20)}
    world.resolver.lookup(names)
    seen = {world.asked.get(timeout=PATIENCE), world.asked.get(timeout=PATIENCE)}
    assert world.asked.empty()
    assert len(world.resolver._threads) == 2
    for name in names:
        world._answers(name).put(lambda: addresses("10.0.0.20"))
    while len(seen) < 20:
        seen.add(world.asked.get(timeout=PATIENCE))
    world.settle()
    assert set(world.resolver.lookup(names).values()) == {addresses("10.0.0.20")}
    world.resolver.stop()


def test_a_name_that_is_no_longer_asked_for_is_forgotten(world: World) -> None:
    world.get("san")
    world.resolver.lookup([])
    world.answer("san", "10.0.0.20")
    assert world.get("san") is None


def test_stop_ends_idle_threads_and_silences_the_rest(world: World) -> None:
    world.get("san")
    world.answer("san", "10.0.0.20")
    assert world.woken()
    world.now += 61
    world.get("san")
    assert world.asked.get(timeout=PATIENCE) == "san"
    world.resolver.stop()
    world._answers("san").put(lambda: addresses("10.0.0.21"))
    for thread in world.resolver._threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert world.wakeups.wait(0) == frozenset()
    assert world.get("other") is None


def test_the_system_answers_for_localhost_and_refuses_nonsense() -> None:
    assert ipaddress.ip_address("127.0.0.1") in system_resolve("localhost")
    with pytest.raises(OSError, match=r"."):
        system_resolve("no such name")


def test_addresses_that_no_policy_can_name_are_left_out_and_mapped_ones_are_ipv4(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answers(*_: object, **__: object) -> list[tuple[object, object, object, str, tuple[object, ...]]]:
        found = [
            "fe80::1%eth0",
            "::ffff:10.0.0.20",
            "fd00::20",
            "fd00::21%2",
            "ff02::1",
            "::",
            "::ffff:0.0.0.0",
        ]
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (text, 0, 0, 0)) for text in found]

    monkeypatch.setattr(socket, "getaddrinfo", answers)
    assert set(system_resolve("san")) == set(addresses("10.0.0.20", "fd00::20"))
