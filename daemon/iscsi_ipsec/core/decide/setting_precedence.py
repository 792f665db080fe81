"""Decides which flags and which settings a portal gets.

The order, for flags and for each strongSwan setting alone: the policy, its preset,
for flags the key, the settings file's ``[defaults]``, the built-in value. A settings file with a
mistake leaves the last good one in force, but what it says that closes portals counts at once.

Law: pure. Whoever needs a flag or a setting in force asks here; no other module compares two sources of one.
"""

from __future__ import annotations

import dataclasses

from iscsi_ipsec.base.keys import Key
from iscsi_ipsec.base.policy import IpsecChoice, PortalPolicy, Tuning
from iscsi_ipsec.core.config import presets, proposals
from iscsi_ipsec.core.config.invalid_files import BrokenSettings
from iscsi_ipsec.core.config.security_flags import default_choice, encode, flag_names
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.algorithms import cut
from iscsi_ipsec.core.decide.desired import Refused
from iscsi_ipsec.core.decide.world import World

BUILT_IN = dataclasses.replace(default_choice(), esp=None)
"""The built-in choice: the outer address decides about the ESP mode."""


def settings_in_force(good: Settings, broken: BrokenSettings | None) -> Settings:
    """The last good settings, with those of the present file that close portals although it has a mistake."""
    if broken is None:
        return good
    built_in = good.default_choice or BUILT_IN
    return dataclasses.replace(
        good,
        require_ipsec=good.require_ipsec or bool(broken.require_ipsec),
        guard=good.guard or bool(broken.guard),
        default_choice=broken.choice if broken.choice and not built_in.required else good.default_choice,
    )


def pick_choice(
    settings: Settings, policy: PortalPolicy | None, key: Key | None, reasons: list[str]
) -> IpsecChoice:
    """The flags in force: the policy's, its preset's, the key's, the settings', the built-in ones."""
    sources: list[tuple[str, IpsecChoice | None]] = []
    if policy:
        sources.append((f"the policy {policy.path}", policy.choice))
    if policy and policy.preset:
        sources.append((f"the preset {policy.preset}", presets.PRESETS[policy.preset].choice))
    if key:
        sources.append((f"the key {key.path}", key.choice))
    for name, choice in (*sources, ("the settings' defaults", settings.default_choice)):
        if choice:
            flags = encode(choice)
            reasons.append(f"flags from {name}: 0x{flags:02x} {' '.join(flag_names(flags))}")
            return choice
    reasons.append("built-in flags: IKEv2, PFS, transport mode unless an outer address is set")
    return BUILT_IN


def tuning_of(world: World, policy: PortalPolicy | None) -> Tuning:
    """The policy's settings over its preset's over the defaults."""
    preset = presets.PRESETS[policy.preset].tuning if policy and policy.preset else Tuning()
    return (policy.tuning if policy else Tuning()).with_fallback(preset).with_fallback(world.settings.tuning)


def _wanted_esp_proposals(
    world: World, policy: PortalPolicy | None, choice: IpsecChoice, tuning: Tuning
) -> tuple[str, ...]:
    """The ESP proposals to offer or accept; :class:`Refused` where given proposals contradict the flags."""
    if tuning.esp_proposals is None:
        return presets.default_esp_proposals(
            choice.ike,
            pfs=choice.pfs,
            fast_aes=world.fast_aes,
            esn=not world.user_space_esp and tuning.replay_window != 0,
        )
    file = policy.path if policy else ""
    if tuning.replay_window == 0 and (with_esn := [p for p in tuning.esp_proposals if proposals.has_esn(p)]):
        raise Refused(
            "esn-without-window", "replay_window is 0, but an ESP proposal has extended sequence numbers: "
            + ", ".join(with_esn),
            "take esn out of the proposal, or leave replay_window out", file,
        )  # fmt: skip
    if not choice.pfs and policy and policy.preset and policy.tuning.esp_proposals is None:
        return tuple(dict.fromkeys(map(proposals.without_dh_groups, tuning.esp_proposals)))
    with_group = [p for p in tuning.esp_proposals if proposals.has_dh_group(p)]
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


def esp_proposals(
    world: World, policy: PortalPolicy | None, choice: IpsecChoice, tuning: Tuning
) -> tuple[str, ...]:
    """The ESP proposals to offer or accept, without algorithms that charon lacks; :class:`Refused` where given proposals contradict the flags."""
    wanted = _wanted_esp_proposals(world, policy, choice, tuning)
    return _with_algorithms(wanted, world, policy, groups_only=not world.user_space_esp)


def ike_proposals(
    world: World, policy: PortalPolicy | None, choice: IpsecChoice, tuning: Tuning
) -> tuple[str, ...]:
    """The IKE proposals to offer or accept, without algorithms that charon lacks."""
    wanted = tuning.ike_proposals or presets.default_ike_proposals(choice.ike, fast_aes=world.fast_aes)
    return _with_algorithms(wanted, world, policy, groups_only=False)


def _with_algorithms(
    wanted: tuple[str, ...], world: World, policy: PortalPolicy | None, *, groups_only: bool
) -> tuple[str, ...]:
    """The proposals that charon has the algorithms for."""
    kept, lost = cut(wanted, world.algorithms, groups_only=groups_only)
    if not kept:
        raise Refused(
            "no-algorithm", f"charon has no algorithm for {', '.join(lost)}, and no proposal is left without",
            "install the plugins (on Debian libstrongswan-standard-plugins, libstrongswan-extra-plugins),"
            " or propose others; swanctl --list-algs lists what it has", policy.path if policy else "",
        )  # fmt: skip
    return kept


def proposal_reasons(world: World, policy: PortalPolicy | None) -> tuple[str, ...]:
    """The source of the proposals, for people."""
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
