"""The product's main promise, end to end: drop a key file, and iSCSI runs inside IPsec.

The initiator gets the Debian package and two files, as an admin would give them.  The target is
configured by hand and insists on IPsec itself, so that a clear frame of either side is the
initiator's doing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm import farend, openiscsi
from tests.vm.farend import SECOND_IP, Peer
from tests.vm.full import only_full
from tests.vm.machine import Machine, wait_until
from tests.vm.wire import Wire

KEY = "first session, not a secret: fedcba9876543210"
CONFIG = "/etc/iscsi-ipsec"
UNITS = {
    "iscsi-ipsecd.service", "iscsi-ipsec-guard.service", "iscsi-ipsec-names.service", "iscsi-ipsec-ike-hold.service",
}  # fmt: skip
GROUP_KEY = f'group = true\nkey = "{KEY}"\n'


def policy(*portals: str, flags: str = "") -> str:
    """Write a portal policy."""
    return f"portals = {json.dumps(portals)}\n{flags}"


def status(initiator: Machine) -> dict[str, Any]:
    """Return what `iscsi-ipsec status` says for programs."""
    shown = initiator.run("iscsi-ipsec status --json", timeout=60)
    found: dict[str, Any] = json.loads(shown.out)
    return found


def portal_status(initiator: Machine, portal: str) -> dict[str, Any]:
    """Return the row of one portal."""
    rows = [row for row in status(initiator)["portals"] if row["portal"] == portal]
    assert len(rows) == 1, f"{portal}: {rows}"
    row: dict[str, Any] = rows[0]
    return row


def esp_spis(machine: Machine, address: str = "") -> set[str]:
    """Return the SPIs of the ESP SAs in the kernel, of one address or all, without larval ones."""
    found = machine.run(f"ip xfrm state | grep -A1 '^src .*{address}' | grep -o 'spi 0x[0-9a-f]*'").out
    return set(found.split()) - {"spi", "0x00000000"}


@pytest.fixture(scope="module")
def far_end(target: Machine, initiator: Machine) -> Machine:
    """The target with hand-written IPsec for both IP versions."""
    peers = [
        Peer(name="far", local=target.ip, remote=initiator.ip, key=KEY),
        Peer(name="far6", local=target.ip6, remote=initiator.ip6, key=KEY),
    ]
    farend.configure_charon(target, farend.swanctl_conf(*peers))
    farend.guard(target)
    return target


@pytest.fixture(scope="module")
def product(installed: Machine, far_end: Machine) -> Iterator[Machine]:
    """The initiator with the package; afterwards without sessions and files."""
    yield installed
    openiscsi.forget_everything(installed)
    installed.run(f"rm -f {CONFIG}/*.d/*.toml")
    farend.unguard(far_end)


@pytest.fixture
def device(product: Machine, target: Machine) -> str:
    """The disk behind a protected session, which tests share while it is healthy."""
    product.run("systemctl start strongswan iscsi-ipsecd", timeout=90, check=True)
    if any(f"{target.ip}:" in line for line in openiscsi.sessions(product)):
        return openiscsi.disk(product, target.ip)
    protect(product, target.ip)
    openiscsi.discover(product, target.ip)
    return openiscsi.login(product, target.ip)


def protect(initiator: Machine, address: str, name: str = "san") -> None:
    """Drop the key and a policy into their folders and wait until they hold."""
    initiator.write(f"{CONFIG}/psk.d/group.toml", GROUP_KEY, 0o600)
    initiator.write(f"{CONFIG}/portal.d/{name}.toml", policy(address), 0o600)
    initiator.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)


def assert_only_esp(wire: Wire, since: float, near: str, far: str) -> None:
    """Assert that both ends were heard, and that nothing of iSCSI was unencrypted."""
    clear = wire.tcp(3260, since)
    assert not clear, f"{len(clear)} clear frames, first {clear[0]}; {wire.summary(since)}"
    assert {near, far} <= {frame.source for frame in wire.esp(since)}, wire.summary(since)


def test_the_package_installs_without_a_network_and_its_daemon_reports_ready(
    installed: Machine,
) -> None:
    """Storage hosts are often cut off; and READY=1 is what iSCSI's units wait for."""
    shown = installed.run("systemctl show -p Type -p ActiveState -p SubState iscsi-ipsecd").out

    assert shown.split() == ["Type=notify", "ActiveState=active", "SubState=running"], (
        shown + installed.run("journalctl -b --no-pager -u iscsi-ipsecd").out
    )


def test_a_key_and_a_policy_dropped_into_their_folders_protect_the_first_session(
    product: Machine, target: Machine, wire: Wire
) -> None:
    """The README's example: two files, no restart, and discovery is already encrypted."""
    mark = wire.mark()

    protect(product, target.ip)
    openiscsi.discover(product, target.ip)
    device = openiscsi.login(product, target.ip)
    openiscsi.write_and_read_back(product, device)

    assert_only_esp(wire, mark, product.ip, target.ip)
    row = portal_status(product, f"{target.ip}:3260")
    reported = {name: row[name] for name in ("managed", "protected", "ike", "mode", "problem")}
    assert reported == {
        "managed": True,
        "protected": True,
        "ike": "IKEv2",
        "mode": "transport",
        "problem": None,
    }
    wait_until(
        lambda: bool(portal_status(product, f"{target.ip}:3260")["sessions"]), 30, "status shows the session"
    )
    verified = product.run("iscsi-ipsec verify")
    assert verified.rc == 0, str(verified)


def test_verify_fails_while_a_session_to_another_portal_is_unencrypted(
    product: Machine, target: Machine, wire: Wire, device: str
) -> None:
    """A proof that cannot fail proves nothing."""
    # a policy that says in so many words that this portal needs no IPsec
    product.write(
        f"{CONFIG}/portal.d/clear.toml",
        policy(SECOND_IP, flags='security_flags = ["VALID"]\n'),
        0o600,
    )
    product.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)
    mark = wire.mark()
    openiscsi.discover(product, SECOND_IP)
    openiscsi.write_and_read_back(product, openiscsi.login(product, SECOND_IP))

    verified = product.run("iscsi-ipsec verify")
    where = f"-T {farend.IQN} -p {SECOND_IP}"
    product.run(f"iscsiadm -m node {where} --logout", timeout=60, check=True)
    again = product.run("iscsi-ipsec verify")
    product.run(f"iscsiadm -m node {where} -o delete; rm {CONFIG}/portal.d/clear.toml")

    ends = {end for f in wire.tcp(3260, mark) for end in (f.source, f.destination)}
    assert ends == {product.ip, SECOND_IP}
    assert verified.rc == 1, str(verified)
    assert SECOND_IP in verified.out + verified.err
    assert again.rc == 0, str(again)


@only_full
@pytest.mark.usefixtures("device")
def test_verify_fails_while_an_sa_of_the_portal_does_not_encrypt(product: Machine, target: Machine) -> None:
    """The kernel would take packets of it, whatever charon negotiated."""
    reqid = portal_status(product, f"{target.ip}:3260")["reqid"]
    state = f"src {target.ip} dst {product.ip} proto esp spi 0x0bad0bad"
    product.run(
        f"ip xfrm state add {state} reqid {reqid} mode transport"
        f" auth-trunc 'hmac(sha256)' 0x{'11' * 32} 128 enc 'ecb(cipher_null)' ''",
        check=True,
    )
    verified = product.run("iscsi-ipsec verify")
    product.run(f"ip xfrm state delete {state}", check=True)
    again = product.run("iscsi-ipsec verify")

    assert (verified.rc, "SA 0bad0bad uses ecb(cipher_null)" in verified.out) == (1, True), str(verified)
    assert again.rc == 0, str(again)


def test_a_portal_by_name_is_looked_up_by_the_unit_that_has_a_network_and_no_rights(
    product: Machine, device: str
) -> None:
    """The daemon itself may open no internet socket, so it cannot have asked."""
    product.run(f"echo {SECOND_IP} san-by-name >>/etc/hosts", check=True)
    product.write(f"{CONFIG}/portal.d/named.toml", policy("san-by-name"), 0o600)
    product.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)

    wait_until(
        lambda: any(row["portal"] == f"{SECOND_IP}:3260" for row in status(product)["portals"]),
        30,
        "the name has become a portal",
    )
    named = product.run("systemctl is-active iscsi-ipsec-names.service")
    of_whom = product.run("ps -o user= -p $(systemctl show -P MainPID iscsi-ipsec-names.service)").out.strip()
    exposed = product.run(
        f"systemd-analyze security --no-pager {' '.join(UNITS)} | grep 'exposure level'"
    ).out
    product.run(f"rm {CONFIG}/portal.d/named.toml; sed -i /san-by-name/d /etc/hosts")
    product.run(f"iscsi-ipsec release --yes {SECOND_IP}", timeout=60)

    assert named.out.strip() == "active"
    assert of_whom not in ("", "root")
    levels = re.findall(r"exposure level for (\S+): ([0-9.]+)", exposed)
    assert {unit for unit, _ in levels} == UNITS, exposed
    assert all(float(level) <= 2.0 for _, level in levels), exposed


def test_restarting_the_daemon_under_io_leaves_the_sas_alone(
    product: Machine, target: Machine, wire: Wire, device: str
) -> None:
    """An upgrade of the daemon must be nobody's business but the daemon's."""
    openiscsi.write_and_read_back(product, device)
    before = esp_spis(product)
    mark = wire.mark()

    busy = openiscsi.keep_busy(product, device, seconds=12)
    product.run("systemctl restart iscsi-ipsecd", timeout=90, check=True)
    product.run("systemctl kill -s KILL iscsi-ipsecd", check=True)
    product.run("iscsi-ipsec wait --timeout 150", timeout=180)
    ended = busy.result()

    assert ended.rc == 0, str(ended)
    assert esp_spis(product) == before != set()
    assert_only_esp(wire, mark, product.ip, target.ip)


def test_a_restart_of_charon_under_io_lets_no_frame_out_and_the_session_goes_on(
    product: Machine, target: Machine, wire: Wire, device: str
) -> None:
    """Stopping charon takes its policies away; the control run shows what that does."""
    mark = wire.mark()

    busy = openiscsi.keep_busy(product, device, seconds=25)
    product.run("systemctl restart strongswan", timeout=90, check=True)
    ended = busy.result()

    assert ended.rc == 0, str(ended)
    openiscsi.write_and_read_back(product, device)
    assert_only_esp(wire, mark, product.ip, target.ip)
    verified = product.run("iscsi-ipsec verify")
    assert verified.rc == 0, str(verified)


def test_with_daemon_and_charon_stopped_io_stalls_rather_than_leaks_and_then_recovers(
    product: Machine, target: Machine, wire: Wire, device: str
) -> None:
    """Fail closed: the guard needs neither of the two."""
    openiscsi.give_up_after(product, 10)
    mark = wire.mark()

    product.run("systemctl stop iscsi-ipsecd", timeout=90, check=True)
    product.run("systemctl stop strongswan", timeout=90, check=True)
    stalled = product.run(
        f"timeout --kill-after=20 10 dd if={device} of=/dev/null bs=4k count=1 iflag=direct", 90
    )
    # so that charon is up for a while without a daemon that gives it work
    product.run("systemctl start strongswan", timeout=90, check=True)
    assert stalled.rc != 0, "the read went through without IPsec"
    assert not wire.tcp(3260, since=mark), wire.summary(mark)

    product.run("systemctl start iscsi-ipsecd", timeout=90, check=True)
    product.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)
    product.wait(f"timeout 10 dd if={device} of=/dev/null bs=4k count=1 iflag=direct", timeout=180, every=1)
    assert not wire.tcp(3260, since=mark), wire.summary(mark)


def test_a_removed_key_ends_its_sa_and_leaves_the_portal_closed(
    product: Machine, target: Machine, wire: Wire, device: str
) -> None:
    """Losing a key file must never mean clear text, and the journal's catalog says what it means."""
    openiscsi.write_and_read_back(product, device)
    mark = wire.mark()

    openiscsi.give_up_after(product, 10)
    product.run(f"rm {CONFIG}/psk.d/group.toml", check=True)
    wait_until(lambda: not esp_spis(product), 30, "the SAs of the removed key are gone")
    found = product.run(f"iscsiadm -m discovery -t st -p {target.ip}", timeout=12)
    row = portal_status(product, f"{target.ip}:3260")
    explained = f"Subject: {row['problem']['code']}: "
    product.wait(f"journalctl -n 100 -x --no-pager -u iscsi-ipsecd | grep '{explained}'", timeout=30)

    assert found.rc != 0
    assert row["closed"]
    assert not wire.tcp(3260, since=mark), wire.summary(mark)
    protect(product, target.ip)
    product.wait(f"timeout 10 dd if={device} of=/dev/null bs=4k count=1 iflag=direct", timeout=180, every=1)


def test_the_first_session_over_ipv6_is_protected_too(product: Machine, target: Machine, wire: Wire) -> None:
    """Portals are [addresses]:port there, and the identity is an IPv6 address."""
    mark = wire.mark()

    protect(product, target.ip6, name="san6")
    openiscsi.discover(product, target.ip6)
    device = openiscsi.login(product, target.ip6)
    openiscsi.write_and_read_back(product, device)

    assert_only_esp(wire, mark, product.ip6, target.ip6)
    row = portal_status(product, f"[{target.ip6}]:3260")
    assert (row["protected"], row["ike"], row["mode"]) == (True, "IKEv2", "transport")
    verified = product.run("iscsi-ipsec verify")
    assert verified.rc == 0, str(verified)


UNIT_STOPPED = "9d1aaa27d60140bd96365438aad20286"
"""Message id of systemd's "Stopped ..." and "Unmounted ..." (sd-messages.h)."""

MOUNT_POINT = "/mnt/data"


@pytest.fixture
def file_system(product: Machine, target: Machine, device: str) -> Iterator[str]:
    """A file system on the session's disk that is to be mounted at boot, with a file on it."""
    product.run(
        f"iscsiadm -m node -T {farend.IQN} -p {target.ip} -o update -n node.startup -v automatic"
        f" && mkfs.ext4 -q -F -L over-iscsi {device} && mkdir -p {MOUNT_POINT}"
        f" && echo 'LABEL=over-iscsi {MOUNT_POINT} ext4 _netdev,x-systemd.device-timeout=10min 0 0' >>/etc/fstab && systemctl daemon-reload"
        f" && mount {MOUNT_POINT} && echo before >{MOUNT_POINT}/file"
        # at a boot without records it was skipped; stopping it is what logs out
        " && systemctl start open-iscsi",
        timeout=120,
        check=True,
    )
    yield MOUNT_POINT
    product.run(
        f"umount {MOUNT_POINT}; sed -i /over-iscsi/d /etc/fstab; systemctl daemon-reload", timeout=120
    )


def test_a_file_system_over_esp_is_back_after_a_reboot_and_nothing_was_ever_unencrypted(
    product: Machine, target: Machine, wire: Wire, device: str, file_system: str
) -> None:
    """From the first unit that stops to the mount: the order of shutdown and boot is part of the promise."""
    mark = wire.mark()

    product.reboot()
    product.wait(f"findmnt {file_system}", timeout=120)

    assert product.run(f"cat {file_system}/file").out == "before\n"
    product.run(f"echo after >{file_system}/file && sync -f {file_system}", timeout=60, check=True)
    assert_only_esp(wire, mark, product.ip, target.ip)
    row = portal_status(product, f"{target.ip}:3260")
    assert row["protected"] is True, row
    verified = product.run("iscsi-ipsec verify")
    assert verified.rc == 0, str(verified)
    stopped = product.run(
        f"journalctl -b -1 -o cat --output-fields=UNIT MESSAGE_ID={UNIT_STOPPED}"
    ).out.split()
    order = ("mnt-data.mount", "open-iscsi.service", "iscsi-ipsecd.service", "strongswan.service")
    # other tests have stopped some of them before
    assert [unit for unit in stopped if unit in order][-len(order) :] == list(order), stopped
