"""The guard in the kernel: inside a portal's own SA and nowhere else, whatever else the host's IPsec and routing do.

Only here can it be shown what passes inside ESP; tests/real shows what is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm import farend, openiscsi
from tests.vm.conftest import Tables
from tests.vm.farend import Peer
from tests.vm.full import only_full
from tests.vm.machine import Machine, wait_until
from tests.vm.test_faults import UPGRADED_CHARON
from tests.vm.test_first_session import CONFIG, esp_spis, policy
from tests.vm.wire import Wire

KEY = "the guard's portal, not a secret: 0123456789"
SITE_KEY = "the site's VPN, not a secret: 9876543210"

TABLE = "nft list table inet iscsi_ipsec >/dev/null 2>&1"
# Direct reads as large as they come: what a far end has in hand when its SA goes.
READ = (
    "end=$(( $(date +%s) + {seconds} )); while [ $(date +%s) -lt $end ]; do"
    " dd if={device} of=/dev/null bs=512k count=8 iflag=direct status=none || exit 1; done"
)


def site(near: Machine, far: Machine, mode: str, *, ends: tuple[str, str] = ("site1", "site2")) -> Peer:
    """A VPN for everything between the two hosts, which somebody else has in the same charon."""
    return Peer(
        name="site", local=near.ip, remote=far.ip, key=SITE_KEY, mode=mode, local_id=f"{ends[0]}.lab",
        remote_id=f"{ends[1]}.lab", local_ts=f"{near.ip}/32", remote_ts=f"{far.ip}/32",
    )  # fmt: skip


def write_key(machine: Machine) -> None:
    text = f'id_type = "ID_IPV4_ADDR"\nid = "{machine.ip}"\nkey = "{KEY}"\n'
    machine.write(f"{CONFIG}/psk.d/own.toml", text, 0o600)
    machine.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)


def opens(machine: Machine, address: str, port: int = 3260) -> bool:
    """Whether a TCP connection comes up, with time for an SA to be negotiated."""
    return machine.run(f"timeout 12 bash -c '</dev/tcp/{address}/{port}'", timeout=30).rc == 0


def reach(machine: Machine, address: str, how: str, port: int = 3260) -> None:
    """Return when a connection comes up: an SA may have to be negotiated, on an emulated CPU."""
    wait_until(lambda: opens(machine, address, port), 60, f"{address}:{port} is reached {how}")


@pytest.fixture(scope="module")
def product(ready: Machine, target: Machine) -> Iterator[Machine]:
    """The initiator with a policy for the target's portal; the target has a guard and both connections."""
    own = Peer(name="far", local=target.ip, remote=ready.ip, key=KEY)
    farend.configure_charon(
        target, farend.swanctl_conf(own, site(target, ready, "tunnel", ends=("site2", "site1")))
    )
    farend.guard(target)
    ready.write(f"{CONFIG}/portal.d/san.toml", policy(target.ip), 0o600)
    write_key(ready)
    yield ready
    ready.run("systemctl start strongswan iscsi-ipsecd; nft delete table ip nat", timeout=90)
    openiscsi.forget_everything(ready)
    ready.run(f"rm -f {CONFIG}/*.d/*.toml")
    farend.configure_charon(ready, "")
    farend.unguard(target)


@pytest.fixture
def session(product: Machine, target: Machine) -> Iterator[str]:
    """The disk behind a protected session."""
    openiscsi.discover(product, target.ip)
    yield openiscsi.login(product, target.ip)
    openiscsi.forget_everything(product)


@pytest.mark.parametrize("mode", [pytest.param("tunnel", marks=only_full), "transport"])
def test_a_vpn_between_the_same_hosts_is_no_substitute_for_the_portals_own_sa(
    product: Machine, target: Machine, wire: Wire, mode: str
) -> None:
    """With its key removed a portal was reached inside any ESP of the host."""
    own = Peer(name="far", local=target.ip, remote=product.ip, key=KEY)
    farend.configure_charon(
        target, farend.swanctl_conf(own, site(target, product, mode, ends=("site2", "site1")))
    )
    farend.configure_charon(product, farend.swanctl_conf(site(product, target, mode)))
    reach(product, target.ip, "inside its own SA")
    product.run(f"rm {CONFIG}/psk.d/own.toml", check=True)
    product.wait("swanctl --list-conns | grep -q '^iscsi-ipsec' && exit 1; exit 0")
    product.run("swanctl --initiate --child iscsi --ike site --timeout 30", timeout=60, check=True)
    mark = wire.mark()

    reach(product, target.ip, "inside the VPN", 22)
    assert not opens(product, target.ip)
    assert product.run("iscsi-ipsec verify", timeout=60).rc in (0, 1)

    # the control: without the guard the VPN carries the portal as well
    product.run("systemctl stop iscsi-ipsecd && nft delete table inet iscsi_ipsec", check=True)
    reach(product, target.ip, "inside the VPN")
    product.run("systemctl start iscsi-ipsecd", timeout=90, check=True)
    assert not opens(product, target.ip)

    write_key(product)
    reach(product, target.ip, "inside its own SA beside the VPN")
    proven = product.run("iscsi-ipsec verify", timeout=60)
    assert proven.rc == 0, proven
    assert not wire.tcp(3260, since=mark)


@only_full
def test_the_reqid_stays_through_rekeys_and_restarts(product: Machine, target: Machine) -> None:
    write_key(product)
    row = "iscsi-ipsec status --json | grep -oP '\"reqid\": \\K[0-9]+' | sort -u"
    reach(product, target.ip, "inside its own SA")
    (reqid,) = product.run(row, check=True).out.split()
    for change in (
        "swanctl --rekey --child $(swanctl --list-sas | grep -oP '^  \\Kiscsi-ipsec-[^:]+' | head -n1)",
        "swanctl --rekey --ike iscsi-ipsec-10.32.60.20-3260",
        "systemctl restart strongswan",
        "systemctl restart iscsi-ipsecd",
    ):
        product.run(change, timeout=90, check=True)
        reach(product, target.ip, f"after: {change}")
        shown = product.run("ip xfrm policy | grep -A3 'dport 3260'", check=True).out
        assert f"reqid {reqid} " in shown, change


@only_full
def test_packets_that_a_translation_sends_to_the_portal_pass_the_guard_too(
    product: Machine, target: Machine, wire: Wire
) -> None:
    product.run(
        "nft 'table ip nat { chain out { type nat hook output priority -100;"
        f" tcp dport 3999 dnat to {target.ip}:3260; }}; }}'",
        check=True,
    )
    reach(product, target.ip, "inside its own SA", 3999)
    product.run("systemctl stop strongswan", timeout=90, check=True)
    mark = wire.mark()
    assert not opens(product, target.ip, 3999)
    assert not wire.tcp(3260, since=mark, sent_by=frozenset({product.ip}))
    product.run("systemctl stop iscsi-ipsecd && nft delete table inet iscsi_ipsec", check=True)
    opens(product, target.ip, 3999)
    assert wire.tcp(3260, since=mark, sent_by=frozenset({product.ip})), "the control: it would be open"
    product.run("systemctl start strongswan iscsi-ipsecd && nft delete table ip nat", timeout=120, check=True)


@only_full
def test_a_bare_far_end_sends_nothing_unencrypted_when_charon_stops_restarts_or_dies(
    product: Machine, target: Machine, wire: Wire, session: str, tables: Tables
) -> None:
    """It hears neither a DELETE nor INITIAL_CONTACT, so it goes on encrypting."""
    farend.unguard(target)
    product.run("systemctl is-active iscsi-ipsec-ike-hold", check=True)
    stop = "systemctl stop strongswan; sleep 5; systemctl start strongswan"
    kill = (
        "was=$(systemctl show -p MainPID strongswan); systemctl kill -s KILL strongswan;"
        " until systemctl -q is-active strongswan && [ $(systemctl show -p MainPID strongswan) != $was ];"
        " do sleep 0.2; systemctl start strongswan; done"
    )
    sent: dict[str, int] = {}

    def strike(name: str, fault: str) -> None:
        """Count what the target sends unencrypted from the fault until the reads are over."""
        busy = product.spawn(READ.format(device=session, seconds=40), timeout=150)
        wait_until(lambda: bool(wire.esp(since=wire.mark() - 3)), 30, "blocks are read")
        mark = wire.mark()
        product.run(fault, timeout=120, check=True)
        assert busy.result().rc == 0, name
        assert not wire.tcp(3260, since=mark, sent_by=frozenset({product.ip})), name
        sent[name] = len(wire.tcp(3260, since=mark, sent_by=frozenset({target.ip})))

    try:
        # first the control: later faults leave SAs at the target that go on encrypting after one of them is deleted
        farend.end_sas(target)
        product.run(
            "systemctl stop iscsi-ipsec-ike-hold && nft flush set inet iscsi_ipsec ike_held", check=True
        )
        strike("control: stopped for 5 s without the hold", stop)
        product.run("systemctl start iscsi-ipsec-ike-hold", check=True)
        assert sent["control: stopped for 5 s without the hold"] > 0

        strike("restarted", "systemctl restart strongswan")
        strike("stopped for 5 s", stop)
        strike("killed", kill)
        strike("upgraded", UPGRADED_CHARON)
        assert not any(count for name, count in sent.items() if not name.startswith("control")), sent
    finally:
        farend.guard(target)
        tables["frames that a bare far end sent unencrypted"] = [
            f"{name}: {count}" for name, count in sent.items()
        ]


def test_a_package_is_not_removed_under_a_managed_session(
    product: Machine, target: Machine, wire: Wire, session: str
) -> None:
    before = esp_spis(product)
    pid = product.run("systemctl show -p MainPID iscsi-ipsecd", check=True).out
    mark = wire.mark()
    for command in (
        "dpkg -r iscsi-ipsec",
        "apt-get -y remove iscsi-ipsec",
        "apt-get -y remove charon-systemd",
    ):
        refused = product.run(f"DEBIAN_FRONTEND=noninteractive {command}", timeout=180)
        assert refused.rc != 0, command
        assert "remove-with-sessions" in refused.out + refused.err, refused
    assert "Remv iscsi-ipsec" not in product.run("apt-get -s remove charon-systemd", timeout=60).out
    assert product.run("systemctl show -p MainPID iscsi-ipsecd", check=True).out == pid
    assert esp_spis(product) == before
    openiscsi.write_and_read_back(product, session)
    assert not wire.tcp(3260, since=mark)
    assert "ok installed" in product.run("dpkg -s iscsi-ipsec", check=True).out


@only_full
def test_open_all_opens_everything_and_its_way_back_closes_it_again(
    product: Machine, target: Machine, wire: Wire, session: str
) -> None:
    farend.unguard(target)
    # one that keeps an older SA goes on encrypting, into nothing, until its DPD ends that
    farend.end_sas(target)
    reach(product, target.ip, "inside its own SA")
    mark = wire.mark()
    said = product.run("iscsi-ipsec open-all --yes", timeout=120, check=True).out
    (back,) = [line.partition(": ")[2] for line in said.splitlines() if line.startswith("go back with: ")]
    try:
        assert "UNENCRYPTED from now on" in said, said
        openiscsi.write_and_read_back(product, session)
        assert wire.tcp(3260, since=mark), "it is open"
        assert product.run("systemctl is-active iscsi-ipsecd").out.strip() != "active"
        assert product.run("systemctl start iscsi-ipsecd", timeout=60).rc != 0, (
            "nothing starts it by accident"
        )
    finally:
        product.run(back, timeout=120, check=True)
    farend.guard(target)
    reach(product, target.ip, "inside its own SA")
    mark = wire.mark()
    openiscsi.write_and_read_back(product, session)
    assert not wire.tcp(3260, since=mark)
    assert product.run("iscsi-ipsec verify", timeout=60).rc == 0


def test_flushing_the_ruleset_while_charon_is_stopped_leaves_a_short_gap(
    product: Machine, target: Machine, wire: Wire, session: str, tables: Tables
) -> None:
    """The one window that is left: no table can stand a flush. It ends by itself, and is measured."""
    product.run("systemctl stop strongswan", timeout=90, check=True)
    busy = product.spawn(f"timeout 30 dd if={session} of=/dev/null bs=64k count=4 iflag=direct", timeout=60)
    frames = []
    for _ in range(5):
        mark = wire.mark()
        product.run(f"nft flush ruleset; until {TABLE}; do :; done", timeout=60, check=True)
        frames.append(len(wire.tcp(3260, since=mark, sent_by=frozenset({product.ip}))))
    product.run("systemctl start strongswan", timeout=90, check=True)
    busy.result()
    tables["clear frames in each of 5 flushes of the ruleset while charon was stopped"] = [str(frames)]
    assert max(frames) <= 10, frames


@only_full
def test_a_var_that_fails_to_mount_opens_nothing(product: Machine, target: Machine, wire: Wire) -> None:
    """Neither the guard's unit nor the daemon starts; the files in /etc close what they name."""
    openiscsi.discover(product, target.ip)
    product.run("iscsiadm -m node -o update -n node.startup -v automatic", check=True)
    missing = "/dev/disk/by-label/nowhere /var/lib/iscsi-ipsec ext4 nofail,x-systemd.device-timeout=2s 0 0"
    product.run(f"echo '{missing}' >>/etc/fstab", check=True)
    mark = wire.mark()
    try:
        product.reboot()
        state = product.run("systemctl is-active iscsi-ipsec-guard iscsi-ipsecd").out.split()
        assert "active" not in state, state
        product.wait(TABLE)
        assert not opens(product, target.ip)
        assert not openiscsi.sessions(product)
        assert not wire.tcp(3260, since=mark, sent_by=frozenset({product.ip}))
    finally:
        product.run("sed -i /nowhere/d /etc/fstab && iscsiadm -m node -o update -n node.startup -v manual")
        product.reboot()
    reach(product, target.ip, "with /var, as before")
