"""A portal that nobody has named yet, in a network that must not be reached in clear."""

from __future__ import annotations

import pytest

from tests.netlab import Daemon, Lab, wait_until
from tests.real.admin import PORTAL, group_file

SYN = ["bash", "-c", f"timeout 1 bash -c '</dev/tcp/{PORTAL}/3260'"]


def knock(lab: Lab) -> int:
    """Try to open a TCP connection to the portal; the frames of it that reached the wire."""
    mark = lab.wire.mark()
    lab.node("initiator").run(SYN, check=False)
    return len(lab.wire.tcp(since=mark))


def test_the_control_a_first_discovery_goes_out_in_clear_where_nothing_is_said(
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
def test_a_first_discovery_is_dropped_rather_than_sent_in_clear(
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
