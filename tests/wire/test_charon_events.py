"""The thread that listens to charon's events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from vici.protocol import Packet

from iscsi_ipsec.adapters.charon import EVENTS, CharonEvents
from tests.support.fake_charon import CONFIRM, UNKNOWN_EVENT, Client, FakeCharon, Request, event, frame
from tests.support.netlab.waiting import wait_until
from tests.wire.test_charon_hostile import nested


class Heard:
    """The arguments of the callbacks, in order."""

    def __init__(self) -> None:
        self.all: list[Any] = []

    def on_event(self, name: str, message: Mapping[str, Any]) -> None:
        self.all.append((name, message))

    def on_up(self) -> None:
        self.all.append("up")

    def on_down(self) -> None:
        self.all.append("down")

    def wait_for(self, expected: list[Any]) -> None:
        wait_until(lambda: len(self.all) >= len(expected), f"{expected}", detail=lambda: str(self.all))
        assert self.all == expected


Start = Callable[..., tuple[CharonEvents, Heard]]


@pytest.fixture
def start(socket_path: Path) -> Iterator[Start]:
    started: list[CharonEvents] = []

    def start(timeout: float = 2.0, **callbacks: Any) -> tuple[CharonEvents, Heard]:
        heard = Heard()
        events = CharonEvents(
            str(socket_path),
            callbacks.get("on_event", heard.on_event),
            callbacks.get("on_up", heard.on_up),
            callbacks.get("on_down", heard.on_down),
            timeout=timeout,
            delays=(0.01, 0.05),
        )
        events.start()
        started.append(events)
        return events, heard

    yield start
    for events in started:
        events.stop()
        assert not events.is_alive()


LOG = event("log", {"group": "IKE", "msg": "no shared key found"})
LOG_HEARD = ("log", {"group": "IKE", "msg": "no shared key found"})


def test_up_is_said_after_all_events_are_subscribed_to(fake: FakeCharon, start: Start) -> None:
    seen: list[list[str]] = []
    start(on_up=lambda: seen.append([request.name for request in fake.requests]))
    wait_until(lambda: seen, "up")
    assert seen == [[f"register:{name}" for name in EVENTS]]


def test_events_arrive_as_text(fake: FakeCharon, start: Start) -> None:
    _, heard = start()
    heard.wait_for(["up"])
    fake.clients[0].send(
        event("ike-updown", {"up": "yes", "c": {"uniqueid": "1", "tasks-active": ["a", b"\xff"]}})
    )
    heard.wait_for(
        ["up", ("ike-updown", {"up": "yes", "c": {"uniqueid": "1", "tasks-active": ("a", "\\xff")}})]
    )


def test_an_event_between_two_confirmations_is_delivered_after_up(fake: FakeCharon, start: Start) -> None:
    fake.on(f"register:{EVENTS[-1]}", lambda client, _: client.send(LOG + CONFIRM))
    _, heard = start()
    heard.wait_for(["up", LOG_HEARD])


def test_events_in_one_piece_are_all_delivered(fake: FakeCharon, start: Start) -> None:
    _, heard = start()
    heard.wait_for(["up"])
    fake.clients[0].send(LOG * 500)
    heard.wait_for(["up", *[LOG_HEARD] * 500])


def test_without_the_log_it_is_unsubscribed_and_then_subscribed_again(fake: FakeCharon, start: Start) -> None:
    events, heard = start()
    heard.wait_for(["up"])
    with events.without_log():
        wait_until(lambda: fake.asked("unregister:log"), "the log is unsubscribed")
        assert len(fake.asked("register:log")) == 1
    wait_until(lambda: len(fake.asked("register:log")) == 2, "the log is subscribed again")
    fake.clients[0].send(LOG)
    heard.wait_for(["up", LOG_HEARD])


def test_a_charon_that_came_meanwhile_is_not_asked_for_its_log_twice(fake: FakeCharon, start: Start) -> None:
    events, heard = start()
    heard.wait_for(["up"])
    with events.without_log():
        fake.restart()
        heard.wait_for(["up", "down", "up"])
        count = len(fake.asked("register:log"))
    before = len(fake.asked("unregister:log"))
    with events.without_log():  # events sent before this one arrive before it
        wait_until(lambda: len(fake.asked("unregister:log")) > before, "the log is unsubscribed")
        assert len(fake.asked("register:log")) == count


def test_without_a_charon_there_is_no_log_to_do_without(socket_path: Path, start: Start) -> None:
    events, heard = start()
    with events.without_log():
        pass
    with FakeCharon(socket_path):
        heard.wait_for(["up"])


def test_an_event_that_charon_does_not_have_is_done_without(fake: FakeCharon, start: Start) -> None:
    fake.on("register:child-rekey", lambda client, _: client.send(UNKNOWN_EVENT))
    _, heard = start()
    heard.wait_for(["up"])
    fake.clients[0].send(LOG)
    heard.wait_for(["up", LOG_HEARD])


def test_a_restart_of_charon_is_heard_as_down_and_up(fake: FakeCharon, start: Start) -> None:
    _, heard = start()
    heard.wait_for(["up"])
    fake.restart()
    heard.wait_for(["up", "down", "up"])
    fake.clients[0].send(LOG)
    heard.wait_for(["up", "down", "up", LOG_HEARD])


def test_it_waits_for_a_charon_that_is_not_there_yet(socket_path: Path, start: Start) -> None:
    events, heard = start()
    assert events.is_alive()
    with FakeCharon(socket_path):
        heard.wait_for(["up"])


@pytest.mark.parametrize(
    "garbage",
    [
        frame(b"")[:4],
        b"\xff" * 8,
        frame(bytes([Packet.EVENT, 9, 1])),
        frame(bytes([Packet.EVENT, 3]) + b"log\x03\x09x"),
    ],
    ids=["no bytes", "4 GiB", "no name", "cut short"],
)
def test_after_garbage_it_connects_anew(fake: FakeCharon, start: Start, garbage: bytes) -> None:
    _, heard = start()
    heard.wait_for(["up"])
    fake.clients[0].send(garbage)
    heard.wait_for(["up", "down", "up"])


def test_a_packet_that_stops_in_the_middle_is_not_waited_for_for_ever(fake: FakeCharon, start: Start) -> None:
    _, heard = start(timeout=0.2)
    heard.wait_for(["up"])
    fake.clients[0].send(LOG[:10])
    heard.wait_for(["up", "down", "up"])


def test_silence_is_no_error(fake: FakeCharon, start: Start) -> None:
    _, heard = start(timeout=0.05)
    heard.wait_for(["up"])
    time.sleep(0.3)  # several timeouts long: that nothing happens shows only by waiting
    fake.clients[0].send(LOG)
    heard.wait_for(["up", LOG_HEARD])


@pytest.mark.parametrize(
    "strange",
    [
        frame(bytes([Packet.EVENT, 3]) + b"log" + nested(100_000)),
        frame(bytes([Packet.EVENT, 3]) + b"log" + b"\x01\x01\xff\x02"),
        frame(bytes([Packet.CMD_RESPONSE])),
    ],
    ids=["nested", "a name that is not UTF-8", "no event"],
)
def test_a_strange_packet_is_passed_over_and_the_next_one_heard(
    fake: FakeCharon, start: Start, strange: bytes
) -> None:
    _, heard = start()
    heard.wait_for(["up"])
    fake.clients[0].send(strange + LOG)
    heard.wait_for(["up", LOG_HEARD])


def test_a_callback_that_raises_does_not_end_the_thread(fake: FakeCharon, start: Start) -> None:
    calls: list[str] = []

    def raises(name: str, message: Mapping[str, Any]) -> None:
        calls.append(name)
        raise RuntimeError("a bug")

    events, heard = start(on_event=raises)
    heard.wait_for(["up"])
    fake.clients[0].send(LOG * 2)
    wait_until(lambda: calls == ["log", "log"], "both are delivered")
    assert events.is_alive()


def test_stop_ends_an_idle_thread_at_once(fake: FakeCharon, start: Start) -> None:
    events, heard = start(timeout=30)
    heard.wait_for(["up"])
    began = time.monotonic()
    events.stop()
    assert not events.is_alive()
    assert time.monotonic() - began < 1
    assert heard.all == ["up", "down"]


def test_stop_ends_a_thread_that_waits_for_a_frozen_charon(fake: FakeCharon, start: Start) -> None:
    reached = threading.Event()

    def freeze(client: Client, request: Request) -> None:
        reached.set()
        fake.until_ended()

    fake.on(f"register:{EVENTS[0]}", freeze)
    events, heard = start(timeout=30)
    assert reached.wait(5)
    began = time.monotonic()
    events.stop()
    assert not events.is_alive()
    assert time.monotonic() - began < 1
    assert heard.all == []


def test_stop_ends_a_thread_that_waits_to_connect_again(start: Start) -> None:
    events, _ = start()
    events.stop()
    assert not events.is_alive()


def test_stop_from_a_callback_does_not_deadlock(fake: FakeCharon, start: Start) -> None:
    holder: list[CharonEvents] = []
    ready = threading.Event()

    def stop_it() -> None:
        ready.wait(5)
        holder[0].stop()

    events, _ = start(on_up=stop_it)
    holder.append(events)
    ready.set()
    wait_until(lambda: not events.is_alive(), "the thread ends")
