"""Every identity type in every mode: 48 sessions, judged at the far end.

4 identity types x {IKEv2, IKEv1 main, IKEv1 aggressive} x {transport, tunnel} x {PFS, none}.
A session takes about 25 s on an emulated CPU, so by default 12 of them run, in which every two
settings meet once; VM_FULL=1 runs all 48.

Address identities run over portals of their own IP version, names over both. The target pins
the identity with its type, so that a session that comes up proves what was sent; the rest is
read from its list of SAs and from its log.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.vm import farend, openiscsi
from tests.vm.machine import Machine
from tests.vm.wire import Wire

CONFIG = "/etc/iscsi-ipsec"
KEY = "matrix, not a secret: 00112233445566778899"
TARGET_ID = "array.test.vm"

IKES = ("IKEv2", "IKEv1 main", "IKEv1 aggressive")
FLAG_OF = {"IKEv1 main": "MAIN_MODE_ENABLED", "IKEv1 aggressive": "AGGRESSIVE_MODE_ENABLED"}
LOG_OF = {
    "IKEv2": "is initiating an IKE_SA",
    "IKEv1 main": "is initiating a Main Mode IKE_SA",
    "IKEv1 aggressive": "is initiating a Aggressive Mode IKE_SA",
}


@dataclass(frozen=True, slots=True)
class Combination:
    """One cell of the matrix."""

    id_type: str
    ike: str
    mode: str
    pfs: bool

    def __str__(self) -> str:
        return f"{self.id_type}-{self.ike.replace(' ', '_')}-{self.mode}-{'pfs' if self.pfs else 'nopfs'}"

    @property
    def over_ipv6(self) -> bool:
        """IPv6 for the IPv6 identity and for half of the names."""
        return self.id_type in ("ID_IPV6_ADDR", "ID_USER_FQDN")

    def identity(self, initiator: Machine) -> str:
        """The identity as text."""
        return {
            "ID_IPV4_ADDR": initiator.ip,
            "ID_IPV6_ADDR": initiator.ip6,
            "ID_FQDN": "db1.test.vm",
            "ID_USER_FQDN": "db1@test.vm",
        }[self.id_type]

    def pinned(self, initiator: Machine) -> str:
        """The same as strongSwan writes exactly this type."""
        prefix = {"ID_FQDN": "fqdn:", "ID_USER_FQDN": "userfqdn:"}.get(self.id_type, "")
        return prefix + self.identity(initiator)

    def flags(self) -> str:
        """The ISCSI_SECURITY_FLAGS that ask for it."""
        names = ["VALID", "IKE_IPSEC_ENABLED", f"{self.mode.upper()}_MODE_PREFERRED"]
        if self.ike in FLAG_OF:
            names.append(FLAG_OF[self.ike])
        if self.pfs:
            names.append("PFS_ENABLED")
        return json.dumps(names)


ID_TYPES = ("ID_IPV4_ADDR", "ID_FQDN", "ID_USER_FQDN", "ID_IPV6_ADDR")
MODES = ("transport", "tunnel")

EVERYTHING = [Combination(*cell) for cell in itertools.product(ID_TYPES, IKES, MODES, (True, False))]
SELECTION = [
    Combination(id_type, ike, MODES[(row + column) % 2], bool((row // 2 + column) % 2))
    for row, id_type in enumerate(ID_TYPES)
    for column, ike in enumerate(IKES)
]
MATRIX = EVERYTHING if os.environ.get("VM_FULL") else SELECTION


def test_in_the_selection_every_two_settings_meet() -> None:
    def pairs(cells: list[Combination]) -> set[tuple[object, object]]:
        return {
            pair
            for cell in cells
            for pair in itertools.combinations((cell.id_type, cell.ike, cell.mode, cell.pfs), 2)
        }

    assert pairs(SELECTION) == pairs(EVERYTHING)
    assert len(SELECTION) == 12


FAR_CONF = """
connections {{
    far {{
        version = {version}
        aggressive = {aggressive}
        local_addrs = {local}
        remote_addrs = {remote}
        proposals = {ike}
        local {{
            auth = psk
            id = fqdn:{target_id}
        }}
        remote {{
            auth = psk
            id = {peer}
        }}
        children {{
            iscsi {{
                mode = {mode}
                local_ts = dynamic[6/3260]
                remote_ts = dynamic[6]
                esp_proposals = {esp}
            }}
        }}
    }}
}}
secrets {{
    ike-far {{
        id = {peer}
        secret = "{key}"
    }}
}}
"""

SESSION = """
set -e
cat >{config}/psk.d/.matrix <<'END'
{key_file}
END
cat >{config}/portal.d/.matrix <<'END'
{portal_file}
END
chmod 600 {config}/psk.d/.matrix {config}/portal.d/.matrix
mv {config}/psk.d/.matrix {config}/psk.d/matrix.toml
mv {config}/portal.d/.matrix {config}/portal.d/matrix.toml
iscsi-ipsec wait --timeout 60 {portal}
iscsiadm -m node -T {iqn} -p {address} --login >/dev/null
for n in $(seq 100); do
    device=$(ls -d /sys/class/iscsi_session/*/device/target*/*:1/block/* 2>/dev/null | head -n 1)
    [ -b "/dev/${{device##*/}}" ] && break
    sleep 0.2
done
device=/dev/${{device##*/}}
dd if=/dev/urandom of=/root/sent bs=4k count=8 status=none
dd if=/root/sent of=$device bs=4k oflag=direct conv=fsync status=none
dd if=$device of=/root/received bs=4k count=8 iflag=direct status=none
cmp /root/sent /root/received
iscsi-ipsec verify >/root/verify
# 1 says that some portal has a problem, as the one of the combination before may have
iscsi-ipsec status --json || [ $? = 1 ]
"""


@pytest.fixture(scope="module")
def far_end(target: Machine) -> Iterator[Machine]:
    """The target, allowing aggressive mode with a key, and insisting on IPsec itself."""
    target.write(
        "/etc/strongswan.d/zz-aggressive.conf",
        "charon {\n    i_dont_care_about_security_and_use_aggressive_mode_psk = yes\n}\n",
    )
    target.run("systemctl restart strongswan", timeout=90, check=True)
    farend.guard(target)
    yield target
    farend.unguard(target)
    target.run("rm /etc/strongswan.d/zz-aggressive.conf")


@pytest.fixture(scope="module")
def product(installed: Machine, far_end: Machine) -> Iterator[Machine]:
    """The initiator with node records for both portals (made by hand: discovery has its own test)."""
    installed.run(f"rm -f {CONFIG}/*.d/*.toml")
    for address in (far_end.ip, far_end.ip6):
        where = f"-T {farend.IQN} -p {openiscsi.portal(address)}:3260,1"
        installed.run(f"iscsiadm -m node {where} -o new", check=True)
    yield installed
    openiscsi.forget_everything(installed)
    installed.run(f"rm -f {CONFIG}/*.d/*.toml")


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Rows of the table that ends the run."""
    rows: list[str] = []
    yield rows
    print(f"\n{len(rows)} of {len(MATRIX)} combinations:\n" + "\n".join(rows))


@pytest.mark.parametrize("wanted", MATRIX, ids=str)
def test_each_identity_in_each_mode_carries_a_session_as_asked(
    wanted: Combination, product: Machine, far_end: Machine, wire: Wire, table: list[str]
) -> None:
    near_ip, far_ip = (product.ip6, far_end.ip6) if wanted.over_ipv6 else (product.ip, far_end.ip)
    conf = FAR_CONF.format(
        version=2 if wanted.ike == "IKEv2" else 1,
        aggressive="yes" if wanted.ike == "IKEv1 aggressive" else "no",
        local=far_ip,
        remote=near_ip,
        ike=farend.IKE_PROPOSALS,
        esp=farend.ESP_PROPOSALS,
        target_id=TARGET_ID,
        peer=wanted.pinned(product),
        mode=wanted.mode,
        key=KEY,
    )
    farend.configure_charon(far_end, conf)
    since = far_end.run("date +%s").out.strip()
    mark = wire.mark()

    portal = f"{openiscsi.portal(far_ip)}:3260"
    script = SESSION.format(
        config=CONFIG,
        key_file=f'id_type = "{wanted.id_type}"\nid = "{wanted.identity(product)}"\nkey = "{KEY}"\n',
        portal_file=(
            f'portals = ["{portal}"]\npsk = "matrix"\nsecurity_flags = {wanted.flags()}\n'
            f'target_id = "{TARGET_ID}"\ntarget_id_type = "ID_FQDN"\n'
        ),
        portal=portal,
        address=openiscsi.portal(far_ip),
        iqn=farend.IQN,
    )
    try:
        done = product.run(script, timeout=150)
        assert done.rc == 0, f"{done}\n{farend.dump(far_end)}"
        row = next(r for r in json.loads(done.out)["portals"] if r["portal"] == portal)
        child = row["connection"] and row["child"]
        if wanted.ike == "IKEv2":
            # the first CHILD_SA of IKEv2 has no exchange of its own: only a rekeying shows PFS
            product.run(f"swanctl --rekey --child {child}", timeout=60, check=True)
            product.wait("test $(swanctl --list-sas --raw | grep -o 'state=REKEYED' | wc -l) = 0", timeout=30)
        raw = far_end.run("swanctl --list-sas --raw", timeout=30, check=True).out
        log = far_end.run(f"journalctl -u strongswan --since @{since} --no-pager -o cat", timeout=30).out
    finally:
        where = f"-T {farend.IQN} -p {openiscsi.portal(far_ip)}"
        product.run(f"iscsiadm -m node {where} --logout >/dev/null", timeout=60)

    assert row["protected"] is True
    assert (row["ike"], row["mode"], row["pfs"]) == (wanted.ike, wanted.mode, wanted.pfs)
    assert (row["identity"], row["identity_type"]) == (wanted.identity(product), wanted.id_type)
    seen = responder_view(raw)
    assert seen["version"] == ("2" if wanted.ike == "IKEv2" else "1"), raw
    assert seen["remote-id"] == wanted.identity(product), raw
    assert seen["mode"] == wanted.mode.upper(), raw
    assert bool(seen["child-dh"]) is wanted.pfs, raw
    assert LOG_OF[wanted.ike] in log
    clear = wire.tcp(3260, mark)
    assert not clear, f"{len(clear)} clear frames, first {clear[0]}"
    assert {near_ip, far_ip} <= {frame.source for frame in wire.esp(mark)}
    table.append(
        f"  {wanted.id_type:<13} {wanted.ike:<17} {wanted.mode:<10} "
        f"PFS {seen['child-dh'] or 'none':<11} {seen['child-encr']:<12} {'IPv6' if wanted.over_ipv6 else 'IPv4'}"
    )


def responder_view(raw: str) -> dict[str, str]:
    """What the responder's one IKE SA and its newest child say, from ``swanctl --list-sas --raw``."""
    ike, _, children = raw.partition("child-sas")
    newest = children.rpartition("state=INSTALLED")
    last = newest[0].rpartition("{")[2] + newest[2].partition("}")[0]

    def value(text: str, name: str) -> str:
        found = re.search(rf"(?:^|[ {{]){name}=([^ }}]*)", text)
        return found[1] if found else ""

    return {
        "version": value(ike, "version"),
        "remote-id": value(ike, "remote-id"),
        "mode": value(last, "mode"),
        "child-dh": value(last, "dh-group"),
        "child-encr": f"{value(last, 'encr-alg')}-{value(last, 'encr-keysize')}",
    }
