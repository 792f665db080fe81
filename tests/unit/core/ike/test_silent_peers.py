"""Which SAs the far end may have lost: decided by their traffic, with patience, and less and less often."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise

import pytest

from iscsi_ipsec.base.charon_sa import IkeSa
from iscsi_ipsec.core.ike.silent_peers import (
    CLOSER_LOOK,
    IDLE_AFTER,
    LOOK,
    SILENT_FOR,
    Traffic,
    next_look,
    suspects,
    watch_traffic,
)
from tests.support.values import child_sa, ike_sa

NAMES = ["c"]


def sa(bytes_in: int, bytes_out: int, ike_id: int = 1, child_id: int = 1) -> IkeSa:
    child = replace(child_sa("iscsi-ipsec-x", child_id), bytes_in=bytes_in, bytes_out=bytes_out)
    return ike_sa(child, unique_id=ike_id)


def looks(
    moments: Iterable[float], bytes_at: Callable[[float], tuple[int, int]]
) -> tuple[dict[str, Traffic], float | None]:
    """The traffic after the last look, and when the SA was first suspected."""
    traffic: dict[str, Traffic] = {}
    first = None
    for now in moments:
        sas = [sa(*bytes_at(now))]
        traffic = watch_traffic(traffic, sas, NAMES, now)
        if first is None and suspects(traffic, sas, frozenset(), now):
            first = now
    return traffic, first


def every(seconds: float, until: float) -> list[float]:
    return [seconds * n for n in range(int(until / seconds) + 1)]


def tcp(died: float) -> Callable[[float], tuple[int, int]]:
    """10 KB a second both ways until the far end dies; then TCP sends again after 0.2 s, and twice as long each time."""
    again = [died + 0.2 * (2**n - 1) for n in range(1, 12)]

    def bytes_at(now: float) -> tuple[int, int]:
        alive = int(min(now, died) * 10_000)
        return alive, alive + 1500 * sum(moment <= now for moment in again)

    return bytes_at


@pytest.mark.parametrize("died", [0.0, 0.5, 1.0, 1.9, 3.3])
def test_a_far_end_that_died_is_suspected_before_tcp_sends_for_the_sixth_time(died: float) -> None:
    traffic: dict[str, Traffic] = {}
    now, bytes_at = 0.0, tcp(died)
    while now < 60:
        sas = [sa(*bytes_at(now))]
        traffic = watch_traffic(traffic, sas, NAMES, now)
        if suspects(traffic, sas, frozenset(), now):
            break
        now += next_look(traffic, now) or LOOK
    assert SILENT_FOR <= now - died <= 10, "TCP sends again 12.6 s after the first time"


@pytest.mark.parametrize("phase", [0.0, 0.3, 0.7, 1.1, 1.5, 1.9])
@pytest.mark.parametrize("step", [CLOSER_LOOK, LOOK])
def test_a_far_end_that_stalls_for_five_seconds_again_and_again_is_never_suspected(
    phase: float, step: float
) -> None:
    def bytes_at(now: float) -> tuple[int, int]:
        cycles, within = divmod(now + phase, 6.0)
        answered = cycles * 1.0 + min(within, 1.0)
        return int(answered * 10_000), int((now + phase) * 10_000)

    assert looks(every(step, 600), bytes_at)[1] is None


def test_an_idle_sa_is_never_suspected() -> None:
    assert looks(every(1, 600), lambda _: (1000, 1000))[1] is None


def test_one_late_acknowledgement_is_no_question() -> None:
    assert looks(every(1, 600), lambda now: (1000, 1000 if now < 3 else 1052))[1] is None


def test_a_nop_out_each_five_seconds_that_is_answered_is_no_suspicion() -> None:
    assert looks(every(2, 600), lambda now: (int(now // 5) * 48, int((now + 0.1) // 5) * 48))[1] is None


def test_a_nop_out_that_is_not_answered_any_more_is_suspected_within_four_of_them() -> None:
    first = looks(every(1, 60), lambda now: (min(int(now // 5), 2) * 48, int(now // 5) * 48))[1]
    assert first is not None
    assert first - 10 <= 20


def test_a_new_sa_that_stays_unanswered_is_suspected_after_twice_the_time() -> None:
    traffic: dict[str, Traffic] = {}
    pauses: list[float] = []
    number, since, now = 1, 0.0, 0.0
    while len(pauses) < 5:
        sas = [sa(0, int(now * 100), number)]
        traffic = watch_traffic(traffic, sas, NAMES, now)
        if suspects(traffic, sas, frozenset(), now):
            pauses.append(now - since)
            since, number = now, number + 1
        now += 1
    assert pauses[0] == pytest.approx(SILENT_FOR, abs=1)
    assert all(after >= 1.8 * before for before, after in pairwise(pauses))


def test_an_answer_makes_up_for_everything_before() -> None:
    traffic = {"c": replace(only(watch_traffic({}, [sa(0, 0)], NAMES, 0.0)), grown=5, fruitless=4)}
    seen = only(watch_traffic(traffic, [sa(1, 1)], NAMES, 9.0))
    assert (seen.grown, seen.fruitless, seen.answered) == (0, 0, 9.0)


def test_a_rekeyed_child_begins_to_count_anew_and_is_not_suspected_for_it() -> None:
    traffic = watch_traffic({}, [sa(5000, 5000)], NAMES, 0.0)
    seen = only(watch_traffic(traffic, [sa(0, 0, child_id=2)], NAMES, 60.0))
    assert (seen.bytes_in, seen.answered, seen.fruitless) == (0, 60.0, 0)


def test_requests_that_charon_repeats_make_an_sa_in_use_suspect_at_once() -> None:
    sas = [sa(10, 10)]
    traffic = watch_traffic({}, sas, NAMES, 0.0)
    assert suspects(traffic, sas, frozenset({1}), 1.0) == {1}
    assert suspects(traffic, sas, frozenset({2}), 1.0) == set()
    assert suspects(traffic, sas, frozenset({1}), IDLE_AFTER) == set(), "nobody misses it"


def test_only_sas_that_this_host_initiates_are_watched() -> None:
    assert watch_traffic({}, [sa(0, 0)], [], 0.0) == {}
    assert suspects({}, [sa(0, 0)], frozenset({1}), 0.0) == set()


def test_what_is_idle_is_not_looked_at_in_between() -> None:
    traffic, _ = looks([0.0], lambda _: (0, 0))
    assert next_look(traffic, 1.0) == LOOK
    assert next_look(traffic, IDLE_AFTER) is None
    assert next_look({}, 0.0) is None


def only(traffic: dict[str, Traffic]) -> Traffic:
    (seen,) = traffic.values()
    return seen
