"""``check``: validates files offline, all problems at once."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime

from iscsi_ipsec.adapters import files
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs
from iscsi_ipsec.cli.output import print_json
from iscsi_ipsec.core.config.key_file import (
    KeyFileRef,
    KeySource,
    empty_key_problem,
    parse_key_file,
    placeholder_problem,
    previous_over_problem,
    same_key_problem,
    weak_key_problem,
)
from iscsi_ipsec.core.config.portal_file import parse_portal_file
from iscsi_ipsec.core.config.settings import parse_settings
from iscsi_ipsec.core.report.schema import problem_row
from iscsi_ipsec.service.paths import Paths

_KEY_WORDS = (
    "id",
    "id_type",
    "id_hex",
    "group",
    "key",
    "key_hex",
    "key_base64",
    "key_file",
    "key_credential",
    "previous_until",
)


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser("check", help="validate files without the daemon; all problems at once")
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="files or folders (default: all that the daemon reads)"
    )
    parser.add_argument("--json", action="store_true", help="the same for machines")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Check what was named, or everything."""
    problems: list[Problem] = []
    targets = _targets(options.paths, paths, problems)
    for path in targets:
        problems.extend(check_file(path))
    if options.json:
        print_json([problem_row(problem) for problem in problems])
    else:
        for problem in problems:
            sys.stdout.write(f"{problem}\n")
        if not problems:
            sys.stdout.write(f"{len(targets)} files, no problems\n")
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
    found = files.find_config(folders)
    problems.extend(found.problems)
    return found.files


def check_file(path: str) -> tuple[Problem, ...]:
    """All problems of one file; what kind it is, its folder or its content tells."""
    name = os.path.basename(path).removesuffix(".toml")
    folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
    warnings: list[Problem] = []
    try:
        text = files.decode_config(files.read_config(path, private=folder == "psk.d"), path)
        if name == "iscsi-ipsecd":
            parse_settings(text, path, warnings)
        elif folder == "portal.d" or (folder != "psk.d" and not _looks_like_key(text)):
            parse_portal_file(text, path, name, warnings)
        else:
            files.read_config(path, private=True)  # now it is known to be one
            return _check_key(text, path, name)
    except ConfigError as err:
        return err.problems
    return tuple(warnings)


def _check_key(text: str, path: str, name: str) -> tuple[Problem, ...]:
    warnings: list[Problem] = []
    draft = parse_key_file(text, path, name, warnings)
    problems: list[Problem | None] = [*warnings]
    key = _fetch(draft.source, path)
    if key is not None and not key:
        problems.append(empty_key_problem(draft))
    elif key is not None:
        problems.append(placeholder_problem(draft, key) or weak_key_problem(draft, key))
    if draft.previous:
        previous = _fetch(draft.previous.source, path)
        if previous is not None and not previous:
            problems.append(empty_key_problem(draft, previous=True))
        elif previous is not None and previous == key:
            problems.append(same_key_problem(draft))
        if draft.previous.until <= datetime.now(UTC):
            problems.append(previous_over_problem(path, draft.previous_line, draft.previous.until))
    return tuple(problem for problem in problems if problem)


def _fetch(source: KeySource, path: str) -> Secret | None:
    """The key of this source; None for a credential, which may only be readable to the service."""
    match source:
        case Secret() as secret:
            return secret
        case KeyFileRef(path=beside):
            return files.read_key_file(beside, os.path.dirname(os.path.abspath(path)))
        case _:
            return None


def _looks_like_key(text: str) -> bool:
    words = {line.partition("=")[0].strip() for line in text.splitlines()}
    return not words.isdisjoint(_KEY_WORDS)
