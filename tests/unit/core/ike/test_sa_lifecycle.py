"""Operations on SAs: make before break, a limited grace period, and an immediate end after a removed key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from iscsi_ipsec.base.charon_sa import IkeSa
from iscsi_ipsec.core.ike.sa_lifecycle import (
    CARRYING,
    RETRY_DELAYS,
    Initiate,
    RetryState,
    SaOperation,
    SaTarget,
    TerminateChild,
    TerminateIke,
    next_due,
    plan_sas,
)
from tests.support.values import child_sa, ike_sa

KEY, OLD_KEY = "iscsi-ipsec-aaaaaaaa-", "iscsi-ipsec-bbbbbbbb-"
CHILD = f"{KEY}11111111-22222222"
OLD_SETTINGS = f"{KEY}11111111-33333333"
OLD_KEYS_CHILD = f"{OLD_KEY}11111111-22222222"


def targets(
    name: str = "c", *, initiator: bool = True, wanted_now: bool = True, valid: Iterable[str] = ()
) -> SaTarget:
    parts = frozenset(valid)
    return SaTarget(
        name=name, child=CHILD, key_part=KEY, initiator=initiator, wanted_now=wanted_now, valid=parts
    )


def act(
    wanted: Iterable[SaTarget],
    sas: Iterable[IkeSa] = (),
    attempts: Mapping[str, RetryState] | None = None,
    now: float = 100.0,
    revoked: Iterable[str] = (),
) -> tuple[tuple[SaOperation, ...], dict[str, RetryState]]:
    return plan_sas(wanted, sas, attempts or {}, now, frozenset(revoked))


def operations(*args: object, **more: object) -> tuple[SaOperation, ...]:
    return act(*args, **more)[0]  # type: ignore[arg-type]  # handed through


GOOD = ike_sa(child_sa(CHILD))
INITIATE = Initiate("c", CHILD)
REPLACED = "replaced by one with the new settings"
UNASKED = "nothing asks for it any more"
OUT_OF_USE = "its key is no longer valid"


def test_each_connection_of_many_is_seen_to_whatever_the_ones_before_it_are() -> None:
    def sas(conn: str, first: int, *children: str) -> list[IkeSa]:
        return [
            ike_sa(child_sa(child, n, conn=conn), unique_id=n, conn=conn)
            for n, child in enumerate(children, first)
        ]

    wanted = [
        targets("idle", wanted_now=False), targets("starting"), targets("revoked"), targets("good"),
        targets("changed"), targets("rotating", initiator=False, valid=[OLD_KEY]), targets("last"),
    ]  # fmt: skip
    deleting = ike_sa(
        child_sa(OLD_SETTINGS, 39, conn="changed"), unique_id=39, conn="changed", state="DELETING"
    )
    previously_managed = [
        *sas("revoked", 10, "iscsi-ipsec-gone-1", "iscsi-ipsec-gone-2"), *sas("good", 20, CHILD),
        deleting, *sas("changed", 40, OLD_SETTINGS, CHILD, OLD_KEYS_CHILD),
        *sas("rotating", 50, OLD_KEYS_CHILD, OLD_SETTINGS, CHILD), *sas("left-1", 60, CHILD),
        ike_sa(unique_id=70, conn="left-2", state="DELETING"), *sas("left-2", 71, CHILD),
    ]  # fmt: skip
    made, memory = act(wanted, previously_managed, now=100.0, revoked=["iscsi-ipsec-gone-"])
    assert made == (
        Initiate("starting", CHILD),
        TerminateIke("revoked", 10, True, OUT_OF_USE),
        TerminateIke("revoked", 11, True, OUT_OF_USE),
        Initiate("revoked", CHILD),
        TerminateIke("changed", 40, False, REPLACED),
        TerminateIke("changed", 42, False, REPLACED),
        TerminateIke("rotating", 51, False, REPLACED),
        Initiate("last", CHILD),
        TerminateIke("left-1", 60, False, UNASKED),
        TerminateIke("left-2", 71, False, UNASKED),
    )
    assert memory == dict.fromkeys(
        ["starting", "revoked", "last"], RetryState(CHILD, 1, 100.0 + RETRY_DELAYS[0])
    )


# -- nothing to do


def test_a_good_sa_is_left_alone() -> None:
    assert act([targets()], [GOOD]) == ((), {})


@pytest.mark.parametrize("state", sorted(CARRYING))
def test_every_state_that_passes_packets_counts_as_up(state: str) -> None:
    assert operations([targets()], [ike_sa(child_sa(CHILD, state=state))]) == ()


def test_what_no_traffic_waits_for_is_not_started() -> None:
    assert act([targets(wanted_now=False)]) == ((), {})


def test_a_responder_never_starts_anything() -> None:
    assert operations([targets(initiator=False)]) == ()


def test_plan_sas_leaves_the_sas_of_a_connection_that_charon_does_not_hold() -> None:
    unloaded = replace(targets(), loaded=False)
    for children in ([child_sa(CHILD)], [child_sa(OLD_SETTINGS)], [child_sa(OLD_KEYS_CHILD)], []):
        assert act([unloaded], [ike_sa(*children)]) == ((), {})
    assert act([unloaded]) == ((), {})


def test_plan_sas_ends_the_sas_of_a_removed_key_even_where_charon_does_not_hold_the_connection() -> None:
    sas = [ike_sa(child_sa(OLD_KEYS_CHILD))]
    made = operations([replace(targets(), loaded=False)], sas, revoked=[OLD_KEY])
    assert made == (TerminateIke("c", 1, True, OUT_OF_USE),)


# -- starting


def test_what_is_wanted_now_is_started_at_once() -> None:
    made, memory = act([targets()], now=100.0)
    assert made == (INITIATE,)
    assert memory["c"] == RetryState(CHILD, 1, 100.0 + RETRY_DELAYS[0])


@pytest.mark.parametrize("state", ["CREATED", "ROUTED", "INSTALLING", "DELETING", "DESTROYING", ""])
def test_a_child_that_passes_no_packets_does_not_count_as_up(state: str) -> None:
    assert INITIATE in operations([targets()], [ike_sa(child_sa(CHILD, state=state))])


def test_an_attempt_is_given_its_time() -> None:
    _, memory = act([targets()], now=100.0)
    assert operations([targets()], attempts=memory, now=100.0 + RETRY_DELAYS[0] - 0.01) == ()
    assert operations([targets()], attempts=memory, now=100.0 + RETRY_DELAYS[0]) == (INITIATE,)


def test_attempts_are_spaced_ever_wider_up_to_a_limit_far_below_open_iscsis() -> None:
    memory: dict[str, RetryState] = {}
    now, gaps = 0.0, []
    for _ in range(8):
        made, memory = act([targets()], attempts=memory, now=now)
        assert made == (INITIATE,)
        gaps.append(memory["c"].due - now)
        now = memory["c"].due
    assert gaps == [*RETRY_DELAYS, *[RETRY_DELAYS[-1]] * 3]
    assert gaps == sorted(gaps)
    assert max(gaps) < 60


def test_another_child_begins_anew() -> None:
    stale = {"c": RetryState("iscsi-ipsec-another", 5, 1000.0)}
    made, memory = act([targets()], attempts=stale, now=100.0)
    assert made == (INITIATE,)
    assert memory["c"].count == 1


def test_success_forgets_the_attempts() -> None:
    assert act([targets()], [GOOD], {"c": RetryState(CHILD, 4, 1000.0)})[1] == {}


def test_attempts_of_what_is_no_longer_wanted_are_forgotten() -> None:
    assert act([], [], {"c": RetryState(CHILD, 4, 1000.0)})[1] == {}


def test_the_next_look_is_at_the_earliest_attempt() -> None:
    assert next_due({}) is None
    assert next_due({"a": RetryState("x", 1, 7.0), "b": RetryState("y", 1, 3.0)}) == 3.0


# -- the trap's own attempt


def test_the_traps_own_attempt_gets_its_time() -> None:
    underway = ike_sa(state="CONNECTING")
    made, memory = act([targets()], [underway], now=100.0)
    assert (made, memory) == ((), {"c": RetryState(CHILD, 1, 100.0 + RETRY_DELAYS[0])})
    assert operations([targets()], [underway], memory, now=100.0 + RETRY_DELAYS[0] - 0.01) == ()


def test_an_attempt_under_way_that_does_not_end_is_dropped_by_force_before_the_next() -> None:
    underway = ike_sa(state="CONNECTING", unique_id=5)
    _, memory = act([targets()], [underway], now=100.0)
    made = operations([targets()], [underway], memory, now=104.0)
    assert [type(o) for o in made] == [TerminateIke, Initiate]
    assert isinstance(made[0], TerminateIke)
    assert (made[0].ike_id, made[0].force) == (5, True)


def test_a_wedged_ike_sa_is_dropped_by_force_and_negotiated_anew() -> None:
    # IKEv1 stays REKEYING without children and ignores acquires
    wedged = ike_sa(state="REKEYING", version=1, unique_id=9)
    made = operations([targets()], [wedged])
    assert made == (TerminateIke("c", 9, True, made[0].why), INITIATE)  # type: ignore[union-attr]  # the first


def test_an_established_ike_sa_without_child_is_used_before_it_is_dropped() -> None:
    childless = ike_sa(unique_id=9)
    made, memory = act([targets()], [childless], now=100.0)
    assert made == (INITIATE,)
    later = operations([targets()], [childless], memory, now=memory["c"].due)
    assert [type(o) for o in later] == [TerminateIke, Initiate]


# -- changed settings: make before break


def test_an_outdated_sa_stays_while_the_new_one_is_negotiated() -> None:
    assert operations([targets(wanted_now=False)], [ike_sa(child_sa(OLD_SETTINGS))]) == (INITIATE,)


def test_an_outdated_child_ends_when_the_new_one_carries_packets() -> None:
    both = ike_sa(child_sa(OLD_SETTINGS, 1), child_sa(CHILD, 2))
    (made,) = operations([targets()], [both])
    assert isinstance(made, TerminateChild)
    assert made.child_id == 1


def test_an_ike_sa_with_only_outdated_children_ends_as_a_whole() -> None:
    old, new = ike_sa(child_sa(OLD_SETTINGS, 1), unique_id=1), ike_sa(child_sa(CHILD, 2), unique_id=2)
    (made,) = operations([targets()], [old, new])
    assert isinstance(made, TerminateIke)
    assert (made.ike_id, made.force) == (1, False)


def test_no_outdated_sa_ends_while_the_new_one_is_only_being_installed() -> None:
    both = ike_sa(child_sa(OLD_SETTINGS, 1), child_sa(CHILD, 2, state="INSTALLING"))
    assert not [o for o in operations([targets()], [both]) if not isinstance(o, Initiate)]


def test_changed_settings_alone_never_end_an_sa_however_long_the_new_one_fails() -> None:
    old, memory, now = ike_sa(child_sa(OLD_SETTINGS)), dict[str, RetryState](), 0.0
    for _ in range(20):
        made, memory = act([targets()], [old], memory, now)
        assert made == (INITIATE,)
        now = memory["c"].due


# -- changed and removed keys


def test_the_sa_of_a_changed_key_stays_for_a_grace_and_then_ends() -> None:
    old, memory, now = ike_sa(child_sa(OLD_KEYS_CHILD), unique_id=4), dict[str, RetryState](), 0.0
    for _ in RETRY_DELAYS:
        made, memory = act([targets()], [old], memory, now)
        assert made == (INITIATE,)
        now = memory["c"].due
        # nothing ends while an attempt is under way, which may be the one that replaces it
        assert act([targets()], [old], memory, now - 0.01) == ((), memory)
    made, memory = act([targets()], [old], memory, now)
    assert [(type(o), getattr(o, "ike_id", None)) for o in made] == [(TerminateIke, 4), (Initiate, None)]
    assert now == sum(RETRY_DELAYS)


def test_the_sa_of_a_changed_key_ends_on_the_served_side_as_well() -> None:
    # the peer may rekey for ever without authenticating again (IKEv2)
    old, now = ike_sa(child_sa(OLD_KEYS_CHILD), unique_id=4, initiator=False), 100.0
    served, memory = targets(initiator=False, wanted_now=False), dict[str, RetryState]()
    for count, delay in enumerate(RETRY_DELAYS, 1):
        made, memory = act([served], [old], memory, now)
        assert (made, memory) == ((), {"c": RetryState(CHILD, count, now + delay)})
        assert act([served], [old], memory, now + delay - 0.01) == ((), memory)
        now += delay
    assert act([served], [old], memory, now) == ((TerminateIke("c", 4, True, OUT_OF_USE),), {})
    assert now == 100.0 + sum(RETRY_DELAYS)


def test_a_served_sa_of_the_same_key_with_earlier_settings_is_left_to_its_peer_however_long() -> None:
    old, now = ike_sa(child_sa(OLD_SETTINGS), initiator=False), 0.0
    served, memory = targets(initiator=False, wanted_now=False), dict[str, RetryState]()
    for delay in (*RETRY_DELAYS, *[RETRY_DELAYS[-1]] * 3):
        made, memory = act([served], [old], memory, now)
        assert (made, memory["c"].due) == ((), now + delay)
        now += delay


def test_no_grace_is_counted_for_what_carries_nothing_or_is_under_a_valid_key() -> None:
    new = ike_sa(child_sa(CHILD), unique_id=7)
    valid = ike_sa(child_sa(OLD_KEYS_CHILD), remote_id="10.0.0.2")
    begun = ike_sa(state="CONNECTING", remote_id="10.0.0.3")
    for sas in ([new], [valid], [begun], [begun, valid, new]):
        assert act([targets(initiator=False, wanted_now=False, valid=[OLD_KEY])], sas) == ((), {})


def test_a_peer_that_came_anew_ends_its_own_old_sa_and_no_other_peers() -> None:
    # all peers that use the group key share one connection
    new = ike_sa(child_sa(CHILD), unique_id=7, initiator=False, remote_id="10.0.0.1")
    old = ike_sa(child_sa(OLD_SETTINGS), unique_id=4, initiator=False, remote_id="10.0.0.1")
    others = ike_sa(child_sa(OLD_SETTINGS), unique_id=5, initiator=False, remote_id="10.0.0.2")
    made = operations([targets(initiator=False, wanted_now=False)], [others, new, old])
    assert [getattr(o, "ike_id", None) for o in made] == [4]


def test_another_peers_sa_of_a_changed_key_has_its_grace_though_one_came_anew() -> None:
    new = ike_sa(child_sa(CHILD), unique_id=7, initiator=False, remote_id="10.0.0.1")
    others = ike_sa(child_sa(OLD_KEYS_CHILD), unique_id=5, initiator=False, remote_id="10.0.0.2")
    memory, now, ended = dict[str, RetryState](), 0.0, list[float]()
    for _ in range(40):
        made, memory = act([targets(initiator=False, wanted_now=False)], [others, new], memory, now)
        ended += [now for o in made if isinstance(o, TerminateIke) and o.ike_id == 5]
        now += 10
    assert ended
    assert ended[0] >= sum(RETRY_DELAYS)


def test_the_sa_of_a_removed_key_ends_at_once() -> None:
    made = operations([targets()], [ike_sa(child_sa(OLD_KEYS_CHILD), unique_id=4)], revoked=[OLD_KEY])
    assert [type(o) for o in made] == [TerminateIke, Initiate]
    assert isinstance(made[0], TerminateIke)
    assert made[0].ike_id == 4


def test_a_removed_key_ends_its_sa_also_beside_a_good_one() -> None:
    made = operations([targets()], [GOOD, ike_sa(child_sa(OLD_KEYS_CHILD), unique_id=4)], revoked=[OLD_KEY])
    assert [getattr(o, "ike_id", None) for o in made] == [4]


def test_a_removed_key_ends_nobody_elses_sa() -> None:
    other = ike_sa(child_sa(CHILD, conn="d"), conn="d", unique_id=8)
    made = operations([targets(), targets("d")], [GOOD, other], revoked=[OLD_KEY])
    assert made == ()


def test_an_sa_that_nothing_asks_for_ends() -> None:
    (made,) = operations([], [ike_sa(child_sa(CHILD), unique_id=3, conn="gone")])
    assert isinstance(made, TerminateIke)
    assert (made.conn, made.ike_id) == ("gone", 3)


def test_an_sa_is_not_ended_twice_in_one_go() -> None:
    made = operations(
        [targets()], [ike_sa(child_sa(OLD_KEYS_CHILD), unique_id=4)], revoked=[OLD_KEY, OLD_KEY[:-2]]
    )
    assert len([o for o in made if isinstance(o, TerminateIke)]) == 1


def test_a_memory_of_attempts_is_not_changed_in_place() -> None:
    before = {"c": RetryState(CHILD, 1, 0.0)}
    act([targets()], [], before, 50.0)
    assert before == {"c": RetryState(CHILD, 1, 0.0)}


def test_an_ike_sa_that_is_already_ending_is_not_ended_again() -> None:
    new = ike_sa(child_sa(CHILD), unique_id=1)
    ending = ike_sa(child_sa(OLD_SETTINGS), unique_id=2, state="DELETING")
    ended = [op for op in act([targets()], [new, ending])[0] if isinstance(op, TerminateIke)]
    assert ended == []


# -- what the far end may have lost

LOST = "its peer did not answer, and a new one is up"
BESIDE = Initiate("c", CHILD, beside=True)


def suspecting(
    sas: Iterable[IkeSa], *dead: int, attempts: Mapping[str, RetryState] | None = None, now: float = 100.0
) -> tuple[tuple[SaOperation, ...], dict[str, RetryState]]:
    return plan_sas([targets()], sas, attempts or {}, now, suspects=frozenset(dead))


def test_a_suspected_sa_gets_a_successor_beside_it_and_stays_meanwhile() -> None:
    made, memory = suspecting([GOOD], 1)
    assert made == (BESIDE,)
    assert memory["c"] == RetryState(CHILD, 1, 100.0 + RETRY_DELAYS[0], frozenset({1}))
    assert suspecting([GOOD], 1, attempts=memory, now=101.0) == ((), memory)


def test_a_successor_that_comes_to_nothing_is_dropped_and_tried_again() -> None:
    _, memory = suspecting([GOOD], 1)
    connecting = ike_sa(unique_id=2, state="CONNECTING")
    made, _ = suspecting([GOOD, connecting], 1, attempts=memory, now=100.0 + RETRY_DELAYS[0])
    assert made == (TerminateIke("c", 2, True, "it failed"), BESIDE)


@pytest.mark.parametrize("still", [True, False])
def test_a_suspected_sa_ends_when_its_successor_is_up_whether_or_not_it_answers_again(still: bool) -> None:
    _, memory = suspecting([GOOD], 1)
    new = ike_sa(child_sa(CHILD, 2), unique_id=2)
    made, memory = suspecting([GOOD, new], *([1] if still else []), attempts=memory, now=101.0)
    assert made == (TerminateIke("c", 1, True, LOST),)
    assert memory == {}


def test_an_sa_that_answers_again_is_not_replaced_any_more() -> None:
    _, memory = suspecting([GOOD], 1)
    connecting = ike_sa(unique_id=2, state="CONNECTING")
    made, memory = suspecting([GOOD, connecting], attempts=memory, now=100.0 + RETRY_DELAYS[0])
    assert made == ()
    assert suspecting([GOOD], attempts=memory, now=120.0) == ((), {})


def test_a_suspected_sa_of_earlier_settings_is_replaced_as_ever() -> None:
    made, _ = suspecting([ike_sa(child_sa(OLD_SETTINGS))], 1)
    assert made == (INITIATE,)


def test_a_responder_has_no_suspicion_to_act_on() -> None:
    assert plan_sas([targets(initiator=False)], [GOOD], {}, 100.0, suspects=frozenset({1})) == ((), {})
