"""Helpers for tests of the import from Windows: expected values and problems."""

from __future__ import annotations

from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.policy import EspMode, IkeMode, IpsecChoice
from iscsi_ipsec.base.portal import parse_portal
from iscsi_ipsec.base.problem import Severity
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.windows.importer import parse
from iscsi_ipsec.core.windows.values import FoundKey, FoundPortal, Harvest, Rules

KEY = "a key of twenty bytes"
SECRET = Secret(KEY.encode())
DB1 = IkeId(IdType.ID_FQDN, "db1.example.com")
X27 = IpsecChoice(required=True, ike=IkeMode.MAIN, esp=EspMode.TRANSPORT, pfs=False)
X47 = IpsecChoice(required=True, ike=IkeMode.MAIN, esp=EspMode.TUNNEL, pfs=False)
NOT_SPECIFIED = "VALID is unset: the flags count as not specified (RFC 4174, 2.4)"


def of(text: str, rules: Rules | None = None) -> Harvest:
    return parse(text, "in", rules or Rules())


def reported(harvest: Harvest) -> list[tuple[int, str]]:
    return [(problem.line, problem.message) for problem in harvest.problems]


def errors(harvest: Harvest) -> list[tuple[int, str]]:
    return [(p.line, p.message) for p in harvest.problems if p.severity is Severity.ERROR]


def warnings(harvest: Harvest) -> list[tuple[int, str]]:
    return [(p.line, p.message) for p in harvest.problems if p.severity is Severity.WARNING]


def portal(line: int, address: str, choice: IpsecChoice | None) -> FoundPortal:
    return FoundPortal(line=line, portal=parse_portal(address), choice=choice)


def key_for(line: int, address: str) -> FoundKey:
    return FoundKey(line=line, id=None, secret=SECRET, portal=parse_portal(address))


ONE_NAME = ": write the name or address of one host, without prefix or wildcard"
"""How the refusal of an identity ends; the identity is not quoted, since a misplaced word may be the key."""
