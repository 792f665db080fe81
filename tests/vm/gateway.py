"""The target behind a gateway: a namespace of the target VM serves the disk, the VM itself forwards.

Its law: nothing but the gateway's own rules keeps clear text from crossing it, and none of it is
the product's.
"""

from __future__ import annotations

from tests.vm.farend import DISK, IQN
from tests.vm.machine import Machine

PORTAL = "10.99.0.20"
NETWORK = "10.99.0.0/24"

# Forwarded packets pass neither of the chains that guard a host.
GUARD = """
table inet by_hand_gateway {
    chain forward {
        type filter hook forward priority -150;
        oifname inside0 tcp dport 3260 meta ipsec missing counter drop
        iifname inside0 tcp sport 3260 rt ipsec missing counter drop
    }
}
"""

OPEN = f"""
set -e
ip netns add inside
ip link add inside0 type veth peer name eth0 netns inside
ip address add 10.99.0.1/24 dev inside0
ip link set inside0 up
ip -n inside link set lo up
ip -n inside address add {PORTAL}/24 dev eth0
ip -n inside link set eth0 up
ip -n inside route add default via 10.99.0.1
sysctl -q -w net.ipv4.ip_forward=1
nft -f /etc/by-hand-gateway.nft
systemd-run -q --unit=tgtd-inside -p KillSignal=SIGKILL ip netns exec inside tgtd -f -C 9
tgt="tgtadm -C 9 --lld iscsi"
for n in $(seq 100); do
    $tgt --op show --mode sys >/dev/null 2>&1 && break
    sleep 0.2
done
$tgt --op new --mode target --tid 1 -T {IQN}
$tgt --op new --mode logicalunit --tid 1 --lun 1 -b {DISK}
$tgt --op bind --mode target --tid 1 -I ALL
"""

CLOSE = """
systemctl stop tgtd-inside
ip netns delete inside
sysctl -q -w net.ipv4.ip_forward=0
nft delete table inet by_hand_gateway
"""


def open_gateway(target: Machine) -> None:
    """Serve the disk at PORTAL, which is behind the target VM and not on the wire."""
    target.write("/etc/by-hand-gateway.nft", GUARD)
    target.run(OPEN, timeout=90, check=True)


def close_gateway(target: Machine) -> None:
    """Take it away again."""
    target.run(CLOSE, timeout=60)
