"""A peer's identity appears in charon's log, and is never taken for charon's own words."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from iscsi_ipsec.adapters.charon import CharonEvents
from iscsi_ipsec.core.ike.vici_messages import PREFIX
from iscsi_ipsec.service.ike_failure_log import IkeFailureLog
from tests.support.hostile_log import IMITATIONS
from tests.support.ike import KEY_A, KEY_B, TARGET, A, Ike, connection
from tests.support.netlab import wait_until
from tests.support.pair import Pair

SERVED, PEER = "10.10.0.1", "10.10.0.2"
NAME = f"{PREFIX}{SERVED}-3260-a.lab"


class Listener:
    """The failure log on a real charon's events, with all lines and whatever it woke for."""

    def __init__(self, socket: str) -> None:
        self.woken: list[str] = []
        self.lines: list[str] = []
        self.failure_log = IkeFailureLog(self.woken.append)
        self.failure_log.nameless = True
        up = threading.Event()
        self.events = CharonEvents(socket, self._on_event, up.set, lambda: None)
        self.events.start()
        assert up.wait(5)

    def _on_event(self, event: str, message: Mapping[str, Any]) -> None:
        if event == "log":
            self.lines.append(str(message.get("msg")))
        self.failure_log.on_event(event, message)

    @property
    def said(self) -> tuple[list[str], dict[str, str], dict[str, int], bool]:
        """All that the daemon would make of it."""
        causes = {conn: cause.code for conn, cause in self.failure_log.causes().items()}
        return (
            sorted(set(self.woken) - {"sa"}), causes, dict(self.failure_log.doubts()), self.failure_log.aggressive_off(),
        )  # fmt: skip


def knock(
    pair: Pair, ident: str, ike: Ike, key: bytes
) -> tuple[list[str], dict[str, str], dict[str, int], bool]:
    """The causes that the daemon reads from the served charon's log when a stranger of this name connects."""
    served, peer = pair.initiator, pair.target
    listener = Listener(str(served.socket))
    try:
        peer.load_psk("held", key, [f"fqdn:{ident}", TARGET])
        peer.load_conn(
            "c", connection(ike, local=PEER, remote=SERVED, local_id=f"fqdn:{ident}", remote_id=TARGET)
        )
        assert not Pair(pair.lab, peer, served).comes_up("c")
        wait_until(
            lambda: any(ident in line for line in listener.lines),
            f"{ident} is in the log",
            detail=served.tail,
        )
    finally:
        pair.forget()
        listener.events.stop()
    return listener.said


@pytest.mark.parametrize(
    ("ike", "key"),
    [
        pytest.param(Ike.V2, KEY_B, id="v2-wrong-key"),
        pytest.param(Ike.V2, KEY_A, id="v2-anothers-key"),
        pytest.param(Ike.AGGRESSIVE, KEY_B, id="aggressive-wrong-key"),
        # in main mode an identity can only be read of who has the key
        pytest.param(Ike.MAIN, KEY_A, id="main-anothers-key"),
    ],
)
def test_a_stranger_is_heard_the_same_whatever_it_calls_itself(pair: Pair, ike: Ike, key: bytes) -> None:
    pair.initiator.load_psk(f"{PREFIX}00", KEY_A, [A])
    pair.initiator.load_conn(NAME, connection(ike, local=SERVED, remote=PEER, local_id=TARGET, remote_id=A))
    expected = knock(pair, "stranger.lab", ike, key)
    for ident in IMITATIONS:
        assert knock(pair, ident, ike, key) == expected, ident
