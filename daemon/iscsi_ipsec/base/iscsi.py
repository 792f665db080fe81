"""iSCSI records of open-iscsi and sessions of the kernel.

Law: values only; CHAP secrets are in none of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.portal import Portal

TCP_DRIVER = "iscsi_tcp"
"""The kernel's only initiator whose packets pass through the host's IP stack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """The fields that we read of an open-iscsi node or discovery record (never its CHAP secrets).

    ``host`` is an address or a name; ``net_ifacename`` the interface that
    open-iscsi binds the socket to, empty for none.
    """

    host: str
    port: int
    target: str = ""
    startup: str = ""
    iface: str = ""
    net_ifacename: str = ""
    hwaddress: str = ""
    transport: str = "tcp"
    path: str = ""

    @property
    def is_discovery(self) -> bool:
        """Whether the record is of a discovery portal, not of a node."""
        return not self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class IscsiSession:
    """A live iSCSI connection's 4-tuple as the kernel reports it.

    ``remote`` is where the TCP connection really goes; ``persistent`` what
    the node record said (a login redirect makes them differ). ``transport`` is the kernel's
    driver (``proc_name`` of the SCSI host), empty while the host goes.
    """

    sid: int
    target: str
    state: str
    iface: str
    local_address: Address | None
    local_port: int
    remote: Portal
    persistent: Portal | None
    transport: str = ""

    @property
    def is_offloaded(self) -> bool:
        """Whether its packets bypass the host's IP stack (iSER, offload cards), where no IPsec and no guard is."""
        return self.transport not in ("", TCP_DRIVER)
