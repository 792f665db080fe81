"""Rows of status: green only when what was asked for is what runs."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import replace
from typing import Any

import pytest

from iscsi_ipsec.base.charon_sa import ChildSa
from iscsi_ipsec.base.policy import EspMode, IkeMode, Tuning
from iscsi_ipsec.core.decide.desired import Desired
from iscsi_ipsec.core.ike.ike_failures import NO_PROPOSAL, WRONG_KEY, as_passing
from iscsi_ipsec.core.ike.vici_messages import EncodedRotation
from iscsi_ipsec.core.report.portal_status import Observed, PortalRows, cipher
from iscsi_ipsec.core.report.schema import has_errors, problem_row
from tests.support.values import (
    CLEAR,
    SOURCE,
    child_sa,
    choice,
    derived,
    encoded,
    group,
    ike_sa,
    managed,
    per_id,
    policy,
    portal,
    previous,
    record,
    serves,
    session,
)

WANTED = derived(per_id(SOURCE, portals=["10.0.0.20"]), record(), session())
CONN = "iscsi-ipsec-10.0.0.20-3260"
CHILD = encoded(WANTED)[1][0].child


def row(desired: Desired = WANTED, *children: ChildSa, **observed: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "sas": (ike_sa(*children, conn=CONN),) if children else (),
        "sessions": (session(),),
        "loaded": {CONN},
        "guarded": {portal()},
        "children": {CONN: CHILD},
        "charon_reachable": True,
    }
    (only,) = PortalRows().rows(desired.portals, Observed(**{**given, **observed}))
    return as_json(only)


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    """As it is read again: a tuple is a list there."""
    reported: dict[str, Any] = json.loads(json.dumps(row))
    return reported


def good(**more: Any) -> ChildSa:
    return child_sa(CHILD, conn=CONN, **more)


def test_a_session_inside_the_wanted_sa_is_protected() -> None:
    reported = row(WANTED, good())
    assert (reported["protected"], reported["ready"], reported["problem"]) == (True, True, None)
    assert (reported["ike"], reported["mode"], reported["pfs"]) == ("IKEv2", "transport", True)
    assert (reported["portal"], reported["role"], reported["key"]) == ("10.0.0.20:3260", "initiator", SOURCE)
    assert (reported["identity"], reported["identity_type"], reported["peer_identity"]) == (
        SOURCE,
        "ID_IPV4_ADDR",
        "10.0.0.20",
    )
    assert reported["sa"]["cipher"] == "AES_GCM_16-256"
    assert [s["remote"] for s in reported["sessions"]] == ["10.0.0.20:3260"]


def test_without_an_sa_nothing_is_protected() -> None:
    reported = row()
    assert reported["protected"] is False
    assert reported["sa"] is None


def test_a_session_that_waits_too_long_for_its_sa_is_a_problem() -> None:
    assert row(failed_repeatedly={CONN})["problem"]["code"] == "no-sa"


@pytest.mark.parametrize("state", ["CREATED", "INSTALLING", "DELETING", "DESTROYING"])
def test_a_child_that_passes_no_packets_protects_nothing(state: str) -> None:
    assert row(WANTED, good(state=state))["protected"] is False


def test_a_downgrade_to_tunnel_mode_is_no_green_row() -> None:
    # IKEv2 gives tunnel mode in silence where transport was asked for
    reported = row(WANTED, good(mode="TUNNEL"))
    assert reported["protected"] is False
    assert reported["problem"]["code"] == "mode-differs"
    assert reported["problem"]["severity"] == "error"


@pytest.mark.parametrize(
    "cipher", [{"encr": "AES_CBC", "encr_keysize": 192}, {"encr": "AES_GCM_16", "encr_keysize": 192}]
)
def test_a_cipher_that_was_not_offered_is_no_green_row(cipher: dict[str, Any]) -> None:
    reported = row(WANTED, good(**cipher))
    assert reported["protected"] is False
    assert reported["problem"]["code"] == "cipher-differs"


@pytest.mark.parametrize("encr", ["NULL", "NULL_AES_GMAC"])
def test_an_sa_without_encryption_is_never_protected_even_where_it_was_offered(encr: str) -> None:
    desired = derived(
        per_id(SOURCE),
        policy(tuning=Tuning(esp_proposals=("null-aes256gmac-sha256-modp2048",))),
        record(),
    )
    child = encoded(desired)[1][0].child
    reported = row(desired, child_sa(child, conn=CONN, encr=encr, encr_keysize=0), children={CONN: child})
    assert reported["protected"] is False
    assert (reported["problem"]["code"], reported["problem"]["severity"]) == ("no-encryption", "error")


@pytest.mark.parametrize(
    ("word", "encr", "bits"), [("aes256gcm128", "AES_GCM_16", 256), ("aes-sha256", "AES_CBC", 128), ("aes192ccm96", "AES_CCM_12", 192)]
)  # fmt: skip
def test_a_cipher_that_was_offered_by_another_of_its_names_is_protected(
    word: str, encr: str, bits: int
) -> None:
    desired = derived(per_id(SOURCE), policy(tuning=Tuning(esp_proposals=(f"{word}-modp2048",))), record())
    child = encoded(desired)[1][0].child
    reported = row(desired, child_sa(child, conn=CONN, encr=encr, encr_keysize=bits), children={CONN: child})
    assert (reported["protected"], reported["problem"]) == (True, None)


def test_an_ikev1_sa_without_the_pfs_that_was_asked_for_is_no_green_row() -> None:
    desired = managed(per_id(SOURCE, flags=choice(IkeMode.MAIN, EspMode.TRANSPORT)), record())
    child = encoded(desired)[1][0].child
    reported = row(desired, child_sa(child, conn=CONN, dh_group=""), children={CONN: child})
    assert reported["protected"] is False
    assert reported["problem"]["code"] == "no-pfs"
    assert row(desired, child_sa(child, conn=CONN, dh_group="MODP_2048"), children={CONN: child})["protected"]


def test_row_reports_an_outdated_sa_when_its_successor_fails() -> None:
    reported = row(WANTED, child_sa("iscsi-ipsec-old", conn=CONN), failed_repeatedly={CONN})
    assert reported["problem"]["code"] == "outdated-sa"


def test_row_of_an_outdated_sa_shows_why_its_successor_fails() -> None:
    reported = row(WANTED, child_sa("iscsi-ipsec-old", conn=CONN), causes={CONN: WRONG_KEY})
    assert reported["problem"]["code"] == "outdated-sa"
    assert WRONG_KEY.message in reported["problem"]["message"]


def test_the_wanted_sa_is_shown_before_an_older_and_a_younger_one() -> None:
    reported = row(
        WANTED,
        child_sa("old", 1, conn=CONN, age=5),
        good(unique_id=2, age=50),
        child_sa("odd", 3, conn=CONN, age=1),
    )
    assert reported["sa"]["child_id"] == 2


def test_the_youngest_of_two_wanted_sas_is_shown() -> None:
    assert row(WANTED, good(unique_id=1, age=50), good(unique_id=2, age=5))["sa"]["child_id"] == 2


def test_row_reports_charons_cause_where_there_is_no_sa() -> None:
    assert row(causes={CONN: WRONG_KEY})["problem"]["code"] == "wrong-key"


def test_row_reports_an_unreachable_charon() -> None:
    reported = row(charon_reachable=False, loaded=frozenset())
    assert reported["problem"]["code"] == "charon-unreachable"
    assert reported["ready"] is False


def test_a_problem_of_the_files_comes_before_one_of_the_moment() -> None:
    desired = managed(per_id("a"), per_id("b"), record())
    assert row(desired, causes={CONN: WRONG_KEY})["problem"]["code"] == "ambiguous-key"


def test_a_portal_is_ready_only_when_connection_and_guard_are_in_place() -> None:
    assert row(loaded=frozenset())["ready"] is False
    assert row(guarded=frozenset())["ready"] is False
    assert row(guarded=frozenset(), guard_wanted=False)["ready"] is True


def test_a_closed_portal_without_connection_is_never_ready() -> None:
    assert row(derived(record(), previously_managed=["10.0.0.20"]))["ready"] is False


def test_a_portal_whose_flags_allow_clear_text_shows_no_ike() -> None:
    reported = row(managed(group(flags=CLEAR), record()))
    assert (reported["ike"], reported["mode"], reported["pfs"], reported["protected"]) == (
        None,
        None,
        None,
        False,
    )
    assert reported["problem"]["code"] == "clear-allowed"
    assert reported["managed"] is True
    assert reported["closed"] is False

    reported = row(managed(group(flags=choice(esp=EspMode.TUNNEL, required=False)), record()))
    assert (reported["ike"], reported["mode"], reported["pfs"]) == (None, None, None)


@pytest.mark.parametrize(("esp", "mode"), [(EspMode.TRANSPORT, "transport"), (None, None)])
def test_a_portal_that_is_refused_shows_the_mode_that_its_flags_ask_for(
    esp: EspMode | None, mode: str | None
) -> None:
    reported = row(managed(per_id(SOURCE, flags=choice(esp=esp)), record(), user_space_esp=True))
    assert (reported["connection"], reported["problem"]["code"]) == (None, "no-transport-mode")
    assert (reported["ike"], reported["mode"], reported["pfs"]) == ("IKEv2", mode, True)


def test_a_served_portal_has_a_row_for_each_initiator() -> None:
    rows = PortalRows().rows(
        derived(serves(), per_id("db1"), per_id("db2")).portals, Observed(charon_reachable=True)
    )
    assert [(r["role"], r["identity"]) for r in rows] == [("target", "db1"), ("target", "db2")]


def test_another_connections_sa_protects_nobody_else() -> None:
    assert row(sas=(ike_sa(child_sa(CHILD, conn="other"), conn="other"),))["protected"] is False


def test_warnings_alone_are_no_errors() -> None:
    desired = managed(group(), record())
    rows = [problem_row(p) for p in desired.problems]
    assert [r["severity"] for r in rows] == ["warning"]
    assert not has_errors(rows)
    assert has_errors([problem_row(p) for p in derived(record(), previously_managed=["10.0.0.20"]).problems])


# -- two keys valid side by side


def in_rotation(previous_key_first: bool, name: str) -> dict[str, Any]:
    """A row whose SA's child has the name that begins with this part of the rotation's."""
    key = per_id(SOURCE, previous=previous())
    staged = managed(key, record(), session())
    staged = managed(
        key,
        record(),
        session(),
        previous_key_first={rotation.rotation_id: previous_key_first for rotation in staged.rotations},
    )
    connection = encoded(staged)[1][0]
    assert connection.rotation
    part: str = getattr(connection.rotation, name)
    child = child_sa(f"{part}{connection.child.removeprefix(connection.key_part)}", conn=CONN)
    return row(staged, child, children={CONN: connection.child}, rotations={CONN: connection.rotation})


@pytest.mark.parametrize("previous_key_first", [True, False])
def test_row_shows_an_sa_of_the_previous_key_with_its_end_and_no_error(previous_key_first: bool) -> None:
    reported = in_rotation(previous_key_first, "previous")
    assert reported["previous_until"] == "2030-01-01T00:00:00Z"
    assert reported["sa"]["key"] == "previous"
    assert reported["protected"]
    assert reported["problem"]["code"] == "previous-key-in-use"
    assert "2030-01-01T00:00:00Z" in reported["problem"]["message"]
    assert not has_errors([reported["problem"]])


@pytest.mark.parametrize("name", ["staged", "current"])
def test_row_of_an_sa_of_the_new_key_has_no_problem_in_a_rotation(name: str) -> None:
    reported = in_rotation(False, name)
    assert (reported["sa"]["key"], reported["problem"]) == ("current", None)


def test_a_served_sa_in_a_rotation_is_of_either_key_unless_it_is_of_the_previous_one() -> None:
    staged = derived(serves(), per_id("db1", previous=previous()))
    connection = encoded(staged)[1][0]
    assert connection.rotation
    reported = []
    for part in (connection.rotation.staged, connection.rotation.previous):
        child = child_sa(connection.child.replace(connection.key_part, part), conn=connection.name)
        (row,) = PortalRows().rows(
            staged.portals,
            Observed(
                sas=(ike_sa(child, conn=connection.name),), children={connection.name: connection.child},
                rotations={connection.name: connection.rotation}, charon_reachable=True,
            ),
        )  # fmt: skip
        reported.append((row["sa"]["key"], row["problem"] and row["problem"]["hint"]))
    assert reported == [("either", None), ("previous", "give the initiator the new key before that")]


def test_without_a_rotation_an_sa_is_of_the_current_key_or_of_an_earlier_one() -> None:
    assert row(WANTED, good())["sa"]["key"] == "current"
    assert row(WANTED, good())["previous_until"] is None
    old = child_sa("iscsi-ipsec-00000000-11111111-22222222", conn=CONN)
    assert row(WANTED, old)["sa"]["key"] == "earlier"


def test_rows_keep_the_object_of_a_row_that_does_not_differ() -> None:
    desired = managed(per_id(SOURCE), record(), record("10.0.0.21"))
    rows, seen = PortalRows(), Observed(charon_reachable=True, children={CONN: CHILD})
    before = rows.rows(desired.portals, seen)
    assert rows.rows(desired.portals, replace(seen)) is before
    first, second = rows.rows(desired.portals, replace(seen, loaded=frozenset({CONN})))
    assert (first is before[0], second is before[1]) == (False, True)
    assert rows.rows(desired.portals[1:], seen) == before[1:]


ROTATION = EncodedRotation(staged="a-", current="b-", previous="c-", until="2030-01-01T00:00:00Z")


@pytest.mark.parametrize(
    "more",
    [
        {"charon_reachable": False},
        {"guard_wanted": False},
        {"guarded": frozenset()},
        {"loaded": frozenset()},
        {"failed_repeatedly": frozenset({CONN})},
        {"children": {CONN: "another"}},
        {"causes": {CONN: WRONG_KEY}},
        {"rotations": {CONN: ROTATION}},
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
    rows.rows(WANTED.portals, seen)
    now = replace(seen, **more)
    assert rows.rows(WANTED.portals, now) == PortalRows().rows(WANTED.portals, now)


# -- sessions that bypass the host's IP stack


@pytest.mark.parametrize("transport", ["iscsi_iser", "bnx2i"])
def test_an_offloaded_session_is_an_error_and_its_portal_never_protected(transport: str) -> None:
    reported = row(WANTED, good(), sessions=(session(transport=transport), session(sid=2)))
    assert not reported["protected"]
    assert (reported["problem"]["code"], reported["problem"]["severity"]) == ("offloaded-session", "error")
    assert transport in reported["problem"]["message"]


def test_an_offloaded_session_of_a_portal_that_nobody_manages_is_none_of_its_problems() -> None:
    unmanaged = derived(record())
    assert not unmanaged.portals[0].managed
    assert row(unmanaged, sessions=(session(transport="bnx2i"),))["problem"]["code"] == "not-protected"


# -- every field, as docs/status.md has it


def test_a_row_of_a_protected_session_says_all_that_there_is_to_say() -> None:
    (view,) = WANTED.portals
    assert view.connection
    assert row(WANTED, good(encr="AES_CBC", integ="HMAC_SHA2_256_128", dh_group="ECP_384")) == {
        "portal": "10.0.0.20:3260",
        "interface": "",
        "role": "initiator",
        "managed": True,
        "covered": True,
        "closed": True,
        "own_address": False,
        "protected": True,
        "ready": True,
        "identity": SOURCE,
        "identity_type": "ID_IPV4_ADDR",
        "peer_identity": "10.0.0.20",
        "key": SOURCE,
        "key_file": f"psk.d/{SOURCE}.toml",
        "previous_until": None,
        "policy": None,
        "ike": "IKEv2",
        "mode": "transport",
        "pfs": True,
        "connection": CONN,
        "reqid": None,
        "child": CHILD,
        "local_address": SOURCE,
        "remote_address": "10.0.0.20",
        "ike_proposals": list(view.connection.ike_proposals),
        "esp_proposals": list(view.connection.esp_proposals),
        "user_space_esp": False,
        "reasons": list(view.reasons),
        "origins": ["node record nodes/10.0.0.20,3260", f"key psk.d/{SOURCE}.toml"],
        "sessions": [
            {
                "sid": 1,
                "target": "iqn.2024-01.com.example:a",
                "state": "LOGGED_IN",
                "transport": "iscsi_tcp",
                "local": f"{SOURCE}:40001",
                "remote": "10.0.0.20:3260",
            }
        ],
        "sa": {
            "key": "current",
            "ike_id": 1,
            "ike_version": 2,
            "child_id": 1,
            "child": CHILD,
            "state": "INSTALLED",
            "mode": "transport",
            "cipher": "AES_CBC-256/HMAC_SHA2_256_128",
            "dh_group": "ECP_384",
            "age": 10,
            "bytes_in": 1,
            "bytes_out": 2,
            "reqid": 7,
            "spi_in": "c0000001",
            "spi_out": "c0000002",
        },
        "problem": None,
    }
    assert row(WANTED, good())["sa"]["dh_group"] is None


def test_a_row_of_a_portal_that_is_left_alone_has_every_field_and_nothing_in_most() -> None:
    desired = derived(record(net_ifacename="eth1"))
    reported = as_json(PortalRows().rows(desired.portals, Observed())[0])
    assert reported.keys() == row().keys()
    filled = {name: value for name, value in reported.items() if value not in (None, [], "", False)}
    assert filled == {
        "portal": "10.0.0.20:3260",
        "interface": "eth1",
        "role": "initiator",
        "ready": True,
        "reasons": list(desired.portals[0].reasons),
        "origins": ["node record nodes/10.0.0.20,3260"],
        "problem": problem_row(desired.problems[0]),
    }
    empty = {name for name, value in reported.items() if value == [] or value is False}
    assert empty == {
        *("ike_proposals", "esp_proposals", "sessions"),
        *("managed", "covered", "closed", "own_address", "protected", "user_space_esp"),
    }


def test_a_row_of_a_served_portal_names_its_policy_and_no_identity_of_the_peer() -> None:
    desired = derived(serves(initiators=(ipaddress.ip_network("10.0.0.0/24"),)), group())
    (reported,) = PortalRows().rows(desired.portals, Observed(charon_reachable=True))
    assert (reported["role"], reported["policy"], reported["peer_identity"]) == (
        "target",
        "portal.d/serves.toml",
        None,
    )
    assert (reported["identity"], reported["identity_type"]) == ("10.0.0.0/24", "addresses of IPv4")
    assert (reported["mode"], reported["remote_address"], reported["ready"]) == ("transport", None, False)


def test_row_shows_esp_in_user_space() -> None:
    (reported,) = PortalRows().rows(
        managed(per_id(SOURCE, flags=choice(esp=EspMode.TUNNEL)), record(), user_space_esp=True).portals,
        Observed(),
    )
    assert (reported["user_space_esp"], reported["mode"]) == (True, "tunnel")


def problem(**more: Any) -> dict[str, Any]:
    """A problem of the portal, of no file."""
    return {"severity": "error", "file": None, "line": None, "portal": "10.0.0.20:3260", **more}


OLD = child_sa("iscsi-ipsec-00000000-11111111-22222222", conn=CONN)
STILL = "packets still use the SA with the earlier key or settings, since the new SA has not come up"


@pytest.mark.parametrize(
    ("children", "observed", "reported"),
    [
        (
            (),
            {"charon_reachable": False},
            ("charon-unreachable", "charon cannot be reached, so no SA can be negotiated", "systemctl status strongswan"),
        ),
        (
            (),
            {"failed_repeatedly": {CONN}},
            (
                "no-sa",
                "an iSCSI session exists but no SA does: the guard holds its packets back",
                "the daemon is negotiating; if this stays, see charon's log",
            ),
        ),
        ((), {"causes": {CONN: WRONG_KEY}}, ("wrong-key", WRONG_KEY.message, WRONG_KEY.hint)),
        (
            (good(),),
            {"causes": {CONN: WRONG_KEY}},
            ("wrong-key", f"the SA is up, but renewing it fails: {WRONG_KEY.message}", WRONG_KEY.hint),
        ),
        ((OLD,), {"causes": {CONN: WRONG_KEY}}, ("outdated-sa", f"{STILL}: {WRONG_KEY.message}", WRONG_KEY.hint)),
        (
            (OLD,),
            {"failed_repeatedly": {CONN}},
            ("outdated-sa", STILL, "the daemon is negotiating; a changed key must be changed on both ends"),
        ),
        (
            (good(mode="TUNNEL"),),
            {},
            (
                "mode-differs",
                "transport mode was asked for, but tunnel mode was negotiated",
                "the target allows only the other mode: change the flags here or its configuration",
            ),
        ),
        (
            (good(encr="CHACHA20_POLY1305", encr_keysize=0),),
            {},
            ("cipher-differs", "the SA uses CHACHA20_POLY1305, which was not offered", "end the SA: it was not made by us"),
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) and value and isinstance(value[0], str) else "",
)  # fmt: skip
def test_problem_text_of_each_cause(
    children: tuple[ChildSa, ...], observed: dict[str, Any], reported: tuple[str, str, str]
) -> None:
    code, message, hint = reported
    assert row(WANTED, *children, **observed)["problem"] == problem(code=code, message=message, hint=hint)


def test_what_has_no_session_and_no_cause_or_has_its_successor_under_way_is_no_problem() -> None:
    assert row(sessions=(), failed_repeatedly={CONN})["problem"] is None
    assert row()["problem"] is None
    assert row(WANTED, OLD)["problem"] is None


def test_a_cause_that_passes_is_a_warning_with_an_sa_and_without() -> None:
    passing = {CONN: as_passing(WRONG_KEY)}
    assert row(causes=passing)["problem"]["severity"] == "warning"
    assert row(WANTED, good(), causes=passing)["problem"]["severity"] == "warning"


@pytest.mark.parametrize("encr", ["AES_CBC", "AES_GCM_16"])
def test_a_cipher_that_was_offered_is_no_problem(encr: str) -> None:
    assert row(WANTED, good(encr=encr, encr_keysize=128))["problem"] is None


def test_a_cipher_is_shown_with_what_it_has() -> None:
    assert cipher(good(encr="CHACHA20_POLY1305", encr_keysize=0)) == "CHACHA20_POLY1305"
    assert cipher(good()) == "AES_GCM_16-256"


def test_row_of_a_previous_key_in_use_names_its_file_and_who_needs_the_new_one() -> None:
    assert in_rotation(True, "previous")["problem"] == problem(
        code="previous-key-in-use",
        severity="warning",
        file=f"psk.d/{SOURCE}.toml",
        message="the SA was authenticated by the previous key, which stops being valid at 2030-01-01T00:00:00Z",
        hint="give the target the new key before that",
    )


def test_row_reports_a_failing_renewal_while_the_sa_still_protects() -> None:
    reported = row(WANTED, good(), causes={CONN: NO_PROPOSAL})
    assert reported["protected"] is True
    assert reported["problem"]["code"] == "no-proposal"
    assert "renewing it fails" in reported["problem"]["message"]


@pytest.mark.parametrize("encr", ["CAMELLIA_CBC", "AES_CTR", "CHACHA20_POLY1305", "UNDEFINED"])
def test_row_reports_a_cipher_that_no_offered_word_names(encr: str) -> None:
    desired = derived(
        per_id(SOURCE), policy(tuning=Tuning(esp_proposals=("aes256-sha256-modp2048",))), record()
    )
    child = encoded(desired)[1][0].child
    reported = row(desired, child_sa(child, conn=CONN, encr=encr, encr_keysize=256), children={CONN: child})
    assert reported["problem"]["code"] == "cipher-differs"


def renewed(ike_age: int, dh_group: str = "") -> dict[str, Any]:
    """The row of a child of 10 s in an IKE SA of this age."""
    child = replace(child_sa(CHILD, conn=CONN), age=10, dh_group=dh_group)
    return row(WANTED, child, sas=(replace(ike_sa(child, conn=CONN), age=ike_age),))


def test_a_child_that_was_renewed_without_a_group_is_reported_and_still_protected() -> None:
    reported = renewed(4000)
    assert (reported["problem"]["code"], reported["problem"]["severity"]) == ("no-pfs", "warning")
    assert reported["protected"] is True


@pytest.mark.parametrize(("ike_age", "group"), [(10, ""), (12, ""), (4000, "ECP_384"), (0, "")])
def test_a_child_with_a_group_or_the_first_of_its_ike_sa_has_nothing_to_report(
    ike_age: int, group: str
) -> None:
    assert renewed(ike_age, group)["problem"] is None
