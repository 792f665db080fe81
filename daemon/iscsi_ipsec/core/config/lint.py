"""Warns about settings that are valid but probably a mistake: ``check`` shows the warnings, the daemon does as the file says.

Law: pure; no key is ever repeated. The parsers report mistakes that make a file unusable.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.config.proposals import has_dh_group
from iscsi_ipsec.core.config.security_flags import SecurityFlags, default_choice, interpret, parse_flags
from iscsi_ipsec.core.config.toml_reader import KeyLines, parse_toml

_ENDS_IN_PORT = re.compile(r"[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:(3260|860)")


def lint(text: str, path: str) -> tuple[Problem, ...]:
    """The warnings about a key file or a policy that its parser accepts."""
    source = parse_toml(text, path)
    found = (*_key(source.data), *_portals(source.data), *_proposals(source.data))
    return tuple(_problem(path, source.lines, row) for row in found)


@dataclass(frozen=True, slots=True)
class _Row:
    """The warnings about one key of the file."""

    key: str
    code: str
    message: str
    hint: str
    severity: Severity = Severity.WARNING


def _problem(path: str, lines: KeyLines, row: _Row) -> Problem:
    return Problem(
        code=row.code, message=row.message, hint=row.hint, file=path, line=lines.line_of(row.key), severity=row.severity
    )  # fmt: skip


def _given_flags(data: Mapping[str, object]) -> SecurityFlags | None:
    value = data.get("security_flags")
    if isinstance(value, int | str) and not isinstance(value, bool):
        return parse_flags(value if isinstance(value, int) else (value,))
    return parse_flags([str(name) for name in value]) if isinstance(value, list) else None


def _key(data: Mapping[str, object]) -> Iterable[_Row]:
    for name in ("key", "previous_key"):
        key = data.get(name)
        if not isinstance(key, str):
            continue
        decoded = "begins with 0x or 0s and is taken as text; swanctl.conf decodes it at the other end"
        for odd, what in (
            (key != key.strip(), "begins or ends with a blank or a line end, which counts"),
            ("\0" in key, "holds a NUL character, which counts"),
            (key[:2].lower() in ("0x", "0s"), decoded),
        ):
            if odd:
                yield _Row(
                    key=name, code="odd-key", message=f"{name} {what}", hint="key_hex and key_base64 decode"
                )


def _portals(data: Mapping[str, object]) -> Iterable[_Row]:
    listed = data.get("portals")
    for text in listed if isinstance(listed, list) else ():
        bare = str(text).strip()
        if _ENDS_IN_PORT.fullmatch(bare) and "/" not in bare:
            host, _, port = bare.rpartition(":")
            yield _Row(
                key="portals",
                code="port-in-address",
                message=f"{bare} is an IPv6 address that ends in {port}, on port 3260",
                hint=f"if {port} is the port, write [{host}]:{port}",
            )
        try:
            address = ipaddress.ip_address(bare.partition(":")[0] if bare.count(":") == 1 else bare)
        except ValueError:
            continue
        if address.is_loopback:
            yield _Row(
                key="portals",
                code="loopback-portal",
                message=f"{bare} is this host itself: its packets never leave it",
                hint="remove it, or write the address that others reach",
            )


def _proposals(data: Mapping[str, object]) -> Iterable[_Row]:
    """Flags and proposals of one file that contradict each other; the daemon compares those of different files."""
    proposals, flags = data.get("esp_proposals"), _given_flags(data)
    if not isinstance(proposals, list) or flags is None or SecurityFlags.VALID not in flags:
        return
    choice = interpret(flags) or default_choice()
    bare = [str(p) for p in proposals if not has_dh_group(str(p))]
    with_group = [str(p) for p in proposals if has_dh_group(str(p))]
    if choice.required and choice.pfs and bare:
        yield _Row(
            key="esp_proposals",
            code="pfs-without-group",
            message=f"the flags ask for PFS, but an ESP proposal has no DH group: {', '.join(bare)}",
            hint="append one, such as -ecp384 or -modp2048, or unset PFS_ENABLED",
            severity=Severity.ERROR,
        )
    if choice.required and not choice.pfs and with_group:
        yield _Row(
            key="esp_proposals",
            code="group-without-pfs",
            message=f"PFS_ENABLED is unset, but an ESP proposal has a DH group: {', '.join(with_group)}",
            hint="set PFS_ENABLED, or take the group out",
            severity=Severity.ERROR,
        )
