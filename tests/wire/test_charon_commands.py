"""The command session with a correct charon: its messages, and the values made of the answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from iscsi_ipsec.adapters.charon import Charon, wire
from iscsi_ipsec.base.errors import CharonRefused, CharonUnavailable
from iscsi_ipsec.base.secret import Secret
from tests.support.fake_charon import UNKNOWN_COMMAND, FakeCharon

IKE_SA = {
    "iscsi-ipsec-10.0.0.2-3260": {
        "uniqueid": "7",
        "version": "2",
        "state": "ESTABLISHED",
        "local-host": "10.0.0.1",
        "local-id": "db1.example.com",
        "remote-host": "10.0.0.2",
        "remote-id": "san.example.com",
        "initiator": "yes",
        "encr-alg": "AES_CBC",
        "encr-keysize": "128",
        "integ-alg": "HMAC_SHA2_256_128",
        "prf-alg": "PRF_HMAC_SHA2_256",
        "dh-group": "MODP_2048",
        "established": "61",
        "rekey-time": "-5",
        "child-sas": {
            "iscsi-ipsec-00aa-12": {
                "name": "iscsi-ipsec-00aa",
                "uniqueid": "12",
                "reqid": "3",
                "state": "INSTALLED",
                "mode": "TRANSPORT",
                "protocol": "ESP",
                "spi-in": "c1a2b3c4",
                "spi-out": "0000abcd",
                "encr-alg": "AES_GCM_16",
                "encr-keysize": "128",
                "bytes-in": "18446744073709551615",
                "packets-in": "9",
                "bytes-out": "100",
                "packets-out": "2",
                "life-time": "3600",
                "install-time": "60",
                "local-ts": ["10.0.0.1/32[tcp]"],
                "remote-ts": ["10.0.0.2/32[tcp/iscsi-target]"],
            },
        },
    },
}


def test_observe_tells_ours_from_foreign(charon: Charon) -> None:
    state = charon.observe()

    assert state.version == "5.9.8"
    assert state.plugins == {"vici", "kernel-netlink"}
    assert state.secrets == frozenset({"iscsi-ipsec-1"})
    assert state.conns == {"iscsi-ipsec-10.0.0.2-3260": {"iscsi-ipsec-00aa"}}
    assert state.foreign_conns == 1


def test_observe_is_one_round_trip(socket_path: Path) -> None:
    with FakeCharon(socket_path, window=8) as fake:  # answers nothing before it has read all eight
        charon = Charon(fake.path, timeout=5)
        charon.observe()
        charon.close()

    assert len(fake.requests) == 8
    # the answer to get-shared may be missing, and then this one comes in its place
    assert [request.name for request in fake.requests[-2:]] == ["get-shared", "version"]


def test_observe_asks_for_algorithms_once_in_a_session(socket_path: Path) -> None:
    with FakeCharon(socket_path) as fake:
        charon = Charon(fake.path, timeout=5)
        assert charon.observe().algorithms == {"AES_CBC", "CURVE_25519"}
        assert charon.observe().algorithms == {"AES_CBC", "CURVE_25519"}
        asked = [request.name for request in fake.requests].count("get-algorithms")
        charon.close()
    assert asked == 1


def test_a_charon_that_does_not_know_the_question_for_algorithms_is_observed_all_the_same(
    socket_path: Path,
) -> None:
    with FakeCharon(socket_path) as fake:
        fake.on("get-algorithms", lambda client, _: client.send(UNKNOWN_COMMAND))
        charon = Charon(fake.path, timeout=5)
        assert charon.observe().algorithms == frozenset()
        charon.close()


def test_an_empty_charon_is_observed_as_empty(fake: FakeCharon, charon: Charon) -> None:
    fake.secrets, fake.conns = [], []
    state = charon.observe()
    assert (state.secrets, dict(state.conns), state.foreign_conns) == (frozenset(), {}, 0)


def test_sas_gives_every_field_its_type(fake: FakeCharon, charon: Charon) -> None:
    fake.sas = [{"home": {"uniqueid": "1"}}, IKE_SA]

    (ike,) = charon.sas()

    assert (ike.conn, ike.unique_id, ike.version, ike.state) == (
        "iscsi-ipsec-10.0.0.2-3260", 7, 2, "ESTABLISHED",
    )  # fmt: skip
    assert ike.initiator
    assert (ike.local_host, ike.remote_host) == ("10.0.0.1", "10.0.0.2")
    assert (ike.local_id, ike.remote_id) == ("db1.example.com", "san.example.com")
    assert (ike.encr, ike.encr_keysize, ike.integ, ike.dh_group) == (
        "AES_CBC",
        128,
        "HMAC_SHA2_256_128",
        "MODP_2048",
    )
    assert (ike.age, ike.rekey_in) == (61, -5)
    (child,) = ike.children
    assert (child.child_name, child.unique_id, child.reqid) == ("iscsi-ipsec-00aa", 12, 3)
    assert (child.state, child.mode) == ("INSTALLED", "TRANSPORT")
    assert (child.spi_in, child.spi_out) == ("c1a2b3c4", "0000abcd")
    assert (child.encr, child.encr_keysize, child.integ, child.dh_group) == ("AES_GCM_16", 128, "", "")
    assert (child.bytes_in, child.packets_in, child.bytes_out, child.packets_out) == (2**64 - 1, 9, 100, 2)
    assert (child.age, child.rekey_in, child.life_in) == (60, None, 3600)
    assert child.local_ts == ("10.0.0.1/32[tcp]",)
    assert child.remote_ts == ("10.0.0.2/32[tcp/iscsi-target]",)


def test_two_sas_of_one_connection_are_both_listed(fake: FakeCharon, charon: Charon) -> None:
    fake.sas = [IKE_SA, IKE_SA]
    assert len(charon.sas()) == 2


def test_an_sa_that_is_still_connecting_has_neutral_values(fake: FakeCharon, charon: Charon) -> None:
    fake.sas = [{"iscsi-ipsec-x": {"uniqueid": "1", "state": "CONNECTING", "remote-id": "%any"}}]
    (ike,) = charon.sas()
    assert (ike.state, ike.initiator, ike.age, ike.rekey_in, ike.children) == (
        "CONNECTING",
        False,
        0,
        None,
        (),
    )


def test_results_of_apply_are_in_the_order_of_its_messages(fake: FakeCharon, charon: Charon) -> None:
    fake.on(
        "load-conn", lambda client, _: client.respond({"success": "no", "errmsg": "invalid value for: mode"})
    )
    fake.on("flush", lambda client, _: client.send(UNKNOWN_COMMAND))

    results = charon.apply(
        [
            ("load-shared", {"id": "iscsi-ipsec-1", "data": "x"}),
            ("load-conn", {"iscsi-ipsec-c": {"version": "2"}}),
            ("unload-conn", {"name": "iscsi-ipsec-old"}),
            ("flush", {}),
        ]
    )

    assert [result and (result.command, result.item, result.reason) for result in results] == [
        None,
        ("load-conn", "iscsi-ipsec-c", "invalid value for: mode"),
        None,
        ("flush", "", "charon does not know this command"),
    ]


def test_apply_writes_a_window_before_it_reads(socket_path: Path) -> None:
    with FakeCharon(socket_path, window=64) as fake:
        charon = Charon(fake.path, timeout=5)
        results = charon.apply([("load-shared", {"id": str(number)}) for number in range(192)])
        charon.close()

    assert results == (None,) * 192
    assert [request.message["id"] for request in fake.requests] == [str(n).encode() for n in range(192)]


def test_apply_keeps_a_second_window_under_way_and_tells_of_each(socket_path: Path) -> None:
    reported: list[int] = []
    with FakeCharon(socket_path, window=128) as fake:  # answers nothing before it has read two windows
        charon = Charon(fake.path, timeout=5)
        messages = [("load-shared", {"id": str(number)}) for number in range(256)]
        results = charon.apply(messages, lambda: reported.append(len(fake.requests)))
        charon.close()
    assert results == (None,) * 256
    assert len(reported) == 4


def test_a_state_of_the_same_bytes_is_the_very_same(fake: FakeCharon, charon: Charon) -> None:
    state = charon.observe()
    assert charon.observe() is state
    fake.conns = [{"iscsi-ipsec-10.0.0.3-3260": {"children": {"iscsi-ipsec-b": {}}}}]
    assert dict(charon.observe().conns) == {"iscsi-ipsec-10.0.0.3-3260": frozenset({"iscsi-ipsec-b"})}
    fake.secrets = []
    assert charon.observe().secrets == frozenset()


def test_connections_are_listed_again_only_if_other_ones_are_there_by_name(
    fake: FakeCharon, charon: Charon
) -> None:
    state = charon.observe(thorough=False)
    assert charon.observe(thorough=False) is state
    assert len(fake.asked("list-conns")) == 1
    fake.conns = [{"iscsi-ipsec-10.0.0.2-3260": {"children": {"iscsi-ipsec-b": {}}}}, *fake.conns[1:]]
    assert charon.observe(thorough=False) is state  # the same names: nobody looked
    assert charon.observe().conns["iscsi-ipsec-10.0.0.2-3260"] == frozenset({"iscsi-ipsec-b"})
    fake.conns = [{"iscsi-ipsec-10.0.0.3-3260": {"children": {"iscsi-ipsec-b": {}}}}]
    assert charon.observe(thorough=False).conns.keys() == {"iscsi-ipsec-10.0.0.3-3260"}


def test_another_session_begins_with_a_list(fake: FakeCharon, charon: Charon) -> None:
    charon.observe(thorough=False)
    charon.close()
    charon.observe(thorough=False)
    assert len(fake.asked("list-conns")) == 2


@pytest.mark.parametrize(
    "held",
    [
        ["iscsi-ipsec-0", "iscsi-ipsec-1"],  # the new one is not there
        ["iscsi-ipsec-x", "iscsi-ipsec-0"],  # another one is gone
        ["iscsi-ipsec-x", "iscsi-ipsec-0", "iscsi-ipsec-1", "iscsi-ipsec-2"],  # another one came
        ["iscsi-ipsec-x", "iscsi-ipsec-0", "iscsi-ipsec-3"],  # one came in another's place
        [],
    ],
    ids=",".join,
)
def test_what_others_did_meanwhile_to_secrets_is_seen(
    fake: FakeCharon, charon: Charon, held: list[str]
) -> None:
    fake.secrets = ["iscsi-ipsec-0", "iscsi-ipsec-1"]
    charon.observe()
    charon.apply([("load-shared", {"id": "iscsi-ipsec-x"})])
    fake.secrets = held
    assert charon.observe().secrets == frozenset(held)


def test_apply_of_nothing_sends_nothing(fake: FakeCharon, charon: Charon) -> None:
    assert charon.apply([]) == ()
    assert fake.requests == []


def test_a_secret_reaches_charon_byte_for_byte(fake: FakeCharon, charon: Charon) -> None:
    key = b"\0\xff0x31\n" + bytes(range(256))

    charon.apply([("load-shared", {"type": "IKE", "data": Secret(key), "owners": ["fqdn:a", "fqdn:b"]})])

    (request,) = fake.requests
    assert request.message == {"type": b"IKE", "data": key, "owners": [b"fqdn:a", b"fqdn:b"]}


def test_sections_lists_and_tuples_are_spelled_as_vici_has_them(fake: FakeCharon, charon: Charon) -> None:
    charon.apply([("load-conn", {"c": {"local": {"id": "fqdn:a"}, "proposals": ("x", Secret(b"y"))}})])
    assert fake.requests[0].message == {"c": {"local": {"id": b"fqdn:a"}, "proposals": [b"x", b"y"]}}


@pytest.mark.parametrize(
    "message",
    [
        {"id": "big", "data": Secret(b"k" * 65536)},
        {"id": "big", "name" * 64: "x"},
        {"id": "big", "owners": ["x" * 60000] * 10},
        {"id": "big", "data": "\udcff"},
    ],
    ids=["a value over 65,535 bytes", "a name over 255", "a request over 512 KiB", "text that is none"],
)
def test_what_vici_cannot_carry_is_refused_and_the_rest_is_sent(
    fake: FakeCharon, charon: Charon, message: dict[str, object]
) -> None:
    results = charon.apply(
        [("load-shared", {"id": "1"}), ("load-shared", message), ("load-shared", {"id": "2"})]
    )

    assert [result is None for result in results] == [True, False, True]
    assert results[1] is not None
    assert results[1].item == "big"
    assert [request.message["id"] for request in fake.requests] == [b"1", b"2"]


def test_the_longest_value_is_carried(fake: FakeCharon, charon: Charon) -> None:
    assert charon.apply([("load-shared", {"data": Secret(b"k" * 65535)})]) == (None,)
    assert len(fake.requests[0].message["data"]) == 65535


@pytest.mark.parametrize("value", [7, None, [["nested"]], [{}], object()])
def test_a_value_of_a_wrong_type_is_our_bug_and_a_type_error(charon: Charon, value: object) -> None:
    with pytest.raises(TypeError):
        charon.apply([("load-conn", {"c": {"x": value}})])


def test_initiate_does_not_wait_for_the_negotiation(fake: FakeCharon, charon: Charon) -> None:
    charon.initiate("iscsi-ipsec-c", "iscsi-ipsec-00aa")
    assert fake.requests[0].message == {
        "ike": b"iscsi-ipsec-c",
        "child": b"iscsi-ipsec-00aa",
        "timeout": b"-1",
    }


def test_initiate_of_an_unknown_child_is_refused(fake: FakeCharon, charon: Charon) -> None:
    fake.on(
        "initiate",
        lambda client, _: client.respond({"success": "no", "errmsg": "CHILD_SA config 'x' not found"}),
    )
    with pytest.raises(CharonRefused, match="not found"):
        charon.initiate("c", "x")


def test_terminate_passes_its_selectors(fake: FakeCharon, charon: Charon) -> None:
    fake.on(
        "terminate", lambda client, _: client.respond({"success": "yes", "matches": "2", "terminated": "2"})
    )

    assert charon.terminate(ike="c", force=True) == 2
    assert charon.terminate(ike_id=3) == 2
    assert charon.terminate(child_id=4) == 2

    assert [dict(request.message) for request in fake.requests] == [
        {"timeout": b"-1", "ike": b"c", "force": b"yes"},
        {"timeout": b"-1", "ike-id": b"3"},
        {"timeout": b"-1", "child-id": b"4"},
    ]


def test_terminating_what_is_gone_already_is_no_error(fake: FakeCharon, charon: Charon) -> None:
    fake.on(
        "terminate",
        lambda client, _: client.respond(
            {"success": "no", "matches": "0", "errmsg": "no matching SAs to terminate found"}
        ),
    )
    assert charon.terminate(ike="c") == 0


def test_a_termination_that_failed_is_refused(fake: FakeCharon, charon: Charon) -> None:
    fake.on(
        "terminate",
        lambda client, _: client.respond(
            {"success": "no", "matches": "1", "errmsg": "terminating SA failed"}
        ),
    )
    with pytest.raises(CharonRefused, match="terminating SA failed"):
        charon.terminate(child_id=1)


def test_terminate_without_a_selector_is_our_bug(charon: Charon) -> None:
    with pytest.raises(ValueError, match="selector"):
        charon.terminate()


def test_a_session_is_kept_between_calls(fake: FakeCharon, charon: Charon) -> None:
    charon.observe()
    charon.sas()
    charon.apply([("load-shared", {"id": "1"})])
    assert len(fake.clients) == 1


def test_a_refusal_keeps_the_session(fake: FakeCharon, charon: Charon) -> None:
    fake.on("load-conn", lambda client, _: client.respond({"success": "no", "errmsg": "no"}))
    charon.apply([("load-conn", {"c": {}})])
    charon.observe()
    assert len(fake.clients) == 1


def test_after_a_restart_of_charon_the_next_call_just_works(fake: FakeCharon, charon: Charon) -> None:
    charon.observe()
    fake.restart()
    assert charon.observe().version == "5.9.8"


def test_a_closed_adapter_dials_again(fake: FakeCharon, charon: Charon) -> None:
    charon.observe()
    charon.close()
    charon.close()
    charon.observe()
    assert len(fake.clients) == 2


def test_a_socket_that_is_not_there_is_unavailable(socket_path: Path) -> None:
    with pytest.raises(CharonUnavailable, match="No such file"):
        Charon(str(socket_path)).observe()


def test_a_socket_that_charon_left_behind_is_unavailable(fake: FakeCharon, charon: Charon) -> None:
    fake.close()
    with pytest.raises(CharonUnavailable, match="refused"):
        charon.observe()


@pytest.mark.parametrize("path", ["/x" * 100, "/nul\0byte", ""])
def test_a_path_that_no_socket_can_have_is_unavailable(path: str) -> None:
    with pytest.raises(CharonUnavailable):
        Charon(path).observe()


def test_without_a_path_the_socket_is_looked_for_each_time(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon may start before charon, and Fedora has the socket elsewhere than Debian."""
    monkeypatch.setattr(wire, "SOCKETS", (str(socket_path) + ".debian", str(socket_path)))
    charon = Charon(timeout=10)
    with pytest.raises(CharonUnavailable, match=r"\.debian"):
        charon.sas()
    with FakeCharon(socket_path):
        assert charon.sas() == ()
    charon.close()
