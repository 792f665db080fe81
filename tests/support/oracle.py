"""Computes what must follow from the files: a second opinion, written from the manual and sharing no code with ``core``.

Takes texts and plain tuples; returns for any portal and role whether it must be closed, and for any identity
the key that it may use there. Tunnels, proposals and bound interfaces are left out:
they decide how a connection is made, not whether and with which key.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

WEAK, STRONG, CLEAR = "aggressive", "v2", "clear"
"""The possible values of flags here; empty where they are not specified."""
INITIATOR, TARGET = "initiator", "target"
LITERAL, BY_NAME, NOWHERE = 200, 199, -1
UNCOVERED = "covered by no file"

Portal = tuple[str, int]
Pattern = tuple[str, int]
"""An address, a network, a host name or "any", and a port."""


@dataclass(frozen=True)
class KeyFile:
    """``id`` is a type and a text, None for a group key."""

    name: str
    secret: str
    id: tuple[str, str] | None = None
    portals: tuple[Pattern, ...] = ()
    flags: str = ""

    @property
    def kind(self) -> str:
        """Of two keys of one kind a portal may have only one."""
        if self.id is None:
            return "group"
        return self.id[1] if self.id[0] == "address" else "name"


@dataclass(frozen=True)
class PolicyFile:
    name: str
    portals: tuple[Pattern, ...]
    role: str = INITIATOR
    flags: str = ""
    psk: str = ""
    target_id: str = ""
    initiators: tuple[str, ...] = ()


@dataclass(frozen=True)
class BrokenFile:
    """A file with a mistake, as far as it can be read."""

    name: str
    portals: tuple[Pattern, ...]
    is_policy: bool = True
    role: str = INITIATOR


@dataclass(frozen=True)
class World:
    """``sources``: this host's address towards a portal's, empty for no route; ``held``: managed before."""

    keys: tuple[KeyFile, ...] = ()
    policies: tuple[PolicyFile, ...] = ()
    broken: tuple[BrokenFile, ...] = ()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    local: frozenset[str] = frozenset()
    records: frozenset[Portal] = frozenset()
    held: frozenset[tuple[Portal, str]] = frozenset()
    inherited: frozenset[Portal] = frozenset()
    require: bool = False
    default: str = ""


@dataclass(frozen=True)
class Verdict:
    """About a portal: closed or not, by which rule, and with which key (``ours`` and ``theirs`` are the identities)."""

    closed: bool
    rule: str
    key: KeyFile | None = None
    strength: str = ""
    ours: str = ""
    theirs: str = ""


def _of_role(world: World, role: str) -> list[PolicyFile | BrokenFile]:
    policies: list[PolicyFile | BrokenFile] = [*world.policies, *world.broken]
    return [file for file in policies if file.role == role]


class _RefusedError(Exception):
    """The files contradict each other: closed, without a connection."""


def folded(kind: str, text: str) -> str:
    return f"{kind}:{text.lower()}"


def rank(world: World, patterns: Iterable[Pattern], portal: Portal) -> int:
    """How narrowly these name the portal."""
    return max((_rank(world, pattern, portal) for pattern in patterns), default=NOWHERE)


_address = functools.cache(ipaddress.ip_address)  # a few dozen texts, asked for by the hundred thousand


@functools.cache
def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """None: a name."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def _rank(world: World, pattern: Pattern, portal: Portal) -> int:
    (text, port), address = pattern, _address(portal[0])
    if port != portal[1]:
        return NOWHERE
    if text == "any":
        return 0
    network = _network(text)
    if network is None:
        return BY_NAME if portal[0] in world.names.get(text, ()) else NOWHERE
    if network.version != address.version or address not in network:
        return NOWHERE
    return LITERAL if "/" not in text else network.prefixlen


def policy_for(world: World, portal: Portal, role: str) -> PolicyFile | None:
    found = [(-rank(world, p.portals, portal), p.name, p) for p in world.policies if p.role == role]
    best = min(found, default=None, key=lambda row: row[:2])
    return best[2] if best and -best[0] != NOWHERE else None


def broken_decides(world: World, portal: Portal, role: str, policy: PolicyFile | None) -> BrokenFile | None:
    """The file with a mistake that would decide, were it whole."""
    good = rank(world, policy.portals, portal) if policy else NOWHERE
    by_keys = (
        NOWHERE if policy else max((rank(world, k.portals, portal) for k in world.keys), default=NOWHERE)
    )
    for file in sorted(
        world.broken, key=lambda f: (-rank(world, f.portals, portal), not f.is_policy, f.name)
    ):
        its = rank(world, file.portals, portal)
        if file.role != role or its == NOWHERE:
            continue
        if file.is_policy:  # a policy beats keys, a narrower one a wider one, of equals the first name
            return file if not policy or (-its, file.name) < (-good, policy.name) else None
        return file if its > (good if policy or role == TARGET else by_keys) else None
    return None


def applies(world: World, key: KeyFile, portal: Portal) -> bool:
    """Whether a key may be used there; a name in it gives way to a key of its kind with the address."""
    how = rank(world, key.portals, portal)
    rivals = [k for k in world.keys if k.kind == key.kind and rank(world, k.portals, portal) == LITERAL]
    # a literal pattern counts even in a key that names the portal otherwise too
    return not key.portals or (how != NOWHERE and not (how == BY_NAME and rivals))


def _only(keys: list[KeyFile]) -> KeyFile | None:
    if len(keys) > 1:
        raise _RefusedError("ambiguous")
    return keys[0] if keys else None


def key_for(world: World, portal: Portal, policy: PolicyFile | None) -> tuple[KeyFile | None, str]:
    """The manual's four rules, and which of them decided."""
    usable = [k for k in world.keys if applies(world, k, portal)]
    doubtful = [
        k for k in world.keys
        if k.id and k not in usable and any(t not in world.names and _is_name(t) and port == portal[1] for t, port in k.portals)
    ]  # fmt: skip
    if policy and policy.psk:
        chosen = next((k for k in world.keys if k.name == policy.psk), None)
        if chosen not in usable:
            doubt = "unresolved" if chosen in doubtful else "psk not for it"
            raise _RefusedError("psk missing" if chosen is None else doubt)
        return chosen, "psk"
    source = world.sources.get(portal[0], "")
    if not source and any(k.id and k.id[0] == "address" for k in usable):
        raise _RefusedError("no route")
    if mine := _only([k for k in usable if k.id == ("address", source)]):
        return mine, "source address"
    doubtful = [k for k in doubtful if k.id and (k.id[0] != "address" or k.id[1] == source)]
    if named := _only([k for k in usable if k.kind == "name"]):
        if any(k.kind != "name" for k in doubtful):
            raise _RefusedError("unresolved")
        return named, "only name"
    group = _only([k for k in usable if k.id is None])
    if doubtful and (group or policy or _covered_by_keys(world, portal)):
        raise _RefusedError("unresolved")
    return group, "group" if group else "no key"


def _is_name(text: str) -> bool:
    return text != "any" and not text[0].isdigit() and ":" not in text


def _covered_by_keys(world: World, portal: Portal) -> bool:
    return any(rank(world, k.portals, portal) != NOWHERE for k in world.keys)


def covered_by(world: World, portal: Portal) -> str:
    """The patterns that name a portal, and how narrowly, for the shares."""
    policy = policy_for(world, portal, INITIATOR)
    how = rank(world, policy.portals if policy else [p for k in world.keys for p in k.portals], portal)
    if how == NOWHERE:
        return UNCOVERED
    narrow = {LITERAL: "address", BY_NAME: "name", 0: "any"}.get(how, "network")
    return f"covered by the {narrow} in a {'policy' if policy else 'key'}"


def as_initiator(world: World, portal: Portal) -> Verdict:
    """About one portal that this host knows, before portals are compared with each other."""
    named, literal = (
        _as_initiator(world, portal),
        _as_initiator(replace(world, names=_forgotten(world)), portal),
    )
    patterns = [p for f in (*_of_role(replace(world, broken=()), INITIATOR), *world.keys) for p in f.portals]
    by_name = any(_rank(world, pattern, portal) == BY_NAME for pattern in patterns)
    verdict = replace(literal, rule="name overruled") if by_name and _weakens(named, literal) else named
    return replace(verdict, key=None) if portal[0] in world.local else verdict


def _forgotten(world: World) -> dict[str, tuple[str, ...]]:
    """Names that have an answer, which is left out: not the same as names without one."""
    return dict.fromkeys((*world.names, *(t for k in world.keys for t, _ in k.portals if _is_name(t))), ())


def _weakens(named: Verdict, literal: Verdict) -> bool:
    if not literal.closed or not named.closed:
        return literal.closed
    if not named.key:
        return literal.key is not None and named.rule != "refused: unresolved"
    if named.strength == WEAK and literal.strength == STRONG:
        return True
    return literal.key is not None and literal.key.id is not None and named.key.id is None


def _as_initiator(world: World, portal: Portal) -> Verdict:
    policy = policy_for(world, portal, INITIATOR)
    broken = broken_decides(world, portal, INITIATOR, policy)
    covered = bool(policy) or _covered_by_keys(world, portal)
    inherited = not covered and portal in world.inherited
    key, rule = None, ""
    if covered or inherited or world.require:
        try:
            key, rule = key_for(world, portal, policy)
        except _RefusedError as refused:
            return Verdict(True, f"refused: {refused}")
    if not covered and not key:
        held = (portal, INITIATOR) in world.held
        return Verdict(
            bool(broken or held or world.require),
            "broken" if broken else "held" if held else "required" if world.require else "left alone",
        )
    flags = (policy.flags if policy else "") or (key.flags if key else "") or world.default or STRONG
    if flags == CLEAR:
        return Verdict(
            bool(broken or world.require),
            "broken" if broken else "required, not clear" if world.require else "clear",
        )
    source = world.sources.get(portal[0], "")
    if not key or not source:
        return Verdict(True, rule if not key else "no route", None, flags)
    ours = folded(*key.id) if key.id else folded("address", source)
    theirs = folded("name", policy.target_id) if policy and policy.target_id else folded("address", portal[0])
    return Verdict(True, "inherited" if inherited else rule, key, flags, ours, theirs)


def known(world: World) -> frozenset[Portal]:
    """The portals that a record, a file or an earlier management names one by one."""
    files: list[PolicyFile | BrokenFile | KeyFile] = [*_of_role(world, INITIATOR), *world.keys]
    found = {*world.records, *(portal for portal, role in world.held if role == INITIATOR)}
    for file in files:
        for text, port in file.portals:
            alone = () if "/" in text or text == "any" else (text,)
            one = world.names.get(text, ()) if _is_name(text) else alone
            # what a key names of this host is what it serves
            found |= {(a, port) for a in one if not (isinstance(file, KeyFile) and a in world.local)}
    return frozenset(found)


def unknown_is_closed(world: World, portal: Portal) -> bool:
    """About a portal that nobody has named yet: networks decide, a policy's over a key's, of equals what closes."""
    if world.require:
        return portal[1] == 3260  # another port is not known to be iSCSI's before somebody names it
    files = [f for f in _of_role(world, INITIATOR) if rank(world, f.portals, portal) != NOWHERE]

    def closes(file: PolicyFile | BrokenFile) -> bool:
        return isinstance(file, BrokenFile) or ((file.flags or world.default or STRONG) != CLEAR)

    clear = max((rank(world, f.portals, portal) for f in files if not closes(f)), default=NOWHERE)
    closed = max((rank(world, f.portals, portal) for f in files if closes(f)), default=NOWHERE)
    if clear != NOWHERE or closed != NOWHERE:
        return closed >= clear
    return any(
        NOWHERE < rank(world, [pattern], portal) < BY_NAME and (k.flags or world.default or STRONG) != CLEAR
        for k in world.keys for pattern in k.portals
    )  # fmt: skip


def initiator(world: World) -> dict[Portal, Verdict]:
    """About every known portal; one pair of identities has one key, and no target may pose as another."""
    found = {portal: as_initiator(world, portal) for portal in known(world)}
    keys: dict[tuple[str, str], set[str]] = {}
    for verdict in found.values():
        if verdict.key:
            keys.setdefault((verdict.ours, verdict.theirs), set()).add(verdict.key.secret)
    for portal, verdict in found.items():
        if verdict.key and len(keys[verdict.ours, verdict.theirs]) > 1:
            found[portal] = Verdict(True, "refused: one pair, two keys")
    with_key = [v for v in found.values() if v.key]
    for portal, verdict in list(found.items()):
        if not verdict.key:
            continue
        others = {v.key.secret for v in with_key if v.key and v.theirs == verdict.theirs} - {
            verdict.key.secret
        }
        elsewhere = {
            v.key.secret for v in with_key if v.key and v.ours == verdict.ours and v.strength == STRONG
        }
        if others and elsewhere - {verdict.key.secret}:
            found[portal] = Verdict(True, "refused: target could pose as another")
    return found


@dataclass(frozen=True)
class Served:
    """About a portal of this host: closed or not, and the key of each identity that may come in."""

    closed: bool
    rule: str
    keys: Mapping[str, KeyFile] = field(default_factory=dict)


def served_portals(world: World) -> frozenset[Portal]:
    """The portals of this host that policies name, or were served before; a network means our addresses in it."""
    ours = {
        (address, port) for f in _of_role(world, TARGET) for pattern in f.portals for address in world.local
        if (port := pattern[1]) and rank(world, [pattern], (address, port)) != NOWHERE
    }  # fmt: skip
    return frozenset(ours | {portal for portal, role in world.held if role == TARGET})


def as_target(world: World, portal: Portal, probes: Iterable[str]) -> Served:
    """About one served portal; ``probes`` are identities (:func:`folded`) that knock."""
    policy = policy_for(world, portal, TARGET)
    broken = broken_decides(world, portal, TARGET, policy)
    if not policy:
        return Served(bool(broken) or (portal, TARGET) in world.held, "broken" if broken else "held")
    ours = [v for p in known(world) if (v := as_initiator(world, p)).key]
    local = folded("name", policy.target_id) if policy.target_id else folded("address", portal[0])
    if any(local in (v.ours, v.theirs) for v in ours):
        return Served(True, "refused: our identity is an initiator's")
    usable = [k for k in world.keys if applies(world, k, portal) and policy.psk in ("", k.name)]
    groups = [k for k in usable if not k.id and policy.initiators]
    if len(groups) > 1:
        return Served(True, "refused: two group keys")
    own = {folded(*k.id) for k in world.keys if k.id}
    closed, keys, rules = set[bool](), dict[str, KeyFile](), set[str]()

    def admit(identity: str, key: KeyFile, *, alone: bool) -> None:
        elsewhere = any(identity in (v.ours, v.theirs) for v in ours if v.key and v.key.secret != key.secret)
        clear = (policy.flags or key.flags or world.default or STRONG) == CLEAR
        if not alone or elsewhere:
            closed.add(True)  # a group's peer that is left out is nobody, and changes nothing
        elif clear:
            closed.add(world.require)
        else:
            closed.add(True)
            keys[identity] = key

    for identity in {folded(*k.id) for k in usable if k.id} - {local}:
        its = [k for k in usable if k.id and folded(*k.id) == identity]
        admit(identity, its[0], alone=len(its) == 1)
        rules.add("own key")
    for key in groups:
        elsewhere = {end for v in ours if v.key and v.key.secret != key.secret for end in (v.ours, v.theirs)}
        for identity in set(probes) - own - elsewhere:
            if any(_covers(entry, identity) for entry in policy.initiators):
                admit(identity, key, alone=True)
                rules.add("group")
    return Served(bool(broken) or True in closed or not closed, " and ".join(sorted(rules)) or "nobody", keys)


def _covers(entry: str, identity: str) -> bool:
    """Whether an entry of ``initiators`` means this identity."""
    kind, _, text = identity.partition(":")
    if "/" in entry:
        network = ipaddress.ip_network(entry)
        return kind == "address" and _address(text) in network
    return identity == folded("name" if _is_name(entry) else "address", entry)


def target(world: World, probes: Iterable[str]) -> dict[Portal, Served]:
    """About every served portal; an identity has one key, whichever portal it knocks at."""
    found = {portal: as_target(world, portal, probes) for portal in served_portals(world)}
    keys: dict[str, set[str]] = {}
    for verdict in found.values():
        for identity, key in verdict.keys.items():
            keys.setdefault(identity, set()).add(key.secret)
    return {
        portal: replace(v, keys={i: k for i, k in v.keys.items() if len(keys[i]) == 1}) for portal, v in found.items()
    }  # fmt: skip
