"""This program at both ends: the same key files, one host an initiator and the other a target."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.vm import farend, openiscsi
from tests.vm.combination import CONFIG
from tests.vm.conftest import install, purge
from tests.vm.full import only_full
from tests.vm.machine import Machine, wait_until
from tests.vm.stream import Stream, report
from tests.vm.test_first_session import assert_only_esp, esp_spis, policy, portal_status
from tests.vm.wire import Wire

FIRST_KEY = "both ends, the first key: 0123456789abcdef"
SECOND_KEY = "both ends, the second key: fedcba9876543210"
THIRD_KEY = "both ends, the third key: 1032547698badcfe"


def key_file(identity: str, key: str) -> str:
    """Write a key file."""
    return f'id_type = "ID_FQDN"\nid = "{identity}"\nkey = "{key}"\n'


@pytest.fixture(scope="module")
def served(target: Machine, ready: Machine, package: Path) -> Iterator[Machine]:
    """The target with the package too, and no word of IPsec by hand."""
    farend.configure_charon(target, "")
    install(target, package)
    for machine in (target, ready):
        machine.write(f"{CONFIG}/psk.d/db1.toml", key_file("db1.test.vm", FIRST_KEY), 0o600)
    target.write(f"{CONFIG}/portal.d/here.toml", policy(target.ip, flags='role = "target"\n'), 0o600)
    ready.write(f"{CONFIG}/portal.d/san.toml", policy(target.ip), 0o600)
    for machine in (target, ready):
        machine.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)
    yield target
    purge(target)


def test_with_this_program_at_both_ends_the_same_key_file_brings_a_session_up(
    ready: Machine, served: Machine, wire: Wire
) -> None:
    mark = wire.mark()

    openiscsi.discover(ready, served.ip)
    openiscsi.write_and_read_back(ready, openiscsi.login(ready, served.ip))
    verified = ready.run("iscsi-ipsec verify")
    row = portal_status(served, f"{served.ip}:3260")

    assert verified.rc == 0, str(verified)
    reported = {name: row[name] for name in ("role", "protected", "identity", "identity_type", "problem")}
    assert reported == {
        "role": "target",
        "protected": True,
        "identity": "db1.test.vm",
        "identity_type": "ID_FQDN",
        "problem": None,
    }
    assert_only_esp(wire, mark, ready.ip, served.ip)


def test_a_key_rotated_at_both_ends_costs_no_unencrypted_frame_and_no_io_error(
    ready: Machine, served: Machine, wire: Wire
) -> None:
    before = esp_spis(ready)
    mark = wire.mark()
    stream = Stream(ready, openiscsi.disk(ready, served.ip)).start()

    for machine in (served, ready):
        machine.write(f"{CONFIG}/psk.d/db1.toml", key_file("db1.test.vm", SECOND_KEY), 0o600)
    wait_until(lambda: not esp_spis(ready) & before, 60, "the SAs of the first key are gone")
    stream.wait_until_it_flows()
    stream.stop()

    assert portal_status(ready, f"{served.ip}:3260")["problem"] is None
    assert portal_status(served, f"{served.ip}:3260")["protected"] is True
    assert len(farend.sas(served)) == 1
    assert_only_esp(wire, mark, ready.ip, served.ip)


def test_a_staged_rotation_under_io_needs_no_moment_that_both_ends_share(
    ready: Machine, served: Machine, wire: Wire
) -> None:
    """The target holds both keys, the initiator changes when it likes, then the target lets go of the old one."""
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    both = f'previous_key = "{SECOND_KEY}"\nprevious_until = {tomorrow}\n'
    stream = Stream(ready, openiscsi.disk(ready, served.ip)).start()
    mark = wire.mark()
    stream.mark()

    def change(machine: Machine, text: str) -> None:
        before = esp_spis(ready)
        machine.write(f"{CONFIG}/psk.d/db1.toml", text, 0o600)
        if machine is ready:
            wait_until(lambda: not esp_spis(ready) & before, 60, "the SAs of the second key are gone")
        else:
            machine.run("iscsi-ipsec wait --timeout 150", timeout=180, check=True)
        stream.wait_until_it_flows()

    change(served, key_file("db1.test.vm", THIRD_KEY) + both)
    assert portal_status(ready, f"{served.ip}:3260")["problem"] is None
    change(ready, key_file("db1.test.vm", THIRD_KEY))
    change(served, key_file("db1.test.vm", THIRD_KEY))
    wait_until(lambda: portal_status(served, f"{served.ip}:3260")["protected"], 60, "it is protected")
    stream.wait_until_it_flows()
    stream.stop()

    report("a staged rotation, from the first file to the last", f"{stream.stall():.1f}")
    assert portal_status(ready, f"{served.ip}:3260")["problem"] is None
    assert_only_esp(wire, mark, ready.ip, served.ip)


@only_full
def test_policies_that_are_flushed_on_the_target_cost_no_unencrypted_frame_and_come_back(
    ready: Machine, served: Machine, wire: Wire
) -> None:
    """Without its policies, which charon never checks again, it would send nothing, for hours."""
    stream = Stream(ready, openiscsi.disk(ready, served.ip)).start()
    mark = wire.mark()
    stream.mark()

    served.run("ip xfrm policy flush", check=True)
    stream.wait_until_it_flows()
    stream.stop()

    report("the target's policies are flushed", f"{stream.stall():.1f}")
    assert_only_esp(wire, mark, ready.ip, served.ip)


def test_an_identity_that_the_target_does_not_know_is_refused_and_nothing_passes(
    ready: Machine, served: Machine, wire: Wire
) -> None:
    """The key is the right one; only the name is a stranger's."""
    ready.run(f"iscsiadm -m node -T {farend.IQN} -p {served.ip} --logout", timeout=60, check=True)
    mark = wire.mark()

    ready.write(f"{CONFIG}/psk.d/db1.toml", key_file("stranger.test.vm", THIRD_KEY), 0o600)
    ready.wait("swanctl --list-conns | grep -q stranger.test.vm", timeout=30)
    for ike in farend.sas(ready):  # of the identity that was: a changed identity alone ends none
        ready.run(f"swanctl --terminate --ike-id {ike} --force --timeout 5")
    found = ready.run(f"iscsiadm -m discovery -t st -p {served.ip}", timeout=12)
    ready.wait("iscsi-ipsec status --json | grep -q auth-refused", timeout=60)

    assert found.rc != 0
    assert not esp_spis(served), "the target has an SA"
    assert not wire.tcp(3260, mark), wire.summary(mark)
    row = portal_status(ready, f"{served.ip}:3260")
    assert (row["closed"], row["protected"]) == (True, False)
