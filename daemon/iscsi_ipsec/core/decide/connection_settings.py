"""What the two roles' connections have in common: names, ESP mode, proposals, selectors."""

from __future__ import annotations

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.policy import EspMode, IpsecChoice, PortalPolicy, Tuning
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.core.config import presets
from iscsi_ipsec.core.decide.desired import Refused
from iscsi_ipsec.core.decide.world import World


def connection_name(portal: Portal, oif: str = "", peer: str = "") -> str:
    """``iscsi-ipsec-10.0.0.20-3260``, with the bound interface or the peer behind it."""
    return "-".join(
        part for part in ("iscsi-ipsec", str(portal.address), str(portal.port), oif, peer) if part
    )


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


def tuning_of(world: World, policy: PortalPolicy | None) -> Tuning:
    """The policy's settings over its preset's over the defaults."""
    preset = presets.PRESETS[policy.preset].tuning if policy and policy.preset else Tuning()
    return (policy.tuning if policy else Tuning()).with_fallback(preset).with_fallback(world.settings.tuning)


def esp_proposals(
    world: World, policy: PortalPolicy | None, choice: IpsecChoice, tuning: Tuning
) -> tuple[str, ...]:
    """What ESP offers or accepts; :class:`Refused` where given proposals contradict the PFS flag."""
    if tuning.esp_proposals is None:
        return presets.default_esp_proposals(
            choice.ike, pfs=choice.pfs, fast_aes=world.fast_aes, esn=not world.user_space_esp
        )
    with_group = [p for p in tuning.esp_proposals if presets.has_dh_group(p)]
    file = policy.path if policy else ""
    if choice.pfs and len(with_group) < len(tuning.esp_proposals):
        raise Refused(
            "pfs-without-group", "the flags ask for PFS, but an ESP proposal has no DH group: "
            + ", ".join(p for p in tuning.esp_proposals if p not in with_group),
            "append one, such as -ecp384 or -modp2048, or unset PFS_ENABLED", file,
        )  # fmt: skip
    if not choice.pfs and with_group:
        raise Refused(
            "group-without-pfs", "PFS_ENABLED is unset, but an ESP proposal has a DH group: " + ", ".join(with_group),
            "set PFS_ENABLED, or take the group out", file,
        )  # fmt: skip
    return tuning.esp_proposals


def ike_proposals(world: World, choice: IpsecChoice, tuning: Tuning) -> tuple[str, ...]:
    """What phase 1 offers or accepts."""
    return tuning.ike_proposals or presets.default_ike_proposals(choice.ike, fast_aes=world.fast_aes)


def proposal_reasons(world: World, policy: PortalPolicy | None) -> tuple[str, ...]:
    """Whose the proposals are, for people."""
    sources: list[tuple[str, Tuning]] = []
    if policy:
        sources.append((f"the policy {policy.path}", policy.tuning))
    if policy and policy.preset:
        sources.append((f"the preset {policy.preset}", presets.PRESETS[policy.preset].tuning))
    sources.append(("the settings' defaults", world.settings.tuning))
    built_in = "the built-in list: RFC 7146 and better, fastest first on this CPU"
    ike = next((name for name, tuning in sources if tuning.ike_proposals), built_in)
    esp = next((name for name, tuning in sources if tuning.esp_proposals), built_in)
    return (f"IKE proposals from {ike}", f"ESP proposals from {esp}")


def host_selector(address: Address) -> str:
    """An address as a traffic selector of exactly one host."""
    return f"{address}/{address.max_prefixlen}"
