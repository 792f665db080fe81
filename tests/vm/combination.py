"""One identity, IKE version and mode, ESP mode and PFS or not; and the session that is asked for with it.

Its law: the initiator's side only, so that far ends of different makes are asked for the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.vm import openiscsi
from tests.vm.farend import IQN
from tests.vm.machine import Machine

CONFIG = "/etc/iscsi-ipsec"
KEY = "matrix, not a secret: 00112233445566778899"
TARGET_ID = "array.test.vm"

ID_TYPES = ("ID_IPV4_ADDR", "ID_FQDN", "ID_USER_FQDN", "ID_IPV6_ADDR")
IKES = ("IKEv2", "IKEv1 main", "IKEv1 aggressive")
MODES = ("transport", "tunnel")
FLAG_OF = {"IKEv1 main": "MAIN_MODE_ENABLED", "IKEv1 aggressive": "AGGRESSIVE_MODE_ENABLED"}


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
iscsi-ipsec wait --timeout 150 {portal}
iscsiadm -m node -T {iqn} -p {address}:3260,1 -o new >/dev/null  # by hand: discovery has its own test
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


def play(initiator: Machine, wanted: Combination, far_ip: str) -> dict[str, Any]:
    """Write the two files, log in, write, read, verify; return what `status` then says of the portal."""
    portal = f"{openiscsi.portal(far_ip)}:3260"
    script = SESSION.format(
        config=CONFIG,
        key_file=f'id_type = "{wanted.id_type}"\nid = "{wanted.identity(initiator)}"\nkey = "{KEY}"\n',
        portal_file=(
            f'portals = ["{portal}"]\npsk = "matrix"\nsecurity_flags = {wanted.flags()}\n'
            f'target_id = "{TARGET_ID}"\ntarget_id_type = "ID_FQDN"\n'
        ),
        portal=portal,
        address=openiscsi.portal(far_ip),
        iqn=IQN,
    )
    done = initiator.run(script, timeout=150, check=True)
    row: dict[str, Any] = next(r for r in json.loads(done.out)["portals"] if r["portal"] == portal)
    return row


REKEY = """
spi() {{ swanctl --list-sas --raw | grep -oE 'spi-in=[0-9a-f]+'; }}
before=$(spi)
swanctl --rekey --child {child} >/dev/null
for n in $(seq 100); do
    now=$(spi)
    [ "$now" != "$before" ] && [ "$(wc -l <<<"$now")" = 1 ] && exit 0
    sleep 0.2
done
swanctl --list-sas
exit 1
"""


def rekey(initiator: Machine, row: dict[str, Any]) -> None:
    """Renew the CHILD_SA: the first one of IKEv2 has no exchange of its own, so only this shows PFS."""
    initiator.run(REKEY.format(child=row["child"]), timeout=60, check=True)


def log_out(initiator: Machine, far_ip: str) -> None:
    """End the session."""
    where = f"-T {IQN} -p {openiscsi.portal(far_ip)}"
    initiator.run(f"iscsiadm -m node {where} --logout >/dev/null", timeout=60)
