"""Faults under running I/O: whatever stops, crashes, reloads or flushes, nothing crosses unencrypted.

Two sessions run all the time, one over IPv4 in transport mode and one over IPv6 in tunnel mode,
each with a key of its own, and each writes and reads back block after block. Every fault strikes
both. The controls take the guard away, and the same faults leave the sessions unencrypted.
"""

from __future__ import annotations

import os
import random
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm import farend, openiscsi
from tests.vm.farend import Peer
from tests.vm.full import FULL, only_full
from tests.vm.machine import Machine, wait_until
from tests.vm.stream import Stream, report
from tests.vm.test_first_session import CONFIG, assert_only_esp, esp_spis, policy
from tests.vm.wire import Wire

KEYS = {"ip": "faults, not a secret: 0123456789abcdef", "ip6": "faults over IPv6: fedcba9876543210"}

TUNNEL = 'security_flags = ["VALID", "IKE_IPSEC_ENABLED", "TUNNEL_MODE_PREFERRED", "PFS_ENABLED"]\n'

# unload-conn, as any program may send it (README.vici: length, type, name, message)
UNLOAD = """
import socket, struct
def send(sock, packet):
    sock.sendall(struct.pack("!I", len(packet)) + packet)
    size = struct.unpack("!I", sock.recv(4, socket.MSG_WAITALL))[0]
    return sock.recv(size, socket.MSG_WAITALL)
for name in (b"iscsi-ipsec-10.32.60.20-3260", b"iscsi-ipsec-fd00:3260::20-3260"):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("/run/charon.vici")
        message = b"\\x03\\x04name" + struct.pack("!H", len(name)) + name
        answer = send(sock, b"\\x00\\x0bunload-conn" + message)
        assert b"success\\x00\\x03yes" in answer, answer
"""

# Another program's connection in charon, which the daemon must not touch.
FOREIGN = Peer(name="foreign", local="192.0.2.1", remote="192.0.2.2", key="none of our business, 0123456789")

GUARDED = "nft list table inet iscsi_ipsec >/dev/null 2>&1"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault on the initiator. ``spares``: the SAs must be the same ones afterwards.

    ``rare``: with VM_FULL=1 only, as another takes the same way, or it is shown without a VM too.
    """

    name: str
    command: str
    spares: bool = False
    rare: bool = False

    def __str__(self) -> str:
        return self.name


# What dpkg runs of the package's scripts when it unpacks and configures the next version.
UPGRADED_CHARON = (
    "version=$(dpkg-query -W -f '${Version}' charon-systemd)"
    " && was=$(systemctl show -p MainPID strongswan)"
    " && { [ ! -e /var/lib/dpkg/info/charon-systemd.prerm ] || /var/lib/dpkg/info/charon-systemd.prerm upgrade $version; }"
    " && /var/lib/dpkg/info/charon-systemd.postinst configure $version"
    " && [ $(systemctl show -p MainPID strongswan) != $was ]"
)

FAULTS = (
    Fault("the daemon crashes", "systemctl kill -s SEGV iscsi-ipsecd", spares=True, rare=True),
    Fault("charon is stopped and started", "systemctl stop strongswan && systemctl start strongswan"),
    Fault(
        "charon is killed",
        "was=$(systemctl show -p MainPID strongswan) && systemctl kill -s KILL strongswan"
        " && until systemctl -q is-active strongswan && [ $(systemctl show -p MainPID strongswan) != $was ];"
        " do sleep 0.2; systemctl start strongswan; done",
    ),
    Fault("charon is upgraded", UPGRADED_CHARON, rare=True),
    Fault("charon is reloaded", "systemctl reload strongswan", spares=True, rare=True),
    Fault("swanctl loads all", "swanctl --load-all --noprompt", spares=True, rare=True),
    Fault("swanctl loads credentials", "swanctl --load-creds --clear --noprompt", spares=True, rare=True),
    Fault("swanctl loads connections", "swanctl --load-conns", spares=True, rare=True),
    Fault("our connections are unloaded", f"python3 -c {shlex.quote(UNLOAD)}", spares=True, rare=True),
    Fault("the ruleset is flushed", "nft flush ruleset", spares=True),
    Fault("nftables is reloaded", "systemctl reload nftables", spares=True, rare=True),
    Fault("nftables is restarted", "systemctl restart nftables", spares=True),
    Fault("the kernel's policies are flushed", "ip xfrm policy flush"),
    Fault("the kernel's SAs are flushed", "ip xfrm state flush"),
)


def write_key(machine: Machine, family: str) -> None:
    """Give one of the initiator's two addresses its key."""
    kind = {"ip": "ID_IPV4_ADDR", "ip6": "ID_IPV6_ADDR"}[family]
    text = f'id_type = "{kind}"\nid = "{getattr(machine, family)}"\nkey = "{KEYS[family]}"\n'
    machine.write(f"{CONFIG}/psk.d/{family}.toml", text, 0o600)


@pytest.fixture(scope="module")
def product(ready: Machine, target: Machine) -> Iterator[Machine]:
    """The initiator with both portals protected; afterwards without sessions and files."""
    peers = [
        Peer(name="far", local=target.ip, remote=ready.ip, key=KEYS["ip"]),
        Peer(name="far6", local=target.ip6, remote=ready.ip6, key=KEYS["ip6"], mode="tunnel"),
    ]
    farend.configure_charon(target, farend.swanctl_conf(*peers))
    farend.guard(target)
    farend.configure_charon(ready, farend.swanctl_conf(FOREIGN))
    ready.run(f"rm -f {CONFIG}/*.d/*.toml; systemctl start nftables", check=True)
    for family in KEYS:
        write_key(ready, family)
    ready.write(f"{CONFIG}/portal.d/san.toml", policy(target.ip), 0o600)
    ready.write(f"{CONFIG}/portal.d/san6.toml", policy(target.ip6, flags=TUNNEL), 0o600)
    ready.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)
    yield ready
    ready.run("systemctl start strongswan iscsi-ipsecd", timeout=90)
    openiscsi.forget_everything(ready)
    ready.run(f"rm -f {CONFIG}/*.d/*.toml")
    farend.configure_charon(ready, "")
    farend.unguard(target)


@pytest.fixture(scope="module")
def streams(product: Machine, target: Machine) -> Iterator[tuple[Stream, Stream]]:
    """I/O on both disks, from the first fault to the last."""
    devices = []
    for address in (target.ip, target.ip6):
        openiscsi.discover(product, address)
        devices.append(openiscsi.login(product, address))
    streams = Stream(product, devices[0], 0).start(), Stream(product, devices[1], 1).start()
    yield streams
    for stream in streams:
        stream.stop()


@dataclass(slots=True)
class Scene:
    """Both sessions, and what has been on the wire since the last mark."""

    product: Machine
    target: Machine
    wire: Wire
    streams: tuple[Stream, Stream]
    since: float = 0.0

    def mark(self) -> None:
        """Judge what comes from here on."""
        self.since = self.wire.mark()
        for stream in self.streams:
            stream.mark()

    def settle(self) -> None:
        """Wait until I/O goes on and everything of the daemon's is in place."""
        for stream in self.streams:
            stream.wait_until_it_flows()
        self.product.wait(
            "iscsi-ipsec verify && iscsi-ipsec plan | grep '^nothing to do' && swanctl --list-conns | grep ^foreign:",
            timeout=90,
            every=1,
        )

    def in_clear(self) -> set[str]:
        """Return the initiator's addresses that sent clear frames."""
        frames = self.wire.tcp(3260, self.since, frozenset({self.product.ip, self.product.ip6}))
        return {frame.source for frame in frames}

    def assert_no_harm(self, what: str) -> None:
        """Assert that nothing was unencrypted; keep for the report how long I/O stood still."""
        names = ("IPv4 transport", "IPv6 tunnel")
        stalls = [f"{stream.stall():.1f} ({name})" for stream, name in zip(self.streams, names, strict=True)]
        report(what, *stalls)
        self.assert_only_esp()

    def assert_only_esp(self) -> None:
        """Assert that both sessions were heard, and nothing of them unencrypted."""
        assert_only_esp(self.wire, self.since, self.product.ip, self.target.ip)
        assert_only_esp(self.wire, self.since, self.product.ip6, self.target.ip6)


@pytest.fixture
def scene(product: Machine, target: Machine, wire: Wire, streams: tuple[Stream, Stream]) -> Scene:
    """Two sessions with I/O under way, and a fresh mark."""
    scene = Scene(product, target, wire, streams)
    scene.mark()
    return scene


@pytest.mark.parametrize("fault", [f for f in FAULTS if FULL or not f.rare], ids=str)
def test_no_fault_lets_a_frame_out_or_costs_an_io_error(scene: Scene, fault: Fault) -> None:
    before = esp_spis(scene.product)

    scene.product.run(fault.command, timeout=120, check=True)
    scene.settle()

    scene.assert_no_harm(fault.name)
    if fault.spares:
        assert esp_spis(scene.product) == before


def test_io_goes_on_without_the_daemon(scene: Scene) -> None:
    before = esp_spis(scene.product)

    scene.product.run("systemctl stop iscsi-ipsecd", timeout=60, check=True)
    for stream in scene.streams:
        stream.wait_until_it_flows()
    scene.product.run("systemctl start iscsi-ipsecd", timeout=90, check=True)
    scene.settle()

    scene.assert_no_harm("the daemon is stopped and started")
    assert esp_spis(scene.product) == before


def test_an_upgrade_of_the_package_touches_neither_sas_nor_charon(
    scene: Scene, package: Path, tmp_path: Path
) -> None:
    """`dpkg -i` of the next version under running sessions; what it restarts is the daemon alone."""
    product, newer = scene.product, tmp_path / "newer.deb"
    unpack = ["dpkg-deb", "--raw-extract", str(package), str(tmp_path / "tree")]
    subprocess.run(unpack, check=True)
    control = tmp_path / "tree/DEBIAN/control"
    lines = control.read_text().splitlines(keepends=True)
    control.write_text("".join("Version: 99\n" if line.startswith("Version:") else line for line in lines))
    subprocess.run(
        ["dpkg-deb", "-Zgzip", "--root-owner-group", "--build", str(tmp_path / "tree"), str(newer)],
        check=True,
    )
    product.put(newer, "/root/newer.deb")
    before, charon = esp_spis(product), product.run("systemctl show -p MainPID strongswan").out
    daemon = product.run("systemctl show -p MainPID iscsi-ipsecd").out
    cursor = product.run("journalctl -n1 --show-cursor | sed -n 's/^-- cursor: //p'").out.strip()
    scene.mark()

    product.run("dpkg -i /root/newer.deb", timeout=300, check=True)
    scene.settle()

    scene.assert_no_harm("the package is upgraded")
    assert "Version: 99" in product.run("dpkg -s iscsi-ipsec").out
    assert product.run("systemctl show -p MainPID iscsi-ipsecd").out != daemon
    assert esp_spis(product) == before
    assert product.run("systemctl show -p MainPID strongswan").out == charon
    reported = product.run(f"journalctl -o cat --after-cursor='{cursor}' -u iscsi-ipsecd").out
    assert "started" in reported, reported
    assert not [line for line in reported.splitlines() if line.startswith(("loaded", "unloaded"))], reported


def test_a_removed_key_ends_its_own_sas_and_no_others(scene: Scene) -> None:
    product = scene.product
    mine, others = esp_spis(product, product.ip6), esp_spis(product, product.ip)
    assert mine
    assert others

    begun = "date +%s.%N; rm /etc/iscsi-ipsec/psk.d/ip6.toml"
    gone = f"until ! ip xfrm state | grep -qE '{'|'.join(mine)}'; do sleep 0.05; done; date +%s.%N"
    times = product.run(f"{begun}; {gone}", timeout=30, check=True).out.split()
    scene.streams[0].wait_until_it_flows()
    took = float(times[1]) - float(times[0])
    report(
        "a key is removed",
        f"{scene.streams[0].stall():.1f} (of another key); its SAs were gone after {took:.1f}",
    )

    assert esp_spis(product, product.ip) == others
    assert not scene.wire.tcp(3260, scene.since), scene.wire.summary(scene.since)
    # within open-iscsi's patience the key comes back, and with it the session
    write_key(product, "ip6")
    scene.settle()
    assert esp_spis(product, product.ip) == others
    assert_only_esp(scene.wire, scene.since, product.ip6, scene.target.ip6)


def test_a_flush_while_charon_is_away_is_repaired_before_charon_is_back(scene: Scene) -> None:
    """The one gap there is: neither policies nor guard, until the daemon has loaded its table again.

    How long it is and what passes in it is reported, not judged; afterwards nothing passes.
    """
    product = scene.product
    repaired = f"until {GUARDED}; do sleep 0.01; done"
    seconds = "date +%s.%N"

    product.run("systemctl stop strongswan", timeout=60, check=True)
    flush = f"nft flush ruleset; {seconds}; {repaired}; {seconds}"
    times = product.run("; ".join([flush] * 5), timeout=60, check=True).out.split()
    in_the_gaps = len(scene.wire.tcp(3260, scene.since))
    after = scene.wire.mark()
    product.run("systemctl start strongswan", timeout=60, check=True)
    scene.settle()

    gaps = [float(end) - float(start) for start, end in zip(times[::2], times[1::2], strict=True)]
    reported = (
        f"{max(gaps):.2f} at most in 5 gaps without policies and guard, with {in_the_gaps} clear frames"
    )
    report("the ruleset is flushed while charon is stopped", reported)
    assert not scene.wire.tcp(3260, after), scene.wire.summary(after)


LEAKS = {
    "charon is stopped": "systemctl stop strongswan",
    "the policies are flushed": "ip xfrm policy flush",
    "the connections are unloaded and their SAs end": (
        f"python3 -c {shlex.quote(UNLOAD)}; for ike in $(swanctl --list-sas --raw | grep -o 'uniqueid=[0-9]*'"
        " | sort -u); do swanctl --terminate --ike-id ${ike#*=} --force; done; true"
    ),
}


@pytest.mark.parametrize("fault", LEAKS if FULL else [*LEAKS][1:2])
def test_the_control_without_daemon_and_guard_the_same_faults_leave_both_sessions_unencrypted(
    scene: Scene, fault: str
) -> None:
    """Only the guard protects against faults that remove the policies; without it the recorder sees the leak."""
    product = scene.product

    product.run("systemctl stop iscsi-ipsecd && nft flush ruleset", timeout=60, check=True)
    product.run(LEAKS[fault], timeout=60, check=True)
    wait_until(
        lambda: scene.in_clear() == {product.ip, product.ip6}, 60, "both sessions' clear frames are seen"
    )

    product.run("systemctl start strongswan iscsi-ipsecd", timeout=120, check=True)
    scene.settle()


SEED = int(os.environ.get("VM_SEED", "1"))
ROUNDS = int(os.environ.get("VM_ROUNDS", "100"))


@only_full
def test_random_faults_one_after_the_other_change_nothing_for_good(scene: Scene) -> None:
    """VM_SEED makes it another run, VM_ROUNDS a shorter or longer one; a fault may hit the healing of the last."""
    dice = random.Random(SEED)  # noqa: S311  # a seed is the point
    done: list[str] = []
    longest = 0.0
    for _ in range(ROUNDS):
        # at times two at once
        faults = dice.sample(FAULTS, dice.choice((1, 1, 2)))
        done.append(" + ".join(map(str, faults)))
        scene.mark()
        try:
            for fault in faults:
                scene.product.run(fault.command, timeout=120)
            scene.settle()
            scene.assert_only_esp()
        except AssertionError as err:
            raise AssertionError(f"seed {SEED}, after {done}: {err}") from err
        longest = max(longest, *(stream.stall() for stream in scene.streams))
    report(f"{ROUNDS} random faults with seed {SEED}", f"{longest:.1f}")
