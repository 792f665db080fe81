"""Stops logins at boot while an expected guard is missing; the drop-in of the login units runs it.

The guard of the last run lies below /var. Where /var could not be mounted, neither the guard's unit
nor the daemon starts, while logins, whose records may lie on /, would go on unencrypted.

Law: run before iscsid and logins start, only if the kernel does not have the guard's table. It loads the
guard of the last run, else one made from the files alone, which closes their portals and admits no SA. It
fails, and with it the login, only if portals must be closed and cannot be.
"""

from __future__ import annotations

import contextlib
import sys

from iscsi_ipsec.adapters.nft import Guard
from iscsi_ipsec.adapters.openiscsi import OpenIscsi
from iscsi_ipsec.base.errors import IscsiIpsecError, KernelUnavailable
from iscsi_ipsec.base.portal import PortalRange
from iscsi_ipsec.core.decide.derive import derive
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.world import World
from iscsi_ipsec.core.guard.ruleset import guard_table
from iscsi_ipsec.service.config_files import FileReader
from iscsi_ipsec.service.managed_portals import read_text
from iscsi_ipsec.service.paths import NODES_DIRS, Paths
from iscsi_ipsec.service.ports import Firewall


def main(paths: Paths | None = None, guard: Firewall | None = None) -> int:
    """Return 0 if logins may begin."""
    paths, guard = paths or Paths(), guard or Guard()
    with contextlib.suppress(KernelUnavailable):  # without nft only loading decides
        if guard.installed() is not None:
            return 0
    try:
        text = read_text(paths.guard_file) or table_from_files(paths)
        if text:
            guard.load(text)
            sys.stdout.write("the guard was missing; loaded one from the files, without the daemon\n")
    except IscsiIpsecError as err:
        sys.stderr.write(f"no login: portals must be closed outside IPsec, and cannot be: {err}\n")
        return 1
    return 0


def table_from_files(paths: Paths) -> str:
    """The table that closes the portals that the files and open-iscsi's records close; empty where there are none."""
    config = FileReader(paths, None).read()
    settings = config.settings
    if not settings.guard:
        return ""
    records = OpenIscsi(paths.sysfs_dir).records(paths.nodes_dirs or settings.nodes_dirs or NODES_DIRS)
    world = World(
        settings=settings,
        keys=config.keys,
        policies=config.policies,
        broken=config.broken,
        records=records.records,
    )
    desired = derive(Lookup(world))
    # a network that only a key covers becomes a portal when something names an address in it
    closing = [key for key in config.keys if key.choice is None or key.choice.required]
    of_keys = [p for key in closing for p in key.portals if isinstance(p, PortalRange)]
    if not (desired.guarded or desired.local_portals or desired.networks or of_keys):
        return ""
    return guard_table(
        desired.guarded,
        desired.local_portals,
        settings.guard_devices,
        networks=(*desired.networks, *of_keys),
        clear_exceptions=desired.clear_exceptions,
        forward=settings.guard_forward,
        rdma=settings.guard_rdma,
    )


if __name__ == "__main__":
    sys.exit(main())
