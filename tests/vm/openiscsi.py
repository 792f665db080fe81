"""The initiator's side of iSCSI, as an admin types it.

Its law: I/O stays small and direct.  Emulated ESP carries about a megabyte a second, and what
the page cache answers never crossed the wire.
"""

from __future__ import annotations

from tests.vm.farend import IQN
from tests.vm.machine import CommandFailed, Machine, Running, Timeout

SETTINGS = {
    # Longer than a restart of charon on a busy emulated CPU, shorter than a test's patience.
    "node.session.timeo.replacement_timeout": "60",
    "node.session.initial_login_retry_max": "4",
    "node.startup": "manual",
}


def portal(address: str) -> str:
    """Write an address as iscsiadm wants it."""
    return f"[{address}]" if ":" in address else address


def configure(initiator: Machine) -> None:
    """Set what later discoveries copy into their records."""
    for key, value in SETTINGS.items():
        initiator.run(f"sed -i -E 's|^#? ?{key} =.*|{key} = {value}|' /etc/iscsi/iscsid.conf")
    initiator.run("systemctl start iscsid.socket", check=True)


def discover(initiator: Machine, address: str) -> None:
    """Ask a portal for its targets."""
    found = initiator.run(f"iscsiadm -m discovery -t st -p {portal(address)}", timeout=90)
    if found.rc or IQN not in found.out:
        raise CommandFailed(f"discovery at {address}: {found}")


def login(initiator: Machine, address: str) -> str:
    """Log in at one portal; return the disk."""
    initiator.run(f"iscsiadm -m node -T {IQN} -p {portal(address)} --login", timeout=100, check=True)
    return disk(initiator, address)


def disk(initiator: Machine, address: str, timeout: float = 30) -> str:
    """Return the device that came with the session to a portal."""
    found = initiator.wait(
        "for connection in /sys/class/iscsi_connection/*; do\n"
        f'    [ "$(cat "$connection/persistent_address")" = "{address}" ] || continue\n'
        '    for block in "$connection"/device/../target*/*:1/block/*; do\n'
        '        [ -b "/dev/${block##*/}" ] && echo "/dev/${block##*/}" && exit 0\n'
        "    done\n"
        "done\n"
        "exit 1",
        timeout,
    )
    return found.out.strip()


def write_and_read_back(initiator: Machine, device: str, kib: int = 256, timeout: float = 60) -> None:
    """Write random bytes through to the disk and compare what it gives back."""
    initiator.run(
        "set -e\n"
        f"dd if=/dev/urandom of=/root/sent bs=1k count={kib} status=none\n"
        f"dd if=/root/sent of={device} bs=64k oflag=direct conv=fsync status=none\n"
        f"dd if={device} of=/root/received bs=64k count={(kib + 63) // 64} iflag=direct status=none\n"
        f"cmp -n {kib * 1024} /root/sent /root/received",
        timeout=timeout,
        check=True,
    )


def keep_busy(initiator: Machine, device: str, seconds: float) -> Running:
    """Read directly, block after block, for a while; ends with 0 unless a read failed.

    The number of reads done is the output.
    """
    return initiator.spawn(
        f"end=$(( $(date +%s) + {seconds:g} )); n=0\n"
        "while [ $(date +%s) -lt $end ]; do\n"
        f"    dd if={device} of=/dev/null bs=4k count=16 skip=$(( n % 64 )) iflag=direct"
        " status=none || exit 1\n"
        "    n=$(( n + 1 ))\n"
        "done\n"
        "echo $n",
        timeout=seconds + 60,
    )


def give_up_after(initiator: Machine, seconds: int) -> None:
    """Let I/O of the running sessions fail this long after their connection did."""
    initiator.run(
        f"for tmo in /sys/class/iscsi_session/*/recovery_tmo; do echo {seconds} >$tmo; done", check=True
    )


def sessions(initiator: Machine) -> list[str]:
    """Return iscsiadm's line for each session."""
    return initiator.run("iscsiadm -m session", timeout=60).out.splitlines()


def forget_everything(initiator: Machine) -> None:
    """End all sessions and delete all records."""
    initiator.run("iscsiadm -m node --logoutall=all", timeout=100)
    if left := sessions(initiator):
        raise Timeout(f"sessions would not end: {left}")
    initiator.run("iscsiadm -m node -o delete; iscsiadm -m discoverydb -t st -o delete")
    initiator.run(
        "rm -rf /etc/iscsi/nodes /etc/iscsi/send_targets /var/lib/iscsi/nodes /var/lib/iscsi/send_targets"
    )
