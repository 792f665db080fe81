"""The control run: the suite's instruments work, and fail when they should.

None of it needs the product.  If one of these fails, no other result here means anything.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm import farend, openiscsi
from tests.vm.farend import Peer
from tests.vm.machine import Machine, wait_until
from tests.vm.wire import Wire

KEY = "control run, not a secret: 0123456789abcdef"


@pytest.fixture(autouse=True)
def clean(plain: Machine, target: Machine) -> Iterator[None]:
    """Start and end each test with no session, no SA and no hand-written connection."""
    farend.unguard(target)
    farend.configure_charon(target, "")
    yield
    openiscsi.forget_everything(plain)
    for machine in (plain, target):
        farend.configure_charon(machine, "")


@pytest.fixture
def ipsec_by_hand(initiator: Machine, target: Machine) -> None:
    """Two hand-written ends: a trap on the initiator, a responder on the target."""
    farend.configure_charon(
        target, farend.swanctl_conf(Peer(name="far", local=target.ip, remote=initiator.ip, key=KEY))
    )
    farend.configure_charon(
        initiator,
        farend.swanctl_conf(
            Peer(
                name="near",
                local=initiator.ip,
                remote=target.ip,
                key=KEY,
                local_ts="dynamic[6]",
                remote_ts="dynamic[6/3260]",
                start_action="trap",
            )
        ),
    )


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_iscsi_without_ipsec_is_seen_unencrypted_in_both_directions(
    initiator: Machine, target: Machine, wire: Wire, family: str
) -> None:
    """A recorder that missed frames would let every other test pass."""
    near, far = getattr(initiator, family), getattr(target, family)
    mark = wire.mark()

    openiscsi.discover(initiator, far)
    device = openiscsi.login(initiator, far)
    openiscsi.write_and_read_back(initiator, device)

    assert wire.tcp(3260, since=mark, sent_by=frozenset({near}))
    assert wire.tcp(3260, since=mark, sent_by=frozenset({far}))
    assert not wire.esp(since=mark)


@pytest.mark.usefixtures("ipsec_by_hand")
def test_ipsec_by_hand_carries_login_and_data_with_no_clear_frame(
    initiator: Machine, target: Machine, wire: Wire
) -> None:
    """The machines can do what the product is to automate."""
    mark = wire.mark()

    openiscsi.discover(initiator, target.ip)
    device = openiscsi.login(initiator, target.ip)
    openiscsi.write_and_read_back(initiator, device)

    assert not wire.tcp(3260, since=mark), wire.summary(mark)
    sent_by = {frame.source for frame in wire.esp(since=mark)}
    assert sent_by == {initiator.ip, target.ip}, wire.summary(mark)


@pytest.mark.usefixtures("ipsec_by_hand")
def test_without_a_guard_a_stopped_charon_leaves_the_session_unencrypted(
    initiator: Machine, target: Machine, wire: Wire
) -> None:
    """The leak that the product exists to prevent can be seen with these means."""
    openiscsi.discover(initiator, target.ip)
    device = openiscsi.login(initiator, target.ip)
    openiscsi.write_and_read_back(initiator, device)
    mark = wire.mark()
    assert not wire.tcp(3260, since=mark)

    busy = openiscsi.keep_busy(initiator, device, seconds=15)
    initiator.run("systemctl stop strongswan", timeout=60, check=True)

    wait_until(
        lambda: len(wire.tcp(3260, since=mark, sent_by=frozenset({initiator.ip}))) > 10,
        30,
        f"the initiator's clear frames are seen; on the wire was {wire.summary(mark)}",
    )
    busy.result()


def test_the_targets_guard_by_hand_refuses_unencrypted_iscsi(
    initiator: Machine, target: Machine, wire: Wire
) -> None:
    """Later tests rely on the far end never answering a clear packet of its main portal."""
    farend.guard(target)
    mark = wire.mark()

    found = initiator.run(f"iscsiadm -m discovery -t st -p {target.ip}", timeout=12)

    assert found.rc != 0
    assert wire.tcp(3260, since=mark, sent_by=frozenset({initiator.ip}))
    assert not wire.tcp(3260, since=mark, sent_by=frozenset({target.ip}))
