"""A charon that freezes, dies, babbles or lies: always a typed error or a right result, never a hang."""

from __future__ import annotations

import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vici.protocol import Message, Packet

from iscsi_ipsec.adapters.charon import Charon
from iscsi_ipsec.adapters.charon.wire import MAX_PACKET_BYTES
from iscsi_ipsec.base.errors import CharonUnavailable
from iscsi_ipsec.base.secret import Secret
from tests.support.fake_charon import (
    CONFIRM,
    UNKNOWN_COMMAND,
    UNKNOWN_EVENT,
    Client,
    FakeCharon,
    Request,
    event,
    frame,
    response,
)

KEY = b"correct-horse-battery"


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def test_a_late_answer_is_never_taken_for_the_next_one(fake: FakeCharon, impatient: Charon) -> None:
    gave_up = threading.Event()
    late = threading.Event()

    def answer_late(client: Client, request: Request) -> None:
        gave_up.wait(10)
        with suppress(OSError):  # the client is gone: as good as late
            client.respond({"success": "no", "errmsg": "the late one"})
        late.set()

    fake.on("load-shared", answer_late)
    with pytest.raises(CharonUnavailable, match=r"no answer within 0\.3 s"):
        impatient.apply([("load-shared", {"id": "1"})])
    gave_up.set()
    assert late.wait(10)
    impatient.timeout = 10

    assert impatient.apply([("unload-shared", {"id": "1"})]) == (None,)
    assert len(fake.clients) == 2


def test_an_answer_that_nobody_asked_for_is_not_read(fake: FakeCharon, charon: Charon) -> None:
    charon.observe()
    fake.clients[0].respond({"success": "no", "errmsg": "out of the blue"})
    assert charon.apply([("load-shared", {"id": "1"})]) == (None,)


@pytest.mark.parametrize(
    "command", ["version", "stats", "list-conns", "get-shared", "list-sas", "load-shared"]
)
def test_a_stray_event_before_an_answer_is_passed_over(
    fake: FakeCharon, charon: Charon, command: str
) -> None:
    def stray_first(client: Client, request: Request) -> None:
        client.send(event("ike-updown", {"up": "yes"}))
        fake._answer(client, request)

    fake.on(command, stray_first)
    assert charon.observe().conns.keys() == {"iscsi-ipsec-10.0.0.2-3260"}
    assert charon.sas() == ()
    assert charon.apply([("load-shared", {"id": "1"})]) == (None,)


def test_a_stray_event_in_a_stream_is_not_taken_for_one_of_it(fake: FakeCharon, charon: Charon) -> None:
    fake.on("list-sas", lambda client, _: client.send(event("log", {"iscsi-ipsec-x": {}}) + response({})))
    assert charon.sas() == ()


WHOLE = response({"keys": ["iscsi-ipsec-1"]})


@pytest.mark.parametrize("cut", [1, 3, 4, 5, len(WHOLE) - 1])
def test_the_end_of_the_stream_in_the_middle_of_a_packet(fake: FakeCharon, charon: Charon, cut: int) -> None:
    def cut_off(client: Client, request: Request) -> None:
        client.send(WHOLE[:cut])
        client.hang_up()

    fake.on("get-shared", cut_off)
    with pytest.raises(CharonUnavailable, match=r"closed|reset"):
        charon.observe()


@pytest.mark.parametrize("sent", [0, 2, 4, 7])
def test_charon_freezes(fake: FakeCharon, impatient: Charon, sent: int) -> None:
    def freeze(client: Client, request: Request) -> None:
        client.send(WHOLE[:sent])
        fake.until_ended()

    fake.on("get-shared", freeze)
    with within(5), pytest.raises(CharonUnavailable, match="no answer"):
        impatient.observe()


def test_charon_that_reads_nothing_at_all(fake: FakeCharon, impatient: Charon) -> None:
    fake.on("load-shared", lambda *_: fake.until_ended())
    big = [("load-shared", {"id": str(n), "data": Secret(KEY * 3000)}) for n in range(64)]
    with within(5), pytest.raises(CharonUnavailable):
        impatient.apply(big)


def test_a_byte_at_a_time_is_no_way_around_the_timeout(fake: FakeCharon, impatient: Charon) -> None:
    def trickle(client: Client, request: Request) -> None:
        for byte in frame(bytes([Packet.CMD_RESPONSE]) + bytes(1000)):
            client.send(bytes([byte]))
            time.sleep(0.02)

    fake.on("version", trickle)
    with within(5), pytest.raises(CharonUnavailable, match="no answer"):
        impatient.observe()


def test_a_stream_without_end_ends(fake: FakeCharon, socket_path: Path) -> None:
    def stream(client: Client, request: Request) -> None:
        while True:
            client.send(event("list-sa", {"home": {}}))
            time.sleep(0.01)

    fake.on("list-sas", stream)
    charon = Charon(fake.path, timeout=0.05)
    with within(5), pytest.raises(CharonUnavailable):
        charon.sas()


def test_events_without_end_instead_of_an_answer(fake: FakeCharon, impatient: Charon) -> None:
    def stream(client: Client, request: Request) -> None:
        while True:
            client.send(event("log", {"msg": "x"}))

    fake.on("load-shared", stream)
    with within(5), pytest.raises(CharonUnavailable):
        impatient.apply([("load-shared", {"id": "1"})])


@pytest.mark.parametrize("length", [0, MAX_PACKET_BYTES + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_length_that_cannot_be(fake: FakeCharon, charon: Charon, length: int) -> None:
    fake.on("version", lambda client, _: client.send(struct.pack("!I", length) + b"x"))
    with within(5), pytest.raises(CharonUnavailable, match="bytes was announced"):
        charon.observe()


def test_an_answer_over_512_kib_never_comes_and_is_not_waited_for(fake: FakeCharon, charon: Charon) -> None:
    fake.on("get-shared", lambda *_: None)  # what charon does: it logs, and drops it
    with within(5):
        state = charon.observe()
    assert state.secrets is None
    assert state.version == "5.9.8"
    assert "iscsi-ipsec-10.0.0.2-3260" in state.conns


def test_an_answer_that_comes_again_is_read_again(fake: FakeCharon, charon: Charon) -> None:
    fake.on("get-shared", lambda *_: None)
    charon.observe()
    fake.on("get-shared", lambda client, _: client.respond({"keys": ["iscsi-ipsec-2"]}))
    assert charon.observe().secrets == frozenset({"iscsi-ipsec-2"})


def test_an_answer_of_just_512_kib_is_read(fake: FakeCharon, charon: Charon) -> None:
    whole = response({"keys": [f"iscsi-ipsec-{n:016x}" for n in range(16900)]})
    assert MAX_PACKET_BYTES - 1000 < len(whole) - 4 <= MAX_PACKET_BYTES
    fake.on("get-shared", lambda client, _: client.send(whole))
    assert len(charon.observe().secrets or ()) == 16900


@pytest.mark.parametrize(
    "packet",
    [
        CONFIRM,
        UNKNOWN_EVENT,
        UNKNOWN_COMMAND,
        frame(b"\xff"),
        frame(bytes([Packet.EVENT])),
        frame(bytes([Packet.EVENT, 9]) + b"short"),
        frame(bytes([Packet.CMD_RESPONSE, 3, 200]) + b"x"),
        frame(bytes([Packet.CMD_RESPONSE, 3, 7]) + b"version\xff\xffshort"),
        frame(bytes([Packet.CMD_RESPONSE, 1, 1]) + b"s"),
        frame(bytes([Packet.CMD_RESPONSE, 2])),
        frame(bytes([Packet.CMD_RESPONSE, 4, 1]) + b"l\x03"),
        frame(bytes([Packet.CMD_RESPONSE, 3, 1]) + b"\xff\x00\x00"),
        response({}),
        response({"keys": {"a": "section"}})[:-1] + b"\x02",
    ],
)
def test_a_packet_that_is_no_answer(fake: FakeCharon, charon: Charon, packet: bytes) -> None:
    fake.on("version", lambda client, _: client.send(packet))
    with within(5), pytest.raises(CharonUnavailable):
        charon.observe()


@pytest.mark.parametrize("name", ["register:list-conn", "unregister:list-conn"])
def test_a_registration_that_fails(fake: FakeCharon, charon: Charon, name: str) -> None:
    fake.on(name, lambda client, _: client.send(UNKNOWN_EVENT))
    with pytest.raises(CharonUnavailable, match="registration of list-conn"):
        charon.observe()


def test_a_list_of_secrets_that_is_missing_is_not_an_empty_one(fake: FakeCharon, charon: Charon) -> None:
    fake.on("get-shared", lambda client, _: client.respond({}))
    with pytest.raises(CharonUnavailable, match="lacks keys"):
        charon.observe()


def nested(levels: int) -> bytes:
    return bytes([1, 1]) * 1 + b"s" + b"\x01\x01s" * (levels - 1) + b"\x02" * levels


@pytest.mark.parametrize("levels", [2000, 130_000])
def test_sections_in_sections_in_sections(fake: FakeCharon, charon: Charon, levels: int) -> None:
    deep = frame(bytes([Packet.EVENT, 9]) + b"list-conn" + nested(levels))
    fake.on("list-conns", lambda client, _: client.send(deep + response({})))
    state = charon.observe()
    assert (dict(state.conns), state.foreign_conns) == ({}, 1)


def test_values_that_are_not_utf_8(fake: FakeCharon, charon: Charon) -> None:
    fake.sas = [{"iscsi-ipsec-x": {"uniqueid": "1", "remote-id": b"\xff\xfe", "child-sas": {}}}]
    fake.secrets = ["iscsi-ipsec-1"]
    fake.on("get-shared", lambda client, _: client.respond({"keys": [b"\xff", b"iscsi-ipsec-1"]}))

    assert charon.sas()[0].remote_id == "\\xff\\xfe"
    assert charon.observe().secrets == frozenset({"iscsi-ipsec-1"})


def test_a_foreign_connection_whose_name_is_not_utf_8_hides_no_other(
    fake: FakeCharon, charon: Charon
) -> None:
    latin = bytes([Packet.EVENT, 9]) + b"list-conn" + b"\x01\x04b\xfcro\x02"
    ours = event("list-conn", {"iscsi-ipsec-c": {"children": {"iscsi-ipsec-1": {}}}})
    fake.on("list-conns", lambda client, _: client.send(frame(latin) + ours + response({})))

    state = charon.observe()

    assert state.conns == {"iscsi-ipsec-c": {"iscsi-ipsec-1"}}
    assert state.foreign_conns == 1


@pytest.mark.parametrize("number", ["", "x", "1.5", "9" * 5000, {"a": "section"}, ["list"]])
def test_a_number_that_is_none(fake: FakeCharon, charon: Charon, number: object) -> None:
    fake.sas = [{"iscsi-ipsec-x": {"uniqueid": number}}]
    with pytest.raises(CharonUnavailable, match="list-sas"):
        charon.sas()


@pytest.mark.parametrize(
    "shape", [{"iscsi-ipsec-x": "no section"}, {"iscsi-ipsec-x": {"children": "no section"}}]
)
def test_a_connection_of_a_wrong_shape_has_no_children(
    fake: FakeCharon, charon: Charon, shape: dict[str, object]
) -> None:
    fake.conns = [shape]
    assert charon.observe().conns == {"iscsi-ipsec-x": frozenset()}


def test_after_every_failure_the_next_call_has_a_session_of_its_own(fake: FakeCharon, charon: Charon) -> None:
    for attempt in range(1, 4):
        fake.on("version", lambda client, _: client.send(frame(b"\xff")))
        with pytest.raises(CharonUnavailable):
            charon.observe()
        assert len(fake.clients) == attempt
        fake._acts.clear()


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCharon]:
    with FakeCharon(tmp_path_factory.mktemp("v") / "s") as fake:
        yield fake


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    command=st.sampled_from(["version", "list-conns", "get-shared", "list-sas", "unload-conn"]),
    garbage=st.one_of(
        st.binary(max_size=60),
        st.binary(max_size=60).map(frame),
        st.binary(max_size=60).map(lambda data: frame(bytes([Packet.CMD_RESPONSE]) + data)),
        st.binary(max_size=60).map(lambda data: frame(bytes([Packet.EVENT, 7]) + b"list-sa" + data)),
    ),
)
def test_any_bytes_end_in_a_result_or_in_a_typed_error(
    babbler: FakeCharon, command: str, garbage: bytes
) -> None:
    def babble(client: Client, request: Request) -> None:
        client.send(garbage + response({"success": "yes", "keys": [], "version": "1"}))
        client.hang_up()

    babbler._acts.clear()
    babbler.on(command, babble)
    charon = Charon(babbler.path, timeout=2)
    calls: list[Callable[[], object]] = [
        charon.observe,
        charon.sas,
        lambda: charon.apply([("unload-conn", {"name": "c"})]),
    ]
    with within(10):
        for call in calls:
            with suppress(CharonUnavailable):
                call()
    charon.close()


# -- no key in what an exception carries --------------------------------------------------------


def shown(err: BaseException | None) -> str:
    """Everything that a crash reporter with local variables could print of our frames."""
    parts = []
    while err is not None:
        parts += [repr(err), str(err), repr(err.args)]
        trace: TracebackType | None = err.__traceback__
        while trace is not None:
            if "/tests/" not in trace.tb_frame.f_code.co_filename:
                parts.append(repr(trace.tb_frame.f_locals))
            trace = trace.tb_next
        parts.append("".join(traceback.format_exception(err)))
        err = err.__cause__ or err.__context__
    return "\n".join(parts)


def refuse(client: Client, request: Request) -> None:
    client.respond({"success": "no", "errmsg": "no"})


def hang_up(client: Client, request: Request) -> None:
    client.hang_up()


def babble(client: Client, request: Request) -> None:
    client.send(frame(bytes([Packet.CMD_RESPONSE, 3, 200])))


@pytest.mark.parametrize("act", [hang_up, babble, lambda *_: None], ids=["hangs up", "babbles", "is silent"])
@pytest.mark.parametrize("size", [1, 3000], ids=["a short key", "keys that fill the socket's buffer"])
def test_no_frame_of_an_error_holds_a_key(
    fake: FakeCharon, impatient: Charon, act: Callable[..., None], size: int
) -> None:
    fake.on("load-shared", act)
    messages = [("load-shared", {"id": str(n), "data": Secret(KEY * size)}) for n in range(64)]

    with pytest.raises(CharonUnavailable) as caught:
        impatient.apply(messages)

    assert KEY.decode() not in shown(caught.value)


def test_a_key_that_is_too_long_is_not_in_its_refusal(charon: Charon) -> None:
    (refused,) = charon.apply([("load-shared", {"id": "1", "data": Secret(KEY * 4000)})])
    assert refused is not None
    assert refused.__context__ is None
    assert KEY.decode() not in shown(refused)


def test_a_refused_key_is_not_in_its_refusal(fake: FakeCharon, charon: Charon) -> None:
    fake.on("load-shared", refuse)
    (refused,) = charon.apply([("load-shared", {"id": "1", "data": Secret(KEY)})])
    assert refused is not None
    assert KEY.decode() not in shown(refused)


def test_our_own_bug_beside_a_key_does_not_show_it(charon: Charon) -> None:
    with pytest.raises(TypeError) as caught:
        charon.apply([("load-shared", {"data": Secret(KEY), "owners": [7]})])
    assert KEY.decode() not in shown(caught.value)


def test_the_search_for_keys_in_errors_finds_one_that_is_there() -> None:
    source = "def leak(key):\n    raise ValueError\n"
    names: dict[str, Callable[[bytes], None]] = {}
    exec(compile(source, "/elsewhere.py", "exec"), names)  # noqa: S102  # a frame outside this folder
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # its frame matters, not its words
        names["leak"](KEY)
    assert KEY.decode() in shown(caught.value)


def test_the_fake_speaks_as_the_library_does() -> None:
    assert Message.serialize({"a": {"b": ["c"]}}) == b"\x01\x01a\x04\x01b\x05\x00\x01c\x06\x02"
