"""Removes everything that the daemon loaded into charon and nftables: at uninstalling, and for ``open-all``.

Law: touches only objects with our names; goes on where one part fails, and reports what is left.
"""

from __future__ import annotations

import contextlib
import logging
import os

from iscsi_ipsec.base.errors import CharonRefused, CharonUnavailable, KernelUnavailable
from iscsi_ipsec.core.ike.charon_diff import plan
from iscsi_ipsec.service.paths import Paths
from iscsi_ipsec.service.ports import Charon, Firewall
from iscsi_ipsec.service.problems import unlisted_problem

_log = logging.getLogger(__name__)


def unload_all(paths: Paths, charon: Charon, firewall: Firewall) -> tuple[str, ...]:
    """Remove it, with the files that say which portals are closed; return in words what could not be removed."""
    left: list[str] = []
    try:
        state = charon.observe()
        sas = charon.sas()
        if state.secrets is None:
            left.append(str(unlisted_problem()))
        refusals = charon.apply((op.command, op.message) for op in plan((), (), state))
        left += [str(refused) for refused in refusals if refused]
        for ike in sas:
            try:
                charon.terminate(ike_id=ike.unique_id)
            except CharonRefused as refused:
                left.append(str(refused))
    except CharonUnavailable as err:
        _log.info("nothing to unload: %s", err)
    finally:
        charon.close()
    try:
        firewall.delete()
    except KernelUnavailable as err:
        left.append(str(err))
    for file in (paths.guard_file, paths.earlier_file):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)
    return tuple(left)
