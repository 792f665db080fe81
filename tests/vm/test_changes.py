"""Changes under running I/O: a key rotated on both ends, another ESP mode, another IKE version.

The new SA is negotiated beside the old one, which ends when the new one carries traffic; so a
change must cost neither a frame in clear nor an I/O error, whichever end is changed first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from tests.vm import farend, openiscsi
from tests.vm.farend import Peer
from tests.vm.machine import Machine, wait_until
from tests.vm.test_first_session import CONFIG, assert_only_esp, policy, portal_status
from tests.vm.wire import Wire

FIRST_KEY = "changes, the first key: 0011223344556677"
SECOND_KEY = "changes, the second key: 8899aabbccddeeff"


def configure_far_end(target: Machine, peer: Peer) -> None:
    """Load a hand-written configuration and leave the SAs as they are."""
    target.write("/etc/swanctl/conf.d/by-hand.conf", farend.swanctl_conf(peer), 0o600)
    target.run("swanctl --load-all --noprompt", check=True)


def write_key(initiator: Machine, key: str) -> None:
    """Change the group key here."""
    initiator.write(f"{CONFIG}/psk.d/group.toml", f'group = true\nkey = "{key}"\n', 0o600)


def carrying(initiator: Machine, target: Machine) -> tuple[str, str, str]:
    """What the portal's SA is: IKE version and mode wanted, ESP mode in use, and the child's name."""
    row = portal_status(initiator, f"{target.ip}:3260")
    sa = row["sa"] or {"mode": "", "child": ""}
    return row["ike"], sa["mode"], sa["child"] if row["protected"] and not row["problem"] else ""


@pytest.fixture(scope="module")
def peer(target: Machine, initiator: Machine) -> Peer:
    """The far end's connection before any change."""
    return Peer(name="far", local=target.ip, remote=initiator.ip, key=FIRST_KEY)


@pytest.fixture(scope="module")
def device(installed: Machine, target: Machine, peer: Peer) -> Iterator[str]:
    """The disk behind a protected session."""
    farend.configure_charon(target, farend.swanctl_conf(peer))
    farend.guard(target)
    installed.run(f"rm -f {CONFIG}/*.d/*.toml")
    write_key(installed, FIRST_KEY)
    installed.write(f"{CONFIG}/portal.d/san.toml", policy(target.ip), 0o600)
    installed.run("iscsi-ipsec wait --timeout 60", timeout=90, check=True)
    openiscsi.discover(installed, target.ip)
    yield openiscsi.login(installed, target.ip)
    openiscsi.forget_everything(installed)
    installed.run(f"rm -f {CONFIG}/*.d/*.toml")
    farend.unguard(target)


def test_a_key_rotated_here_and_then_there_costs_no_frame_in_clear_and_no_io_error(
    installed: Machine, target: Machine, wire: Wire, device: str, peer: Peer
) -> None:
    openiscsi.write_and_read_back(installed, device)
    before = carrying(installed, target)
    mark = wire.mark()
    busy = openiscsi.keep_busy(installed, device, seconds=45)

    write_key(installed, SECOND_KEY)
    installed.wait("iscsi-ipsec status --json | grep -q outdated-sa", timeout=30)
    configure_far_end(target, dataclasses.replace(peer, key=SECOND_KEY))
    wait_until(lambda: carrying(installed, target)[2] not in ("", before[2]), 60, "the new key carries")
    ended = busy.result()

    assert ended.rc == 0, str(ended)
    assert_only_esp(wire, mark, installed.ip, target.ip)
    assert farend.sas(target), "the far end has an SA"
    assert len(farend.sas(target)) == 1, "the old key's SA is gone"


def test_another_esp_mode_costs_no_frame_in_clear_and_no_io_error(
    installed: Machine, target: Machine, wire: Wire, device: str, peer: Peer
) -> None:
    mark = wire.mark()
    busy = openiscsi.keep_busy(installed, device, seconds=30)

    configure_far_end(target, dataclasses.replace(peer, key=SECOND_KEY, mode="tunnel"))
    flags = 'security_flags = ["VALID", "IKE_IPSEC_ENABLED", "TUNNEL_MODE_PREFERRED", "PFS_ENABLED"]\n'
    installed.write(f"{CONFIG}/portal.d/san.toml", policy(target.ip, flags=flags), 0o600)
    wait_until(lambda: carrying(installed, target)[1] == "tunnel", 60, "the tunnel carries")
    ended = busy.result()

    assert ended.rc == 0, str(ended)
    openiscsi.write_and_read_back(installed, device)
    assert_only_esp(wire, mark, installed.ip, target.ip)
    verified = installed.run("iscsi-ipsec verify")
    assert verified.rc == 0, str(verified)


def test_another_ike_version_costs_no_frame_in_clear_and_no_io_error(
    installed: Machine, target: Machine, wire: Wire, device: str, peer: Peer
) -> None:
    mark = wire.mark()
    busy = openiscsi.keep_busy(installed, device, seconds=30)

    configure_far_end(target, dataclasses.replace(peer, key=SECOND_KEY, mode="tunnel", version=1))
    flags = (
        'security_flags = ["VALID", "IKE_IPSEC_ENABLED", "MAIN_MODE_ENABLED", "TUNNEL_MODE_PREFERRED",'
        ' "PFS_ENABLED"]\n'
    )
    before = carrying(installed, target)
    installed.write(f"{CONFIG}/portal.d/san.toml", policy(target.ip, flags=flags), 0o600)
    wait_until(
        lambda: (
            carrying(installed, target)[0] == "IKEv1 main"
            and carrying(installed, target)[2] not in ("", before[2])
        ),
        60,
        "IKEv1 carries",
    )
    ended = busy.result()

    assert ended.rc == 0, str(ended)
    assert_only_esp(wire, mark, installed.ip, target.ip)
