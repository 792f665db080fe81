"""The paths of one instance, and the options that change them, for daemon and command."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

RELOAD_REQUEST = "reload-"
"""The prefix of requests that are deleted at the end of a pass that looked at everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Folders and sockets of one instance; several instances can run side by side."""

    config_dir: str = "/etc/iscsi-ipsec"
    runtime_dir: str = "/run/iscsi-ipsec"
    vendor_dir: str = "/usr/lib/iscsi-ipsec"
    state_dir: str = "/var/lib/iscsi-ipsec"
    vici_socket: str = ""
    nodes_dirs: tuple[str, ...] = ()
    sysfs_dir: str = "/sys"

    @property
    def settings_file(self) -> str:
        """The admin's settings."""
        return f"{self.config_dir}/iscsi-ipsecd.toml"

    @property
    def psk_folders(self) -> tuple[str, ...]:
        """Folders of key files, the strongest first (no keys belong under /usr)."""
        return (f"{self.config_dir}/psk.d", f"{self.runtime_dir}/psk.d")

    @property
    def portal_folders(self) -> tuple[str, ...]:
        """Folders of portal policies, the strongest first."""
        return tuple(f"{base}/portal.d" for base in (self.config_dir, self.runtime_dir, self.vendor_dir))

    @property
    def status_file(self) -> str:
        """The daemon's status for people and tools."""
        return f"{self.runtime_dir}/status.json"

    @property
    def metrics_file(self) -> str:
        """The status as numbers, for node_exporter's textfile collector."""
        return f"{self.runtime_dir}/metrics.prom"

    @property
    def earlier_file(self) -> str:
        """The portals that were closed in this boot, and the sessions that are older than that."""
        return f"{self.runtime_dir}/earlier.json"

    @property
    def lock_file(self) -> str:
        """Locked by the running daemon."""
        return f"{self.runtime_dir}/daemon.lock"

    @property
    def requests_dir(self) -> str:
        """The folder in which the command leaves its requests to the daemon."""
        return f"{self.runtime_dir}/requests"

    @property
    def names_socket(self) -> str:
        """Where ``iscsi-ipsec-names.socket`` listens."""
        return f"{self.runtime_dir}/names"

    @property
    def store_file(self) -> str:
        """Last good files and managed portals."""
        return f"{self.state_dir}/state.db"

    @property
    def replaced_folders(self) -> tuple[str, ...]:
        """Where key files that were replaced are kept for a day: persistent ones, and those of this boot."""
        return (f"{self.state_dir}/replaced", f"{self.runtime_dir}/replaced")

    @property
    def guard_file(self) -> str:
        """The guard's table, loaded at boot by its own unit."""
        return f"{self.state_dir}/guard.nft"


NODES_DIRS = ("/etc/iscsi", "/var/lib/iscsi")
"""Where open-iscsi has its databases, by default."""

OPTIONS = (
    "--config-dir", "--runtime-dir", "--vendor-dir", "--state-dir", "--vici-socket", "--sysfs-dir", "--nodes-dir",
)  # fmt: skip
"""The options that :func:`add_options` adds; each takes a value."""


def add_options(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Add the options that :func:`paths_of` reads.

    ``again``: behind a verb, where absence must not reset them and the help leaves them out.
    """
    base = Paths()
    group = parser.add_argument_group(None if again else "places")
    texts = (
        f"the admin's files ({base.config_dir})",
        f"status, and files that need not survive a reboot ({base.runtime_dir})",
        f"policies from packages ({base.vendor_dir})",
        f"last good files and the guard ({base.state_dir})",
        "charon's VICI socket (where strongSwan has it)",
        f"where the kernel shows iSCSI sessions ({base.sysfs_dir})",
        "open-iscsi's database; may be repeated (/etc/iscsi and /var/lib/iscsi)",
    )
    defaults = (base.config_dir, base.runtime_dir, base.vendor_dir, base.state_dir, "", base.sysfs_dir, None)
    for option, default, text in zip(OPTIONS, defaults, texts, strict=True):
        group.add_argument(
            option,
            action="append" if option == "--nodes-dir" else "store",
            default=argparse.SUPPRESS if again else default,
            metavar="PATH",
            help=argparse.SUPPRESS if again else text,
        )


def paths_of(arguments: argparse.Namespace) -> Paths:
    """The places that the options name."""
    return Paths(
        config_dir=arguments.config_dir,
        runtime_dir=arguments.runtime_dir,
        vendor_dir=arguments.vendor_dir,
        state_dir=arguments.state_dir,
        vici_socket=arguments.vici_socket,
        nodes_dirs=tuple(arguments.nodes_dir or ()),
        sysfs_dir=arguments.sysfs_dir,
    )
