"""Which routes are asked again, and when, by the questions to a fake kernel."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from iscsi_ipsec.adapters.netlink import RouteMonitor
from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.service.pass_schedule import ROUTES
from iscsi_ipsec.service.source_addresses import AT_LEAST, SourceAddresses
from tests.support.fakes import FakeClock, FakeRouting

MANY = frozenset((ip_address(f"127.0.{n // 250}.{n % 250 + 1}"), "") for n in range(640))


class Counting(FakeRouting):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(FakeClock())
        self.asked: list[Address] = []

    def source_for(self, address_: Address, oif_name: str = "") -> Address | None:
        self.asked.append(address_)
        return super().source_for(address_, oif_name)

    def take(self) -> list[Address]:
        asked, self.asked = self.asked, []
        return asked


@pytest.fixture
def routes() -> Counting:
    return Counting()


def test_an_answer_is_remembered_and_only_what_is_new_is_asked(routes: Counting) -> None:
    sources = SourceAddresses(routes)
    answers = sources.lookup(MANY, [])
    assert set(answers) == MANY
    assert len(routes.take()) == len(MANY)
    sources.forget(frozenset({"files", "sa"}))
    new = (ip_address("127.9.9.9"), "")
    assert set(sources.lookup(MANY | {new}, [])) == MANY | {new}
    assert routes.take() == [ip_address("127.9.9.9")]


@pytest.mark.parametrize("reason", [RouteMonitor.reason, "start", "reload"])
def test_after_a_change_of_routes_all_are_asked_again(routes: Counting, reason: str) -> None:
    sources = SourceAddresses(routes)
    sources.lookup(MANY, [])
    routes.take()
    sources.forget(frozenset({"files", reason}))
    sources.lookup(MANY, [])
    assert len(routes.take()) == len(MANY)


def test_each_regular_look_asks_the_oldest_sixteenth_and_sixteen_ask_all(routes: Counting) -> None:
    sources = SourceAddresses(routes)
    sources.lookup(MANY, [])
    routes.take()
    asked: list[Address] = []
    for _ in range(16):
        sources.forget(frozenset({ROUTES}))
        assert set(sources.lookup(MANY, [])) == MANY
        asked += (now := routes.take())
        assert len(now) == len(MANY) // 16
    assert len(set(asked)) == len(MANY)


def test_a_few_are_all_asked_again_at_each_regular_look(routes: Counting) -> None:
    sources, few = SourceAddresses(routes), frozenset(sorted(MANY)[:AT_LEAST])
    sources.lookup(few, [])
    routes.take()
    sources.forget(frozenset({ROUTES}))
    sources.lookup(few, [])
    assert len(routes.take()) == AT_LEAST
