"""Upgrade from 0.1.0 under I/O on a host that relied on its rules: nothing is cut, and nothing is left unencrypted.

In 0.1.0 a key without `portals` managed every portal of a node record; since 0.2.0 it manages none. Its SAs have
reqids that charon drew, and no `unique = never`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import farend, openiscsi
from tests.vm.conftest import install, purge
from tests.vm.farend import Peer
from tests.vm.full import only_full
from tests.vm.machine import Machine
from tests.vm.stream import Stream, report
from tests.vm.test_first_session import CONFIG, GROUP_KEY, KEY, assert_only_esp, esp_spis, portal_status
from tests.vm.testbed import CHECKOUT
from tests.vm.wire import Wire

pytestmark = only_full

RELEASE_0_1_0 = "20a57400aa37d0c27ff06a525e9d33329eaab01c"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of 0.1.0: VM_EARLIER_DEB, or built from this repository's history."""
    if given := os.environ.get("VM_EARLIER_DEB"):
        return Path(given).resolve()
    tree = tmp_path_factory.mktemp("earlier")
    archive = subprocess.run(["git", "-C", str(CHECKOUT), "archive", RELEASE_0_1_0], capture_output=True)
    if archive.returncode:
        pytest.skip("this checkout's history does not reach back to 0.1.0; VM_EARLIER_DEB names a package")
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    subprocess.run(["make", "deb"], cwd=tree, check=True)
    (found,) = (tree / "dist").glob("iscsi-ipsec_0.1.0_*.deb")
    return found


@pytest.fixture(scope="module")
def running(initiator: Machine, target: Machine, earlier: Path) -> Iterator[tuple[Stream, Stream]]:
    """Two sessions of 0.1.0 with I/O, over both IP versions, managed by the group key alone."""
    peers = [
        Peer(name="far", local=target.ip, remote=initiator.ip, key=KEY),
        Peer(name="far6", local=target.ip6, remote=initiator.ip6, key=KEY),
    ]
    farend.configure_charon(target, farend.swanctl_conf(*peers))
    farend.guard(target)
    purge(initiator)
    install(initiator, earlier)
    # 0.1.0 manages what is in node records, so those come first, and this far end answers inside IPsec alone
    farend.unguard(target)
    for address in (target.ip, target.ip6):
        openiscsi.discover(initiator, address)
    farend.guard(target)
    initiator.write(f"{CONFIG}/psk.d/group.toml", GROUP_KEY, 0o600)
    initiator.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)
    devices = [openiscsi.login(initiator, address) for address in (target.ip, target.ip6)]
    streams = Stream(initiator, devices[0], 0).start(), Stream(initiator, devices[1], 1).start()
    yield streams
    for stream in streams:
        stream.stop()
    openiscsi.forget_everything(initiator)
    initiator.run(f"rm -f {CONFIG}/*.d/*.toml")
    farend.unguard(target)
    farend.configure_charon(target, "")


def flows(streams: tuple[Stream, Stream]) -> str:
    """Wait until I/O goes on; return the longest time that it stood still."""
    for stream in streams:
        stream.wait_until_it_flows()
    return f"{max(stream.stall() for stream in streams):.1f}"


def test_an_upgrade_from_0_1_0_cuts_nothing_and_lets_no_frame_out(
    initiator: Machine, target: Machine, wire: Wire, package: Path, running: tuple[Stream, Stream]
) -> None:
    portals = (f"{target.ip}:3260", f"[{target.ip6}]:3260")
    old = esp_spis(initiator)
    assert len(old) >= 4
    charon = initiator.run("systemctl show -p MainPID strongswan").out
    since = wire.mark()
    for stream in running:
        stream.mark()

    install(initiator, package)

    report("upgrade from 0.1.0", flows(running))
    initiator.wait("iscsi-ipsec verify", timeout=90, every=1)
    assert initiator.run("systemctl show -p MainPID strongswan").out == charon
    for portal in portals:
        row = portal_status(initiator, portal)
        assert row["protected"], row
        assert row["key"] == "group", row
        assert row["sa"]["reqid"] == row["reqid"], row
    assert "unrestricted-key" in initiator.run("iscsi-ipsec status").out
    for near, far in ((initiator.ip, target.ip), (initiator.ip6, target.ip6)):
        assert_only_esp(wire, since, near, far)

    # the SAs of 0.1.0 give way to SAs with reqids of their own, once
    now = esp_spis(initiator)
    for stream in running:
        stream.mark()
    initiator.run("systemctl restart iscsi-ipsecd", timeout=90, check=True)
    flows(running)
    assert esp_spis(initiator) == now


def test_the_key_that_managed_all_is_said_and_its_line_keeps_them(
    initiator: Machine, target: Machine, wire: Wire, running: tuple[Stream, Stream]
) -> None:
    """The line that the warning has, written into the key file, changes no SA."""
    before, since = esp_spis(initiator), wire.mark()
    initiator.write(f"{CONFIG}/psk.d/group.toml", f'portals = ["any"]\n{GROUP_KEY}', 0o600)
    initiator.wait("! iscsi-ipsec status | grep unrestricted-key", timeout=60)
    flows(running)
    assert esp_spis(initiator) == before
    assert not wire.tcp(3260, since)
