"""``explain``: shows every rule that decided about a portal, in order."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from iscsi_ipsec.base.portal import Portal, PortalRange, parse_portal, parse_portal_pattern, refuse_misread
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs, read_status
from iscsi_ipsec.cli.output import print_json
from iscsi_ipsec.core.report.schema import sentence
from iscsi_ipsec.service.paths import Paths


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser(
        "explain", help="which files, flags, key, identity and proposals a portal gets, and why"
    )
    parser.add_argument("portal", metavar="PORTAL", help="10.0.0.20, 10.0.0.20:3260 or [fd00::20]:3260")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Explain one portal."""
    portal = named_portal(options.portal)
    rows = rows_of(read_status(paths), portal)
    if options.json:
        print_json(rows)
    else:
        for row in rows:
            _print(row)
    return Exit.PROBLEMS if any(row["problem"] for row in rows) else Exit.FINE


def named_portal(text: str) -> Portal:
    """The portal that was typed; :class:`CommandError` where it is not a portal, whether a daemon runs or not."""
    try:
        refuse_misread(text)
        return parse_portal(text)
    except ValueError as err:
        raise CommandError(Exit.USAGE, str(err)) from err


def rows_of(document: dict[str, Any], portal: Portal) -> list[dict[str, Any]]:
    """The rows of a portal; :class:`CommandError` where it is unknown."""
    rows = [row for row in document["portals"] if row["portal"] == str(portal)]
    if not rows:
        raise CommandError(
            Exit.PROBLEMS,
            f"{portal} is unknown: no open-iscsi record, session or policy names it{_closed_by(document, portal)}",
            "name it in a file of portal.d, or run iscsiadm -m discovery",
        )
    return rows


def _closed_by(document: dict[str, Any], portal: Portal) -> str:
    """Says which closed network an unknown portal lies in."""
    guard = document["guard"]
    closed, opened = (
        next((n for n in guard.get(name, ()) if _contains(n, portal)), None)
        for name in ("networks", "opened")
    )
    if not guard["installed"] or not closed or opened:
        return ""
    return f". It lies in {closed}, which is closed: nothing passes before it is named"


def _contains(network: str, portal: Portal) -> bool:
    pattern = parse_portal_pattern(network)
    return isinstance(pattern, PortalRange) and pattern.contains(portal)


def _print(row: dict[str, Any]) -> None:
    out = sys.stdout.write
    out(
        f"{row['portal']}"
        + (f" through {row['interface']}" if row["interface"] else "")
        + f", {row['role']}\n"
    )
    for origin in row["origins"]:
        forget = (
            f"; forget it with: iscsi-ipsec release '{row['portal']}'" if origin == "managed before" else ""
        )
        out(f"  known from     {origin}{forget}\n")
    for reason in row["reasons"]:
        out(f"  because        {reason}\n")
    for name, value in (
        ("policy", row["policy"]),
        ("key", row["key_file"]),
        ("previous key", f"valid until {row['previous_until']}" if row["previous_until"] else None),
        (
            "authenticated",
            f"by the {row['sa']['key']} key" if row["sa"] and row["previous_until"] else None,
        ),
        ("identity", f"{row['identity']} ({row['identity_type']})" if row["identity"] else None),
        ("peer identity", row["peer_identity"]),
        ("IKE", row["ike"]),
        ("ESP mode", row["mode"]),
        ("PFS", None if row["pfs"] is None else "yes" if row["pfs"] else "no"),
        (
            "addresses",
            f"{row['local_address']} to {row['remote_address'] or 'any'}" if row["local_address"] else None,
        ),
        ("IKE proposals", ", ".join(row["ike_proposals"]) or None),
        ("ESP proposals", ", ".join(row["esp_proposals"]) or None),
        ("connection", row["connection"]),
        ("problem", sentence(row["problem"]) if row["problem"] else None),
    ):
        if value:
            out(f"  {name:<14} {value}\n")
