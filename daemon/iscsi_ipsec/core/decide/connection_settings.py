"""Builds the settings that connections of both roles share: names, ESP mode, traffic selectors."""

from __future__ import annotations

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.identity import IkeId
from iscsi_ipsec.base.policy import EspMode, IpsecChoice, PortalPolicy
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.core.decide.desired import Refused
from iscsi_ipsec.core.decide.world import World


def connection_name(portal: Portal, oif: str = "", peer: str = "") -> str:
    """``iscsi-ipsec-10.0.0.20-3260``, with the bound interface or the peer behind it."""
    return "-".join(
        part for part in ("iscsi-ipsec", str(portal.address), str(portal.port), oif, peer) if part
    )


def address_identity(address: Address, portal: Portal) -> IkeId:
    """The identity that an address is; :class:`Refused` for one that no single host can have."""
    try:
        return IkeId.address(address)
    except ValueError as err:
        raise Refused(
            "bad-address", f"no identity for {portal}: {err}",
            "set target_id, or name the portal by the address of one host",
        ) from None  # fmt: skip


def esp_mode(world: World, policy: PortalPolicy | None, choice: IpsecChoice, portal: Portal) -> EspMode:
    """Transport or tunnel; :class:`Refused` where flags, addresses and charon's abilities disagree."""
    outer = bool(policy and (policy.tunnel_outer_remote or policy.tunnel_outer_local))
    esp = choice.esp or (EspMode.TUNNEL if outer else EspMode.TRANSPORT)
    if outer and esp is EspMode.TRANSPORT:
        raise Refused(
            "outer-without-tunnel", f"{portal} has a tunnel outer address, but the flags ask for transport mode",
            "use TUNNEL_MODE_PREFERRED", policy.path if policy else "",
        )  # fmt: skip
    if world.user_space_esp and esp is EspMode.TRANSPORT:
        raise Refused(
            "no-transport-mode", f"{portal} asks for transport mode, but charon's kernel-libipsec has tunnel mode only",
            "use TUNNEL_MODE_PREFERRED, or charon with kernel ESP", policy.path if policy else "",
        )  # fmt: skip
    return esp


def host_selector(address: Address) -> str:
    """An address as a traffic selector of exactly one host."""
    return f"{address}/{address.max_prefixlen}"
