"""A portal that nobody has named yet, in a network that must not be reached unencrypted."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.admin import PORTAL, group_file, knock
from tests.support.netlab import Daemon, Lab, wait_until

LOADINGS = 60
"""One in six of them let something through when networks were elements of a set."""


def test_the_control_a_first_discovery_goes_out_unencrypted_where_nothing_is_said(
    lab: Lab, daemon: Daemon
) -> None:
    daemon.put_key("group", group_file(b"a key that fits no policy, 33 b.."))
    daemon.start()
    assert knock(lab)


@pytest.mark.parametrize(
    ("portal_file", "settings"),
    [
        ('portals = ["10.10.0.0/16"]\n', ""),
        ("", "require_ipsec = true\n"),
    ],
    ids=["a network in a policy", "require_ipsec"],
)
def test_a_first_discovery_is_dropped_rather_than_sent_unencrypted(
    lab: Lab, daemon: Daemon, portal_file: str, settings: str
) -> None:
    if portal_file:
        daemon.put_portal("net", portal_file)
    if settings:
        daemon.put_settings(settings)
    daemon.start()
    assert knock(lab) == 0


def test_a_portal_whose_own_policy_allows_clear_text_is_let_out_of_the_network(
    lab: Lab, daemon: Daemon
) -> None:
    daemon.put_portal("net", 'portals = ["10.10.0.0/16"]\n')
    daemon.start()
    assert knock(lab) == 0
    daemon.put_portal("one", f'portals = ["{PORTAL}"]\nsecurity_flags = ["VALID"]\n')
    wait_until(lambda: knock(lab), "it is let out", detail=daemon.tail)


def test_a_guard_that_is_loaded_again_and_again_lets_nothing_through_in_between(
    lab: Lab, daemon: Daemon
) -> None:
    daemon.put_portal("net", 'portals = ["10.10.0.0/30"]\n')
    daemon.put_portal("one", 'portals = ["10.10.0.77"]\n')
    daemon.start()
    daemon.terminate()
    node, stop = lab.node("initiator"), threading.Event()

    def knock_on() -> int:
        knocks = 0
        while not stop.is_set():
            for address in (PORTAL, "10.10.0.77"):
                with socket.socket() as end:
                    end.setblocking(False)
                    end.connect_ex((address, 3260))
                    knocks += 1
        return knocks

    mark = lab.wire.mark()
    with ThreadPoolExecutor(1) as pool:
        knocking = pool.submit(node.inside, knock_on)
        for _ in range(LOADINGS):
            node.run(["nft", "-f", str(daemon.state / "guard.nft")])
        stop.set()
        assert knocking.result() > LOADINGS
    assert [str(frame) for frame in lab.wire.tcp(since=mark)] == []
