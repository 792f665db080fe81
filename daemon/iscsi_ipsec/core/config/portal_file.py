"""Parses portal policies (``portal.d/*.toml``): text in, a policy or all of its problems out."""

from __future__ import annotations

import difflib

from iscsi_ipsec.base.policy import EspMode, PortalPolicy, Role
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.config import fields, presets, proposals
from iscsi_ipsec.core.config.toml_reader import Source, parse_toml

KNOWN_KEYS = (
    "portals", "role", "security_flags", "psk", "target_id", "target_id_type",
    "tunnel_outer_remote", "tunnel_outer_local", "initiators", "preset", "description", *fields.TUNING_KEYS,
)  # fmt: skip


def parse_portal_file(text: str, path: str, name: str, warnings: list[Problem] | None = None) -> PortalPolicy:
    """Parse and check a whole portal file; raise :class:`ConfigError` with every problem in it.

    Warnings are added to ``warnings``.
    """
    source = parse_toml(text, path)
    source.refuse_unknown(KNOWN_KEYS)
    patterns = fields.parse_portals(source)
    if "portals" not in source.data:
        source.problem(
            "portals", "no-portals", "portals is missing", 'say which portals: portals = ["10.0.0.20"]'
        )
    role = source.text("role")
    if role is not None and role not in set(Role):
        source.problem("role", "bad-role", 'role must be "initiator" or "target"')
        role = None
    choice = fields.parse_choice(source)
    psk = source.text("psk")
    if psk is not None and (not psk or "/" in psk or "\0" in psk):
        source.problem("psk", "bad-psk", "psk is the name of a file in psk.d, without folder")
    elif psk is not None and psk.endswith(".toml"):
        source.problem(
            "psk", "bad-psk", "psk is the name of a file in psk.d, without .toml", f'write psk = "{psk[:-5]}"'
        )
    source.text("description")
    preset = source.text("preset")
    if preset is not None and preset not in presets.PRESETS:
        close = difflib.get_close_matches(preset, presets.PRESETS, 1)
        hint = f'did you mean "{close[0]}"?' if close else "known: " + ", ".join(presets.PRESETS)
        source.problem("preset", "bad-preset", f'unknown preset "{preset}"', hint)
    elif preset is not None and preset in presets.PRESETS:
        _warn_of_weak_preset(source, preset)
    target_id = fields.parse_identity(source, "target_id")
    initiators = fields.parse_peers(source, "initiators") or ()
    if initiators and role != Role.TARGET:
        source.problem("initiators", "initiators-without-target", 'initiators is for role = "target" only')
    outer_remote = fields.parse_address(source, "tunnel_outer_remote")
    outer_local = fields.parse_address(source, "tunnel_outer_local")
    if outer_remote and outer_local and outer_remote.version != outer_local.version:
        source.problem(
            "tunnel_outer_local", "mixed-versions", "the two tunnel addresses are not of one IP version"
        )
    if (outer_remote or outer_local) and choice and choice.esp is EspMode.TRANSPORT:
        key = "tunnel_outer_remote" if outer_remote else "tunnel_outer_local"
        source.problem(
            key, "outer-without-tunnel", "an outer address is for tunnel mode, but the flags ask for transport mode",
            "use TUNNEL_MODE_PREFERRED instead of TRANSPORT_MODE_PREFERRED",
        )  # fmt: skip
    tuning = fields.parse_tuning(source)
    source.raise_if_wrong(warnings)
    return PortalPolicy(
        name=name,
        path=path,
        patterns=patterns or (),
        role=Role(role) if role else Role.INITIATOR,
        choice=choice,
        psk=psk.removesuffix(".toml") if psk else None,
        target_id=target_id,
        initiators=initiators,
        tunnel_outer_remote=outer_remote,
        tunnel_outer_local=outer_local,
        preset=preset,
        tuning=tuning,
    )


def _warn_of_weak_preset(source: Source, name: str) -> None:
    """Warn where a preset offers nothing but what can be broken, unless the file has proposals of its own."""
    tuning = presets.PRESETS[name].tuning
    for key, offered in (("ike_proposals", tuning.ike_proposals), ("esp_proposals", tuning.esp_proposals)):
        weak = [word for proposal in offered or () for word in proposals.weak_words(proposal)]
        if key not in source.data and offered and all(map(proposals.weak_words, offered)):
            source.problem(
                "preset", "weak-proposal", f'the {key} of the preset {name} offer {", ".join(dict.fromkeys(weak))} only, which can be broken',
                f"where the product has better ones, set {key}", Severity.WARNING,
            )  # fmt: skip
