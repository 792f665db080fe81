"""Host names under running I/O: whoever answers DNS opens nothing, and an answer that changes ends nothing.

The initiator's /etc/hosts stands for DNS: `getaddrinfo` asks it first, and the daemon asks `getaddrinfo`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm import farend, openiscsi
from tests.vm.farend import SECOND_IP, Peer
from tests.vm.full import only_full
from tests.vm.machine import Machine, wait_until
from tests.vm.stream import Stream
from tests.vm.test_first_session import CONFIG, GROUP_KEY, KEY, assert_only_esp, policy, portal_status
from tests.vm.wire import Wire

NAME = "test.example.com"
OPEN = 'security_flags = ["VALID"]\n'


def answer(initiator: Machine, address: str) -> None:
    """Let the name stand for this address alone; none for an empty one."""
    initiator.run(f"sed -i '/{NAME}/d' /etc/hosts", check=True)
    if address:
        initiator.run(f"echo '{address} {NAME}' >>/etc/hosts", check=True)


def origins(initiator: Machine, address: str) -> list[str]:
    """The origins of the portal in `status`; empty while there is no such portal."""
    rows = initiator.run(
        f"iscsi-ipsec explain '{address}' --json | grep -o 'policy {CONFIG}/portal.d/[a-z-]*.toml' | sort -u"
    )
    return rows.out.splitlines()


@pytest.fixture
def initiator_of_names(ready: Machine, target: Machine) -> Iterator[Machine]:
    """A far end that insists on IPsec, and an initiator without files."""
    farend.configure_charon(
        target, farend.swanctl_conf(Peer(name="far", local=target.ip, remote=ready.ip, key=KEY))
    )
    farend.guard(target)
    ready.run(f"rm -f {CONFIG}/*.d/*.toml")
    ready.write(f"{CONFIG}/psk.d/group.toml", GROUP_KEY, 0o600)
    yield ready
    openiscsi.forget_everything(ready)
    answer(ready, "")
    ready.run(f"rm -f {CONFIG}/*.d/*.toml")
    farend.configure_charon(target, "")
    farend.unguard(target)


@pytest.mark.parametrize(
    "closing", ["address", *(pytest.param(other, marks=only_full) for other in ("network", "memory"))]
)
def test_a_name_that_resolves_to_a_protected_portal_lets_no_frame_out_unencrypted(
    initiator_of_names: Machine, target: Machine, wire: Wire, closing: str
) -> None:
    initiator = initiator_of_names
    network = target.ip.rpartition(".")[0] + ".0/24"
    files = {"z-address": policy(target.ip), "z-network": policy(network)}
    for name, text in files.items():
        initiator.write(f"{CONFIG}/portal.d/{name}.toml", text, 0o600)
    initiator.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)
    openiscsi.discover(initiator, target.ip)
    device = openiscsi.login(initiator, target.ip)
    for name in files:
        if name != f"z-{closing}":
            initiator.run(f"rm {CONFIG}/portal.d/{name}.toml", check=True)

    answer(initiator, target.ip)
    mark = wire.mark()
    # its file comes first by name
    initiator.write(f"{CONFIG}/portal.d/a-test.toml", policy(NAME, flags=OPEN), 0o600)
    wait_until(
        lambda: f"policy {CONFIG}/portal.d/a-test.toml" in origins(initiator, target.ip),
        90,
        "the name stands for the portal",
    )
    assert portal_status(initiator, f"{target.ip}:3260")["closed"]
    # reads that would go out unencrypted if the portal were open, with charon and without
    initiator.run(f"timeout 20 dd if={device} of=/dev/null iflag=direct bs=4k count=200", timeout=60)
    initiator.run("systemctl stop strongswan", timeout=90, check=True)
    initiator.run(f"timeout 10 dd if={device} of=/dev/null iflag=direct bs=4k count=50", timeout=60)
    initiator.run(f"timeout 5 bash -c '</dev/tcp/{target.ip}/3260'", timeout=30)
    assert wire.tcp(3260, mark, frozenset({initiator.ip, initiator.ip6})) == []
    initiator.run("systemctl start strongswan", timeout=90, check=True)


@only_full
def test_an_answer_that_changes_leaves_the_session_its_sa(
    initiator_of_names: Machine, target: Machine, wire: Wire
) -> None:
    initiator = initiator_of_names
    answer(initiator, target.ip)
    initiator.write(f"{CONFIG}/portal.d/named.toml", policy(NAME), 0o600)
    initiator.wait(f"iscsi-ipsec explain '{target.ip}'", timeout=90)
    initiator.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)
    openiscsi.discover(initiator, target.ip)
    stream = Stream(initiator, openiscsi.login(initiator, target.ip)).start()
    try:
        stream.wait_until_it_flows()
        before = portal_status(initiator, f"{target.ip}:3260")
        mark = wire.mark()
        answer(initiator, SECOND_IP)
        # an answer counts for a minute
        initiator.wait(f"iscsi-ipsec explain '{SECOND_IP}'", timeout=120)
        stream.wait_until_it_flows()
        after = portal_status(initiator, f"{target.ip}:3260")
        assert after["protected"]
        assert after["policy"] == before["policy"]
        assert (after["sa"]["child_id"], after["key"]) == (before["sa"]["child_id"], before["key"])
        assert_only_esp(wire, mark, initiator.ip, target.ip)
    finally:
        stream.stop()
