"""Decides which files an import would write, with their content, and whether each is new.

Law: an existing file is replaced only with ``--force``; one with the same content is left alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass

from iscsi_ipsec.adapters import files
from iscsi_ipsec.adapters.atomic_write import write_atomic
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.keys import Key
from iscsi_ipsec.base.policy import PortalPolicy, Role
from iscsi_ipsec.base.portal import Portal, PortalRange
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.cli import replaced_keys
from iscsi_ipsec.cli.daemon_client import CommandError
from iscsi_ipsec.cli.key_folder import Shelf, make_folder, make_portal_folder, require_access
from iscsi_ipsec.cli.progress import Progress
from iscsi_ipsec.core.config.key_file import KeyDraft
from iscsi_ipsec.core.config.portal_file import parse_portal_file
from iscsi_ipsec.core.config.writer import (
    GROUP_NAME,
    file_name,
    make_key_text,
    make_portal_text,
    shown_key_text,
)
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.world import World
from iscsi_ipsec.core.windows.values import FoundKey, FoundPortal, Harvest
from iscsi_ipsec.service.paths import Paths


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedFile:
    """A file that may be written: ``shown`` is its text for people."""

    path: str
    line: str
    data: bytes
    shown: str
    mode: int
    state: str
    value: Key | PortalPolicy


# -- keys


def key_files(
    harvests: Iterable[Harvest], existing: tuple[PortalPolicy, ...], paths: Paths, options: argparse.Namespace,
    problems: list[Problem],
) -> Iterable[ImportedFile]:  # fmt: skip
    chosen: dict[str, tuple[str, FoundKey]] = {}
    ids = {text.lower() for text in options.ids}
    for harvest in harvests:
        for key in harvest.keys:
            if ids and key.id and key.id.text.lower() not in ids:
                continue
            name = _login_key_name(key.portal) if key.portal else file_name(key.id)
            if name in chosen:
                problems.append(_note(chosen[name][0], chosen[name][1].line, "a later key replaces this one"))
            chosen[name] = (harvest.file, key)
    named = {p.psk for p in existing if p.psk} | {n for n, (_, key) in chosen.items() if key.portal}
    shelves = {persistent: Shelf(paths, runtime=not persistent) for persistent in (True, False)}
    for name, (file, key) in chosen.items():
        shelf = shelves[key.persistent]
        draft = KeyDraft(
            name=name, path=shelf.path_of(name), id=key.id, source=key.secret, choice=key.choice,
            portals=(PortalRange(ipaddress.ip_network(key.portal.address), key.portal.port),) if key.portal else (),
        )  # fmt: skip
        try:
            if not key.portal:  # for that portal alone, and the policy beside it names it
                shelf.refuse_conflict(draft, named)
        except CommandError as err:
            problems.append(_fault(file, key.line, err.message))
            continue
        data = make_key_text(draft).encode()
        state = _state(draft.path, data, options, _Where(file, key.line, problems))
        yield ImportedFile(
            path=draft.path, line=f"{file}:{key.line}", data=data, shown=shown_key_text(draft), mode=0o600, state=state,
            value=draft.with_secret(key.secret),
        )  # fmt: skip


# -- portals


def portal_files(
    harvests: Iterable[Harvest], existing: tuple[PortalPolicy, ...], paths: Paths, options: argparse.Namespace,
    problems: list[Problem],
) -> Iterable[ImportedFile]:  # fmt: skip
    merged: dict[str, tuple[str, FoundPortal]] = {}
    for harvest in harvests:
        with_key = [FoundPortal(line=k.line, portal=k.portal) for k in harvest.keys if k.portal]
        for found in (*harvest.portals, *with_key):
            name = _portal_name(found.portal)
            merged[name] = (harvest.file, _merge(merged.get(name), found, harvest.file, problems))
    with_keys = {key.portal for harvest in harvests for key in harvest.keys}
    for name, (file, found) in merged.items():
        folder = paths.portal_folders[0 if found.persistent else 1]
        path = f"{folder}/windows-{name}{files.SUFFIX}"
        policy = PortalPolicy(
            name=f"windows-{name}", path=path,
            patterns=(PortalRange(ipaddress.ip_network(found.portal.address), found.portal.port),),
            choice=found.choice, tunnel_outer_remote=found.outer,
            psk=_login_key_name(found.portal) if found.portal in with_keys else None,
        )  # fmt: skip
        text = make_portal_text(policy)
        try:
            parse_portal_file(text, path, policy.name)
        except ConfigError as err:
            line = found.outer_line or found.line
            problems += [_fault(file, line, problem.message) for problem in err.problems]
            continue
        others = Lookup(World(policies=tuple(p for p in existing if p.path != path)))
        other = others.policies.policy_for(found.portal, Role.INITIATOR)
        if other and any(isinstance(p, PortalRange) and p.single == found.portal for p in other.patterns):
            problems.append(_fault(file, found.line, f"{other.path} already names {found.portal}"))
            continue
        if other:
            problems.append(
                _note(file, found.line, f"for {found.portal} the new file counts instead of {other.path}")
            )
        data = text.encode()
        state = _state(path, data, options, _Where(file, found.line, problems))
        yield ImportedFile(
            path=path,
            line=f"{file}:{found.line}",
            data=data,
            shown=text,
            mode=0o644,
            state=state,
            value=policy,
        )


def _merge(
    before: tuple[str, FoundPortal] | None, found: FoundPortal, file: str, problems: list[Problem]
) -> FoundPortal:
    if before is None:
        return found
    first = before[1]
    if first.choice and found.choice and first.choice != found.choice:
        problems.append(
            _note(file, found.line, f"other flags for {found.portal} came first, at {before[0]}:{first.line}; they stay")
        )  # fmt: skip
    return dataclasses.replace(
        first,
        choice=first.choice or found.choice,
        outer=found.outer or first.outer,
        outer_line=found.line if found.outer else first.outer_line,
        persistent=first.persistent or found.persistent,
    )


def _login_key_name(portal: Portal) -> str:
    """A key that was given with a login is for that portal, under the address that the host then has."""
    return f"{GROUP_NAME}-{_portal_name(portal)}"


def _portal_name(portal: Portal) -> str:
    return str(portal).replace("[", "").replace("]", "").replace(":", "-")


# -- files


@dataclass(frozen=True, slots=True)
class _Where:
    file: str
    line: int
    problems: list[Problem]


def _state(path: str, data: bytes, options: argparse.Namespace, where: _Where) -> str:
    """New, unchanged, replaced, or kept, which is a problem."""
    require_access(os.path.dirname(path), os.R_OK | os.X_OK)
    if not os.path.lexists(path):
        return "new"
    try:
        if files.read_config(path, private=False) == data:
            return "unchanged"
    except ConfigError:
        pass  # it differs from the file that we would write, whatever it is
    if options.force:
        return "replaced"
    where.problems.append(_fault(where.file, where.line, f"{path} exists and is kept", "--force replaces it"))
    return "kept"


def write_all(made: list[ImportedFile], paths: Paths) -> None:
    with Progress() as progress:
        for number, file in enumerate(made, 1):
            if file.mode == 0o600 and file.state == "replaced":
                replaced_keys.keep(paths, file.path, ())
            _write(file)
            progress.count(number, len(made), "files written")


def _write(file: ImportedFile) -> None:
    folder = os.path.dirname(file.path)
    if file.mode == 0o600:
        make_folder(folder)
    else:
        make_portal_folder(folder)
    write_atomic(file.path, file.data, file.mode)


def _fault(file: str, line: int, message: str, hint: str = "") -> Problem:
    return Problem(code="not-imported", message=message, hint=hint, file=file, line=line)


def _note(file: str, line: int, message: str) -> Problem:
    return Problem(
        code="imported-otherwise", message=message, file=file, line=line, severity=Severity.WARNING
    )
