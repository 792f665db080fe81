"""netlink: routes, the kernel's IPsec databases, and notices of changes.

Law: ``routes``, ``sockets`` and ``kernel`` ask, ``monitor`` listens. A notification is never
taken as the state: a monitor only wakes the loop, and the loop reads the state again.
"""

from iscsi_ipsec.adapters.netlink.monitor import GuardMonitor, PolicyMonitor, RouteMonitor
from iscsi_ipsec.adapters.netlink.routes import Routes
from iscsi_ipsec.adapters.netlink.sockets import established_to

__all__ = ["GuardMonitor", "PolicyMonitor", "RouteMonitor", "Routes", "established_to"]
