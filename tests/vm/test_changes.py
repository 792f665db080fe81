"""Changes under running I/O: a key rotated on both ends, another ESP mode, IKE version, PFS setting,
identity or address, a portal more or less.

The new SA is negotiated beside the old one, which ends when the new one carries traffic; so a
change must cost neither an unencrypted frame nor an I/O error, whichever end is changed first.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm import farend, openiscsi
from tests.vm.farend import Peer
from tests.vm.full import only_full
from tests.vm.machine import Machine, wait_until
from tests.vm.stream import Stream, report
from tests.vm.test_first_session import CONFIG, assert_only_esp, esp_spis, policy, portal_status
from tests.vm.wire import Wire

FIRST_KEY = "changes, the first key: 0011223344556677"
SECOND_KEY = "changes, the second key: 8899aabbccddeeff"


def configure_far_end(target: Machine, *peers: Peer) -> None:
    """Load a hand-written configuration and leave the SAs as they are."""
    target.write("/etc/swanctl/conf.d/by-hand.conf", farend.swanctl_conf(*peers), 0o600)
    target.run("swanctl --load-all --noprompt", check=True)


def write_key(initiator: Machine, key: str) -> None:
    """Change the group key here."""
    initiator.write(f"{CONFIG}/psk.d/group.toml", f'group = true\nkey = "{key}"\n', 0o600)


@pytest.fixture(scope="module")
def peer(target: Machine, initiator: Machine) -> Peer:
    """The far end's connection before any change."""
    return Peer(name="far", local=target.ip, remote=initiator.ip, key=FIRST_KEY)


@pytest.fixture(scope="module")
def device(ready: Machine, target: Machine, peer: Peer) -> Iterator[str]:
    """The disk behind a protected session."""
    farend.configure_charon(target, farend.swanctl_conf(peer))
    farend.guard(target)
    ready.run(f"rm -f {CONFIG}/*.d/*.toml")
    write_key(ready, FIRST_KEY)
    ready.write(f"{CONFIG}/portal.d/san.toml", policy(target.ip), 0o600)
    ready.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)
    openiscsi.discover(ready, target.ip)
    yield openiscsi.login(ready, target.ip)
    openiscsi.forget_everything(ready)
    ready.run(f"rm -f {CONFIG}/*.d/*.toml")
    farend.configure_charon(target, "")
    farend.unguard(target)


@pytest.fixture
def stream(ready: Machine, device: str) -> Iterator[Stream]:
    """I/O on the session's disk, for as long as the test takes."""
    stream = Stream(ready, device).start()
    yield stream
    stream.stop()


def told_sa(initiator: Machine, target: Machine) -> dict[str, Any]:
    """The portal's SA from `status`; empty while there is none or something is wrong with it."""
    row = portal_status(initiator, f"{target.ip}:3260")
    sa: dict[str, Any] = row["sa"] if row["protected"] and not row["problem"] else {}
    return {**sa, "identity": row["identity"]} if sa else {}


def test_a_key_rotated_here_and_then_there_costs_no_unencrypted_frame_and_no_io_error(
    ready: Machine, target: Machine, wire: Wire, stream: Stream, peer: Peer
) -> None:
    before = told_sa(ready, target)["child"]
    mark = wire.mark()
    stream.mark()

    write_key(ready, SECOND_KEY)
    ready.wait("iscsi-ipsec status --json | grep -q outdated-sa", timeout=60)
    stream.wait_until_it_flows()
    configure_far_end(target, dataclasses.replace(peer, key=SECOND_KEY))
    wait_until(lambda: told_sa(ready, target).get("child", before) != before, 60, "the new key carries")
    stream.wait_until_it_flows()

    report("a key is changed here and then there", f"{stream.stall():.1f}")
    assert_only_esp(wire, mark, ready.ip, target.ip)
    wait_until(lambda: len(farend.sas(target)) == 1, 60, "the old key's SA is gone")


def test_another_esp_mode_costs_no_unencrypted_frame_and_no_io_error(
    ready: Machine, target: Machine, wire: Wire, stream: Stream, peer: Peer
) -> None:
    mark = wire.mark()
    stream.mark()

    configure_far_end(target, dataclasses.replace(peer, key=SECOND_KEY, mode="tunnel"))
    flags = 'security_flags = ["VALID", "IKE_IPSEC_ENABLED", "TUNNEL_MODE_PREFERRED", "PFS_ENABLED"]\n'
    ready.write(f"{CONFIG}/portal.d/san.toml", policy(target.ip, flags=flags), 0o600)
    wait_until(lambda: told_sa(ready, target).get("mode") == "tunnel", 60, "the tunnel carries")
    stream.wait_until_it_flows()

    report("transport mode becomes tunnel mode", f"{stream.stall():.1f}")
    assert_only_esp(wire, mark, ready.ip, target.ip)
    verified = ready.run("iscsi-ipsec verify")
    assert verified.rc == 0, str(verified)


def test_another_ike_version_costs_no_unencrypted_frame_and_no_io_error(
    ready: Machine, target: Machine, wire: Wire, stream: Stream, peer: Peer
) -> None:
    mark = wire.mark()
    stream.mark()

    configure_far_end(target, dataclasses.replace(peer, key=SECOND_KEY, mode="tunnel", version=1))
    flags = (
        'security_flags = ["VALID", "IKE_IPSEC_ENABLED", "MAIN_MODE_ENABLED", "TUNNEL_MODE_PREFERRED",'
        ' "PFS_ENABLED"]\n'
    )
    ready.write(f"{CONFIG}/portal.d/san.toml", policy(target.ip, flags=flags), 0o600)
    wait_until(lambda: told_sa(ready, target).get("ike_version") == 1, 60, "IKEv1 carries")
    stream.wait_until_it_flows()

    report("IKEv2 becomes IKEv1", f"{stream.stall():.1f}")
    assert_only_esp(wire, mark, ready.ip, target.ip)


@only_full
def test_pfs_switched_off_and_on_costs_no_unencrypted_frame_and_no_io_error(
    ready: Machine, target: Machine, wire: Wire, stream: Stream, peer: Peer
) -> None:
    """With IKEv1, whose every negotiation shows whether it had a Diffie-Hellman exchange."""
    names = ["VALID", "IKE_IPSEC_ENABLED", "MAIN_MODE_ENABLED", "TUNNEL_MODE_PREFERRED"]
    mark = wire.mark()
    stream.mark()

    def switch(flags: list[str], pfs: bool) -> None:
        before = told_sa(ready, target)["child"]
        text = policy(target.ip, flags=f"security_flags = {json.dumps(flags)}\n")
        ready.write(f"{CONFIG}/portal.d/san.toml", text, 0o600)
        wait_until(lambda: told_sa(ready, target).get("child", before) != before, 60, "a new SA carries")
        assert bool(told_sa(ready, target)["dh_group"]) is pfs
        stream.wait_until_it_flows()

    switch(names, pfs=False)
    switch([*names, "PFS_ENABLED"], pfs=True)

    report("PFS is switched off and on", f"{stream.stall():.1f}")
    assert_only_esp(wire, mark, ready.ip, target.ip)


@only_full
def test_another_identity_costs_no_unencrypted_frame_and_no_io_error(
    ready: Machine, target: Machine, wire: Wire, stream: Stream, peer: Peer
) -> None:
    """A host that had the group's key is given one of its own, under a name."""
    ready.write(f"{CONFIG}/portal.d/san.toml", policy(target.ip), 0o600)
    configure_far_end(target, dataclasses.replace(peer, key=SECOND_KEY))
    wait_until(lambda: told_sa(ready, target).get("ike_version") == 2, 60, "IKEv2 carries again")
    mark = wire.mark()
    stream.mark()

    named = dataclasses.replace(peer, name="named", key=FIRST_KEY, remote_id="fqdn:db1.test.vm")
    configure_far_end(target, named)
    key = f'id_type = "ID_FQDN"\nid = "db1.test.vm"\nkey = "{FIRST_KEY}"\n'
    ready.write(f"{CONFIG}/psk.d/db1.toml", key, 0o600)
    wait_until(lambda: told_sa(ready, target).get("identity") == "db1.test.vm", 60, "the name's SA carries")
    stream.wait_until_it_flows()
    report("another identity", f"{stream.stall():.1f}")
    assert "db1.test.vm" in target.run("swanctl --list-sas").out

    configure_far_end(target, dataclasses.replace(peer, key=SECOND_KEY))
    ready.run(f"rm {CONFIG}/psk.d/db1.toml", check=True)
    wait_until(lambda: told_sa(ready, target).get("identity") == ready.ip, 60, "the address' SA carries")
    stream.wait_until_it_flows()
    report("a key is removed, and the group's takes its place", f"{stream.stall():.1f}")

    assert_only_esp(wire, mark, ready.ip, target.ip)


@only_full
def test_a_portal_that_comes_and_goes_leaves_the_other_alone(
    ready: Machine, target: Machine, wire: Wire, stream: Stream, peer: Peer
) -> None:
    second = dataclasses.replace(peer, name="far6", local=target.ip6, remote=ready.ip6, key=SECOND_KEY)
    configure_far_end(target, dataclasses.replace(peer, key=SECOND_KEY), second)
    before = esp_spis(ready, ready.ip)
    mark = wire.mark()
    stream.mark()

    ready.write(f"{CONFIG}/portal.d/san6.toml", policy(target.ip6), 0o600)
    ready.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)
    openiscsi.discover(ready, target.ip6)
    openiscsi.write_and_read_back(ready, openiscsi.login(ready, target.ip6))
    assert esp_spis(ready, ready.ip6)
    where = f"-T {farend.IQN} -p {openiscsi.portal(target.ip6)}"
    ready.run(f"iscsiadm -m node {where} --logout && iscsiadm -m node {where} -o delete", 60, check=True)
    ready.run(
        f"iscsiadm -m discoverydb -t st -p {openiscsi.portal(target.ip6)} -o delete; rm {CONFIG}/portal.d/san6.toml"
    )
    gone = f"[{target.ip6}]:3260"
    wait_until(lambda: not portal_status(ready, gone)["policy"], 30, "the policy is gone")
    stream.wait_until_it_flows()

    report("another portal comes and goes", f"{stream.stall():.1f}")
    assert esp_spis(ready, ready.ip) == before
    assert portal_status(ready, gone)["closed"], "what was managed once stays closed"
    assert_only_esp(wire, mark, ready.ip, target.ip)
    assert_only_esp(wire, mark, ready.ip6, target.ip6)


def test_sas_of_a_killed_charon_are_replaced_once_the_far_end_has_dropped_them(
    ready: Machine, target: Machine, wire: Wire, device: str, peer: Peer
) -> None:
    """The kernel sends through it if the new trap gets its reqid, and asks for another SA if not."""
    second = dataclasses.replace(peer, name="far6", local=target.ip6, remote=ready.ip6, key=SECOND_KEY)
    configure_far_end(target, dataclasses.replace(peer, key=SECOND_KEY), second)
    write_key(ready, SECOND_KEY)
    ready.write(f"{CONFIG}/portal.d/san6.toml", policy(target.ip6), 0o600)
    ready.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)
    openiscsi.discover(ready, target.ip6)
    left = esp_spis(ready, ready.ip6)
    mark = wire.mark()

    ready.run("systemctl kill -s KILL strongswan", check=True)
    target.run("swanctl --terminate --ike far6 --force --timeout 5")
    ready.wait("systemctl start strongswan && swanctl --stats >/dev/null")
    assert left & esp_spis(ready, ready.ip6), "the kill left no SA"

    openiscsi.discover(ready, target.ip6)
    assert esp_spis(ready, ready.ip6) - left
    assert_only_esp(wire, mark, ready.ip6, target.ip6)
    ready.run(f"iscsiadm -m discoverydb -t st -p {openiscsi.portal(target.ip6)} -o delete")


@only_full
def test_another_address_of_this_host_costs_no_unencrypted_frame_and_no_io_error(
    ready: Machine, target: Machine, wire: Wire, stream: Stream, peer: Peer
) -> None:
    """The TCP connection goes with the old address; open-iscsi connects anew, and that in ESP."""
    other = "10.32.60.11"
    first = dataclasses.replace(peer, key=SECOND_KEY)
    configure_far_end(target, first, dataclasses.replace(first, name="moved", remote=other))
    device = ready.run(f"ip -o -4 address show to {ready.ip} | awk '{{print $2}}'").out.strip()
    mark = wire.mark()
    stream.mark()

    def move(old: str, new: str) -> None:
        ready.run(
            f"sysctl -qw net.ipv4.conf.{device}.promote_secondaries=1 && ip address add {new}/24 dev {device}"
            f" && ip address delete {old}/24 dev {device}",
            check=True,
        )
        wait_until(lambda: told_sa(ready, target).get("identity") == new, 60, f"{new} carries")
        stream.wait_until_it_flows(timeout=60)
        report(f"the address changes from {old} to {new}", f"{stream.stall():.1f}")
        stream.mark()

    move(ready.ip, other)
    move(other, ready.ip)

    assert_only_esp(wire, mark, ready.ip, target.ip)
    assert_only_esp(wire, mark, other, target.ip)
