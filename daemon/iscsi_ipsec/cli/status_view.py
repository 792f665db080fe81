"""Formats the status document for people: each portal's state, the problems, and what to type next.

Law: pure. Words and order only; the verb prints them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.printable import plural
from iscsi_ipsec.cli.output import GREEN, RED, YELLOW, size, span

Row = Mapping[str, Any]

NARROW = ("PORTAL", "STATE", "KEY", "IDENTITY", "CIPHER", "AGE", "BYTES", "SESS")
WIDE = (
    "PORTAL", "STATE", "KEY", "IDENTITY", "CIPHER", "AGE", "BYTES", "SESS",
    "ROLE", "IKE", "MODE", "PFS", "PEER", "POLICY",
)  # fmt: skip

UNENCRYPTED = "UNENCRYPTED"
"""The state of a portal whose sessions' data crosses the wire unencrypted."""

_GROUP_FROM = 4
"""From so many portals on, those with the same problem are listed in one line."""
_NAMED_AT_MOST = 3


def cells(row: Row, *, wide: bool) -> tuple[str, ...]:
    """A portal's line of the table."""
    sa = row["sa"]
    shown = (
        row["portal"] + (f"%{row['interface']}" if row["interface"] else ""),
        state_of(row),
        row["key"] or "-",
        row["identity"] or "-",
        sa["cipher"] if sa else "-",
        span(sa["age"]) if sa else "-",
        size(sa["bytes_in"] + sa["bytes_out"]) if sa else "-",
        str(len(row["sessions"])),
    )
    if not wide:
        return shown
    return (
        *shown,
        row["role"],
        row["ike"] or "-",
        (sa["mode"] if sa else row["mode"]) or "-",
        "-" if row["pfs"] is None else "yes" if row["pfs"] else "no",
        row["peer_identity"] or "-",
        row["policy"] or "-",
    )


def state_of(row: Row) -> str:
    """A portal's state in one word or two."""
    if is_unencrypted(row):
        return UNENCRYPTED
    if not row["managed"] and not row["closed"]:
        return "not managed"
    if row["own_address"] and not row["problem"]:
        return "own address"
    problem = row["problem"]
    if row["protected"]:
        return f"protected, {problem['code']}" if problem else "protected"
    if problem:
        return str(problem["code"])
    return "ready" if row["ready"] else "not ready"


def is_unencrypted(row: Row) -> bool:
    """Whether iSCSI sessions run to the portal and their data may cross the network unencrypted."""
    return bool(row["sessions"]) and not row["closed"] and row["role"] == Role.INITIATOR.value


def colour_of(row: Row) -> int:
    """Red for what is broken or unencrypted, green for what is protected, 0 for none."""
    if is_unencrypted(row) or (row["problem"] and row["problem"]["severity"] == "error"):
        return RED
    if row["problem"] or not row["closed"]:
        return YELLOW
    return GREEN if row["protected"] else 0


def guard_text(guard: Row) -> str:
    """The guard in one line."""
    if not guard["wanted"]:
        return "off (guard = false): a lost SA may mean unencrypted traffic"
    if not guard["installed"]:
        return "MISSING: a lost SA may mean unencrypted traffic"
    text = f"in place for {plural(len(guard['portals']), 'portal')}"
    if guard.get("networks"):
        text += f" and {plural(len(guard['networks']), 'network')}"
    return text if guard["dropped"] is None else f"{text}, {plural(guard['dropped'], 'packet')} dropped"


def totals(rows: Sequence[Row]) -> str:
    """How many portals there are, and in which state."""
    managed = [row for row in rows if row["managed"]]
    text = (
        f"{plural(len(rows), 'row')}, {len(managed)} managed, {sum(r['protected'] for r in rows)} protected"
    )
    bad = sum(1 for row in rows if is_unencrypted(row))
    return text + (f", {bad} {UNENCRYPTED}" if bad else "")


# -- problems


def unencrypted_problems(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Portals with sessions that no file covers, each with the one line that would protect it."""
    problems = []
    for row in rows:
        if not is_unencrypted(row) or (row["problem"] and row["problem"]["code"] != "not-protected"):
            continue
        address, _, port = row["portal"].rpartition(":")
        named = row["portal"] if port != "3260" else address.strip("[]")
        problems.append(
            {
                "code": "unencrypted",
                "severity": "error",
                "file": None,
                "line": None,
                "portal": row["portal"],
                "message": f"the data of {plural(len(row['sessions']), 'session')} crosses the network unencrypted:"
                " no policy covers this portal",
                "hint": f"echo 'portals = [\"{named}\"]' > /etc/iscsi-ipsec/portal.d/{file_stem(named)}.toml"
                " (it needs a key too, and closes the portal until IKE succeeds)",
            }
        )
    return problems


def file_stem(portal: str) -> str:
    """A file name for a portal's policy."""
    return portal.strip("[]").replace("]", "").replace(":", "-")


def problem_lines(problems: Sequence[Row], *, wide: bool) -> list[tuple[str, int]]:
    """Each problem once, errors first: where and what, and below it what to do; with the colour."""
    lines: list[tuple[str, int]] = []
    for group in _grouped(_sorted(problems), at_least=len(problems) + 1 if wide else _GROUP_FROM):
        first = group[0]
        colour = RED if first["severity"] == "error" else YELLOW
        label = f"{first['severity']}: "
        lines.append((label + (_where_and_what(first) if len(group) == 1 else _of_many(group)), colour))
        if first["hint"]:
            lines.append((" " * len(label) + first["hint"], 0))
    return lines


def _sorted(problems: Sequence[Row]) -> list[Row]:
    """Errors first, those of the whole host before those of a file and of a portal."""
    return sorted(
        problems,
        key=lambda p: (
            p["severity"] != "error",
            p["code"] != "unencrypted",
            bool(p["portal"]),
            bool(p["file"]),
        ),
    )


def _grouped(problems: Sequence[Row], at_least: int) -> list[list[Row]]:
    """Portals' problems of one code and severity together where they are many."""
    groups: dict[object, list[Row]] = {}
    for place, problem in enumerate(problems):
        key = (problem["code"], problem["severity"]) if problem["portal"] else place
        groups.setdefault(key, []).append(problem)
    return [
        part
        for group in groups.values()
        for part in ([group] if len(group) >= at_least else [[problem] for problem in group])
    ]


def _of_many(group: Sequence[Row]) -> str:
    portals = list(dict.fromkeys(problem["portal"] for problem in group))
    more = f" and {len(portals) - _NAMED_AT_MOST} more" if len(portals) > _NAMED_AT_MOST else ""
    named = ", ".join(portals[:_NAMED_AT_MOST])
    return f"{plural(len(portals), 'portal')} {group[0]['code']}: {named}{more}: {group[0]['message']}"


def _where_and_what(problem: Row) -> str:
    """The message with its place in front, unless it names the place itself."""
    message, file = problem["message"], problem["file"]
    place = f"{file}:{problem['line']}" if file and problem["line"] else file or problem["portal"] or ""
    named = file or problem["portal"] or ""
    return message if not place or (named in message and not problem["line"]) else f"{place}: {message}"
