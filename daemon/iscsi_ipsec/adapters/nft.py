"""Loads, reads and deletes the nftables table ``inet iscsi_ipsec`` with the ``nft`` program.

Law: the text that is loaded comes from ``core.guard.ruleset``; nothing here decides what
the guard holds. ``nft`` is called as a program because it is the one interface
to nftables that every distribution ships. It also reads its own JSON back, and the whole output is compared:
an unknown object, rule or element makes two states differ, never look alike.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from iscsi_ipsec.base.errors import KernelUnavailable
from iscsi_ipsec.base.portal import Portal

FAMILY, TABLE = "inet", "iscsi_ipsec"

TIMEOUT = 10.0
"""Seconds for one run of nft, which takes about 0.01; the kernel's nftables lock may be held by others."""

_DROPPING = frozenset({"drop", "reject"})


class Unreadable(ValueError):
    """The output is not that of ``nft -j``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardState:
    """The table as the kernel has it. Two states are equal if they do the same: counters don't count.

    ``sets``: the portals in each set; ``reqids``: of each portal those of its own SAs; ``other_elements``: elements of sets
    that are no single portal (ranges), as JSON. ``definitions``: sets without
    their elements (those of sets that expire are nowhere), chains with hook and priority, and whatever else is in the
    table, as JSON. ``rules``: per chain in order, as JSON without handles and
    counts. ``dropped``: per chain, the packets that dropping rules counted.
    """

    sets: Mapping[str, frozenset[Portal]]
    reqids: Mapping[Portal, frozenset[int]]
    other_elements: Mapping[str, frozenset[str]]
    definitions: frozenset[str]
    rules: Mapping[str, tuple[str, ...]]
    dropped: Mapping[str, int] = field(compare=False)


class Guard:
    """Loads, reads and deletes the table. Every method raises :class:`KernelUnavailable`.

    That covers: no ``nft``, no right to, a text that nft refuses, no answer
    in ``timeout`` seconds.
    """

    def __init__(self, nft: str = "nft", timeout: float = TIMEOUT) -> None:
        self._nft = nft
        self._timeout = timeout

    def load(self, text: str) -> None:
        """Load ``text`` as one transaction: all of it or nothing."""
        self._must("-f", "-", text=text)

    def check(self, text: str) -> None:
        """Have nft and the kernel look at ``text`` without loading it."""
        self._must("-c", "-f", "-", text=text)

    def installed(self) -> GuardState | None:
        """The table in the kernel; None: no such table."""
        done = self._run("-j", "list", "table", FAMILY, TABLE)
        if done.returncode and "No such file or directory" in done.stderr:
            return None
        self._succeeded(done)
        try:
            return parse_state(done.stdout)
        except (ValueError, RecursionError) as err:
            flags = self._table_flags()
            if flags:
                return _flagged(flags)
            raise KernelUnavailable(f"{self._nft} answered with something unreadable: {err}") from err

    def _table_flags(self) -> str:
        """The table's ``flags`` line, empty if it has none.

        nft 1.0.6 prints arbitrary memory for the flags in its JSON, or breaks
        off there and exits with 0. It matters, because a dormant table
        filters nothing.
        """
        lines = self._run("list", "table", FAMILY, TABLE).stdout.splitlines()
        return next((line.strip() for line in lines if line.startswith("\tflags ")), "")

    def delete(self) -> None:
        """Delete the table, if there is one."""
        # declared first, because deleting what is not there fails (nft destroy needs nftables 1.0.7)
        self.load(f"table {FAMILY} {TABLE}\ndelete table {FAMILY} {TABLE}\n")

    def _must(self, *arguments: str, text: str) -> None:
        self._succeeded(self._run(*arguments, text=text))

    def _run(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self._nft, *arguments],
                input=text,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=self._timeout,
                check=False,
                env={**os.environ, "LC_ALL": "C"},  # its messages are compared
            )
        except subprocess.TimeoutExpired as err:
            raise KernelUnavailable(f"{self._nft} did not end within {self._timeout:g} s") from err
        except (OSError, ValueError) as err:
            raise KernelUnavailable(f"{self._nft} cannot be run: {err}") from err

    def _succeeded(self, done: subprocess.CompletedProcess[str]) -> None:
        if done.returncode:
            first = next((line.strip() for line in done.stderr.splitlines() if line.strip()), "")
            raise KernelUnavailable(f"{self._nft} failed ({done.returncode}): {first[:300]}")


def parse_state(text: str) -> GuardState:
    """Parse what ``nft -j list table`` prints (libnftables-json(5)); :class:`ValueError` if it is not that."""
    document = json.loads(text)
    objects = document.get("nftables") if isinstance(document, dict) else None
    if not isinstance(objects, list):
        raise Unreadable("no list named nftables")
    sets: dict[str, frozenset[Portal]] = {}
    reqids: defaultdict[Portal, set[int]] = defaultdict(set)
    other: dict[str, frozenset[str]] = {}
    definitions: set[str] = set()
    rules: defaultdict[str, list[str]] = defaultdict(list)
    dropped: defaultdict[str, int] = defaultdict(int)
    for item in objects:
        if not isinstance(item, dict):
            raise Unreadable("an object that is none")
        for kind, body in item.items():
            if kind == "metainfo":
                continue
            if not isinstance(body, dict):
                raise Unreadable(f"a {kind} without a body")
            if kind == "rule":
                chain = str(body.get("chain"))
                rules[chain].append(_canonical(body))
                dropped[chain] += _drops(body.get("expr"))
                continue
            definitions.add(_canonical({kind: {k: v for k, v in body.items() if k != "elem"}}))
            if kind == "chain":
                dropped[str(body.get("name"))] += 0
            if kind == "set":
                name = str(body.get("name"))
                if "timeout" in body.get("flags", ()):
                    continue  # its elements come and go by themselves
                sets[name], pairs, other[name] = _elements(body.get("elem", []))
                for portal, reqid in pairs:
                    reqids[portal].add(reqid)
    return GuardState(
        sets=MappingProxyType(sets),
        reqids=MappingProxyType({portal: frozenset(found) for portal, found in reqids.items()}),
        other_elements=MappingProxyType({name: odd for name, odd in other.items() if odd}),
        definitions=frozenset(definitions),
        rules=MappingProxyType({chain: tuple(found) for chain, found in rules.items()}),
        dropped=MappingProxyType(dict(dropped)),
    )


def _flagged(flags: str) -> GuardState:
    """A table with flags, which differs from every table that this program loads."""
    return GuardState(
        sets=MappingProxyType({}),
        reqids=MappingProxyType({}),
        other_elements=MappingProxyType({}),
        definitions=frozenset({flags}),
        rules=MappingProxyType({}),
        dropped=MappingProxyType({}),
    )


def _elements(
    elements: object,
) -> tuple[frozenset[Portal], frozenset[tuple[Portal, int]], frozenset[str]]:
    """The portals, the portals with a reqid, and the other elements."""
    if not isinstance(elements, list):
        raise Unreadable("a set whose elements are no list")
    portals, pairs, other = set(), set(), set()
    for element in elements:
        match element:
            case {"concat": [str(address), int(port)], **rest} if not rest and (
                found := _portal(address, port)
            ):
                portals.add(found)
            case {"concat": [str(address), int(port), int(reqid)], **rest} if not rest and (
                found := _portal(address, port)
            ):
                pairs.add((found, reqid))
            case _:
                other.add(_canonical(element))
    return frozenset(portals), frozenset(pairs), frozenset(other)


def _portal(address: str, port: int) -> Portal | None:
    with contextlib.suppress(ValueError):
        if 0 < port < 65536:
            return Portal(ipaddress.ip_address(address), port)
    return None


def _drops(expressions: object) -> int:
    if not isinstance(expressions, list):
        return 0
    statements = [e for e in expressions if isinstance(e, dict)]
    if not any(_DROPPING & e.keys() for e in statements):
        return 0
    counters = [e["counter"] for e in statements if isinstance(e.get("counter"), dict)]
    return sum(c["packets"] for c in counters if isinstance(c.get("packets"), int))


def _canonical(value: object) -> str:
    return json.dumps(_uncounted(value), sort_keys=True, separators=(",", ":"))


def _uncounted(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: None if name == "counter" else _uncounted(inner)
            for name, inner in value.items()
            if name != "handle"
        }
    if isinstance(value, list):
        return [_uncounted(inner) for inner in value]
    return value
