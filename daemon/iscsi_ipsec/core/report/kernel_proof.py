"""Proves protection of each session from the kernel's state, not from charon's answers.

A TCP connection is protected if the policy that the kernel applies to it (the
matching one with the lowest priority number) demands ESP, SAs for it exist in
both directions in the mode that was asked for, each of these encrypts and is the portal's
own (by the reqid, as the guard has it), and the guard would stop it otherwise. User-space
ESP leaves no policy: there, the connection must be routed into one of the guard's devices
while charon has an SA that encrypts.

Law: pure; every fact comes in as a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.iscsi import IscsiSession
from iscsi_ipsec.base.portal import Flow, Portal
from iscsi_ipsec.base.xfrm import KernelPolicy, KernelState, Selector
from iscsi_ipsec.core.config import proposals

IPPROTO_TCP, IPPROTO_ESP = 6, 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The IPsec and guard state of the kernel. ``guarded`` None: no guard is installed.

    ``reqids``: those of the SAs inside which the guard lets each portal pass.
    ``routed_via`` maps a flow's remote address to the interface its packets
    leave by; ``devices`` are those behind which user-space ESP works.
    """

    policies: tuple[KernelPolicy, ...]
    states: tuple[KernelState, ...]
    guarded: frozenset[Portal] | None
    reqids: Mapping[Portal, frozenset[int]] = field(default_factory=dict)
    guard_wanted: bool = True
    devices: frozenset[str] = frozenset()
    routed_via: Mapping[Portal, str] | None = None
    tables: Tables = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tables", Tables(self.policies, self.states))


class Tables:
    """The policies and states, indexed by the far end's address and by the reqid: there may be thousands."""

    def __init__(self, policies: Iterable[KernelPolicy], states: Iterable[KernelState]) -> None:
        self._of_hosts: dict[tuple[str, Address], list[tuple[int, KernelPolicy]]] = {}
        self._wide: list[tuple[int, KernelPolicy]] = []
        self._states: dict[int, list[KernelState]] = {}
        for at, policy in enumerate(policies):
            far = policy.dst if policy.direction == "out" else policy.src
            if far.prefixlen == far.max_prefixlen:
                self._of_hosts.setdefault((policy.direction, far.network_address), []).append((at, policy))
            else:
                self._wide.append((at, policy))
        for state in states:
            self._states.setdefault(state.reqid, []).append(state)

    def policies(self, direction: str, far: Address) -> list[KernelPolicy]:
        """All that may match, in the kernel's order: of two with one priority it applies the first."""
        found = [*self._of_hosts.get((direction, far), ()), *self._wide]
        return [policy for _, policy in sorted(found, key=itemgetter(0))]

    def states(self, reqid: int) -> list[KernelState]:
        """All with this reqid, larval ones too."""
        return self._states.get(reqid, [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """The state of a portal that ``status`` reports, to be compared with the kernel's.

    ``reqids``: its connections'. ``ciphers``: those of its SAs as charon reports them, the only source for
    user-space ESP.
    """

    portal: Portal
    managed: bool
    closed: bool
    mode: str
    user_space_esp: bool
    reqids: frozenset[int]
    ciphers: frozenset[str] = frozenset()

    @property
    def has_connection(self) -> bool:
        """Whether the portal may be reached at all: each connection has a reqid."""
        return bool(self.reqids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One session's or portal's result; ``failures`` empty means proven. ``clear``: packets can pass unencrypted."""

    subject: str
    portal: Portal
    evidence: tuple[str, ...]
    failures: tuple[str, ...]
    clear: bool = False

    @property
    def proven(self) -> bool:
        """Whether all evidence was found."""
        return not self.failures


def verify_flow(flow: Flow, expected: Expectation | None, facts: Facts) -> Verdict:
    """Judge one TCP connection to a portal."""
    evidence: list[str] = []
    failures: list[str] = []
    if expected and expected.user_space_esp:
        device = (facts.routed_via or {}).get(flow.remote)
        if device in facts.devices:
            evidence.append(f"routed into {device}, behind which charon encrypts")
        else:
            failures.append(f"routed by {device or 'nothing'}, not into a device of user-space ESP")
        failures += _unencrypted_in_user_space(expected)
    else:
        for direction in ("out", "in"):
            _judge_direction(flow, direction, expected, facts, evidence, failures)
    covered = not failures
    if expected and expected.closed:
        _judge_guard(flow.remote, facts, evidence, failures)
    guarded = facts.guarded is not None and flow.remote in facts.guarded
    return Verdict(
        subject=f"session {flow}",
        portal=flow.remote,
        evidence=tuple(evidence),
        failures=tuple(failures),
        clear=not covered and not guarded,
    )


def offloaded_session(session: IscsiSession) -> Verdict:
    """The verdict on a session that bypasses the kernel's IPsec and the guard: it can never be proven."""
    return Verdict(
        subject=f"session {session.sid} to {session.remote}",
        portal=session.remote,
        evidence=(),
        failures=(
            f"its transport {session.transport} bypasses this host's IP stack, and so IPsec and the guard",
        ),
    )


def verify_portal(expected: Expectation, facts: Facts) -> Verdict:
    """Judge a closed portal without a session: guard in place, a policy that will ask for an SA, none that is no use."""
    evidence: list[str] = []
    failures: list[str] = []
    _judge_guard(expected.portal, facts, evidence, failures)
    if expected.user_space_esp:
        failures += _unencrypted_in_user_space(expected)
    elif expected.has_connection:
        own = [state for reqid in sorted(expected.reqids) for state in facts.tables.states(reqid)]
        failures += [_unencrypted(state) for state in own if not (state.larval or state.encrypts)]
        reaching = (
            p for p in facts.tables.policies("out", expected.portal.address) if _may_reach(p, expected.portal)
        )
        first = min(reaching, key=lambda p: p.priority, default=None)
        if first and first.action == "allow" and first.tmpl_proto == IPPROTO_ESP:
            _judge_reqid("out", first, expected, facts, failures)
            evidence.append("the policy that applies first demands ESP towards it")
        elif first:
            failures.append(f"the policy that applies first (priority {first.priority}) does not demand ESP")
        else:
            failures.append("no policy in the kernel demands ESP towards it")
    return Verdict(
        subject=f"portal {expected.portal}",
        portal=expected.portal,
        evidence=tuple(evidence),
        failures=tuple(failures),
    )


def _judge_direction(
    flow: Flow,
    direction: str,
    expected: Expectation | None,
    facts: Facts,
    evidence: list[str],
    failures: list[str],
) -> None:
    src, dst = (flow.local, flow.remote) if direction == "out" else (flow.remote, flow.local)
    policy = applying_policy(facts.tables.policies(direction, flow.remote.address), direction, src, dst)
    if policy is None:
        failures.append(f"{direction}: no policy covers it")
        return
    if policy.action != "allow" or policy.tmpl_proto != IPPROTO_ESP:
        failures.append(
            f"{direction}: the policy that applies (priority {policy.priority}) does not demand ESP"
        )
        return
    if expected and expected.mode and policy.mode != expected.mode:
        failures.append(f"{direction}: the policy demands {policy.mode} mode, {expected.mode} was asked for")
    if expected and expected.closed:
        _judge_reqid(direction, policy, expected, facts, failures)
    serving = [s for s in facts.tables.states(policy.reqid) if _serves(s, policy, src, dst)]
    if not serving:
        failures.append(f"{direction}: no SA with reqid {policy.reqid} is installed")
        return
    # while an SA is being replaced there are two, and the kernel takes packets of either
    failures += [f"{direction}: {_unencrypted(state)}" for state in serving if not state.encrypts]
    state = serving[0]
    evidence.append(f"{direction}: SA {state.spi_hex} {state.mode} {state.cipher}, reqid {policy.reqid}")


def _unencrypted(state: KernelState) -> str:
    return f"SA {state.spi_hex} uses {state.cipher or 'no cipher'}: packets are not encrypted"


def _unencrypted_in_user_space(expected: Expectation) -> list[str]:
    bad = sorted(cipher for cipher in expected.ciphers if not proposals.encrypts(cipher))
    return [f"charon's SA uses {cipher}: packets are not encrypted" for cipher in bad]


def _judge_reqid(
    direction: str, policy: KernelPolicy, expected: Expectation, facts: Facts, failures: list[str]
) -> None:
    """Check the reqid as the guard does: another program's SA for the same addresses is no protection."""
    own = facts.reqids.get(expected.portal, frozenset()) if facts.guarded is not None else expected.reqids
    if policy.reqid not in own:
        known = ", ".join(map(str, sorted(own))) or "none"
        failures.append(
            f"{direction}: the policy that applies (priority {policy.priority}) leads into an SA with reqid"
            f" {policy.reqid}, which is not the portal's own ({known})"
        )


def applying_policy(
    policies: Iterable[KernelPolicy], direction: str, src: Portal, dst: Portal
) -> KernelPolicy | None:
    """The policy that the kernel applies to packets of a TCP connection: of those that match, the lowest priority."""
    matching = (
        p for p in policies if p.direction == direction and not p.restricted and _selects(p, src, dst)
    )
    return min(matching, key=lambda p: p.priority, default=None)


def _selects(selector: KernelPolicy | Selector, src: Portal, dst: Portal) -> bool:
    return (
        selector.src.version == src.address.version
        and src.address in selector.src
        and dst.address in selector.dst
        and selector.proto in (0, IPPROTO_TCP)
        and (src.port ^ selector.sport) & selector.sport_mask == 0
        and (dst.port ^ selector.dport) & selector.dport_mask == 0
    )


def _serves(state: KernelState, policy: KernelPolicy, src: Portal, dst: Portal) -> bool:
    """Whether the state is one that the policy's template resolves to (xfrm_state_find, xfrm_state_look_at)."""
    if state.larval or state.proto != IPPROTO_ESP or state.reqid != policy.reqid or state.mode != policy.mode:
        return False
    outer_src, outer_dst = (
        (policy.tmpl_src, policy.tmpl_dst) if policy.mode == "tunnel" else (src.address, dst.address)
    )
    if state.dst != outer_dst or state.src != outer_src:
        return False
    return state.sel is None or state.mode == "tunnel" or _selects(state.sel, src, dst)


def _may_reach(policy: KernelPolicy, portal: Portal) -> bool:
    return (
        policy.direction == "out"
        and not policy.restricted
        and policy.dst.version == portal.address.version
        and portal.address in policy.dst
        and policy.proto in (0, IPPROTO_TCP)
        and (portal.port ^ policy.dport) & policy.dport_mask == 0
    )


def _judge_guard(portal: Portal, facts: Facts, evidence: list[str], failures: list[str]) -> None:
    if not facts.guard_wanted:
        evidence.append("guard switched off by the settings")
    elif facts.guarded is None:
        failures.append("the guard (nftables table inet iscsi_ipsec) is not installed")
    elif portal not in facts.guarded:
        failures.append("the guard does not hold this portal")
    else:
        evidence.append("the guard holds it")
