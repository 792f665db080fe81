"""Builds the vagrant box that the suite boots when the public one cannot be had.

Its law: everything a VM will ever need is in the image, because the VMs have no network
but the one under test.  The kernel and the initrd lie beside the box, so that QEMU loads
them itself and the image needs no boot loader.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Do = Callable[[Sequence[str | Path]], None]

SUITE = os.environ.get("VM_SUITE") or "bookworm"
PREFIX = "iscsi-ipsec-vm-"


def _words(text: str) -> list[str]:
    return text.split()


# The product's own dependencies are here too: `dpkg -i` must work without a network.
PACKAGES = _words("""
    systemd-sysv dbus udev kmod iproute2 iputils-ping netbase procps tcpdump nftables
    openssh-server sudo rsync less ca-certificates
    charon-systemd strongswan-swanctl libcharon-extra-plugins libstrongswan-extra-plugins
    libstrongswan-standard-plugins open-iscsi tgt fio e2fsprogs
    python3 python3-systemd python3-nftables libnftables1 linux-image-cloud-amd64 swtpm
""")

# What Libreswan's programs are linked with, and the certutil that makes its (empty) database:
# in the VM that takes half a minute.
LIBRESWAN_NEEDS = _words("""
    libnss3-tools libaudit1 libcap-ng0 libcrypt1 libnspr4 libnss3 libpam0g libselinux1
    libsystemd0 libunbound8
""")

# Of these the rest: libraries whose names differ from release to release, the TPM's first.
NAMED_BY_RELEASE = {
    "bookworm": _words("""
        libtss2-esys-3.0.2-0 libtss2-rc0
        libcurl3-nss libevent-core-2.1-7 libevent-pthreads-2.1-7 libldap-2.5-0 libldns3
    """),
    "trixie": _words("""
        libtss2-esys-3.0.2-0t64 libtss2-rc0t64
        libcurl3t64-gnutls libevent-core-2.1-7t64 libevent-pthreads-2.1-7t64 libldap2 libldns3t64
    """),
}

# Libreswan's package conflicts with strongSwan's, though no file of the two is the same and only
# one of them runs at a time: so it is unpacked beside. tar, unlike dpkg-deb, leaves /lib a link.
LIBRESWAN_HOOK = """
    cd "$1/tmp"
    apt-get download libreswan
    dpkg-deb --fsys-tarfile libreswan_*.deb | tar -x --keep-directory-symlink -C "$1"
    rm libreswan_*.deb
    chroot "$1" ipsec checknss
"""

# What would wake up in the middle of a measurement, or lengthen each boot of an emulated CPU.
MASKED = _words("""
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer
    fstrim.timer logrotate.timer e2scrub_reap.service systemd-timesyncd.service
    getty@tty1.service serial-getty@ttyS0.service systemd-pstore.service
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount
    sys-fs-fuse-connections.mount sys-kernel-config.mount
""")

# The initrd finds the root disk and does nothing else: unpacking drivers takes seconds, too.
INITRD_HOOK = """
    mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
    echo MODULES=list >"$1/etc/initramfs-tools/conf.d/suite"
    printf "virtio_pci\\nvirtio_blk\\next4\\n" >"$1/usr/share/initramfs-tools/modules.d/suite"
"""

# Where vagrant keeps the key that every box lets in: Debian's package, HashiCorp's package.
VAGRANT_HOMES = (Path("/usr/share/rubygems-integration"), Path("/opt/vagrant"))

FILES = {
    "etc/fstab": "/dev/vda / ext4 noatime 0 1\n",
    "etc/hostname": "box\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/resolv.conf": "",
    "etc/network/interfaces": "",
    "etc/systemd/network/10-control.network": (
        "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
        "[DHCPv4]\nClientIdentifier=mac\nUseDNS=no\n"
    ),
    "etc/systemd/journald.conf.d/suite.conf": (
        "[Journal]\nStorage=persistent\nRateLimitBurst=0\nRateLimitIntervalSec=0\n"
    ),
    "etc/systemd/system.conf.d/suite.conf": "[Manager]\nDefaultTimeoutStartSec=300s\nDefaultTimeoutStopSec=60s\n",
    "etc/sudoers.d/vagrant": "vagrant ALL=(ALL) NOPASSWD: ALL\n",
    # Everything that costs seconds on an emulated CPU and proves nothing here.
    "etc/ssh/sshd_config.d/suite.conf": (
        "UseDNS no\nPrintMotd no\nPrintLastLog no\nPasswordAuthentication no\nMaxSessions 100\n"
    ),
}

DISK_SIZE = "3G"
VIRTUAL_SIZE_GB = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A built box and the kernel that boots it."""

    name: str
    archive: Path
    kernel: Path
    initrd: Path


def ensure(cache: Path, say: Callable[[str], None]) -> Box:
    """Return the box of this recipe, building it unless the cache has it."""
    home = cache / f"box-{_recipe_hash()}"
    box = Box(
        name=PREFIX + _recipe_hash(),
        archive=home / "package.box",
        kernel=home / "vmlinuz",
        initrd=home / "initrd.img",
    )
    if not (home / "complete").exists():
        say("building the box (a minute or two, once)")
        for former in cache.glob("box-*"):
            shutil.rmtree(former)
        home.mkdir(parents=True)
        _build(home)
        (home / "complete").touch()
    return box


def _recipe_hash() -> str:
    return hashlib.sha256(SUITE.encode() + Path(__file__).read_bytes()).hexdigest()[:12]


def _build(home: Path) -> None:
    with (
        (home / "build.log").open("wb") as log,
        tempfile.TemporaryDirectory(dir=home, prefix="root-") as scratch,
    ):

        def do(argv: Sequence[str | Path]) -> None:
            done = subprocess.run(
                [str(arg) for arg in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            if done.returncode:
                tail = (home / "build.log").read_text(errors="replace")[-3000:]
                raise SystemExit(f"vm: {argv[0]} failed ({home}/build.log):\n{tail}")

        root = Path(scratch) / "root"
        do(
            [
                "mmdebstrap",
                "--variant=minbase",
                "--format=directory",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                "--include=" + ",".join([*PACKAGES, *LIBRESWAN_NEEDS, *NAMED_BY_RELEASE[SUITE]]),
                "--essential-hook=" + INITRD_HOOK,
                "--customize-hook=" + LIBRESWAN_HOOK,
                SUITE,
                root,
                *_sources(),
            ]
        )
        _configure(root, do)
        shutil.copy(next(root.glob("boot/vmlinuz-*")), home / "vmlinuz")
        shutil.copy(next(root.glob("boot/initrd.img-*")), home / "initrd.img")
        for spare in (*root.glob("boot/*"), *root.glob("var/cache/apt/*.bin")):
            spare.unlink()
        raw, qcow2 = Path(scratch) / "disk.raw", Path(scratch) / "box.img"
        do(["mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", root, raw, DISK_SIZE])
        do(["qemu-img", "convert", "-O", "qcow2", raw, qcow2])
        _pack(home / "package.box", qcow2, Path(scratch))


def _sources() -> list[str]:
    """Name the Debian archives that this machine's own apt uses, so that mirrors are kept."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(COMPONENT)"],
        capture_output=True,
        text=True,
    ).stdout
    rows = (row.split("|") for row in sorted(set(listed.split())))
    archives = [
        (uri, codename)
        for origin, codename, uri, component in rows
        if origin == "Debian" and component == "main"
    ]
    same = [f"deb {uri} {codename} main" for uri, codename in archives if codename.startswith(SUITE)]
    # of another release the plain archive has to do, without its updates
    return same or [f"deb {uri} {SUITE} main" for uri, codename in archives if "-" not in codename]


def _configure(root: Path, do: Do) -> None:
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "etc/sudoers.d/vagrant").chmod(0o440)
    do(["chroot", root, "useradd", "--create-home", "--shell", "/bin/bash", "vagrant"])
    keys = root / "home/vagrant/.ssh/authorized_keys"
    keys.parent.mkdir(mode=0o700)
    keys.write_text(_insecure_public_key())
    keys.chmod(0o600)
    do(["chroot", root, "chown", "-R", "vagrant:vagrant", "/home/vagrant/.ssh"])
    do(["chroot", root, "passwd", "--delete", "root"])
    do(["chroot", root, "systemctl", "enable", "systemd-networkd", "ssh"])
    do(["chroot", root, "systemctl", "disable", "tgt"])  # only the target serves
    do(["chroot", root, "systemctl", "mask", *MASKED])
    (root / "etc/machine-id").write_text("")  # each VM makes one of its own


def _insecure_public_key() -> str:
    for home in VAGRANT_HOMES:
        for path in home.glob("**/keys/vagrant.pub"):
            return path.read_text()
    raise SystemExit("vm: vagrant's public key (keys/vagrant.pub) was not found")


def _pack(archive: Path, qcow2: Path, scratch: Path) -> None:
    metadata = scratch / "metadata.json"
    metadata.write_text(f'{{"provider": "libvirt", "format": "qcow2", "virtual_size": {VIRTUAL_SIZE_GB}}}\n')
    partial = archive.with_suffix(".partial")
    with tarfile.open(partial, "w") as tar:
        tar.add(metadata, "metadata.json")
        tar.add(qcow2, "box.img")
    partial.replace(archive)
