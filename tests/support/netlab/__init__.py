"""A lab of network namespaces: real charons, a real iSCSI target and a recorder on the wire.

Needs root and packages (see kernel.missing_for_lab), no virtual machine and no ESP in the
kernel. Everything lives in namespaces and a temporary folder, is named after the process
that made it, and is gone when the lab is left.
"""

from __future__ import annotations

from tests.support.netlab.charon import Charon
from tests.support.netlab.daemon import Daemon
from tests.support.netlab.iscsi import TARGET_NAME, Initiator, Target, portal_text
from tests.support.netlab.kernel import Esp, available_esp, kernel_has_esp, missing_for_lab
from tests.support.netlab.lab import Lab
from tests.support.netlab.process import Child, CommandFailedError, EndedAtOnceError, Result
from tests.support.netlab.space import Addresses, Namespace, Node
from tests.support.netlab.terminal import Terminal
from tests.support.netlab.waiting import NeverHappenedError, holds_for, wait_until
from tests.support.netlab.wire import Frame, Wire

__all__ = [
    "TARGET_NAME",
    "Addresses",
    "Charon",
    "Child",
    "CommandFailedError",
    "Daemon",
    "EndedAtOnceError",
    "Esp",
    "Frame",
    "Initiator",
    "Lab",
    "Namespace",
    "NeverHappenedError",
    "Node",
    "Result",
    "Target",
    "Terminal",
    "Wire",
    "available_esp",
    "holds_for",
    "kernel_has_esp",
    "missing_for_lab",
    "portal_text",
    "wait_until",
]
