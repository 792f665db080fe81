"""Limits the effect of host names: whoever answers DNS must not be able to open or weaken a portal.

A portal that a name resolves to is decided twice, with names and without. Portals closed by literal
addresses, by networks or because they were managed before stay closed, and as strongly protected; a name may
add protection, and may choose among equally strong keys and settings.

Law: pure; two decisions in, one out.
"""

from __future__ import annotations

import dataclasses
import shlex

from iscsi_ipsec.base.keys import GroupKey
from iscsi_ipsec.base.policy import IkeMode, IpsecChoice
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.decide.desired import Connection, PortalView

_STRENGTH = (IkeMode.AGGRESSIVE, IkeMode.MAIN, IkeMode.V2)


def limited(named: PortalView, literal: PortalView) -> PortalView:
    """The decision with names, unless it is weaker than the one without: then that one, saying so."""
    fault = _fault(named, literal)
    if not fault:
        return named
    return overruled(literal, named.origins, named.policy or named.key_path, fault)


def overruled(literal: PortalView, origins: tuple[str, ...], file: str, fault: str) -> PortalView:
    """The decision without names, saying which file's host name would have weakened it, and how."""
    portal = str(literal.binding.portal)
    message = (
        f"{file} names {portal} by a host name and {fault}: the decision without the name stays in force"
    )
    reasons = (*literal.reasons, message)
    if literal.problem and literal.problem.code != "orphaned":
        return dataclasses.replace(literal, reasons=reasons, origins=origins)
    hint = f'if that is meant, write the address: portals = ["{portal}"]'
    if literal.problem:
        hint += f", or forget that it was managed: iscsi-ipsec release {shlex.quote(portal)}"
    problem = Problem(
        code="name-overruled", message=message, hint=hint, file=file, portal=portal,
        severity=Severity.ERROR if literal.problem else Severity.WARNING,
    )  # fmt: skip
    return dataclasses.replace(literal, problem=problem, reasons=reasons, origins=origins)


def weaker_flags(named: IpsecChoice, literal: IpsecChoice) -> str:
    """Says in words what the first choice gives up of the second; empty for nothing."""
    if not literal.required:
        return ""  # the portal is closed for another reason, so its IKE settings do not matter
    if not named.required:
        return "would allow unencrypted traffic"
    if literal.pfs and not named.pfs:
        return "would give up PFS"
    if _STRENGTH.index(named.ike) < _STRENGTH.index(literal.ike):
        return f"would use {named.ike.value} instead of {literal.ike.value}"
    return ""


def _fault(named: PortalView, literal: PortalView) -> str:
    """Says in words how the decision with names is weaker; empty where it is not."""
    if not literal.closed:
        return ""
    if not named.closed:
        return "would allow unencrypted traffic"
    if not named.connection:
        # an explicit key whose name does not resolve yet keeps others from standing in for it, here too
        unresolved = named.problem is not None and named.problem.code == "name-not-resolved"
        return "" if unresolved or not literal.connection else "would leave it without a connection"
    if named.choice and literal.choice and (fault := weaker_flags(named.choice, literal.choice)):
        return fault
    return _weaker_connection(named.connection, literal.connection) if literal.connection else ""


def _weaker_connection(named: Connection, literal: Connection) -> str:
    if isinstance(named.key, GroupKey) and not isinstance(literal.key, GroupKey):
        return "would use the group key"
    # the built-in proposals are as strong as any
    if named.tuning.ike_proposals and not set(named.ike_proposals) <= set(literal.ike_proposals):
        return "would offer other IKE proposals"
    if named.tuning.esp_proposals and not set(named.esp_proposals) <= set(literal.esp_proposals):
        return "would offer other ESP proposals"
    return ""
