"""iSCSI through ESP, side by side: unencrypted, by hand, and as the product sets it up (VM_BENCH=1).

Each way reads and writes the same disk in turns, so that whatever else the host does strikes all of
them. Ratios are to the connection written by hand. Nothing is asserted of times; that each way was
what it says is: unencrypted or not, ESP mode and cipher.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.vm import farend, openiscsi
from tests.vm.combination import CONFIG
from tests.vm.conftest import Tables, forget_files
from tests.vm.farend import Peer
from tests.vm.machine import Machine
from tests.vm.test_first_session import policy, portal_status
from tests.vm.wire import Wire

pytestmark = pytest.mark.skipif(not os.environ.get("VM_BENCH"), reason="a benchmark: make bench-vm")

KEY = "throughput, not a secret: 0123456789abcdef"
ROUNDS = 2
MIB = 4


@dataclass(frozen=True, slots=True)
class Way:
    """How the session is protected. ``policy`` None: not by the product."""

    name: str
    by_hand: bool = False
    policy: str | None = None
    reported: tuple[str, str] = ("", "")


def flags(mode: str) -> str:
    """Ask for an ESP mode, without PFS."""
    return f'security_flags = ["VALID", "IKE_IPSEC_ENABLED", "{mode}_MODE_PREFERRED"]\n'


CBC = 'esp_proposals = ["aes256-sha256"]\n'
GCM = 'esp_proposals = ["aes256gcm16"]\n'

BY_HAND = Way("by hand, AES-GCM, transport", by_hand=True)
WAYS = (
    BY_HAND,
    Way("unencrypted"),
    Way("product, AES-GCM, transport", policy=flags("TRANSPORT") + GCM, reported=("transport", "AES_GCM_16-256")),
    Way("product, AES-GCM, tunnel", policy=flags("TUNNEL") + GCM, reported=("tunnel", "AES_GCM_16-256")),
    Way(
        "product, AES-CBC, transport", policy=flags("TRANSPORT") + CBC, reported=("transport", "AES_CBC-256/HMAC_SHA2_256_128")
    ),
)  # fmt: skip

# Seconds of a whole write and a whole read, and the CPU's share in both (100: never idle).
MEASURE = """
idle() {{ awk '/^cpu / {{ print $5 + $6 }}' /proc/stat; }}
total() {{ awk '/^cpu / {{ for (i = 2; i <= 9; i++) n += $i; print n }}' /proc/stat; }}
i=$(idle) t=$(total) a=$(date +%s.%N)
dd if=/root/sent of={device} bs=256k oflag=direct conv=fsync status=none
b=$(date +%s.%N)
dd if={device} of=/dev/null bs=256k count={blocks} iflag=direct status=none
c=$(date +%s.%N)
awk "BEGIN {{ print $b - $a, $c - $b, 100 - 100 * ($(idle) - $i) / ($(total) - $t) }}"
"""


@pytest.fixture
def far_end(target: Machine, ready: Machine) -> Iterator[Machine]:
    """The target, which each way configures anew."""
    yield target
    farend.configure_charon(target, "")
    farend.configure_charon(ready, "")


def protect(ready: Machine, target: Machine, way: Way) -> None:
    """Set up one way."""
    forget_files(ready)
    mode = "tunnel" if way.reported[0] == "tunnel" else "transport"
    far = Peer(name="far", local=target.ip, remote=ready.ip, key=KEY, mode=mode)
    farend.configure_charon(target, farend.swanctl_conf(far))
    near = Peer(
        name="near", local=ready.ip, remote=target.ip, key=KEY,
        local_ts="dynamic[6]", remote_ts="dynamic[6/3260]", start_action="trap",
    )  # fmt: skip
    farend.configure_charon(ready, farend.swanctl_conf(near) if way.by_hand else "")
    if way.policy is not None:
        ready.write(f"{CONFIG}/psk.d/group.toml", f'group = true\nkey = "{KEY}"\n', 0o600)
        ready.write(f"{CONFIG}/portal.d/san.toml", policy(target.ip, flags=way.policy), 0o600)
        ready.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)


def test_throughput_side_by_side(ready: Machine, far_end: Machine, wire: Wire, tables: Tables) -> None:
    ready.run(f"dd if=/dev/urandom of=/root/sent bs=1M count={MIB} status=none", check=True)
    times: dict[Way, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            protect(ready, far_end, way)
            mark = wire.mark()
            openiscsi.discover(ready, far_end.ip)
            device = openiscsi.login(ready, far_end.ip)
            measured = ready.run(MEASURE.format(device=device, blocks=4 * MIB), timeout=120, check=True)
            times[way].append([float(number) for number in measured.out.split()])

            assert bool(wire.tcp(3260, mark)) is (way.policy is None and not way.by_hand)
            if way.policy is not None:
                sa = portal_status(ready, f"{far_end.ip}:3260")["sa"]
                assert (sa["mode"], sa["cipher"]) == way.reported
    ready.run("rm /root/sent")
    medians = {
        way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in times.items()
    }
    write, read, _ = medians[BY_HAND]
    tables["throughput, in MiB/s and as a ratio to the connection by hand"] = [
        f"  {way.name:<28} write {MIB / w:6.2f} ({write / w:4.2f} x)  read {MIB / r:6.2f} ({read / r:4.2f} x)  CPU {cpu:3.0f} %"
        for way, (w, r, cpu) in medians.items()
    ]
