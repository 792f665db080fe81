"""While two keys are valid: what is loaded, in which order, which takes precedence, and what ends when."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import pytest

from iscsi_ipsec.base.charon_sa import IkeSa
from iscsi_ipsec.base.policy import IkeMode, Role
from iscsi_ipsec.core.decide.desired import Desired, Rotation, RotationId
from iscsi_ipsec.core.ike.charon_diff import plan
from iscsi_ipsec.core.ike.ike_failures import doubts_key
from iscsi_ipsec.core.ike.key_rotation import TRY_AGAIN, UNNAMED, PresentedKey, choose_presented_key
from iscsi_ipsec.core.ike.sa_lifecycle import RETRY_DELAYS, RetryState, SaTarget, TerminateIke, plan_sas
from iscsi_ipsec.core.ike.vici_messages import EncodedConnection, presented_ids
from tests.support.values import (
    DIGEST_KEY,
    SOURCE,
    charon_state,
    child_sa,
    choice,
    derived,
    encoded,
    group,
    ike_sa,
    managed,
    per_id,
    policy,
    previous,
    record,
    serves,
    view_of,
)

STAGED = per_id("db1", previous=previous())
NEW, OLD = STAGED.secret, previous().secret


def initiating(ike: IkeMode = IkeMode.V2, *, previous_key_first: bool | None = None) -> Desired:
    flags = choice(ike)
    desired = managed(per_id("db1", previous=previous(), flags=flags), record())
    if previous_key_first is None:
        return desired
    presented_keys = {r.rotation_id: previous_key_first for r in desired.rotations}
    return managed(
        per_id("db1", previous=previous(), flags=flags), record(), previous_key_first=presented_keys
    )


def serving(ike: IkeMode = IkeMode.V2) -> Desired:
    return managed(per_id("db1", previous=previous(), flags=choice(ike)), serves())


def only(desired: Desired) -> tuple[Rotation, EncodedConnection]:
    (rotation,) = desired.rotations
    (connection,) = encoded(desired)[1]
    return rotation, connection


# -- what is loaded


def test_both_keys_are_loaded_for_the_same_owners_and_the_one_that_goes_first_last() -> None:
    entries = initiating().secrets
    assert [(e.secret, e.over) for e in entries] == [(OLD, None), (NEW, OLD)]
    assert len({e.owners for e in entries}) == 1


def test_an_initiator_begins_with_the_new_key_and_a_target_with_the_previous_one() -> None:
    assert only(initiating())[0].in_order == (NEW, OLD)
    assert only(serving())[0].in_order == (OLD, NEW)


def test_two_keys_of_a_rotation_are_not_ambiguous_and_two_files_still_are() -> None:
    assert initiating().connections
    files = (per_id("db1", "a", previous=previous(), portals=["10.0.0.20"]), per_id("db1", "b"))
    other = managed(*files, policy("10.0.0.21", psk="b", target_id=None), record(), record("10.0.0.21"))
    assert other.connections
    san = per_id("san").id
    shared = managed(
        *files, policy(psk="a", name="p", target_id=san),
        policy("10.0.0.21", psk="b", name="q", target_id=san), record(), record("10.0.0.21"),
    )  # fmt: skip
    assert {v.problem.code for v in shared.portals if v.problem} == {"ambiguous-key"}


def test_a_group_keys_previous_one_is_loaded_for_the_groups_peers_alone() -> None:
    explicit = managed(group(previous=previous()), per_id(SOURCE), record(), record("10.0.0.21"))
    assert explicit.rotations == ()
    assert OLD not in {e.secret for e in explicit.secrets}
    alone = managed(group(previous=previous()), record())
    assert {e.secret for e in alone.secrets} == {group().secret, OLD}


def test_a_previous_key_is_not_valid_towards_a_target_whose_file_does_not_have_it() -> None:
    same = b"the new key, the same in both"
    staged = per_id("db1", "a", portals=["10.0.0.20"], previous=previous(), secret=same)
    plain = per_id("db1", "b", portals=["10.0.0.21"], secret=same)
    desired = derived(staged, plain, record(), record("10.0.0.21"))
    assert len(desired.connections) == 2
    (owners,) = {e.owners for e in desired.secrets if e.secret == OLD}
    # an IKEv2 peer is believed with any key that matches either end
    assert [str(owner) for owner in owners] == ["10.0.0.20"]


def test_a_key_that_no_connection_uses_waits_without_its_previous_one() -> None:
    assert [e.secret for e in derived(STAGED).secrets] == [NEW]


def test_the_order_is_in_the_names_and_what_was_loaded_before_is_not_loaded_again() -> None:
    before, _ = encoded(managed(per_id("db1", secret=OLD.reveal()), record()))
    secrets, _ = encoded(initiating())
    turned, _ = encoded(initiating(previous_key_first=True))
    assert secrets[0].id == before[0].id
    assert secrets[1].above == secrets[0].id
    assert not {s.id for s in secrets} & {s.id for s in turned}
    loads = [o.item for o in plan(secrets, (), charon_state([before[0].id])) if o.command == "load-shared"]
    assert loads == [secrets[1].id]


def test_the_key_that_goes_first_is_loaded_again_when_the_other_was_lost() -> None:
    secrets, _ = encoded(initiating())
    state = charon_state([secrets[1].id])
    assert [o.item for o in plan(secrets, (), state)] == [secrets[0].id, secrets[1].id]
    assert plan(secrets, (), charon_state(s.id for s in secrets)) == ()


def test_presented_key_is_known_by_what_charon_holds() -> None:
    for previous_key_first in (False, True):
        desired = initiating(previous_key_first=previous_key_first)
        secrets, _ = encoded(desired)
        new_first, old_first = presented_ids(desired.rotations[0], DIGEST_KEY)
        assert (old_first if previous_key_first else new_first) == secrets[1].id
        assert (new_first if previous_key_first else old_first) not in {s.id for s in secrets}


# -- names of children


def test_a_child_of_the_previous_key_is_named_as_before_the_rotation() -> None:
    before = encoded(managed(per_id("db1", secret=OLD.reveal()), record()))[1][0]
    assert only(initiating(previous_key_first=True))[1].child == before.child


def test_a_child_of_the_new_key_has_another_name_than_after_the_rotation() -> None:
    """In IKEv2 the peer may have proved itself with the previous key: no such SA outlives it."""
    after = encoded(managed(per_id("db1"), record()))[1][0]
    assert only(initiating())[1].key_part != after.key_part
    assert only(initiating())[1].rotation is not None
    assert only(initiating())[1].rotation.current == after.key_part  # type: ignore[union-attr]  # just seen


def test_a_targets_children_are_named_alike_whichever_key_goes_first() -> None:
    desired = serving()
    (rotation,) = desired.rotations
    turned = derived(STAGED, serves(), previous_key_first={rotation.rotation_id: False})
    assert only(turned)[0].previous_key_first is False
    assert only(turned)[1] == only(derived(STAGED, serves()))[1]


def test_the_end_of_the_time_is_no_part_of_any_name() -> None:
    later = per_id("db1", previous=dataclasses.replace(previous(), until=previous().until.replace(year=2040)))
    one, two = encoded(managed(later, record())), encoded(managed(STAGED, record()))
    assert [s.id for s in one[0]] == [s.id for s in two[0]]
    assert one[1][0].child == two[1][0].child


# -- which takes precedence


class Turning:
    """Calls :func:`choose_presented_key` again and again as a daemon does."""

    def __init__(self, desired: Desired) -> None:
        self.rotation, self.connection = only(desired)
        assert self.connection.rotation
        self.names = self.connection.rotation
        self.presented_keys: dict[RotationId, PresentedKey] = {}
        self.doubts: dict[str, int] = {}
        self.now = 1000.0
        self.due: float | None = None

    def previous_key_first(self, *sas: IkeSa, doubt: bool | str = False, after: float = 0.0) -> bool:
        self.now += after
        if doubt is not False:
            name = self.connection.name if doubt is True else str(doubt)
            self.doubts[name] = self.doubts.get(name, 0) + 1
        rotation = self.rotation
        if self.presented_keys:
            rotation = dataclasses.replace(
                rotation, previous_key_first=self.presented_keys[rotation.rotation_id].previous_key_first
            )
        presented_keys, self.due = choose_presented_key(
            [(rotation, (self.connection,))], self.presented_keys, sas, self.doubts, self.now
        )  # fmt: skip
        self.presented_keys = dict(presented_keys)
        return presented_keys[rotation.rotation_id].previous_key_first

    def sa(self, part: str) -> IkeSa:
        name = self.connection.name
        return ike_sa(child_sa(f"{part}11111111-22222222", conn=name), conn=name)

    @property
    def old(self) -> IkeSa:
        return self.sa(self.names.previous)

    @property
    def new(self) -> IkeSa:
        return self.sa(self.names.staged)


def test_an_initiator_that_is_refused_shows_the_previous_key_at_once() -> None:
    turning = Turning(initiating())
    assert turning.previous_key_first(turning.old) is False
    assert turning.previous_key_first(turning.old, doubt=True) is True


def test_a_refusal_of_another_connection_turns_nothing() -> None:
    turning = Turning(initiating())
    assert turning.previous_key_first(doubt="iscsi-ipsec-another") is False
    assert turning.previous_key_first(doubt=UNNAMED) is False


def test_the_new_key_is_tried_again_now_and_then_while_the_previous_one_has_an_sa() -> None:
    turning = Turning(initiating())
    turning.previous_key_first(turning.old)
    turning.previous_key_first(turning.old, doubt=True)
    assert turning.previous_key_first(turning.old, after=TRY_AGAIN - 1) is True
    assert turning.due == turning.now + 1
    assert turning.previous_key_first(turning.old, after=1) is False
    assert turning.previous_key_first(turning.old, after=30) is False, "until it is refused"
    assert turning.previous_key_first(turning.old, doubt=True) is True


def test_when_the_sa_of_the_previous_key_is_lost_the_new_key_is_tried_first() -> None:
    turning = Turning(initiating())
    turning.previous_key_first(turning.old)
    turning.previous_key_first(turning.old, doubt=True)
    assert turning.previous_key_first(turning.old) is True
    assert turning.previous_key_first() is False


def test_an_sa_of_the_previous_key_that_is_lost_at_once_counts_as_well() -> None:
    turning = Turning(initiating())
    turning.previous_key_first(turning.old)
    turning.previous_key_first(turning.old, doubt=True)
    assert turning.previous_key_first() is False


def test_an_sa_that_the_previous_key_brought_counts_when_it_is_lost() -> None:
    turning = Turning(initiating())
    turning.previous_key_first()
    turning.previous_key_first(doubt=True)
    assert turning.previous_key_first(turning.old) is True
    assert turning.previous_key_first() is False


def test_the_previous_key_is_not_left_without_a_refusal_however_long_it_takes() -> None:
    turning = Turning(initiating())
    turning.previous_key_first()
    turning.previous_key_first(doubt=True)
    assert turning.previous_key_first(after=10 * TRY_AGAIN) is True
    assert turning.due is None


def test_where_both_are_refused_they_take_turns_ever_more_slowly() -> None:
    turning = Turning(initiating())
    turning.previous_key_first()
    gaps = []
    for _ in range(8):
        assert turning.previous_key_first(doubt=True) is True, "the previous one at once"
        begun = turning.now
        assert turning.previous_key_first(doubt=True) is True, "not the new one at once"
        assert turning.due is not None
        gaps.append(turning.due - begun)
        assert turning.previous_key_first(after=turning.due - turning.now) is False
    assert gaps == [*RETRY_DELAYS, *[RETRY_DELAYS[-1]] * 3]


def test_with_an_sa_of_the_new_key_no_refusal_turns_back() -> None:
    turning = Turning(initiating())
    assert turning.previous_key_first(turning.new, doubt=True) is False
    assert turning.previous_key_first(turning.new) is False
    assert turning.previous_key_first() is False, "what was said meanwhile does not count later"


def test_an_sa_made_with_the_new_key_before_the_rotation_counts_as_one() -> None:
    turning = Turning(initiating(previous_key_first=True))
    assert turning.previous_key_first(turning.sa(turning.names.current)) is False


def test_an_ikev2_target_turns_when_a_peer_turns_away_and_back_when_one_does_again() -> None:
    turning = Turning(serving())
    assert turning.previous_key_first() is True
    assert turning.previous_key_first(doubt=True) is False
    assert turning.previous_key_first() is False
    assert turning.previous_key_first(doubt=True) is True


@pytest.mark.parametrize("ike", [IkeMode.MAIN, IkeMode.AGGRESSIVE])
def test_an_ikev1_target_turns_at_every_second_refusal(ike: IkeMode) -> None:
    turning = Turning(serving(ike))
    turning.previous_key_first()
    assert [turning.previous_key_first(doubt=True) for _ in range(4)] == [True, False, False, True]


def test_only_main_modes_target_heeds_what_has_no_name() -> None:
    for ike, turns in ((IkeMode.MAIN, True), (IkeMode.AGGRESSIVE, False), (IkeMode.V2, False)):
        turning = Turning(serving(ike))
        turning.previous_key_first()
        after = [turning.previous_key_first(doubt=UNNAMED) for _ in range(4)]
        assert after == ([True, False, False, True] if turns else [True] * 4)


def test_a_target_in_a_rotation_keeps_no_initiator_from_its_turn() -> None:
    found = [(rotation, (connection,)) for rotation, connection in (only(serving()), only(initiating()))]
    presented_keys, _ = choose_presented_key(found, {}, (), {}, 1000.0)
    assert [presented_keys[rotation.rotation_id].previous_key_first for rotation, _ in found] == [True, False]


@pytest.mark.parametrize("ike", [IkeMode.MAIN, IkeMode.AGGRESSIVE])
def test_two_hosts_that_both_have_both_keys_meet(ike: IkeMode) -> None:
    """Both must show the same key in IKEv1, and each learns only that it failed."""
    for target_first in (False, True):
        host, target = Turning(initiating(ike)), Turning(serving(ike))
        shown, expected = host.previous_key_first(), target.previous_key_first()
        for _ in range(2 if target_first else 0):
            expected = target.previous_key_first(doubt=True)
        for _attempt in range(3):
            if shown is expected:
                break
            shown, expected = host.previous_key_first(doubt=True), target.previous_key_first(doubt=True)
        assert shown is expected


def test_another_key_in_the_file_begins_anew() -> None:
    turning = Turning(initiating())
    turning.previous_key_first(turning.old)
    turning.previous_key_first(turning.old, doubt=True)
    newer = managed(per_id("db1", secret=b"the newest key of all", previous=previous()), record())
    (rotation,) = newer.rotations
    presented_keys, _ = choose_presented_key(
        [(rotation, encoded(newer)[1])], turning.presented_keys, (), turning.doubts, turning.now
    )  # fmt: skip
    assert presented_keys[rotation.rotation_id].previous_key_first is False
    assert len(presented_keys) == 1


@pytest.mark.parametrize(
    ("line", "doubts"),
    [
        ("received AUTHENTICATION_FAILED notify error", True),
        ("parsed INFORMATIONAL request 2 [ N(AUTH_FAILED) ]", True),
        ("calculated HASH does not match HASH payload", True),
        ("could not decrypt payloads", True),
        ("sending retransmit 1 of request message ID 0, seq 3", True),
        ("sending retransmit 1 of response message ID 0, seq 1", True),
        # a dead peer, and a proof that was compared with every key
        ("sending retransmit 1 of request message ID 0, seq 1", False),
        ("tried 2 shared keys for 'a' - 'b', but MAC mismatched", False),
        ("received NO_PROPOSAL_CHOSEN notify error", False),
    ],
)
def test_what_charon_says_when_the_peer_would_rather_have_another_key(line: str, doubts: bool) -> None:
    assert doubts_key(line) is doubts


# -- what ends


def targets(desired: Desired) -> SaTarget:
    rotation, connection = only(desired)
    assert connection.rotation
    return SaTarget(
        name=connection.name, child=connection.child, key_part=connection.key_part,
        initiator=rotation.connections[0].role is Role.INITIATOR, wanted_now=False, valid=connection.rotation.parts,
    )  # fmt: skip


def for_ten_minutes(wanted: SaTarget, sas: Iterable[IkeSa]) -> list[TerminateIke]:
    memory: Mapping[str, RetryState] = {}
    ended = []
    for now in range(0, 600, 5):
        made, memory = plan_sas([wanted], sas, memory, float(now))
        ended += [o for o in made if isinstance(o, TerminateIke)]
    return ended


def test_an_sa_of_the_previous_key_outlives_the_grace_of_a_changed_key() -> None:
    for desired in (initiating(), serving()):
        turning = Turning(desired)
        assert for_ten_minutes(targets(desired), [turning.old]) == []
        without = dataclasses.replace(targets(desired), valid=frozenset())
        assert for_ten_minutes(without, [turning.old]) != [], "the control"


def test_a_target_ends_no_sa_of_the_previous_key_because_a_peer_came_with_the_new_one() -> None:
    turning = Turning(serving())
    child = child_sa(turning.connection.child, 2, conn=turning.connection.name)
    new = ike_sa(child, unique_id=2, conn=turning.connection.name)
    assert for_ten_minutes(targets(serving()), [turning.old, new]) == []


def test_an_initiator_ends_its_sa_of_the_previous_key_when_the_new_one_carries() -> None:
    turning = Turning(initiating())
    child = child_sa(turning.connection.child, 2, conn=turning.connection.name)
    new = ike_sa(child, unique_id=2, conn=turning.connection.name)
    made, _ = plan_sas([targets(initiating())], [turning.old, new], {}, 0.0)
    assert [getattr(o, "ike_id", None) for o in made] == [1]


def test_the_row_of_a_portal_in_a_rotation_names_no_problem_by_itself() -> None:
    assert view_of(initiating()).problem is None
