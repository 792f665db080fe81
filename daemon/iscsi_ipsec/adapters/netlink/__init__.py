"""rtnetlink: which way packets go, and word that something changed.

Law: ``routes`` and ``sockets`` ask (the only places that know
:mod:`pyroute2`), ``monitor`` listens. What is heard is never taken for what is: a monitor only wakes, and
the woken one asks again.
"""

from iscsi_ipsec.adapters.netlink.monitor import GuardMonitor, PolicyMonitor, RouteMonitor
from iscsi_ipsec.adapters.netlink.routes import Routes
from iscsi_ipsec.adapters.netlink.sockets import established_to

__all__ = ["GuardMonitor", "PolicyMonitor", "RouteMonitor", "Routes", "established_to"]
