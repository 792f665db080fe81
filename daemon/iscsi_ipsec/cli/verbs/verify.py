"""``verify``: proves from the kernel that every iSCSI session runs inside ESP."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from iscsi_ipsec.adapters import openiscsi
from iscsi_ipsec.adapters.netlink import Routes, established_to, kernel
from iscsi_ipsec.adapters.nft import Guard
from iscsi_ipsec.base.errors import KernelUnavailable
from iscsi_ipsec.base.iscsi import IscsiSession
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.portal import ISCSI_PORT, Flow, Portal, parse_portal
from iscsi_ipsec.base.printable import printable
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs, read_status
from iscsi_ipsec.cli.output import GREEN, RED, paint, print_json
from iscsi_ipsec.core.guard.ruleset import held_portals
from iscsi_ipsec.core.report.kernel_proof import (
    Expectation,
    Facts,
    Verdict,
    offloaded_session,
    verify_flow,
    verify_portal,
)
from iscsi_ipsec.service.paths import Paths


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser(
        "verify", help="prove from the kernel that every session is inside ESP; exit 1 if not"
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Judge every session and every closed portal."""
    verdicts = judge(read_status(paths), paths)
    if options.json:
        print_json(
            [
                {
                    "subject": v.subject, "portal": str(v.portal), "proven": v.proven, "clear": v.clear,
                    "evidence": list(v.evidence), "failures": list(v.failures),
                }
                for v in verdicts
            ]
        )  # fmt: skip
    else:
        _print(verdicts)
    return Exit.FINE if all(v.proven for v in verdicts) else Exit.PROBLEMS


def judge(document: dict[str, Any], paths: Paths) -> tuple[Verdict, ...]:
    """The verdicts, sessions first; :class:`CommandError` where the kernel cannot be read."""
    expected = _expectations(document["portals"])
    try:
        sessions = openiscsi.read_sessions(paths.sysfs_dir)
        flows = _flows(expected.keys(), sessions)
        facts = _facts(document, flows)
    except KernelUnavailable as err:
        raise CommandError(
            Exit.NOT_PERMITTED, f"the kernel cannot be read: {err}", "run this as root"
        ) from err
    offloaded = [session for session in sessions if session.is_offloaded]
    verdicts = [offloaded_session(session) for session in offloaded]
    verdicts += [verify_flow(flow, expected.get(flow.remote), facts) for flow in flows]
    busy = {flow.remote for flow in flows} | {session.remote for session in offloaded}
    verdicts += [verify_portal(e, facts) for portal, e in expected.items() if e.closed and portal not in busy]
    return tuple(verdicts)


def _expectations(rows: Iterable[Mapping[str, Any]]) -> dict[Portal, Expectation]:
    """The expected state of each portal; a portal that is reached through several interfaces has a row, and a reqid, for each."""
    expected: dict[Portal, Expectation] = {}
    for row in rows:
        if row["role"] == Role.INITIATOR.value:
            portal = parse_portal(row["portal"])
            before = expected[portal].reqids if portal in expected else frozenset()
            ciphers = expected[portal].ciphers if portal in expected else frozenset()
            expected[portal] = Expectation(
                portal=portal,
                managed=row["managed"],
                closed=row["closed"],
                mode=row["mode"] or "",
                user_space_esp=row["user_space_esp"],
                reqids=before | ({row["reqid"]} if row.get("reqid") else frozenset()),
                ciphers=ciphers | ({row["sa"]["cipher"]} if row.get("sa") else frozenset()),
            )
    return expected


def _flows(portals: Any, sessions: Iterable[IscsiSession]) -> tuple[Flow, ...]:
    """Sessions of the kernel's initiator, and TCP connections of user-space ones to known portals."""
    known = set(portals)
    of_sessions = {
        Flow(local=Portal(s.local_address, s.local_port), remote=s.remote)
        for s in sessions
        if s.local_address and s.local_port and not s.is_offloaded
    }
    ports = {portal.port for portal in known} | {ISCSI_PORT}
    sockets = {f for f in established_to(ports) if f.remote in known or f.remote.port == ISCSI_PORT}
    return tuple(sorted(of_sessions | sockets, key=lambda f: (f.remote.sort_key, f.local.sort_key)))


def _facts(document: dict[str, Any], flows: tuple[Flow, ...]) -> Facts:
    guard = Guard().installed()
    routes = Routes()
    routed = {flow.remote: routes.device_for(flow.remote.address) or "" for flow in flows}
    routes.close()
    return Facts(
        policies=kernel.policies(),
        states=kernel.states(),
        guarded=held_portals(guard.sets) if guard else None,
        reqids=guard.reqids if guard else {},
        guard_wanted=document["guard"]["wanted"],
        devices=frozenset(document["guard"]["devices"]),
        routed_via=routed,
    )


def _print(verdicts: tuple[Verdict, ...]) -> None:
    if not verdicts:
        sys.stdout.write("no iSCSI session and no closed portal: nothing to prove\n")
    for verdict in verdicts:
        word = (
            paint("proven", GREEN)
            if verdict.proven
            else paint("UNENCRYPTED" if verdict.clear else "NOT PROVEN", RED)
        )
        sys.stdout.write(f"{word}: {printable(verdict.subject)}\n")
        for line in verdict.evidence:
            sys.stdout.write(f"    {printable(line)}\n")
        for line in verdict.failures:
            sys.stdout.write(f"    missing: {printable(line)}\n")
