"""The files of a benchmark: so many keys, so many portals, the same for every rival.

Portals lie behind a router, so that one route reaches all of them. Each names a key of its
own; the other keys wait for a use, and charon holds them all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iscsi_ipsec.service.pass_schedule import PARTS
from tests.support.netlab import Charon, Daemon, Lab, Node

PORTALS = "10.30.0.0/16"
ROUTER = "10.10.0.254"
TABLE = ("inet", "iscsi_ipsec")

ROUND = 2 * len(PARTS)
"""So many regular passes give each part its turn, however much there is."""

Messages = list[tuple[str, dict[str, Any]]]
"""VICI commands with their messages, as a bare client sends them."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How much there is."""

    keys: int
    portals: int

    @classmethod
    def of(cls, keys: int) -> Shape:
        """The usual proportion: a portal to ten keys."""
        return cls(keys, max(1, keys // 10))

    @property
    def writes(self) -> int:
        """The messages for an empty charon: a secret for each key, a connection for each portal."""
        return self.keys + self.portals

    def __str__(self) -> str:
        return f"{self.keys:,} keys, {self.portals:,} portals"


def key_name(number: int) -> str:
    return f"k{number:06}"


def key_text(number: int, version: int = 0) -> str:
    return (
        f'id_type = "ID_FQDN"\nid = "{key_name(number)}.bench.example"\n'
        f'key = "key {number:06} of version {version:04} for the benchmark"\n'
    )


def portal_text(number: int) -> str:
    high, low = divmod(number, 250)
    return f'portals = ["10.30.{high}.{low + 1}"]\npsk = "{key_name(number)}"\n'


def write_files(shape: Shape, daemon: Daemon) -> None:
    """Lay out what an admin would have."""
    for folder, count, text in (
        (daemon.psk, shape.keys, key_text),
        (daemon.portal, shape.portals, portal_text),
    ):
        for number in range(count):
            path = folder / f"{key_name(number)}.toml"
            path.touch(mode=0o600)
            path.write_text(text(number))


def make_route(node: Node) -> None:
    node.route(PORTALS, via=ROUTER, source=node.at.v4)


def clean(node: Node, charon: Charon, daemon: Daemon | None = None) -> None:
    """End one round so that the next begins with nothing: no guard, no policy left in the kernel."""
    if daemon is not None:
        daemon.close()
    charon.kill()  # unloading would take as long as loading did
    node.ip("xfrm", "policy", "flush", check=False)
    node.ip("xfrm", "state", "flush", check=False)
    node.run(["nft", "delete", "table", *TABLE], check=False)


def fresh(lab: Lab, name: str, shape: Shape) -> tuple[Charon, Daemon]:
    """An empty charon, and a daemon with its files that has never run."""
    charon = lab.ike_only(name)
    daemon = lab.daemon(name, charon)
    write_files(shape, daemon)
    return charon, daemon


def save(messages: Messages, path: Path) -> None:
    path.touch(mode=0o600)
    path.write_text(json.dumps(messages))


def load(path: Path) -> Messages:
    return [(command, message) for command, message in json.loads(path.read_text())]


def swanctl_conf(messages: Messages) -> str:
    """The same secrets and connections as the one file that swanctl reads."""
    connections = [message for command, message in messages if command == "load-conn"]
    secrets = [message for command, message in messages if command == "load-shared"]
    lines = ["connections {"]
    for message in connections:
        lines += _settings(message)
    lines += ["}", "secrets {"]
    for number, message in enumerate(secrets):
        owners = [f"    id-{place} = {owner}" for place, owner in enumerate(message["owners"])]
        lines += [f"  ike-{number} {{", *owners, f'    secret = "{message["data"]}"', "  }"]
    return "\n".join([*lines, "}", ""])


def _settings(tree: Mapping[str, Any], depth: int = 1) -> Iterator[str]:
    indent = "  " * depth
    for name, value in tree.items():
        if isinstance(value, dict):
            yield f"{indent}{name.replace('.', '_')} {{"  # a dot parts the names of nested sections
            yield from _settings(value, depth + 1)
            yield f"{indent}}}"
        else:
            yield f"{indent}{name} = {', '.join(value) if isinstance(value, list) else value}"
