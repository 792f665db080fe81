"""``flags``: decodes and encodes ISCSI_SECURITY_FLAGS, and shows their effect in strongSwan."""

from __future__ import annotations

import argparse
import sys

from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs
from iscsi_ipsec.cli.output import print_json
from iscsi_ipsec.core.config.security_flags import SecurityFlags, flag_names, interpret, parse_flags
from iscsi_ipsec.service.paths import Paths


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    known = ", ".join(f"{flag.name} 0x{flag.value:02x}" for flag in SecurityFlags)
    parser = subparsers.add_parser(
        "flags", help="decode 0x57 or encode NAME...", description=f"Known flags: {known}."
    )
    parser.add_argument(
        "flags", nargs="+", metavar="FLAG", help="a number, or names with or without ISCSI_SECURITY_FLAG_"
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Print number, names and meaning."""
    del paths  # every verb is called with these arguments
    given = [word for text in options.flags for word in text.split(",") if word]
    try:
        flags = parse_flags(given[0] if len(given) == 1 else given)
    except ValueError as err:
        raise CommandError(Exit.USAGE, str(err)) from err
    choice, wrong = None, ""
    try:
        choice = interpret(flags)
        interpret(
            flags | SecurityFlags.VALID
        )  # flags that are not in force are checked for contradictions too
    except ValueError as err:
        wrong = str(err)
    names = list(flag_names(flags))
    if options.json:
        meaning = None
        if choice:
            meaning = {
                "required": choice.required, "ike": choice.ike.value,
                "mode": choice.esp.value if choice.esp else None, "pfs": choice.pfs,
            }  # fmt: skip
        print_json({"value": int(flags), "names": names, "meaning": meaning, "problem": wrong or None})
        return Exit.PROBLEMS if wrong else Exit.FINE
    sys.stdout.write(f"0x{int(flags):02x}  {' '.join(names) or '(none)'}\n")
    if wrong:
        sys.stdout.write(f"refused: {wrong}\n")
        return Exit.PROBLEMS
    if choice is None:
        sys.stdout.write("VALID is unset: not specified, the next source decides\n")
    elif not choice.required:
        sys.stdout.write(
            "IKE_IPSEC_ENABLED is unset: IPsec is not required, unencrypted traffic is allowed\n"
        )
    else:
        mode = choice.esp.value if choice.esp else "transport (tunnel where an outer address is set)"
        sys.stdout.write(f"{choice.ike.value}, {mode} mode, {'PFS' if choice.pfs else 'no PFS'}\n")
    return Exit.FINE
