"""Which key charon takes: the layout that looks right and is wrong, and the one that is right.

No code of this program is tested here: these are facts about charon on which the layout of secrets
rests on. A charon that behaves otherwise makes these fail before anything else.
"""

from __future__ import annotations

import pytest

from tests.support.ike import KEY_A, KEY_B, KEY_GROUP, TARGET, A, B, C, Ike, Secret, load_in_order
from tests.support.pair import Pair

ALL_IKE = pytest.mark.parametrize("ike", list(Ike), ids=lambda ike: ike.name)
BOTH_ORDERS = pytest.mark.parametrize("group_first", [True, False], ids=["group-first", "group-last"])


def in_order(own: Secret, group: Secret, *, group_first: bool) -> list[Secret]:
    return [group, own] if group_first else [own, group]


def succeeds_with(pair: Pair, key: bytes, peer: str = A) -> bool:
    """Whether a target that knows nothing but *key* for *peer* takes the initiator's proof."""
    pair.target.load_psk("only", key, [peer])
    try:
        return pair.comes_up()
    finally:
        pair.forget()


@ALL_IKE
@BOTH_ORDERS
def test_a_key_owned_by_the_local_id_alone_loses_to_a_group_key(
    pair: Pair, ike: Ike, group_first: bool
) -> None:
    own: Secret = ("own", KEY_A, [A])
    group: Secret = ("group", KEY_GROUP, [])
    load_in_order(pair.initiator, in_order(own, group, group_first=group_first))
    pair.connect(ike, A)
    assert not succeeds_with(pair, KEY_A), "the trap this project has to avoid is gone"
    assert succeeds_with(pair, KEY_GROUP)


@ALL_IKE
@BOTH_ORDERS
def test_a_key_owned_by_the_pair_of_ids_wins_over_a_group_key(
    pair: Pair, ike: Ike, group_first: bool
) -> None:
    own: Secret = ("own", KEY_A, [A, TARGET])
    group: Secret = ("group", KEY_GROUP, [])
    load_in_order(pair.initiator, in_order(own, group, group_first=group_first))
    pair.connect(ike, A)
    assert succeeds_with(pair, KEY_A)
    assert not succeeds_with(pair, KEY_GROUP)


@ALL_IKE
def test_an_identity_without_a_key_is_given_anothers_when_the_group_key_is_for_anyone(
    pair: Pair, ike: Ike
) -> None:
    load_in_order(pair.initiator, [("a", KEY_A, [A, TARGET]), ("group", KEY_GROUP, [])])
    pair.connect(ike, C)
    assert not succeeds_with(pair, KEY_GROUP, peer=C), "A's key is expected to win, wrongly"


@ALL_IKE
@BOTH_ORDERS
def test_one_effective_key_for_each_pair_of_ids_serves_every_identity_its_own(
    pair: Pair, ike: Ike, group_first: bool
) -> None:
    own: Secret = ("a", KEY_A, [A, TARGET])
    group: Secret = ("c", KEY_GROUP, [C, TARGET])
    load_in_order(pair.initiator, in_order(own, group, group_first=group_first))
    pair.connect(ike, C)
    assert succeeds_with(pair, KEY_GROUP, peer=C)
    assert not succeeds_with(pair, KEY_A, peer=C)
    pair.connect(ike, A)
    assert succeeds_with(pair, KEY_A)
    assert not succeeds_with(pair, KEY_GROUP)


def target_takes(pair: Pair, ike: Ike, key: bytes) -> bool:
    """Whether the target believes that the initiator, who holds *key*, is A.

    In IKEv2 the target's own proof may still fail before an honest initiator; that is
    no comfort, an impostor doesn't ask for it. So the target's word counts.
    """
    mark = pair.target.log_mark()
    pair.initiator.load_psk("held", key, [A, TARGET])
    pair.connect(ike, A)
    done = pair.comes_up()
    believed = "authentication of 'a.lab' with pre-shared key successful" in pair.target.log_text(mark)
    pair.forget()
    return done or believed


def test_an_ikev2_target_with_pair_owners_takes_one_peer_for_another(pair: Pair) -> None:
    load_in_order(pair.target, [("a", KEY_A, [A, TARGET]), ("b", KEY_B, [B, TARGET])])
    assert target_takes(pair, Ike.V2, KEY_B)


@ALL_IKE
def test_a_target_whose_keys_are_owned_by_the_peer_alone_refuses_anothers_key(pair: Pair, ike: Ike) -> None:
    load_in_order(pair.target, [("a", KEY_A, [A]), ("b", KEY_B, [B])])
    assert not target_takes(pair, ike, KEY_B)
    assert target_takes(pair, ike, KEY_A)


def test_an_ikev2_target_with_a_group_key_for_anyone_takes_it_from_a_peer_that_has_its_own(
    pair: Pair,
) -> None:
    load_in_order(pair.target, [("a", KEY_A, [A]), ("group", KEY_GROUP, [])])
    assert target_takes(pair, Ike.V2, KEY_GROUP)
    pair.target.unload_psk("group")
    assert not target_takes(pair, Ike.V2, KEY_GROUP)


def test_aggressive_mode_needs_its_option_on_the_target(pair: Pair) -> None:
    pair.initiator.load_psk("k", KEY_A, [A, TARGET])
    pair.target.load_psk("k", KEY_A, [A])
    pair.connect(Ike.AGGRESSIVE, A)
    pair.target.set_option("aggressive_psk", "no")
    pair.target.swanctl("--reload-settings")
    assert not pair.comes_up()
    assert "Aggressive Mode PSK disabled for security reasons" in pair.target.log_text()
    pair.target.set_option("aggressive_psk", "yes")
    pair.target.swanctl("--reload-settings")
    assert pair.comes_up()


@ALL_IKE
@BOTH_ORDERS
def test_of_two_keys_with_the_same_owners_the_one_loaded_last_is_shown(
    pair: Pair, ike: Ike, group_first: bool
) -> None:
    keys = {"a": KEY_A, "b": KEY_B}
    order = list(keys) if group_first else list(keys)[::-1]
    load_in_order(pair.initiator, [(name, keys[name], [A, TARGET]) for name in order])
    pair.connect(ike, A)
    assert succeeds_with(pair, keys[order[1]])
    assert not succeeds_with(pair, keys[order[0]])


def test_an_ikev2_end_takes_any_of_its_keys_and_shows_one(pair: Pair) -> None:
    load_in_order(pair.target, [("a", KEY_A, [A]), ("b", KEY_B, [A])])
    assert target_takes(pair, Ike.V2, KEY_A)
    load_in_order(pair.initiator, [("held", KEY_A, [A, TARGET])])
    assert not pair.comes_up(), "the target shows the key loaded last, which the initiator does not have"
    load_in_order(pair.initiator, [("too", KEY_B, [A, TARGET])])
    assert pair.comes_up()
