"""Random worlds as files, routes and names: what nftables, charon and the wire hold is what the oracle says.

``ORACLE_REAL_WORLDS`` says how many; each takes a start of the daemon.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from iscsi_ipsec.adapters.nft import Guard
from iscsi_ipsec.adapters.state_db import ManagedRecord, Store
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.core.guard.ruleset import held_portals
from tests.support import oracle
from tests.support.netlab import Charon, Daemon, Lab, wait_until
from tests.support.oracle_worlds import SERVED, UNIVERSE, core_portal, random_world

WORLDS = int(os.environ.get("ORACLE_REAL_WORLDS", "12"))
SEED = int(os.environ.get("ORACLE_SEED", "20261130"))
GATEWAY = "10.10.0.2"
CONTROL = ("172.31.0.1", 3999)
"""Nobody's: a packet to it is the last on the wire, and shows that all before have had their chance."""
FLAGS = {
    oracle.STRONG: '["VALID", "IKE_IPSEC_ENABLED", "PFS_ENABLED"]',
    oracle.WEAK: '["VALID", "IKE_IPSEC_ENABLED", "AGGRESSIVE_MODE_ENABLED", "PFS_ENABLED"]',
    oracle.CLEAR: '["VALID"]',
}


def a_world(seed: int) -> oracle.World:
    """One that a host stays in: inherited is what was managed before and no file has covered since."""
    world = random_world(random.Random(seed))  # noqa: S311  # no secret
    held = world.held | {(portal, oracle.INITIATOR) for portal in world.inherited}
    uncovered = frozenset(p for p in world.inherited if oracle.covered_by(world, p) == oracle.UNCOVERED)
    return dataclasses.replace(world, held=held, inherited=uncovered)


def portals_line(portals: tuple[oracle.Pattern, ...]) -> str:
    texts = [text if text == "any" else f"{text}:{port}" for text, port in portals]
    return f"portals = {json.dumps(texts)}\n" if texts else ""


def flags_line(flags: str) -> str:
    return f"security_flags = {FLAGS[flags]}\n" if flags else ""


def put_files(world: oracle.World, daemon: Daemon) -> None:
    for key in world.keys:
        kind, text = key.id or ("", "")
        owner = f'id_type = "{"ID_IPV4_ADDR" if kind == "address" else "ID_FQDN"}"\nid = "{text}"\n'
        daemon.put_key(
            key.name,
            (owner if key.id else "group = true\n")
            + f'key = "{key.secret}, long enough to be used"\n{portals_line(key.portals)}{flags_line(key.flags)}',
        )
    for policy in world.policies:
        daemon.put_portal(
            policy.name,
            f'{portals_line(policy.portals)}role = "{policy.role}"\n{flags_line(policy.flags)}'
            + (f'psk = "{policy.psk}"\n' if policy.psk else "")
            + (f'target_id = "{policy.target_id}"\n' if policy.target_id else "")
            + (f"initiators = {json.dumps(policy.initiators)}\n" if policy.initiators else ""),
        )
    taken = {policy.name for policy in world.policies}
    for broken in world.broken:
        text = f"{portals_line(broken.portals)}description = 7\n"
        if broken.is_policy:  # a name that is taken: one that sorts right behind it
            name = f"{broken.name}0" if broken.name in taken else broken.name
            daemon.put_portal(name, f'{text}role = "{broken.role}"\n')
        else:
            daemon.put_key(
                broken.name, f'{text}id_type = "ID_FQDN"\nid = "x.lab"\nkey = "long enough to be used"\n'
            )
    defaults = f"[defaults]\n{flags_line(world.default)}" if world.default else ""
    daemon.put_settings(f"require_ipsec = {str(world.require).lower()}\n{defaults}")
    for address, port in world.records:
        folder = daemon.nodes / "nodes" / "iqn.2026-01.lab:disk" / f"{address},{port},1"
        folder.mkdir(parents=True)
        (folder / "default").write_text(
            "# BEGIN RECORD 2.1.8\nnode.name = iqn.2026-01.lab:disk\niface.iscsi_ifacename = default\n"
            f"node.conn[0].address = {address}\nnode.conn[0].port = {port}\n# END RECORD\n"
        )
    store = Store(str(daemon.state / "state.db"))
    store.set_managed(
        ManagedRecord(
            portal=core_portal(portal), role=Role(role), since=1, why="before",
            inherited=role == oracle.INITIATOR and portal in world.inherited,
        )
        for portal, role in world.held
    )  # fmt: skip
    store.close()


@pytest.fixture
def host(lab: Lab, hosts: Path) -> Iterator[tuple[Lab, Path]]:
    node = lab.node("initiator")
    node.ip("route", "replace", CONTROL[0], "via", GATEWAY)
    knocked(lab, set())  # the gateway's address on the wire is known from now on
    yield lab, hosts
    node.ip("address", "flush", "dev", "lo", "to", "10.0.0.0/16")


def put_network(world: oracle.World, lab: Lab, hosts: Path) -> None:
    node = lab.node("initiator")
    node.ip("address", "flush", "dev", "lo", "to", "10.0.0.0/16")
    for address in sorted(world.local):
        node.ip("address", "add", f"{address}/32", "dev", "lo")
    others = {a for a, _ in UNIVERSE} - world.sources.keys()
    for address, source in {**dict.fromkeys(others, ""), **world.sources}.items():
        if address in world.local:
            continue
        how = ["via", GATEWAY, "src", source] if source else ["via", GATEWAY]
        if address in world.sources and not source:
            node.ip("route", "replace", "unreachable", address)
        else:
            node.ip("route", "del", "unreachable", address, check=False)
            node.ip("route", "replace", address, *how)
    lines = [f"{address} {name}\n" for name, found in world.names.items() for address in found]
    hosts.write_text("127.0.0.1 localhost\n" + "".join(lines))


def knocked(lab: Lab, portals: set[oracle.Portal]) -> set[oracle.Portal]:
    """The portals to which a TCP packet left unencrypted, of these that are tried."""
    mark = lab.wire.mark()

    def knock() -> None:
        with ExitStack() as stack:
            for portal in (*sorted(portals), CONTROL):
                knocking = stack.enter_context(socket.socket())
                knocking.setblocking(False)
                with suppress(OSError):
                    knocking.connect(portal)

    def seen() -> set[oracle.Portal]:
        return {(f.dst, f.dport) for f in lab.wire.frames(mark) if f.kind == "tcp"}

    lab.node("initiator").inside(knock)
    wait_until(lambda: CONTROL in seen(), "the last packet is on the wire")
    return seen() - {CONTROL}


def compare(world: oracle.World, lab: Lab, charon: Charon, daemon: Daemon) -> None:
    verdicts = oracle.initiator(world)
    guard = daemon.node.inside(Guard().installed)
    held = held_portals(guard.sets) if guard else frozenset()
    connections = charon.connections()
    for portal, verdict in verdicts.items():
        if verdict.closed:
            assert core_portal(portal) in held, (portal, verdict)
        name = f"iscsi-ipsec-{portal[0]}-{portal[1]}"
        assert (name in connections) is (verdict.key is not None), (portal, verdict)
        row = daemon.row(f"{portal[0]}:{portal[1]}")
        if verdict.key:
            loaded = connections[name]
            ends = tuple(loaded[end]["id"].decode() for end in ("local-1", "remote-1"))
            assert tuple(oracle.folded("", end) for end in ends) == (
                f":{verdict.ours.partition(':')[2]}", f":{verdict.theirs.partition(':')[2]}",
            ), (portal, verdict)  # fmt: skip
            assert loaded["version"] == (b"IKEv1" if verdict.strength == oracle.WEAK else b"IKEv2")
            assert row["key"] == verdict.key.name, (portal, verdict)
    served = oracle.target(world, ())
    for portal, seen in served.items():
        assert (core_portal(portal) in held) is seen.closed, (portal, seen)
    reachable = {
        p for p in {*UNIVERSE, *verdicts} if p[0] not in world.local and world.sources.get(p[0], "any") != ""
    }
    closed = {
        p for p in reachable if (v.closed if (v := verdicts.get(p)) else oracle.unknown_is_closed(world, p))
    }
    assert knocked(lab, reachable) == reachable - closed


@pytest.mark.timeout(60 + 10 * WORLDS)
def test_guard_charon_and_wire_hold_what_the_oracle_says(host: tuple[Lab, Path], charon: Charon) -> None:
    lab, hosts = host
    kinds: set[str] = set()
    for number in range(WORLDS):
        world = a_world(SEED + number)
        put_network(world, lab, hosts)
        daemon = lab.daemon("initiator", charon)
        put_files(world, daemon)
        daemon.start()
        daemon.settle()
        try:
            compare(world, lab, charon, daemon)
        except AssertionError as err:
            raise AssertionError(f"world of seed {SEED + number}: {err}\n{world}\n{daemon.tail()}") from err
        finally:
            daemon.close()
            daemon.node.run(["nft", "delete", "table", "inet", "iscsi_ipsec"], check=False)
            daemon.node.ip("xfrm", "policy", "flush")
            charon.kill()
            charon.start()
        kinds |= {verdict.rule for verdict in oracle.initiator(world).values()}
    assert len(kinds) >= min(WORLDS, 10), kinds
    assert not [address for address, _ in UNIVERSE if address == SERVED]
