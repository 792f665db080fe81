"""``import``: turns the settings of Windows' iSCSI initiator into key files and portal policies.

Shows what it would write, without keys; ``--apply`` writes. An existing file is only replaced with
``--force``, and one with the same content is left alone. :mod:`~iscsi_ipsec.core.windows.values` says how
flags are converted.
"""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import ipaddress
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from iscsi_ipsec.adapters import files
from iscsi_ipsec.adapters.atomic_write import write_atomic
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.keys import Key
from iscsi_ipsec.base.policy import PortalPolicy, Role
from iscsi_ipsec.base.portal import Portal, PortalRange
from iscsi_ipsec.base.printable import plural
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.cli import confirm, replaced_keys
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs
from iscsi_ipsec.cli.file_check import Judged
from iscsi_ipsec.cli.impact import Impact, opened_now
from iscsi_ipsec.cli.key_change import unmanaged_note
from iscsi_ipsec.cli.key_folder import Shelf, make_folder, require_access
from iscsi_ipsec.cli.output import print_json
from iscsi_ipsec.cli.progress import Progress
from iscsi_ipsec.cli.verbs.check import judge_all, together
from iscsi_ipsec.cli.verbs.tunnel_address import make_portal_folder, read_policies
from iscsi_ipsec.core.config.key_file import KeyDraft
from iscsi_ipsec.core.config.portal_file import parse_portal_file
from iscsi_ipsec.core.config.writer import (
    GROUP_NAME,
    file_name,
    flags_text,
    make_key_text,
    make_portal_text,
    shown_key_text,
)
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.world import World
from iscsi_ipsec.core.report.schema import problem_row
from iscsi_ipsec.core.windows.importer import KINDS, parse, take_default
from iscsi_ipsec.core.windows.values import FoundKey, FoundPortal, Harvest, Rules
from iscsi_ipsec.service.paths import Paths

MAX_INPUT = 64 << 20
"""Enough for more than ten thousand keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A file that may be written: ``shown`` is its text for people."""

    path: str
    line: str
    data: bytes
    shown: str
    mode: int
    state: str
    value: Key | PortalPolicy


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser(
        "import", help="turn the settings of Windows' initiator into files (shows them; --apply writes)",
        description="Reads iscsicli scripts, ConvertTo-Json of the WMI classes, registry exports with DefaultSecurityBitmap, and rows of iSNS portal bitmaps.",
    )  # fmt: skip
    parser.add_argument("files", nargs="*", metavar="FILE", help="- is standard input")
    parser.add_argument("--format", choices=sorted(KINDS), help="default: what each file looks like")
    parser.add_argument("--default-bitmap", metavar="N", help="DefaultSecurityBitmap as a number")
    parser.add_argument(
        "--hex-keys", action="store_true", help="keys that begin with 0x are hexadecimal (iscsicli takes them literally)"
    )  # fmt: skip
    parser.add_argument(
        "--group-key-nul", action="store_true", help="end group keys in the NUL byte that iscsicli sends with them"
    )  # fmt: skip
    parser.add_argument(
        "--encoding", default="", metavar="CODEPAGE", help="of keys that are not ASCII, e.g. cp1252"
    )
    parser.add_argument(
        "--id", dest="ids", action="append", default=[], metavar="ID",
        help="take over the keys of this identity only (and those of no identity); may be repeated",
    )  # fmt: skip
    parser.add_argument("--apply", action="store_true", help="write the files")
    confirm.add_options(parser)
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    parser.add_argument("--json", action="store_true", help="the same for machines, without keys")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Parse all input, show or write all valid files, and list the problems."""
    harvests = _parse_all(options)
    problems = [problem for harvest in harvests for problem in harvest.problems]
    existing = read_policies(paths)
    made = []
    with Progress() as progress:
        for files_of in (_keys, _portals):
            for file in files_of(harvests, existing, paths, options, problems):
                made.append(file)
                progress.show(f"compared with what is there: {plural(len(made), 'file')}")
    fresh = [file for file in made if file.state in ("new", "replaced")]
    problems += _clashes(fresh, paths)
    if options.apply and fresh:
        if any(problem.code == "ambiguous-key" for problem in problems):
            for problem in problems:
                sys.stderr.write(f"{problem}\n")
            raise CommandError(
                Exit.PROBLEMS, "nothing was written: it would be left open which key these portals use, so they would close",
                "--id ID takes over the keys of this host's own identity; or name a key with psk in their policies",
            )  # fmt: skip
        lines, live = _shown_before(fresh, paths)
        if not confirm.agreed(options, lines, ask=live):
            return Exit.FINE
        _write_all(fresh, paths)
    default = next((h.default for h in reversed(harvests) if h.default), None)
    suggestion = f"[defaults]\nsecurity_flags = {flags_text(default)}\n" if default else ""
    if options.json:
        print_json({
            "applied": options.apply,
            "files": [{"path": f.path, "from": f.line, "state": f.state, "text": f.shown} for f in made],
            "settings": suggestion or None,
            "problems": [problem_row(problem) for problem in problems],
        })  # fmt: skip
    else:
        _print(made, suggestion, options, paths)
        for problem in problems:
            sys.stderr.write(f"{problem}\n")
        if made and not existing and not any(_names_portals(file) for file in made):
            sys.stderr.write(f"note: {unmanaged_note(paths)}\n")
    return Exit.PROBLEMS if any(p.severity is Severity.ERROR for p in problems) else Exit.FINE


def _names_portals(file: _Made) -> bool:
    return isinstance(file.value, PortalPolicy) or bool(file.value.portals)


def _clashes(fresh: list[_Made], paths: Paths) -> list[Problem]:
    """Portals that these files would close, since several keys apply to them then."""
    problems: list[Problem] = []
    now = judge_all(paths, problems)
    replaced = {file.path for file in fresh}
    then = [file for file in now if file.path not in replaced]
    then += [Judged(path=file.path, value=file.value) for file in fresh]
    known = set(together(now, paths))
    return [p for p in together(then, paths) if p.code == "ambiguous-key" and p not in known]


def _shown_before(fresh: list[_Made], paths: Paths) -> tuple[list[str], bool]:
    """The SAs and sessions at the portals that the files close or give another key, and whether there are any."""
    keys = {file.path for file in fresh if not isinstance(file.value, PortalPolicy)}
    patterns = [
        pattern
        for file in fresh
        if file.value.choice is None or file.value.choice.required
        for pattern in (file.value.patterns if isinstance(file.value, PortalPolicy) else file.value.portals)
    ]
    changed = Impact(paths, lambda row: row["key_file"] in keys)
    closed = Impact(paths, opened_now(patterns))
    lines = []
    if changed.rows:
        lines += ["these portals get another key:", *changed.lines()]
    if closed.rows:
        lines += ["these portals are open now, and closed until IKE succeeds:", *closed.lines()]
    return lines, changed.is_live or closed.is_live


def _parse_all(options: argparse.Namespace) -> list[Harvest]:
    if not options.files and options.default_bitmap is None:
        raise CommandError(Exit.USAGE, "nothing to import", "name a FILE, - or --default-bitmap")
    try:
        codecs.lookup(options.encoding or "ascii")
    except LookupError:
        raise CommandError(Exit.USAGE, f"there is no code page {options.encoding}") from None
    rules = Rules(hex_keys=options.hex_keys, group_nul=options.group_key_nul, encoding=options.encoding)
    harvests = []
    for path in options.files:
        text, name = _read(path), "standard input" if path == "-" else path
        if options.format:
            harvests.append(Harvest(name))
            KINDS[options.format](text, rules, harvests[-1])
        else:
            harvests.append(parse(text, name, rules))
        last = harvests[-1]
        if not (last.keys or last.portals or last.default or last.problems):
            last.error(0, "nothing in it is about IPsec", "--format says which format it has")
    if options.default_bitmap is not None:
        harvests.append(Harvest("--default-bitmap"))
        take_default(options.default_bitmap, 0, harvests[-1])
    return harvests


def _read(path: str) -> str:
    """A text as Windows writes it: UTF-16 with its mark, UTF-8, or else one byte per character."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_INPUT + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(MAX_INPUT + 1)
    except PermissionError as err:
        raise CommandError(Exit.NOT_PERMITTED, f"you may not read {path}", "run this as root") from err
    except OSError as err:
        raise CommandError(Exit.USAGE, f"cannot read {path}: {err.strerror}") from err
    if len(data) > MAX_INPUT:
        raise CommandError(Exit.USAGE, f"{path} is larger than {MAX_INPUT >> 20} MiB")
    encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")  # its text may be a key: no cause is kept


# -- keys


def _keys(
    harvests: Iterable[Harvest], existing: tuple[PortalPolicy, ...], paths: Paths, options: argparse.Namespace,
    problems: list[Problem],
) -> Iterable[_Made]:  # fmt: skip
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
        yield _Made(
            path=draft.path, line=f"{file}:{key.line}", data=data, shown=shown_key_text(draft), mode=0o600, state=state,
            value=draft.with_secret(key.secret),
        )  # fmt: skip


# -- portals


def _portals(
    harvests: Iterable[Harvest], existing: tuple[PortalPolicy, ...], paths: Paths, options: argparse.Namespace,
    problems: list[Problem],
) -> Iterable[_Made]:  # fmt: skip
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
        yield _Made(
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


def _write_all(made: list[_Made], paths: Paths) -> None:
    with Progress() as progress:
        for number, file in enumerate(made, 1):
            if file.mode == 0o600 and file.state == "replaced":
                replaced_keys.keep(paths, file.path, ())
            _write(file)
            progress.count(number, len(made), "files written")


def _write(file: _Made) -> None:
    folder = os.path.dirname(file.path)
    if file.mode == 0o600:
        make_folder(folder)
    else:
        make_portal_folder(folder)
    write_atomic(file.path, file.data, file.mode)


def _print(made: Iterable[_Made], suggestion: str, options: argparse.Namespace, paths: Paths) -> None:
    out = sys.stdout.write
    fresh = 0
    for file in made:
        fresh += file.state in ("new", "replaced")
        out(f"# {file.path} ({file.state}; from {file.line})\n{file.shown}\n")
    if suggestion:
        out(f"# for {paths.settings_file}, which is not edited\n{suggestion}\n")
    if options.apply:
        out(f"{plural(fresh, 'file')} written\n")
    elif fresh:
        out(f"{plural(fresh, 'file')} would be written: add --apply\n")


def _fault(file: str, line: int, message: str, hint: str = "") -> Problem:
    return Problem(code="not-imported", message=message, hint=hint, file=file, line=line)


def _note(file: str, line: int, message: str) -> Problem:
    return Problem(
        code="imported-otherwise", message=message, file=file, line=line, severity=Severity.WARNING
    )
