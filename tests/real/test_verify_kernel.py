"""``verify`` against a real kernel: a missing policy or SA is reported, whatever daemon and charon report.

This kernel may have no ESP, so that no SA can be installed: sessions are proven in tests/vm. What
must make ``verify`` fail is all real here: policies, the guard, TCP connections.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.admin import PORTAL
from tests.support.netlab import Charon, Daemon, Lab, Node, Result, wait_until

INITIATOR = "10.10.0.1"


def traps(node: Node) -> int:
    return node.ip("xfrm", "policy").out.count("3260")


def put_policies(node: Node, mode: str, *, priority: int = 1, demand: bool = True) -> None:
    """Policies of somebody else for the portal, both ways, that apply first."""
    # wider than charon's: the kernel takes no second policy for one selector
    for source, destination, direction in (("10.10.0.0/24", PORTAL, "out"), (PORTAL, "10.10.0.0/24", "in")):
        ends = (INITIATOR, PORTAL) if direction == "out" else (PORTAL, INITIATOR)
        template = ["tmpl", "src", ends[0], "dst", ends[1], "proto", "esp", "reqid", "77", "mode", mode]
        node.ip(
            "xfrm", "policy", "add", "src", source, "dst", destination, "proto", "tcp", "dir", direction,
            "priority", str(priority), *(template if demand else []),
        )  # fmt: skip


@pytest.fixture(autouse=True)
def clean(lab: Lab) -> None:
    """A charon that was killed leaves its policies, which would be the next test's start."""
    lab.node("initiator").ip("xfrm", "policy", "flush")


@pytest.fixture
def session(lab: Lab) -> Iterator[None]:
    """A TCP connection to the portal, from before anything was managed."""
    listener = lab.node("target").inside(lambda: socket.create_server((PORTAL, 3260)))
    with (
        closing(listener),
        closing(lab.node("initiator").inside(lambda: socket.create_connection((PORTAL, 3260), 5))),
    ):
        yield


@pytest.fixture
def managed(managed: Daemon) -> Daemon:
    """The same, with the daemon stopped in its tracks, so that it heals nothing meanwhile."""
    wait_until(lambda: traps(managed.node) == 2, "the trap is in the kernel", detail=managed.tail)
    managed.send(signal.SIGSTOP)
    return managed


def failing(answer: Result) -> str:
    assert answer.rc == 1, answer
    return answer.out


def test_a_ready_portal_is_proven(managed: Daemon) -> None:
    answer = managed.cli("verify")
    assert answer.rc == 0
    assert answer.out.startswith(f"proven: portal {PORTAL}:3260")


def test_a_policy_that_was_flushed_is_missing(managed: Daemon) -> None:
    managed.node.ip("xfrm", "policy", "flush")
    out = failing(managed.cli("verify"))
    assert f"NOT PROVEN: portal {PORTAL}:3260" in out
    assert "missing: no policy in the kernel demands ESP towards it" in out


def test_a_bypass_that_applies_first_is_named_by_its_priority(managed: Daemon) -> None:
    put_policies(managed.node, "transport", priority=7, demand=False)
    assert "applies first (priority 7) does not demand ESP" in failing(managed.cli("verify"))


def test_a_guard_that_was_deleted_is_missing(managed: Daemon) -> None:
    managed.node.run(["nft", "delete", "table", "inet", "iscsi_ipsec"])
    assert "missing: the guard" in failing(managed.cli("verify"))


def test_a_portal_that_somebody_took_out_of_the_guard_is_missing(managed: Daemon) -> None:
    managed.node.run(["nft", "flush", "set", "inet", "iscsi_ipsec", "portals4"])
    listed = managed.node.run(["nft", "list", "set", "inet", "iscsi_ipsec", "portals4"]).out
    assert PORTAL not in listed, listed
    assert "missing: the guard does not hold this portal" in failing(managed.cli("verify"))


def test_a_session_to_a_portal_that_nothing_covers_is_unencrypted(
    session: None, charon: Charon, daemon: Daemon
) -> None:
    daemon.start()
    out = failing(daemon.cli("verify"))
    assert f"UNENCRYPTED: session {INITIATOR}:" in out
    assert "missing: out: no policy covers it" in out


def test_a_session_without_an_sa_is_not_proven_though_policy_and_guard_are_there(
    session: None, managed: Daemon
) -> None:
    out = failing(managed.cli("verify"))
    assert f"NOT PROVEN: session {INITIATOR}:" in out
    assert "the guard holds it" in out
    reqid = managed.row(f"{PORTAL}:3260")["reqid"]
    assert f"missing: out: no SA with reqid {reqid} is installed" in out
    assert f"missing: in: no SA with reqid {reqid} is installed" in out


def test_a_session_under_policies_of_the_other_mode_is_reported(session: None, managed: Daemon) -> None:
    put_policies(managed.node, "tunnel")
    out = failing(managed.cli("verify"))
    for direction in ("out", "in"):
        assert f"missing: {direction}: the policy demands tunnel mode, transport was asked for" in out


def test_a_session_whose_policies_were_flushed_and_whose_guard_is_gone_is_unencrypted(
    session: None, managed: Daemon
) -> None:
    managed.node.ip("xfrm", "policy", "flush")
    managed.node.run(["nft", "delete", "table", "inet", "iscsi_ipsec"])
    assert f"UNENCRYPTED: session {INITIATOR}:" in failing(managed.cli("verify"))


def test_a_policy_that_leads_into_somebody_elses_sa_is_no_proof(session: None, managed: Daemon) -> None:
    put_policies(managed.node, "transport")
    out = failing(managed.cli("verify"))
    reqid = managed.row(f"{PORTAL}:3260")["reqid"]
    assert out.count(f"an SA with reqid 77, which is not the portal's own ({reqid})") == 2
