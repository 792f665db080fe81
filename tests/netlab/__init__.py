"""A lab of network namespaces: real charons, a real iSCSI target and a recorder on the wire.

Needs root and packages (see kernel.missing_for_lab), no virtual machine and no ESP in the
kernel. Everything lives in namespaces and a temporary folder, is named after the process
that made it, and is gone when the lab is left.
"""

from __future__ import annotations

from tests.netlab.charon import Charon
from tests.netlab.daemon import Daemon
from tests.netlab.iscsi import TARGET_NAME, Initiator, Target, portal_text
from tests.netlab.kernel import Esp, available_esp, kernel_has_esp, missing_for_lab
from tests.netlab.lab import Lab
from tests.netlab.process import Child, CommandFailedError, EndedAtOnceError, Result
from tests.netlab.space import Addresses, Namespace, Node
from tests.netlab.terminal import Terminal
from tests.netlab.waiting import NeverHappenedError, holds_for, wait_until
from tests.netlab.wire import Frame, Wire

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
