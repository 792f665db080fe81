"""``import``: turns the settings of Windows' iSCSI initiator into key files and portal policies.

Shows what it would write, without keys; ``--apply`` writes. An existing file is only replaced with
``--force``, and one with the same content is left alone. :mod:`~iscsi_ipsec.core.windows.values` says how
flags are converted.
"""

from __future__ import annotations

import argparse
import codecs
import sys
from collections.abc import Iterable

from iscsi_ipsec.base.policy import PortalPolicy
from iscsi_ipsec.base.printable import plural
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.cli import confirm
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs
from iscsi_ipsec.cli.file_check import Judged
from iscsi_ipsec.cli.impact import Impact, opened_now
from iscsi_ipsec.cli.imported_files import ImportedFile, key_files, portal_files, write_all
from iscsi_ipsec.cli.key_change import unmanaged_note
from iscsi_ipsec.cli.output import print_json
from iscsi_ipsec.cli.progress import Progress
from iscsi_ipsec.cli.verbs.check import judge_all, together
from iscsi_ipsec.cli.verbs.tunnel_address import read_policies
from iscsi_ipsec.core.config.writer import (
    flags_text,
)
from iscsi_ipsec.core.report.schema import problem_row
from iscsi_ipsec.core.windows.importer import KINDS, parse, take_default
from iscsi_ipsec.core.windows.values import Harvest, Rules
from iscsi_ipsec.service.paths import Paths

MAX_INPUT = 64 << 20
"""Enough for more than ten thousand keys."""


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser(
        "import", help="turn the settings of Windows' initiator into files (shows them; --apply writes)",
        description="Reads iscsicli scripts, ConvertTo-Json of the WMI classes, registry exports with DefaultSecurityBitmap, and rows of iSNS portal bitmaps.",
    )  # fmt: skip
    parser.add_argument("files", nargs="*", metavar="FILE", help="- is standard input")
    parser.add_argument("--format", choices=sorted(KINDS), help="default: detected for each file")
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
    parser.add_argument("--json", action="store_true", help="the same as JSON, without keys")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Parse all input, show or write all valid files, and list the problems."""
    harvests = _parse_all(options)
    problems = [problem for harvest in harvests for problem in harvest.problems]
    existing = read_policies(paths)
    made = []
    with Progress() as progress:
        for files_of in (key_files, portal_files):
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
        write_all(fresh, paths)
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


def _names_portals(file: ImportedFile) -> bool:
    return isinstance(file.value, PortalPolicy) or bool(file.value.portals)


def _clashes(fresh: list[ImportedFile], paths: Paths) -> list[Problem]:
    """Portals that these files would close, since several keys apply to them then."""
    problems: list[Problem] = []
    now = judge_all(paths, problems)
    replaced = {file.path for file in fresh}
    then = [file for file in now if file.path not in replaced]
    then += [Judged(path=file.path, value=file.value) for file in fresh]
    known = set(together(now, paths))
    return [p for p in together(then, paths) if p.code == "ambiguous-key" and p not in known]


def _shown_before(fresh: list[ImportedFile], paths: Paths) -> tuple[list[str], bool]:
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


def _print(made: Iterable[ImportedFile], suggestion: str, options: argparse.Namespace, paths: Paths) -> None:
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
