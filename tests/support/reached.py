"""Portals and keys for tests of which key is used: who must be seen where, judged by a far end set up by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.ike import Ike, connection

HERE = "10.10.0.1"
KEYS = {name: f"the key of {name}, long enough to be used".encode() for name in ("a", "b", "s", "group")}


Message = tuple[str, Mapping[str, Any]]
"""A VICI command and its arguments."""


@dataclass(frozen=True)
class Reached:
    """A portal of the far end: which key is for it, and who we are with that key."""

    address: str
    key: str
    identity: str


# each on an address of its own: in main mode the far end cannot distinguish them otherwise
REACHED = (
    Reached("10.10.0.11", "a", "a.lab"),
    Reached("10.10.0.12", "b", "b.lab"),
    Reached("10.10.0.13", "s", HERE),  # the identity that goes with the group key elsewhere
    Reached("10.10.0.14", "", ""),  # no explicit key is for it
)


FOREIGN: Message = (
    "load-shared",
    {"id": "foreign", "type": "IKE", "data": b"somebody else's, for anyone", "owners": ["%any"]},
)


def spell(ident: str) -> str:
    return f"fqdn:{ident}" if ident.endswith(".lab") else ident


def established(log: str) -> set[tuple[str, str]]:
    """(own identity, peer's identity) of every IKE SA that charon called established."""
    return set(re.findall(r"IKE_SA \S+ established between \S+?\[([^]]*)\]\.\.\.\S+?\[([^]]*)\]", log))


def expected_of(names: Iterable[str]) -> dict[Reached, tuple[str, str]]:
    """For each portal that has a key at all: who we must be there, and with which key."""
    names = set(names)
    return {
        reached: (reached.identity, reached.key) if reached.key in names else (HERE, "group")
        for reached in REACHED
        if names & {reached.key, "group"}
    }


def secret(ident: str, key: str, owners: Sequence[str]) -> Message:
    return ("load-shared", {"id": ident, "type": "IKE", "data": KEYS[key], "owners": list(owners)})


def awaiting(ike: Ike, expected: Mapping[Reached, tuple[str, str]]) -> list[Message]:
    """Connections and secrets by which a charon admits, at each portal, only one identity with one key."""
    messages: list[Message] = []
    for reached, (ident, key) in expected.items():
        here = reached.address
        settings = connection(ike, local=here, remote=HERE, local_id=here, remote_id=spell(ident))
        # owned by its own end: one identity may have different keys towards different portals
        messages += [secret(here, key, [here]), ("load-conn", {here: settings})]
    return messages
