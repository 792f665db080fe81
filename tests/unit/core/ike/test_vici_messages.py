"""The encoding for charon, and names that change exactly when their content does."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.policy import EspMode, IkeMode, Start, Tuning
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.decide.desired import Connection, Rotation, SecretEntry
from iscsi_ipsec.core.ike.vici_messages import (
    PREFIX,
    EncodedConnection,
    EncodedRotation,
    EncodedSecret,
    encode_connection,
    encode_id,
    encode_secret,
    presented_ids,
)
from tests.support.values import (
    DIGEST_KEY,
    SOURCE,
    TARGET,
    address,
    choice,
    connection,
    derived,
    identity,
    managed,
    per_id,
    policy,
    previous,
    record,
    serves,
)

REQID = 0x49000001


def entry(*owners: str, data: bytes = b"k" * 20, keys: tuple[str, ...] = ("db1",)) -> SecretEntry:
    return SecretEntry(owners=tuple(map(identity, owners)), secret=Secret(data), keys=keys)


def spell(of: Connection) -> EncodedConnection:
    return encode_connection(of, REQID, DIGEST_KEY)


def ike_of(encoded: EncodedConnection) -> Mapping[str, Any]:
    section = encoded.message[encoded.name]
    assert isinstance(section, Mapping)
    return section


def child_of(encoded: EncodedConnection) -> Mapping[str, Any]:
    children = ike_of(encoded)["children"]
    assert list(children) == [encoded.child]
    child = children[encoded.child]
    assert isinstance(child, Mapping)
    return child


# -- identities


@pytest.mark.parametrize(
    ("type", "text", "encoded"),
    [
        (IdType.ID_FQDN, "db1.example.com", "fqdn:db1.example.com"),
        (IdType.ID_FQDN, "10.0.0.5", "fqdn:10.0.0.5"),
        (IdType.ID_FQDN, "iqn.2024-01.com.example:a", "fqdn:iqn.2024-01.com.example:a"),
        (IdType.ID_USER_FQDN, "db1@example.com", "userfqdn:db1@example.com"),
        # charon cuts a secret's owner off behind 255 characters
        (IdType.ID_FQDN, "a" * 250, "fqdn:" + "a" * 250),
        (IdType.ID_FQDN, "a" * 251, "@" + "a" * 251),
        (IdType.ID_FQDN, "a" * 254, "@" + "a" * 254),
        (IdType.ID_FQDN, "a" * 255, "a" * 255),
        (IdType.ID_USER_FQDN, "a" * 244 + "@b", "userfqdn:" + "a" * 244 + "@b"),
        (IdType.ID_USER_FQDN, "a" * 245 + "@b", "@@" + "a" * 245 + "@b"),
        (IdType.ID_USER_FQDN, "a" * 252 + "@b", "a" * 252 + "@b"),
        (IdType.ID_IPV4_ADDR, "10.0.0.5", "10.0.0.5"),
        (IdType.ID_IPV6_ADDR, "FD00:0::5", "fd00::5"),
    ],
)
def test_each_identity_type_has_charons_prefix_for_it(type: IdType, text: str, encoded: str) -> None:
    assert encode_id(IkeId.parse(type, text)) == encoded


def test_a_network_of_initiators_is_spelled_as_it_is() -> None:
    assert encode_id(ipaddress.ip_network("10.0.0.0/24")) == "10.0.0.0/24"


# -- secrets


def test_a_secrets_message_names_its_owners_and_carries_the_key_unopened() -> None:
    secret = encode_secret(entry(SOURCE, "db1"), DIGEST_KEY)
    data = secret.message["data"]
    assert isinstance(data, Secret)
    assert data.reveal() == b"k" * 20
    assert secret.message == {"id": secret.id, "type": "IKE", "data": data, "owners": [SOURCE, "fqdn:db1"]}


def test_a_secret_always_has_owners_since_charon_takes_none_for_everyone() -> None:
    for desired in (managed(per_id(SOURCE), per_id("db1"), record()), derived(serves(), per_id("db1"))):
        assert all(encode_secret(e, DIGEST_KEY).message["owners"] for e in desired.secrets)


def test_a_secrets_id_is_a_digest_with_our_prefix() -> None:
    id = encode_secret(entry("db1"), DIGEST_KEY).id
    assert id.startswith("iscsi-ipsec-")
    digits = id.removeprefix(PREFIX)
    assert len(digits) == 16
    assert int(digits, 16) >= 0


@pytest.mark.parametrize(
    "other",
    [
        entry("db1", data=b"K" * 20),
        entry("db1", data=b"k" * 21),
        entry("db2"),
        entry("db1", TARGET),
        entry("db1", TARGET, SOURCE),
    ],
)
def test_a_secrets_id_changes_with_its_data_and_its_owners(other: SecretEntry) -> None:
    assert encode_secret(other, DIGEST_KEY).id != encode_secret(entry("db1"), DIGEST_KEY).id


def test_owners_that_look_alike_when_joined_give_different_ids() -> None:
    one, two = entry("ab", "c"), entry("a", "bc")
    assert encode_secret(one, DIGEST_KEY).id != encode_secret(two, DIGEST_KEY).id


def test_a_secrets_id_does_not_depend_on_the_files_name() -> None:
    assert (
        encode_secret(entry("db1", keys=("other",)), DIGEST_KEY).id
        == encode_secret(entry("db1"), DIGEST_KEY).id
    )


def test_secret_id_reveals_nothing_of_the_key_without_the_digest_key() -> None:
    assert encode_secret(entry("db1"), b"another").id != encode_secret(entry("db1"), DIGEST_KEY).id


# -- connections


def test_the_child_is_named_after_key_and_settings_with_our_prefix() -> None:
    encoded = spell(connection())
    assert encoded.name == "iscsi-ipsec-10.0.0.20-3260"
    assert encoded.child.startswith(encoded.key_part)
    assert encoded.key_part.startswith(PREFIX)


def test_an_ipv6_connection_is_named_by_its_address() -> None:
    assert spell(connection(per_id("fd00::1"), record("fd00::20"))).name == "iscsi-ipsec-fd00::20-3260"


def test_the_same_input_gives_the_same_names_and_message() -> None:
    assert spell(connection()) == spell(connection())


BASE = connection()


@pytest.mark.parametrize(
    "changed",
    [
        {"local_address": address("10.0.0.2")},
        {"remote_address": address("10.0.0.21")},
        {"local_id": identity("db1")},
        {"local_id": IkeId.parse(IdType.ID_FQDN, SOURCE)},
        {"remote_id": identity("san")},
        {"ike": IkeMode.MAIN},
        {"ike": IkeMode.AGGRESSIVE},
        {"esp": EspMode.TUNNEL},
        {"ike_proposals": ("aes256-sha256-modp2048",)},
        {"esp_proposals": ("aes256-sha256",)},
        {"local_ts": "10.0.0.1/32[6]"},
        {"remote_ts": "dynamic[6/3261]"},
        {"user_space_esp": True},
        {"tuning": Tuning(ike_rekey_time=7200)},
        {"tuning": Tuning(esp_rekey_time=7200)},
        {"tuning": Tuning(dpd_delay=3)},
        {"tuning": Tuning(dpd_delay=0)},
        {"tuning": Tuning(replay_window=0)},
        {"tuning": Tuning(replay_window=1024)},
        {"key": per_id(SOURCE, secret=b"a changed key")},
    ],
    ids=str,
)
def test_whatever_is_changed_changes_the_childs_name(changed: dict[str, Any]) -> None:
    assert spell(dataclasses.replace(BASE, **changed)).child != spell(BASE).child


def test_another_dpd_timeout_changes_the_childs_name_where_charon_knows_it() -> None:
    v1 = dataclasses.replace(BASE, ike=IkeMode.MAIN)
    assert spell(dataclasses.replace(v1, tuning=Tuning(dpd_timeout=99))).child != spell(v1).child


def test_every_change_of_the_message_shows_in_the_childs_name() -> None:
    """Of two connections with one name, equal children mean equal messages."""
    by_child: dict[tuple[str, str], object] = {}
    for ike in IkeMode:
        for esp in EspMode:
            for tuning in (
                Tuning(),
                *(Tuning(ike_rekey_time=n) for n in (60, 3600, 86400)),
                Tuning(dpd_delay=1),
            ):
                encoded = spell(dataclasses.replace(BASE, ike=ike, esp=esp, tuning=tuning))
                reported = by_child.setdefault((encoded.name, encoded.child), encoded.message)
                assert reported == encoded.message


@pytest.mark.parametrize(
    "same",
    [
        {"key": dataclasses.replace(per_id(SOURCE), name="renamed", path="psk.d/renamed.toml")},
        {"start": Start.START},
        {"tuning": Tuning(ike_rekey_time=4 * 3600, esp_rekey_time=3600, dpd_delay=10, replay_window=128)},
        {"tuning": Tuning(dpd_timeout=99)},
    ],
    ids=str,
)
def test_child_name_does_not_change_with_what_charon_does_not_get(same: dict[str, Any]) -> None:
    now, before = spell(dataclasses.replace(BASE, **same)), spell(BASE)
    assert (now.child, now.key_part, now.message) == (before.child, before.key_part, before.message)


def test_the_key_part_changes_with_the_key_alone() -> None:
    settings = dataclasses.replace(BASE, tuning=Tuning(dpd_delay=1))
    key = dataclasses.replace(BASE, key=per_id(SOURCE, secret=b"a changed key"))
    assert spell(settings).key_part == spell(BASE).key_part
    assert spell(key).key_part != spell(BASE).key_part


def test_two_connections_with_one_key_have_different_key_parts() -> None:
    one, two = managed(per_id(SOURCE), record(TARGET), record("10.0.0.21")).connections
    assert spell(one).key_part != spell(two).key_part


def test_a_changed_key_is_a_changed_lifetime_so_that_charon_makes_a_new_ike_sa() -> None:
    changed = dataclasses.replace(BASE, key=per_id(SOURCE, secret=b"a changed key"))
    assert {k: v for k, v in ike_of(spell(changed)).items() if k != "children"} != {
        k: v for k, v in ike_of(spell(BASE)).items() if k != "children"
    }


def test_the_ike_lifetime_is_at_least_what_was_asked_for_and_not_much_more() -> None:
    text = ike_of(spell(dataclasses.replace(BASE, tuning=Tuning(ike_rekey_time=86400))))["rekey_time"]
    assert 86400 <= int(text.removesuffix("s")) < 86400 + 3600


# -- the messages to charon


@pytest.mark.parametrize(
    ("ike", "version", "aggressive"),
    [(IkeMode.V2, "2", None), (IkeMode.MAIN, "1", "no"), (IkeMode.AGGRESSIVE, "1", "yes")],
)
def test_the_ike_mode_is_spelled(ike: IkeMode, version: str, aggressive: str | None) -> None:
    settings = ike_of(spell(dataclasses.replace(BASE, ike=ike)))
    assert (settings["version"], settings.get("aggressive")) == (version, aggressive)


@pytest.mark.parametrize("esp", list(EspMode))
def test_the_esp_mode_is_spelled(esp: EspMode) -> None:
    assert child_of(spell(dataclasses.replace(BASE, esp=esp)))["mode"] == esp.value


def test_both_ends_authenticate_by_psk_under_pinned_identities() -> None:
    settings = ike_of(spell(BASE))
    assert settings["local"] == {"auth": "psk", "id": SOURCE}
    assert settings["remote"] == {"auth": "psk", "id": TARGET}


def test_an_initiator_traps_again_whatever_ends_its_sa() -> None:
    child = child_of(spell(BASE))
    assert (child["start_action"], child["close_action"], child["dpd_action"]) == ("trap", "trap", "trap")


def test_encode_connection_gives_user_space_esp_no_trap() -> None:
    child = child_of(spell(dataclasses.replace(BASE, user_space_esp=True)))
    assert "trap" not in child.values()


def test_a_served_portal_waits_for_anyone_but_names_the_peer() -> None:
    encoded = spell(connection(serves(), per_id("db1"), local=()))
    assert ike_of(encoded)["remote_addrs"] == ["%any"]
    assert ike_of(encoded)["remote"]["id"] == "fqdn:db1"
    assert child_of(encoded)["start_action"] == "none"


def test_dead_peers_are_looked_for_unless_switched_off() -> None:
    assert int(ike_of(spell(BASE))["dpd_delay"].removesuffix("s")) > 0
    assert ike_of(spell(dataclasses.replace(BASE, tuning=Tuning(dpd_delay=0))))["dpd_delay"] == "0s"


def test_no_remote_identity_is_ever_left_open() -> None:
    for of in (BASE, connection(serves(), per_id("db1"), local=()), connection(per_id("db1"), policy())):
        assert "%any" not in (ike_of(spell(of))["remote"]["id"], ike_of(spell(of))["local"]["id"])


# -- keys


def leaves(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield name
            yield from leaves(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def test_nothing_but_the_secrets_data_carries_the_key() -> None:
    canary = b"canary-4f1d2c"
    desired = managed(per_id(SOURCE, "psk", secret=canary, flags=choice()), record())
    encoded = [encode_secret(e, DIGEST_KEY) for e in desired.secrets]
    conns = [spell(c) for c in desired.connections]
    for message in (*(s.message for s in encoded), *(c.message for c in conns)):
        for leaf in leaves(message):
            assert isinstance(leaf, str | Secret)
            if isinstance(leaf, str):
                assert "canary" not in leaf
    holders = [name for s in encoded for name, value in s.message.items() if isinstance(value, Secret)]
    assert holders == ["data"]
    assert not [leaf for c in conns for leaf in leaves(c.message) if isinstance(leaf, Secret)]
    assert "canary" not in repr(encoded) + repr(conns)
    assert json.dumps([c.message for c in conns], default=str)


# -- whole messages: who changes one of these has every host load its connections anew when it is upgraded


def test_the_whole_message_of_an_ordinary_connection_is_this() -> None:
    of = connection()
    encoded = spell(of)
    assert encoded.child == "iscsi-ipsec-b3f57c66-f8817e34-3c1792b2"
    assert encoded.message == {
        "iscsi-ipsec-10.0.0.20-3260": {
            "version": "2",
            "local_addrs": ["10.0.0.1"],
            "remote_addrs": ["10.0.0.20"],
            "local": {"auth": "psk", "id": "10.0.0.1"},
            "remote": {"auth": "psk", "id": "10.0.0.20"},
            "proposals": list(of.ike_proposals),
            "rekey_time": "14900s",
            "over_time": "1552s",
            "mobike": "no",
            "dpd_delay": "10s",
            "unique": "never",
            "children": {
                encoded.child: {
                    "reqid": "1224736769",
                    "mode": "transport",
                    "local_ts": ["dynamic[6]"],
                    "remote_ts": ["dynamic[6/3260]"],
                    "esp_proposals": list(of.esp_proposals),
                    "rekey_time": "3600s",
                    "replay_window": "128",
                    "start_action": "trap",
                    "close_action": "trap",
                    "dpd_action": "trap",
                }
            },
        }
    }


def test_the_whole_message_of_an_initiator_in_main_mode_that_is_served_is_this() -> None:
    (of,) = derived(serves(flags=choice(IkeMode.MAIN)), per_id("10.0.0.5")).connections
    encoded = spell(of)
    assert encoded.child == "iscsi-ipsec-e2db09e7-d7eba8c1-94d52d66"
    assert encoded.message == {
        "iscsi-ipsec-10.0.0.1-3260-10.0.0.5": {
            "version": "1",
            "aggressive": "no",
            "local_addrs": ["10.0.0.1"],
            "remote_addrs": ["10.0.0.5"],
            "local": {"auth": "psk", "id": "10.0.0.1"},
            "remote": {"auth": "psk", "id": "10.0.0.5"},
            "proposals": list(of.ike_proposals),
            "rekey_time": "14561s",
            "over_time": "1460s",
            "dpd_delay": "10s",
            "unique": "never",
            "dpd_timeout": "30s",
            "children": {
                encoded.child: {
                    "reqid": "1224736769",
                    "mode": "transport",
                    "local_ts": ["dynamic[6/3260]"],
                    "remote_ts": ["dynamic[6]"],
                    "esp_proposals": list(of.esp_proposals),
                    "rekey_time": "3600s",
                    "replay_window": "128",
                    "start_action": "none",
                    "close_action": "none",
                    "dpd_action": "clear",
                }
            },
        }
    }


def test_the_names_of_secrets_are_these_alone_and_in_front_of_another() -> None:
    alone = entry("db1", TARGET)
    presented = dataclasses.replace(alone, over=Secret(b"o" * 20))
    assert encode_secret(alone, DIGEST_KEY) == EncodedSecret(id="iscsi-ipsec-7dd668d691acb451", entry=alone)
    assert encode_secret(presented, DIGEST_KEY) == EncodedSecret(
        id="iscsi-ipsec-a3d84552e2ae0720", entry=presented, above="iscsi-ipsec-7e502c210a7fef52"
    )
    for encoded in (encode_secret(alone, DIGEST_KEY), encode_secret(presented, DIGEST_KEY)):
        assert encoded.owners == ("fqdn:db1", TARGET)
        assert encoded.message == {
            "id": encoded.id, "type": "IKE", "data": alone.secret, "owners": ["fqdn:db1", TARGET]
        }  # fmt: skip


@pytest.mark.parametrize(
    ("previous_key_first", "child"),
    [
        (False, "iscsi-ipsec-f0e3731d-f8817e34-3c1792b2"),
        (True, "iscsi-ipsec-75aad8d0-f8817e34-3c1792b2"),
    ],
)
def test_the_names_of_a_connection_in_a_rotation_are_these(previous_key_first: bool, child: str) -> None:
    rotation = Rotation(
        owners=BASE.pair, secret=BASE.key.secret, previous=previous(), keys=(), previous_key_first=previous_key_first, connections=(BASE,)
    )  # fmt: skip
    encoded = encode_connection(BASE, REQID, DIGEST_KEY, rotation)
    assert encoded.child == child
    assert encoded.rotation == EncodedRotation(
        staged="iscsi-ipsec-f0e3731d-", current="iscsi-ipsec-b3f57c66-", previous="iscsi-ipsec-75aad8d0-",
        until="2030-01-01T00:00:00Z",
    )  # fmt: skip
    assert presented_ids(rotation, DIGEST_KEY) == (
        "iscsi-ipsec-56843c21399639eb",
        "iscsi-ipsec-657565d8f97966d1",
    )


def test_child_name_reveals_nothing_of_the_key_without_the_digest_key() -> None:
    parts = {encode_connection(connection(), REQID, bytes([n]) * 32).key_part for n in range(20)}
    assert len(parts) == 20
