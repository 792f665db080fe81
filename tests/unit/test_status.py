"""Rows of status: green only when what was asked for is what runs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from iscsi_ipsec.base.model import EspMode, IkeMode
from iscsi_ipsec.base.sa import ChildSa
from iscsi_ipsec.core.causes import WRONG_KEY
from iscsi_ipsec.core.desired import Desired
from iscsi_ipsec.core.rows import has_errors, problem_row
from iscsi_ipsec.core.status import Observed, PortalRows, portal_rows
from tests.unit.making import (
    CLEAR,
    SOURCE,
    child_sa,
    choice,
    derived,
    group,
    ike_sa,
    per_id,
    portal,
    previous,
    record,
    serves,
    session,
    spelled,
)

WANTED = derived(per_id(SOURCE), record(), session())
CONN = "iscsi-ipsec-10.0.0.20-3260"
CHILD = spelled(WANTED)[1][0].child


def row(desired: Desired = WANTED, *children: ChildSa, **observed: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "sas": (ike_sa(*children, conn=CONN),) if children else (),
        "sessions": (session(),),
        "loaded": {CONN},
        "guarded": {portal()},
        "children": {CONN: CHILD},
        "charon_reachable": True,
    }
    (only,) = portal_rows(desired.portals, Observed(**{**given, **observed}))
    json.dumps(only)
    return only


def good(**more: Any) -> ChildSa:
    return child_sa(CHILD, conn=CONN, **more)


def test_a_session_inside_the_wanted_sa_is_protected() -> None:
    told = row(WANTED, good())
    assert (told["protected"], told["ready"], told["problem"]) == (True, True, None)
    assert (told["ike"], told["mode"], told["pfs"]) == ("IKEv2", "transport", True)
    assert (told["portal"], told["role"], told["key"]) == ("10.0.0.20:3260", "initiator", SOURCE)
    assert (told["identity"], told["identity_type"], told["peer_identity"]) == (
        SOURCE,
        "ID_IPV4_ADDR",
        "10.0.0.20",
    )
    assert told["sa"]["cipher"] == "AES_GCM_16-256"
    assert [s["remote"] for s in told["sessions"]] == ["10.0.0.20:3260"]


def test_without_an_sa_nothing_is_protected() -> None:
    told = row()
    assert told["protected"] is False
    assert told["sa"] is None


def test_a_session_that_waits_too_long_for_its_sa_is_a_problem() -> None:
    assert row(struggling={CONN})["problem"]["code"] == "no-sa"


@pytest.mark.parametrize("state", ["CREATED", "INSTALLING", "DELETING", "DESTROYING"])
def test_a_child_that_passes_no_packets_protects_nothing(state: str) -> None:
    assert row(WANTED, good(state=state))["protected"] is False


def test_a_downgrade_to_tunnel_mode_is_no_green_row() -> None:
    # IKEv2 gives tunnel mode in silence where transport was asked for
    told = row(WANTED, good(mode="TUNNEL"))
    assert told["protected"] is False
    assert told["problem"]["code"] == "mode-differs"
    assert told["problem"]["severity"] == "error"


@pytest.mark.parametrize(
    "cipher", [{"encr": "AES_CBC", "encr_keysize": 192}, {"encr": "AES_GCM_16", "encr_keysize": 192}]
)
def test_a_cipher_that_was_not_offered_is_no_green_row(cipher: dict[str, Any]) -> None:
    told = row(WANTED, good(**cipher))
    assert told["protected"] is False
    assert told["problem"]["code"] == "cipher-differs"


def test_an_ikev1_sa_without_the_pfs_that_was_asked_for_is_no_green_row() -> None:
    desired = derived(per_id(SOURCE, flags=choice(IkeMode.MAIN, EspMode.TRANSPORT)), record())
    child = spelled(desired)[1][0].child
    told = row(desired, child_sa(child, conn=CONN, dh_group=""), children={CONN: child})
    assert told["protected"] is False
    assert told["problem"]["code"] == "no-pfs"
    assert row(desired, child_sa(child, conn=CONN, dh_group="MODP_2048"), children={CONN: child})["protected"]


def test_an_outdated_sa_is_told_when_its_successor_struggles() -> None:
    told = row(WANTED, child_sa("iscsi-ipsec-old", conn=CONN), struggling={CONN})
    assert told["problem"]["code"] == "outdated-sa"


def test_an_outdated_sa_tells_the_cause_that_keeps_its_successor_from_coming() -> None:
    told = row(WANTED, child_sa("iscsi-ipsec-old", conn=CONN), causes={CONN: WRONG_KEY})
    assert told["problem"]["code"] == "outdated-sa"
    assert WRONG_KEY.message in told["problem"]["message"]


def test_the_wanted_sa_is_shown_before_an_older_and_a_younger_one() -> None:
    told = row(
        WANTED,
        child_sa("old", 1, conn=CONN, age=5),
        good(unique_id=2, age=50),
        child_sa("odd", 3, conn=CONN, age=1),
    )
    assert told["sa"]["child_id"] == 2


def test_the_youngest_of_two_wanted_sas_is_shown() -> None:
    assert row(WANTED, good(unique_id=1, age=50), good(unique_id=2, age=5))["sa"]["child_id"] == 2


def test_a_cause_of_charons_is_told_where_no_sa_is() -> None:
    assert row(causes={CONN: WRONG_KEY})["problem"]["code"] == "wrong-key"


def test_an_unreachable_charon_is_told() -> None:
    told = row(charon_reachable=False, loaded=frozenset())
    assert told["problem"]["code"] == "charon-unreachable"
    assert told["ready"] is False


def test_a_problem_of_the_files_comes_before_one_of_the_moment() -> None:
    desired = derived(per_id("a"), per_id("b"), record())
    assert row(desired, causes={CONN: WRONG_KEY})["problem"]["code"] == "ambiguous-key"


def test_a_portal_is_ready_only_when_connection_and_guard_are_in_place() -> None:
    assert row(loaded=frozenset())["ready"] is False
    assert row(guarded=frozenset())["ready"] is False
    assert row(guarded=frozenset(), guard_wanted=False)["ready"] is True


def test_a_closed_portal_without_connection_is_never_ready() -> None:
    assert row(derived(record(), held=["10.0.0.20"]))["ready"] is False


def test_a_portal_whose_flags_allow_clear_text_shows_no_ike() -> None:
    told = row(derived(group(flags=CLEAR), record()))
    assert (told["ike"], told["mode"], told["pfs"], told["protected"]) == (None, None, None, False)
    assert told["problem"]["code"] == "clear-allowed"
    assert told["managed"] is True
    assert told["closed"] is False


def test_a_served_portal_has_a_row_for_each_initiator() -> None:
    rows = portal_rows(
        derived(serves(), per_id("db1"), per_id("db2")).portals, Observed(charon_reachable=True)
    )
    assert [(r["role"], r["identity"]) for r in rows] == [("target", "db1"), ("target", "db2")]


def test_another_connections_sa_protects_nobody_else() -> None:
    assert row(sas=(ike_sa(child_sa(CHILD, conn="other"), conn="other"),))["protected"] is False


def test_warnings_alone_are_no_errors() -> None:
    desired = derived(group(), record())
    rows = [problem_row(p) for p in desired.problems]
    assert [r["severity"] for r in rows] == ["warning"]
    assert not has_errors(rows)
    assert has_errors([problem_row(p) for p in derived(record(), held=["10.0.0.20"]).problems])


# -- two keys valid side by side


def in_rotation(lagging: bool, name: str) -> dict[str, Any]:
    """A row whose SA's child has the name that begins with this part of the rotation's."""
    key = per_id(SOURCE, previous=previous())
    staged = derived(key, record(), session())
    staged = derived(
        key, record(), session(), lagging={rotation.contest: lagging for rotation in staged.rotations}
    )
    connection = spelled(staged)[1][0]
    assert connection.rotation
    part: str = getattr(connection.rotation, name)
    child = child_sa(f"{part}{connection.child.removeprefix(connection.key_part)}", conn=CONN)
    return row(staged, child, children={CONN: connection.child}, rotations={CONN: connection.rotation})


@pytest.mark.parametrize("lagging", [True, False])
def test_an_sa_of_the_previous_key_is_told_with_its_end_and_is_no_error(lagging: bool) -> None:
    told = in_rotation(lagging, "previous")
    assert told["previous_until"] == "2030-01-01T00:00:00Z"
    assert told["sa"]["key"] == "previous"
    assert told["protected"]
    assert told["problem"]["code"] == "previous-key-in-use"
    assert "2030-01-01T00:00:00Z" in told["problem"]["message"]
    assert not has_errors([told["problem"]])


def test_an_sa_of_the_new_key_in_a_rotation_has_nothing_to_tell() -> None:
    told = in_rotation(False, "staged")
    assert (told["sa"]["key"], told["problem"]) == ("current", None)


def test_without_a_rotation_an_sa_is_of_the_current_key_or_of_an_earlier_one() -> None:
    assert row(WANTED, good())["sa"]["key"] == "current"
    assert row(WANTED, good())["previous_until"] is None
    old = child_sa("iscsi-ipsec-00000000-11111111-22222222", conn=CONN)
    assert row(WANTED, old)["sa"]["key"] == "earlier"


def test_a_row_of_which_nothing_differs_is_the_very_same() -> None:
    desired = derived(per_id(SOURCE), record(), record("10.0.0.21"))
    rows, seen = PortalRows(), Observed(charon_reachable=True, children={CONN: CHILD})
    before = rows.of(desired.portals, seen)
    assert rows.of(desired.portals, replace(seen)) is before
    first, second = rows.of(desired.portals, replace(seen, loaded=frozenset({CONN})))
    assert (first is before[0], second is before[1]) == (False, True)
    assert rows.of(desired.portals[1:], seen) == before[1:]


@pytest.mark.parametrize(
    "more",
    [
        {"charon_reachable": False},
        {"guard_wanted": False},
        {"guarded": frozenset()},
        {"loaded": frozenset()},
        {"struggling": frozenset({CONN})},
        {"children": {CONN: "another"}},
        {"causes": {CONN: WRONG_KEY}},
        {"sessions": ()},
        {"sas": ()},
    ],
    ids=str,
)
def test_whatever_differs_shows_in_the_row(more: dict[str, Any]) -> None:
    rows, seen = (
        PortalRows(),
        Observed(
            sas=(ike_sa(good(), conn=CONN),),
            sessions=(session(),),
            loaded=frozenset({CONN}),
            guarded=frozenset({portal()}),
            children={CONN: CHILD},
            charon_reachable=True,
        ),
    )
    rows.of(WANTED.portals, seen)
    now = replace(seen, **more)
    assert rows.of(WANTED.portals, now) == portal_rows(WANTED.portals, now)
