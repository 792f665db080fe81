"""Lists TCP connections through sock_diag; a user-space initiator's session shows to the kernel as one."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from pyroute2 import DiagSocket

from iscsi_ipsec.base.errors import KernelUnavailable
from iscsi_ipsec.base.portal import Flow, Portal

TCP_ESTABLISHED = 1


def established_to(ports: Iterable[int]) -> tuple[Flow, ...]:
    """Established TCP connections whose remote port is one of ``ports``; :class:`KernelUnavailable` on failure."""
    wanted = frozenset(ports)
    flows: list[Flow] = []
    try:
        with DiagSocket() as diag:
            diag.bind()
            for family in (socket.AF_INET, socket.AF_INET6):
                flows += [
                    Flow(
                        local=Portal(_address(message["idiag_src"]), message["idiag_sport"]),
                        remote=Portal(_address(message["idiag_dst"]), message["idiag_dport"]),
                    )
                    for message in diag.get_sock_stats(family=family, states=1 << TCP_ESTABLISHED)
                    if message["idiag_dport"] in wanted
                ]
    except Exception as err:  # the library has no error class of its own for the rest
        raise KernelUnavailable(f"sock_diag: {type(err).__name__} {err}") from err
    return tuple(flows)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address
