"""``status`` reads ages and bytes of the SA itself: they go on while the daemon writes nothing."""

from __future__ import annotations

import json
import signal
import socket
from contextlib import closing
from typing import Any

from tests.real.test_daemon_unencrypted import GOOD, ends, far_end, put_policy, row_of  # noqa: F401  # a fixture, found by its name here
from tests.support.netlab import Charon, Daemon, wait_until


def shown(daemon: Daemon) -> dict[str, Any]:
    (row,) = json.loads(daemon.cli("status", "--json").out)["portals"]
    sa: dict[str, Any] = row["sa"]
    return sa


def test_bytes_and_age_follow_the_sa_while_the_daemon_stands_still(
    ends: tuple[Daemon, Charon, Charon],  # noqa: F811
) -> None:
    daemon, _, far = ends
    far_end(far, daemon, GOOD)
    put_policy(daemon, far, GOOD)
    daemon.start()
    wait_until(lambda: row_of(daemon, far).get("protected"), "the SA is up", detail=daemon.tail)
    daemon.settle()
    before = row_of(daemon, far)["sa"]
    daemon.send(signal.SIGSTOP)
    address = (far.node.at.inner_v4, 3260)
    listener = far.node.inside(lambda: socket.create_server(address))
    with (
        closing(listener),
        closing(daemon.node.inside(lambda: socket.create_connection(address, 5))) as client,
    ):
        client.sendall(b"x" * 20_000)
        now = wait_until(
            lambda: sa if (sa := shown(daemon))["bytes_out"] >= 20_000 and sa["age"] > before["age"] else {},
            "bytes and age have gone on",
            detail=daemon.tail,
        )
    assert now["child_id"] == before["child_id"]
    assert row_of(daemon, far)["sa"] == before, "the daemon has written nothing"
    daemon.send(signal.SIGCONT)
