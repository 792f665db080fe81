"""The plan: exactly the difference, in an order in which no moment is without key or connection."""

from __future__ import annotations

import dataclasses

from iscsi_ipsec.base.charon_sa import CharonState
from iscsi_ipsec.base.policy import Tuning
from iscsi_ipsec.core.decide.desired import Desired
from iscsi_ipsec.core.ike.charon_diff import PROBE, Operation, plan, probes, without_connections
from tests.support.values import (
    SOURCE,
    TARGET,
    charon_state,
    derived,
    encoded,
    managed,
    per_id,
    policy,
    record,
)

WANTED = managed(per_id(SOURCE), record())


def planned(desired: Desired, state: CharonState) -> tuple[Operation, ...]:
    return plan(*encoded(desired), state)


def holding(*desired: Desired) -> CharonState:
    """A charon that holds exactly this."""
    secrets, conns = [], {}
    for each in desired:
        spelled_secrets, spelled_conns = encoded(each)
        secrets += [s.id for s in spelled_secrets]
        conns.update({c.name: [c.child] for c in spelled_conns})
    return charon_state(secrets, conns)


def words(operations: tuple[Operation, ...]) -> list[str]:
    return [operation.command for operation in operations]


def test_an_empty_charon_gets_secrets_first_then_connections() -> None:
    operations = planned(WANTED, charon_state())
    assert words(operations) == ["load-shared", "load-conn"]
    (secret,), (connection,) = encoded(WANTED)
    assert [(o.item, o.message) for o in operations] == [
        (secret.id, secret.message),
        (connection.name, connection.message),
    ]


def test_secrets_that_charon_cannot_list_are_left_as_they_are() -> None:
    previously_managed = dataclasses.replace(holding(WANTED), secrets=None)
    assert planned(WANTED, previously_managed) == ()
    assert words(planned(WANTED, dataclasses.replace(previously_managed, conns={}))) == ["load-conn"]
    assert words(planned(managed(), previously_managed)) == ["unload-conn"]


def test_nothing_is_done_to_a_charon_that_holds_what_is_wanted() -> None:
    assert planned(WANTED, holding(WANTED)) == ()


def test_a_wiped_secret_alone_is_loaded_again() -> None:
    state = dataclasses.replace(holding(WANTED), secrets=frozenset())
    assert words(planned(WANTED, state)) == ["load-shared"]


def test_a_wiped_connection_alone_is_loaded_again() -> None:
    state = dataclasses.replace(holding(WANTED), conns={})
    assert words(planned(WANTED, state)) == ["load-conn"]


def test_a_rotated_key_is_loaded_before_the_old_one_is_unloaded() -> None:
    rotated = managed(per_id(SOURCE, secret=b"the new key"), record())
    operations = planned(rotated, holding(WANTED))
    assert words(operations) == ["load-shared", "unload-conn", "load-conn", "unload-shared"]
    (old,), (new,) = encoded(WANTED)[0], encoded(rotated)[0]
    assert (operations[0].item, operations[-1].item) == (new.id, old.id)


def test_a_changed_connection_is_unloaded_right_before_it_is_loaded() -> None:
    changed = managed(per_id(SOURCE), policy(tuning=Tuning(dpd_delay=3)), record())
    operations = planned(changed, holding(WANTED))
    assert [(o.command, o.item) for o in operations] == [
        ("unload-conn", "iscsi-ipsec-10.0.0.20-3260"),
        ("load-conn", "iscsi-ipsec-10.0.0.20-3260"),
    ]
    assert operations[0].message == {"name": "iscsi-ipsec-10.0.0.20-3260"}
    assert operations[1].message == encoded(changed)[1][0].message


def test_a_change_of_one_portal_touches_no_other() -> None:
    before = managed(per_id(SOURCE), record(TARGET), record("10.0.0.21"))
    after = managed(
        per_id(SOURCE), record(TARGET), record("10.0.0.21"), policy("10.0.0.21", tuning=Tuning(dpd_delay=3))
    )
    assert {o.item for o in planned(after, holding(before))} == {"iscsi-ipsec-10.0.0.21-3260"}


def test_what_nothing_asks_for_goes_connections_before_secrets() -> None:
    operations = planned(managed(), holding(WANTED))
    assert words(operations) == ["unload-conn", "unload-shared"]
    assert [o.message for o in operations] == [
        {"name": "iscsi-ipsec-10.0.0.20-3260"},
        {"id": encoded(WANTED)[0][0].id},
    ]


def test_foreign_names_are_never_touched() -> None:
    state = charon_state(
        ["vpn", "iscsi-ipsecX"], {"vpn": ["net"], "iscsi-ipsec": ["x"], "my-iscsi-ipsec-1": ["x"]}
    )
    assert planned(derived(), state) == ()


def test_a_connection_with_an_additional_child_is_put_right() -> None:
    previously_managed = holding(WANTED)
    (name,) = previously_managed.conns
    meddled = dataclasses.replace(
        previously_managed, conns={name: previously_managed.conns[name] | {"foreign"}}
    )
    assert words(planned(WANTED, meddled)) == ["unload-conn", "load-conn"]


def test_a_connection_without_children_is_put_right() -> None:
    previously_managed = holding(WANTED)
    meddled = dataclasses.replace(
        previously_managed, conns=dict.fromkeys(previously_managed.conns, frozenset[str]())
    )
    assert words(planned(WANTED, meddled)) == ["unload-conn", "load-conn"]


def test_a_secret_that_two_connections_share_is_loaded_once() -> None:
    desired = derived(per_id("db1", portals=[TARGET, f"{TARGET}:3261"]))
    assert words(planned(desired, charon_state())) == ["load-shared", "load-conn", "load-conn"]


def test_operation_texts_show_no_key() -> None:
    desired = managed(per_id("db1", secret=b"canary-key-0123456789"), record())
    texts = [o.text for o in planned(desired, holding(WANTED))]
    assert any("of fqdn:db1, 10.0.0.20" in text for text in texts)
    assert any("settings changed" in text for text in texts)
    gone = [o.text for o in planned(managed(), holding(desired))]
    assert [text.partition(": ")[2] for text in gone] == ["nothing asks for it", "no key is this"]
    assert "canary" not in " ".join(texts)
    assert "canary" not in repr(planned(desired, holding(WANTED)))


# -- what charon may refuse


def changed() -> tuple[Operation, ...]:
    """A connection that is replaced, one that is new and one that goes."""
    before = managed(per_id(SOURCE), record(), record("10.0.0.22"))
    after = managed(per_id(SOURCE), policy(tuning=Tuning(dpd_delay=99)), record(), record("10.0.0.21"))
    return planned(after, holding(before))


def test_probes_are_made_of_replaced_connections_only() -> None:
    ((name, probe),) = probes(changed())
    assert name == f"iscsi-ipsec-{TARGET}-3260"
    assert (probe.command, probe.item) == ("load-conn", PROBE)


def test_a_probe_has_the_settings_and_no_trap_and_is_for_no_packet() -> None:
    operations = changed()
    (wanted,) = (
        op.message[op.item] for op in operations if op.command == "load-conn" and op.item.endswith("20-3260")
    )
    ((_, probe),) = probes(operations)
    ((name, message),) = probe.message.items()
    assert name == PROBE
    assert isinstance(message, dict)
    assert isinstance(wanted, dict)
    assert {k: v for k, v in message.items() if v != wanted[k]}.keys() == {
        "local_addrs", "remote_addrs", "children",
    }  # fmt: skip
    assert message["local_addrs"] == message["remote_addrs"] == ["127.0.0.1"]
    (child,) = message["children"].values()
    assert (child["start_action"], child["close_action"], child["dpd_action"]) == ("none", "none", "clear")
    assert child["esp_proposals"] == next(iter(wanted["children"].values()))["esp_proposals"]


def test_without_connections_leaves_both_halves_of_a_replacement_out() -> None:
    operations = changed()
    ((name, _),) = probes(operations)
    left = without_connections(operations, {name})
    assert {op.item for op in operations} - {op.item for op in left} == {name}
    assert len(left) == len(operations) - 2
