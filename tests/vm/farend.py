"""The target, set up by hand: tgt, a swanctl.conf and a guard, none of it the product's.

Its law: what the initiator's daemon is measured against must not come from that daemon.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.vm.machine import Machine, wait_until

IQN = "iqn.2026-01.test.vm:disk"
DISK = "/srv/disk.img"
DISK_MIB = 64

# A second address of the target, for a portal that no policy covers.
SECOND_IP = "10.32.60.21"

# Everything a careful initiator may propose; one suite per cipher family.
IKE_PROPOSALS = (
    "aes256gcm16-aes128gcm16-prfsha512-prfsha384-prfsha256"
    "-ecp384-ecp256-curve25519-modp4096-modp3072-modp2048,"
    "aes256-aes128-sha512-sha384-sha256-ecp384-ecp256-curve25519-modp4096-modp3072-modp2048"
)
ESP_PROPOSALS = (
    "aes256gcm16-aes128gcm16-ecp384-ecp256-curve25519-modp4096-modp3072-modp2048-esn-noesn,"
    "aes256gcm16-aes128gcm16-esn-noesn,"
    "aes256-aes128-sha512-sha384-sha256-ecp384-ecp256-curve25519-modp3072-modp2048-esn-noesn,"
    "aes256-aes128-sha512-sha384-sha256-esn-noesn"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One hand-written connection of swanctl.conf, seen from the machine that has it.

    The ids are the addresses unless something else is said.
    """

    name: str
    local: str
    remote: str
    key: str
    local_ts: str = "dynamic[6/3260]"
    remote_ts: str = "dynamic[6]"
    version: int = 2
    mode: str = "transport"
    start_action: str = "none"
    remote_id: str = ""
    local_id: str = ""

    def connection(self) -> str:
        """Render the connection."""
        return f"""
    {self.name} {{
        version = {self.version}
        local_addrs = {self.local}
        remote_addrs = {self.remote}
        proposals = {IKE_PROPOSALS}
        dpd_delay = 10s
        local {{
            auth = psk
            id = {self.local_id or self.local}
        }}
        remote {{
            auth = psk
            id = {self.remote_id or self.remote}
        }}
        children {{
            iscsi {{
                mode = {self.mode}
                local_ts = {self.local_ts}
                remote_ts = {self.remote_ts}
                esp_proposals = {ESP_PROPOSALS}
                start_action = {self.start_action}
            }}
        }}
    }}"""

    def secret(self) -> str:
        """Render the secret, owned by the peer's identity alone."""
        return f"""
    ike-{self.name} {{
        id = {self.remote_id or self.remote}
        secret = "{self.key}"
    }}"""


def swanctl_conf(*peers: Peer) -> str:
    """Render a whole swanctl.conf."""
    connections = "".join(peer.connection() for peer in peers)
    secrets = "".join(peer.secret() for peer in peers)
    return f"connections {{{connections}\n}}\nsecrets {{{secrets}\n}}\n"


def configure_charon(machine: Machine, conf: str) -> None:
    """Make this the machine's hand-written configuration, and end the SAs of the last one."""
    machine.write("/etc/swanctl/conf.d/by-hand.conf", conf, 0o600)
    machine.run("systemctl start strongswan", timeout=90, check=True)
    machine.run("swanctl --load-all --noprompt", check=True)
    end_sas(machine)


def end_sas(machine: Machine) -> None:
    """End all IKE SAs of the machine's charon."""
    for ike in sas(machine):
        machine.run(f"swanctl --terminate --ike-id {ike} --force --timeout 5")


def sas(machine: Machine) -> list[str]:
    """Return the ids of the IKE SAs that the machine's charon has."""
    listed = machine.run("swanctl --list-sas", timeout=30).out
    return [
        line.partition("#")[2].partition(",")[0]
        for line in listed.splitlines()
        if line and not line.startswith(" ") and "#" in line
    ]


def serve_disk(target: Machine) -> None:
    """Serve one disk on all of the target's addresses, also after a reboot."""
    target.run(f"[ -e {DISK} ] || truncate -s {DISK_MIB}M {DISK}", check=True)
    target.write("/etc/tgt/conf.d/disk.conf", f"<target {IQN}>\n    backing-store {DISK}\n</target>\n")
    target.run("systemctl enable tgt && systemctl restart tgt", timeout=90, check=True)
    target.wait("ss -Hltn 'sport = 3260' | grep -q . && tgtadm --op show --mode target | grep -q 'LUN: 1'")


GUARD = """
table inet by_hand
delete table inet by_hand
table inet by_hand {{
    chain output {{
        type filter hook output priority -150;
        ip saddr {ip} tcp sport 3260 rt ipsec missing counter drop
        ip6 saddr {ip6} tcp sport 3260 rt ipsec missing counter drop
    }}
    chain input {{
        type filter hook input priority -150;
        ip daddr {ip} tcp dport 3260 meta ipsec missing counter drop
        ip6 daddr {ip6} tcp dport 3260 meta ipsec missing counter drop
    }}
}}
"""


def guard(target: Machine) -> None:
    """Let the target insist on IPsec too, as a careful admin would.

    Without it the target retransmits unencrypted whenever the initiator deletes an SA, and the
    wire would not show whose fault a clear frame is.
    """
    target.write("/etc/by-hand.nft", GUARD.format(ip=target.ip, ip6=target.ip6))
    target.run("nft -f /etc/by-hand.nft", check=True)


def unguard(target: Machine) -> None:
    """Take the target's guard away, if there is one."""
    target.run("nft list tables | grep -q by_hand && nft delete table inet by_hand")


def logged_in_initiators(target: Machine) -> int:
    """Count the iSCSI sessions that the target has."""
    shown = target.run("tgtadm --lld iscsi --op show --mode target").out
    return shown.count("I_T nexus: ")


def wait_for_no_session(target: Machine, timeout: float = 60) -> None:
    """Wait until the target has forgotten every initiator."""
    wait_until(lambda: logged_in_initiators(target) == 0, timeout, "the target has no session left")


def dump(machine: Machine) -> str:
    """Return what helps to understand a failure."""
    commands = {
        "sas": "swanctl --list-sas",
        "kernel": "ip xfrm policy; ip -s xfrm state | head -60",
        "journal": "journalctl -b --no-pager -n 80",
    }
    return json.dumps({name: machine.run(cmd, timeout=30).out for name, cmd in commands.items()})
