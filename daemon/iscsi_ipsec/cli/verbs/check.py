"""``check``: validates files offline, all problems at once; without a path all files together, as the daemon decides."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import TypeVar

from iscsi_ipsec.adapters import files, openiscsi
from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.errors import CharonUnavailable, KernelUnavailable
from iscsi_ipsec.base.keys import GroupKey, PerIdKey
from iscsi_ipsec.base.policy import PortalPolicy
from iscsi_ipsec.base.printable import plural
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs
from iscsi_ipsec.cli.file_check import FileCheck, Judged
from iscsi_ipsec.cli.key_folder import require_access
from iscsi_ipsec.cli.output import print_json
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.report.schema import problem_row
from iscsi_ipsec.service.paths import NODES_DIRS, Paths

T = TypeVar("T")


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser(
        "check", help="validate files without the daemon; all problems at once",
        description="Validates files without the daemon. Without PATH all of them together, as the daemon would decide."
        " A PATH outside its folders is checked by its content alone.",
    )  # fmt: skip
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="files or folders (default: all that the daemon reads)"
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Check the named files, or all files together."""
    problems: list[Problem] = []
    targets = _targets(options.paths, paths, problems)
    checker = FileCheck(paths)
    judged = [checker.judge(path) for path in targets]
    problems += [problem for file in judged for problem in file.problems]
    if not options.paths:
        problems += together(judged, paths)
    if options.json:
        print_json([problem_row(problem) for problem in problems])
    else:
        for problem in problems:
            sys.stdout.write(f"{problem}\n")
        errors = sum(1 for problem in problems if problem.severity is Severity.ERROR)
        found = (
            f"{plural(errors, 'error')}, {plural(len(problems) - errors, 'warning')}"
            if problems
            else "no problems"
        )
        sys.stdout.write(f"{plural(len(targets), 'file')}, {found}\n")
    return Exit.PROBLEMS if any(p.severity is Severity.ERROR for p in problems) else Exit.FINE


def _targets(named: list[str], paths: Paths, problems: list[Problem]) -> list[str]:
    if named:
        targets = []
        for path in named:
            if os.path.isdir(path):
                targets += [f.path for f in _found((path,), problems)]
            elif os.path.lexists(path):
                targets.append(path)
            else:
                raise CommandError(Exit.USAGE, f"there is no {path}")
        return targets
    targets = [paths.settings_file] if os.path.lexists(paths.settings_file) else []
    for folders in (paths.psk_folders, paths.portal_folders):
        targets += [f.path for f in _found(folders, problems)]
    return targets


def _found(folders: tuple[str, ...], problems: list[Problem]) -> tuple[files.FoundFile, ...]:
    for folder in folders:
        require_access(folder, os.R_OK | os.X_OK)
    found = files.find_config(folders)
    problems.extend(found.problems)
    problems.extend(ignored for folder in folders for ignored in _ignored(folder))
    return found.files


def _ignored(folder: str) -> Iterable[Problem]:
    """Files that look like configuration, but that the daemon ignores because of their name."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        if not name.startswith(".") and "." in name and not name.endswith(files.SUFFIX):
            yield Problem(
                code="ignored-file",
                message="the daemon does not read this file: its name does not end in .toml",
                hint="rename it, or move it out of the folder",
                file=os.path.join(folder, name),
                severity=Severity.WARNING,
            )


# -- all files together


def judge_all(paths: Paths, problems: list[Problem]) -> list[Judged]:
    """Every file that the daemon reads, checked by itself."""
    checker = FileCheck(paths)
    return [checker.judge(path) for path in _targets([], paths, problems)]


def together(judged: Iterable[Judged], paths: Paths) -> tuple[Problem, ...]:
    """The problems between files that are right by themselves."""
    judged = tuple(judged)
    # deciding takes more modules than looking at one file
    from iscsi_ipsec.core.decide.file_conflicts import check_together  # noqa: PLC0415
    from iscsi_ipsec.core.decide.lookup import Lookup  # noqa: PLC0415
    from iscsi_ipsec.core.decide.world import World  # noqa: PLC0415

    values = [file.value for file in judged]
    settings = next((value for value in values if isinstance(value, Settings)), Settings())
    records = openiscsi.read_records(
        paths.nodes_dirs or settings.nodes_dirs or NODES_DIRS, openiscsi.RecordCache()
    ).records
    world = World(
        settings=settings,
        keys=(*_of(values, PerIdKey), *_of(values, GroupKey)),
        policies=_of(values, PortalPolicy),
        broken=tuple(broken for file in judged for broken in file.broken),
        records=records,
    )
    world = World(
        settings=world.settings, keys=world.keys, policies=world.policies, broken=world.broken, records=records,
        sources=_sources(Lookup(world).wanted_sources), algorithms=_algorithms(paths.vici_socket or settings.vici_socket),
    )  # fmt: skip
    return check_together(world, {file.path: file.lines for file in judged})


def _of(values: Iterable[object], kind: type[T]) -> tuple[T, ...]:
    return tuple(value for value in values if isinstance(value, kind))


def _algorithms(socket: str) -> frozenset[str]:
    """The abilities of this host's charon; without a charon they are not checked."""
    from iscsi_ipsec.adapters.charon import Charon, default_socket  # noqa: PLC0415  # only this asks it

    charon = Charon(socket or default_socket())
    try:
        return charon.observe().algorithms
    except CharonUnavailable:
        return frozenset()
    finally:
        charon.close()


def _sources(wanted: Iterable[tuple[Address, str]]) -> Mapping[tuple[Address, str], Address | None]:
    """The addresses that packets leave with, as far as this machine's routes know them."""
    from iscsi_ipsec.adapters.netlink import Routes  # noqa: PLC0415  # 0.3 s that one file need not wait for

    with contextlib.suppress(KernelUnavailable):
        routes = Routes()
        try:
            return {(address, oif): routes.source_for(address, oif) for address, oif in wanted}
        finally:
            routes.close()
    return {}
