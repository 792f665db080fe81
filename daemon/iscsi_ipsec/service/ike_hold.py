"""The program behind ``iscsi-ipsec-ike-hold.service``: has the guard hold back charon's deletes of our IKE_SAs.

charon deletes its IKE_SAs when it stops, and so does a far end that receives such a delete. A far end without a guard of
its own then sends its answers, whole blocks of disks, unencrypted until the next SA is up. If it does not
receive the delete, it goes on encrypting until its DPD finds the SA dead.

Law: run right before charon stops, needs neither the daemon nor its state, and holds back what
belongs to our IKE_SAs alone (by their SPIs), for :data:`HOLD_SECONDS`. It never fails, and loads little:
charon's stop waits for it.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from iscsi_ipsec.adapters.charon import Charon
from iscsi_ipsec.adapters.nft import Guard
from iscsi_ipsec.base.errors import IscsiIpsecError
from iscsi_ipsec.core.guard.ruleset import hold_ike
from iscsi_ipsec.service.paths import Paths

if TYPE_CHECKING:
    from iscsi_ipsec.service.ports import Firewall

HOLD_SECONDS = 120
"""Longer than systemd waits for a service to stop (90 s)."""


def main(paths: Paths | None = None, guard: Firewall | None = None) -> int:
    """Hold back the deletes of the present IKE_SAs."""
    try:
        spis = [sa.initiator_spi for sa in Charon(_socket(paths or Paths())).sas() if sa.initiator_spi]
        if spis:
            (guard or Guard()).load(hold_ike(spis, HOLD_SECONDS))
    except IscsiIpsecError as err:
        sys.stderr.write(f"the far ends may send unencrypted data while charon is down: {err}\n")
        return 0
    sys.stdout.write(f"holding back {len(spis)} IKE SAs for {HOLD_SECONDS} s at most\n")
    return 0


def _socket(paths: Paths) -> str:
    """The VICI socket that the daemon used last; empty: the default one of strongSwan."""
    try:
        with open(paths.status_file, "rb") as file:
            return str(json.load(file)["charon"]["socket"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


if __name__ == "__main__":
    sys.exit(main())
