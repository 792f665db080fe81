"""Compares the actual state with the expected one. Each result is a list of differences in words; empty means correct."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.hand import OURS
from tests.chaos.oracle import Expected
from tests.chaos.scene import NEVER_NAMED, PORTALS, Scene
from tests.chaos.shelf import SETTINGS, Bad
from tests.chaos.stage import Stage
from tests.chaos.texts import MARK

ADDRESSES = (*PORTALS, *NEVER_NAMED)
_TRAP = re.compile(
    r"^src (\S+) dst (\S+) proto tcp (?:sport \d+ )?dport 3260.*?dir out", re.MULTILINE | re.DOTALL
)
_COUNTED = re.compile(r"counter packets \d+ bytes \d+")
_OPEN = re.compile(r"set open4 \{[^{}]*elements = \{([^{}]*)\}")
_NETWORK = re.compile(r"\btcp [ds]port (?:3260|iscsi-target) .*drop")
_ELEMENTS = re.compile(r"set portals[46] \{[^{}]*elements = \{([^{}]*)\}")


def shown(portal: str) -> str:
    return f"[{portal}]:3260" if ":" in portal else f"{portal}:3260"


def status_differences(stage: Stage, scene: Scene, expected: Expected) -> list[str]:
    """Compare the daemon's status with the expected one, and check that it has read everything."""
    try:
        said = stage.daemon.status()
    except ValueError:
        return ["status.json is damaged"]
    if said.get("pid") != stage.daemon.pid:
        return ["status.json is not this daemon's"]
    found = []
    if said["charon"]["reachable"] is not scene.charon_up:
        found.append(f"charon.reachable is {said['charon']['reachable']}")
    if not said["guard"]["installed"]:
        found.append("guard.installed is false")
    found += _file_differences(stage, scene, said)
    rows = {row["portal"]: row for row in said["portals"]}
    wanted = {shown(portal): row for portal, row in expected.rows.items()}
    found += [f"status has {portal}, which nothing names" for portal in rows.keys() - wanted.keys()]
    for portal, row in wanted.items():
        if portal not in rows:
            found.append(f"status does not have {portal}")
            continue
        is_now = rows[portal]
        conn = row.conn
        must: dict[str, object] = {
            "managed": row.managed,
            "closed": row.closed,
            "connection": conn.name if conn else None,
        }
        if conn:
            must |= {"key": conn.key_name, "identity": conn.local_id, "ready": scene.charon_up}
        found += [
            f"{portal}: {name} is {is_now[name]!r}, must be {value!r}"
            for name, value in must.items()
            if is_now[name] != value
        ]
        code = is_now["problem"]["code"] if is_now["problem"] else ""
        if row.orphaned is not (code == "orphaned"):
            found.append(f"{portal}: problem {code!r}, orphaned must be {row.orphaned}")
    return found


def _file_differences(stage: Stage, scene: Scene, said: Mapping[str, Any]) -> list[str]:
    found = []
    rows = {row["path"]: row for row in said["files"]}
    wanted = {str(stage.hand.at(path)): (path, state) for path, state in scene.shelf.states().items()}
    found += [f"status has the file {path}" for path in rows.keys() - wanted.keys()]
    reported = {problem["file"] for problem in said["problems"]}
    for real, (path, state) in wanted.items():
        if real not in rows:
            found.append(f"status does not have the file {path}, which must be {state}")
            continue
        if path == SETTINGS and "etc" in scene.opened:
            continue  # refused once it is read again, which nothing makes necessary
        if rows[real]["state"] != state:
            found.append(f"{path} is {rows[real]['state']}, must be {state}")
        if path in scene.shelf.disk and state != "masked" and path.rpartition("/")[0] not in scene.shelf.lost:
            signature = stage.hand.signature(path)
            if signature and rows[real]["signature"] != signature:
                found.append(f"{path} was not looked at since it changed")
        if (
            isinstance(scene.shelf.disk.get(path), Bad)
            and path.rpartition("/")[0] not in scene.shelf.lost
            and not {real, f"{real.removesuffix('.toml')}.psk"} & reported
        ):
            found.append(f"nothing is said about {path}")
    for folder in scene.shelf.lost:
        kept = any(path.rpartition("/")[0] == folder for path in scene.shelf.known)
        spoken_of = any(
            str(file or "").startswith(str(stage.hand.at(folder)))
            or str(stage.hand.at(folder)).startswith(f"{file}")
            for file in reported
            if file
        )
        if kept and not spoken_of:
            found.append(f"nothing is said about the lost folder {folder}")
    return found


def charon_differences(stage: Stage, expected: Expected) -> list[str]:
    """Connections and secrets of this program, to the letter."""
    found = []
    conns = {name: tree for name, tree in stage.charon.connections().items() if name.startswith(OURS)}
    wanted = expected.conns
    found += [f"charon has {name}, which nothing asks for" for name in conns.keys() - wanted.keys()]
    for name, conn in wanted.items():
        if name not in conns:
            found.append(f"charon does not have {name}")
            continue
        tree = conns[name]
        children = list(tree["children"].values())
        is_now = {
            "local": [a.decode() for a in tree["local_addrs"]],
            "remote": [a.decode() for a in tree["remote_addrs"]],
            "version": tree["version"].decode(),
            "ids": (tree["local-1"]["id"].decode(), tree["remote-1"]["id"].decode()),
            "mode": [child["mode"].decode() for child in children],
            "ports": [child["remote-ts"][0].decode().rpartition("/")[2].rstrip("]") for child in children],
        }
        must = {
            "local": [conn.source],
            "remote": [conn.portal],
            "version": "IKEv2" if conn.version == "2" else "IKEv1",
            "ids": (conn.local_id, conn.remote_id),
            "mode": [conn.mode],
            "ports": is_now["ports"] if is_now["ports"] in (["3260"], ["iscsi-target"]) else ["3260"],
        }
        found += [
            f"{name}: {what} is {is_now[what]}, must be {value}"
            for what, value in must.items()
            if is_now[what] != value
        ]
    ids = [ident for ident in stage.charon.secrets() if ident.startswith(OURS)]
    stage.read_owners()
    unknown = [ident for ident in ids if ident not in stage.owners]
    found += [f"charon never said whose secret {ident} is" for ident in unknown]
    is_owned = Counter(stage.owners[ident] for ident in ids if ident in stage.owners)
    must_own = Counter(secret.owners for secret in expected.secrets.elements())
    found += [f"charon has a secret too many for {owners}" for owners in is_owned - must_own]
    found += [f"charon has no secret for {owners}" for owners in must_own - is_owned]
    return found


def trap_differences(stage: Stage, expected: Expected) -> list[str]:
    """Policies in the kernel that make traffic to a portal ask for an SA."""
    text = stage.hand.run("ip", "xfrm", "policy")
    traps = set()
    for block in re.split(r"\n(?=src )", text):
        if found := _TRAP.match(block):
            traps.add((found[1].partition("/")[0], found[2].partition("/")[0]))
    return [
        f"no trap from {c.source} to {c.portal}"
        for c in expected.conns.values()
        if (c.source, c.portal) not in traps
    ]


def guard_differences(stage: Stage, scene: Scene, expected: Expected) -> list[str]:
    """The table in the kernel, and the file from which it is loaded at boot."""
    listed = stage.hand.run("nft", "list", "table", "inet", "iscsi_ipsec")
    if not listed:
        return ["the guard's table is gone"]
    found = []
    closed = _portals_of(listed)
    found += [f"the guard does not hold {portal}" for portal in expected.closed - closed]
    found += [f"the guard holds {portal}" for portal in closed - expected.closed]
    if rules_of(listed) != stage.guard_rules:
        found.append(f"the guard's rules differ\n{listed}")
    if not scene.shelf.disk_full:
        try:
            text = stage.hand.at("lib/guard.nft").read_text()
            kept = _portals_of(text)
        except (OSError, UnicodeDecodeError) as err:
            return [*found, f"guard.nft: {err}"]
        if kept != expected.closed:
            found.append(f"guard.nft holds {sorted(kept)}")
        if _exceptions_of(listed) != _exceptions_of(text):
            found.append(f"the guard lets through {_exceptions_of(listed)}")
    return found


def rules_of(listed: str) -> str:
    """The table without elements and counters: all that is the same whatever is guarded."""
    lines = _COUNTED.sub("counter", re.sub(r"elements = \{[^{}]*\}", "", listed)).splitlines()
    return "\n".join(line.strip() for line in lines if line.strip() and not _NETWORK.search(line))


def _portals_of(text: str) -> frozenset[str]:
    elements = (element for found in _ELEMENTS.findall(text) for element in found.split(","))
    return frozenset(element.strip().rpartition(" . ")[0] for element in elements if element.strip())


def _exceptions_of(text: str) -> frozenset[str]:
    elements = (e for found in _OPEN.findall(text) for e in found.replace("/32", "").split(","))
    return frozenset(element.strip() for element in elements)


@dataclass(slots=True)
class Watched:
    """Check what must not change in the whole run."""

    foreign_conn: object = None
    names: dict[tuple[tuple[str, ...], str], str] = field(default_factory=dict)
    """The id of the secret of an owner and a key: the same as long as both are."""
    _log_read: int = 0

    def foreign(self, stage: Stage, scene: Scene) -> list[str]:
        found = []
        if stage.hand.foreign_table() != stage.hand.foreign_text:
            found.append(f"somebody else's table changed: {stage.hand.foreign_table()}")
        if scene.charon_up:
            conns = stage.charon.connections()
            if conns.get("foreign") != self.foreign_conn:
                found.append(f"somebody else's connection changed: {conns.get('foreign')}")
            if "ike-foreign" not in stage.charon.secrets():
                found.append("somebody else's secret is gone")
        return found

    def secret_names(self, stage: Stage, expected: Expected) -> list[str]:
        """One name for one key: a name that stays when the key changes would hide the change."""
        found = []
        ids = {ident for ident in stage.charon.secrets() if ident.startswith(OURS)}
        by_owners: dict[tuple[str, ...], list[str]] = {}
        for secret in expected.secrets.elements():
            by_owners.setdefault(secret.owners, []).append(secret.key)
        for owners, keys in by_owners.items():
            mine = [ident for ident in ids if stage.owners.get(ident) == owners]
            if len(keys) != 1 or len(mine) != 1:
                continue
            before = [(other, key) for (other, key), ident in self.names.items() if ident == mine[0]]
            if before and (owners, keys[0]) not in before:
                found.append(f"{mine[0]} was another key before: the one of {before[0][0]}")
                continue
            known = self.names.setdefault((owners, keys[0]), mine[0])
            if known != mine[0]:
                found.append(f"the secret of {owners} is {mine[0]}, and was {known} with the same key")
        return found

    def log(self, stage: Stage) -> list[str]:
        """No traceback, no error that is a bug, no key, in all that the daemon wrote."""
        found = []
        size = stage.daemon.log.stat().st_size if stage.daemon.log.exists() else 0
        with stage.daemon.log.open("rb") as file:
            file.seek(self._log_read)
            text = file.read(size - self._log_read).decode(errors="replace")
        self._log_read = size
        if "Traceback" in text or "callback" in text:
            found.append(f"a traceback in the daemon's log\n{text[-3000:]}")
        if MARK in text or MARK.encode().hex() in text:
            found.append("a key in the daemon's log")
        for name in ("run/status.json", "run/metrics.prom", "lib/guard.nft"):
            path = stage.hand.at(name)
            if path.exists() and MARK.encode() in path.read_bytes():
                found.append(f"a key in {name}")
        return found


def reachable(stage: Stage, scene: Scene) -> Iterable[str]:
    """Addresses that nothing closes and that nothing stale in the kernel holds up: they must answer."""
    policies = stage.hand.run("ip", "xfrm", "policy")
    for address in ADDRESSES:
        if (
            not scene.expected.is_closed(address)
            and f"dst {address}/" not in policies
            and stage.source_of(address)
        ):
            yield address


def says(problems: list[str]) -> str:
    return "\n".join(f"- {problem}" for problem in problems)
