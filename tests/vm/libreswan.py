"""Libreswan as the far end: another IKE implementation, and its report about the negotiated SA.

Its law: it is configured as the documentation says, which leaves algorithms and lifetimes to it, so that
what comes up is what two strangers agree on; and the facts about an SA are Libreswan's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.vm.combination import KEY, TARGET_ID, Combination
from tests.vm.machine import Machine

PAGE = Path(__file__).resolve().parents[2] / "docs/peers.md"

STATES = {
    "STATE_V2_ESTABLISHED_IKE_SA": "IKEv2",
    "STATE_MAIN_R3": "IKEv1 main",
    "STATE_AGGR_R2": "IKEv1 aggressive",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Libreswan's report about its only SA."""

    identity_type: str
    identity: str
    ike: str
    mode: str
    algorithms: str
    bytes: int


def documented(**values: str) -> str:
    """The connection that the documentation shows, with these values in it."""
    conf = PAGE.read_text().partition("```ipsec.conf\n")[2].partition("```")[0]
    for name, value in values.items():
        conf, changed = re.subn(rf"(?m)^(    {name})=.*$", rf"\1={value}", conf)
        assert changed == 1, f"{PAGE} sets {name} {changed} times"
    return conf


def spelled(wanted: Combination, initiator: Machine) -> str:
    """The initiator's identity as Libreswan writes exactly this type."""
    identity = wanted.identity(initiator)
    return f"@{identity}" if wanted.id_type == "ID_FQDN" else identity


def configure(target: Machine, initiator: Machine, wanted: Combination) -> None:
    """Take strongSwan's place with one connection, which allows what is wanted and nothing else."""
    local, remote = (target.ip6, initiator.ip6) if wanted.over_ipv6 else (target.ip, initiator.ip)
    peer = spelled(wanted, initiator)
    conf = documented(
        left=local,
        leftid=f"@{TARGET_ID}",
        right=remote,
        rightid=peer,
        type=wanted.mode,
        ikev2="insist" if wanted.ike == "IKEv2" else "no",
        ike="aes_gcm256-sha2_256;dh31" if wanted.ike == "IKEv2" else "aes256-sha2_256;dh14",
        aggressive="yes" if wanted.ike == "IKEv1 aggressive" else "no",
        pfs="yes" if wanted.pfs else "no",
    )
    target.write("/etc/ipsec.d/by-hand.conf", conf, 0o600)
    target.write("/etc/ipsec.d/by-hand.secrets", f'@{TARGET_ID} {peer} : PSK "{KEY}"\n', 0o600)
    target.run("systemctl stop strongswan; systemctl restart ipsec", timeout=150, check=True)
    # Type=notify reports that pluto runs; the connections come a moment later
    target.wait("ipsec status | grep -q '\"iscsi-db1\":.*policy: '")


def stop(target: Machine) -> None:
    """Give the place back."""
    target.run("systemctl stop ipsec; rm -f /etc/ipsec.d/by-hand.*", timeout=90)
    target.run("systemctl start strongswan", timeout=90, check=True)


def seen(target: Machine) -> Seen:
    """Read Libreswan's state, its traffic and its log."""
    status = target.run("ipsec whack --status", check=True).out
    traffic = target.run("ipsec whack --trafficstatus", check=True).out
    log = said(target)
    reported = re.findall(r"(?:authby=secret and|Peer ID is) (ID_\w+):? '@?([^']+)'", log)
    algorithms = re.findall(r"(?:established|rekeyed).* xfrm=([^\s}]+)", log)
    # "esp.SPI@ADDRESS ..." (over IPv6 "esp:"), and in tunnel mode "tun.0@ADDRESS" as well
    ends = re.search(r'"iscsi-db1" esp[.:].*', status)
    carried = re.search(r'"iscsi-db1".* inBytes=(\d+).* id=\'@?([^\']+)\'', traffic)
    states = [STATES[state] for state in re.findall(r"STATE_\w+", status) if state in STATES]
    assert reported, log
    assert algorithms, log
    assert ends, status
    assert states, status
    assert carried, traffic
    assert carried[2] == reported[-1][1], (traffic, reported)
    return Seen(
        identity_type=reported[-1][0],
        identity=reported[-1][1],
        ike=states[-1],
        mode="tunnel" if re.search(r" tun[.:]", ends[0]) else "transport",
        algorithms=algorithms[-1],
        bytes=int(carried[1]),
    )


def said(target: Machine) -> str:
    """Return the log of the Libreswan that runs now."""
    return target.run("journalctl _PID=$(systemctl show -P MainPID ipsec) --no-pager -o cat", timeout=30).out
