"""Compares two decisions portal by portal: which portals other files would close, open, or negotiate again.

Law: pure; both decisions are about the same moment, so that only the files make them differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from iscsi_ipsec.core.decide.desired import Desired, PortalView


@dataclass(frozen=True, slots=True)
class Change:
    """The change of a portal (or network): ``what`` is one of closes, opens, rekeys, renegotiates, ends, fails."""

    portal: str
    what: str
    text: str


def portal_changes(
    before: Desired, after: Desired, children_before: Mapping[str, str], children_after: Mapping[str, str]
) -> tuple[Change, ...]:
    """The changes, in the order of portals; ``children`` has for each connection the name of its SAs, which changes with key and settings."""
    old, new = _by_place(before.portals), _by_place(after.portals)
    changes: list[Change] = []
    for place in dict.fromkeys((*old, *new)):
        changes += _of_portal(place[0], old.get(place), new.get(place), children_before, children_after)
    closed_before = set(before.networks)
    changes += [
        Change(str(network), "closes", "portals of this network that nothing has named yet are closed")
        for network in after.networks
        if network not in closed_before
    ]
    return tuple(changes)


Place = tuple[str, str, str, str]


def _by_place(views: Iterable[PortalView]) -> dict[Place, PortalView]:
    return {
        (str(v.binding.portal), v.binding.oif, v.role.value, str(v.identity) if v.role.value == "target" else ""): v
        for v in views
    }  # fmt: skip


def _of_portal(
    portal: str,
    old: PortalView | None,
    new: PortalView | None,
    children_before: Mapping[str, str],
    children_after: Mapping[str, str],
) -> Iterable[Change]:
    was_closed, is_closed = bool(old and old.closed), bool(new and new.closed)
    if is_closed and not was_closed:
        yield Change(portal, "closes", "is closed: nothing passes outside IPsec")
    if was_closed and not is_closed:
        yield Change(portal, "opens", "is opened: its traffic is unencrypted")
    had, has = old.connection if old else None, new.connection if new else None
    if had and not has:
        yield Change(portal, "ends", "loses its connection: its SA ends")
    elif had and has and had.key.secret != has.key.secret:
        kept = has.key.previous is not None and has.key.previous.secret == had.key.secret
        stays = (
            ", and the present key stays valid beside it"
            if kept
            else ": the SA is negotiated again by the new one"
        )
        yield Change(portal, "rekeys", f"gets the key {has.key.path} instead of {had.key.path}{stays}")
    elif had and has and children_before.get(had.name) != children_after.get(has.name):
        yield Change(portal, "renegotiates", "gets other settings: a new SA replaces the present one")
    if new and new.problem and (old is None or old.problem != new.problem):
        yield Change(portal, "fails", f"{new.problem.code}: {new.problem.message}")
