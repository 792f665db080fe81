"""The command ``iscsi-ipsec``: finds the verb, runs it, and explains every expected failure."""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from iscsi_ipsec import __version__
from iscsi_ipsec.adapters.process import forbid_dumps
from iscsi_ipsec.base.errors import CharonUnavailable, ConfigError, IscsiIpsecError, NotPermitted
from iscsi_ipsec.base.printable import printable
from iscsi_ipsec.cli.command_line import Parser
from iscsi_ipsec.cli.daemon_client import CommandError, Exit
from iscsi_ipsec.cli.examples import add_examples
from iscsi_ipsec.service.paths import OPTIONS, add_options, paths_of

_VERBS = {
    verb: f"iscsi_ipsec.cli.verbs.{verb.replace('-', '_')}"
    for verb in (
        "status", "verify", "explain", "check", "plan", "wait", "release", "open-all", "flags",
        "psk", "group-psk", "tunnel-address", "clear-cache",
    )
} | {"import": "iscsi_ipsec.cli.verbs.import_windows"}  # fmt: skip
"""Each verb's module, in the order of the help."""

_EPILOG = """first steps:
  iscsi-ipsec group-psk set        write the key that the target gave you (or: psk set --id ...)
  iscsi-ipsec wait                 return when it is in force
  iscsi-ipsec status               is everything protected, and if not, why?
  iscsi-ipsec verify               prove it from the kernel
  iscsi-ipsec VERB --help          examples of each verb; man iscsi-ipsec.toml has the files

exit codes: 0 fine, 1 problems found, 2 wrong usage, 3 daemon not running,
4 charon unreachable, 5 not permitted"""

_OUTPUT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Errors of writing to standard output where that is a file."""


def build_parser(verbs: Iterable[str] = _VERBS) -> argparse.ArgumentParser:
    """The command line with these verbs; the manual's tests read the complete one."""
    parser = Parser(
        prog="iscsi-ipsec",
        description="Shows and checks what iscsi-ipsecd does to keep iSCSI sessions inside IPsec.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add_options(parser)
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in verbs:
        import_module(_VERBS[verb]).add(subparsers)
    for name, subparser in subparsers.choices.items():
        subparser.prog = f"iscsi-ipsec {name}"
        add_options(subparser, again=True)
        add_examples(name, subparser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the process' exit code."""
    forbid_dumps()  # some verbs hold keys
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()  # the reader went away, e.g. head(1)
        return Exit.FINE
    except OSError as err:
        if err.errno not in _OUTPUT_ERRORS or err.filename is not None:
            raise  # a verb explains what it opens
        _drop_output()
        return _fail(Exit.PROBLEMS, f"cannot write the answer: {err.strerror}", "")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # as a shell reports it
    return code


def _run(arguments: Sequence[str]) -> int:
    verb = _verb_in(arguments)
    if verb is not None and verb not in _VERBS:
        close = difflib.get_close_matches(verb, _VERBS, 1)
        hint = f"did you mean {close[0]}?" if close else f"one of: {', '.join(_VERBS)}"
        return _fail(Exit.USAGE, f'there is no verb "{verb}"', hint)
    # only the chosen verb is imported; without one the help needs all
    options = build_parser([verb] if verb else _VERBS).parse_args(arguments)
    try:
        return int(options.run(options, paths_of(options)))
    except CommandError as err:
        return _fail(err.code, err.message, err.hint)
    except ConfigError as err:
        for problem in err.problems:
            sys.stderr.write(f"{problem}\n")
        return Exit.PROBLEMS
    except CharonUnavailable as err:
        return _fail(Exit.NO_CHARON, str(err), "systemctl status strongswan")
    except (NotPermitted, PermissionError) as err:
        return _fail(Exit.NOT_PERMITTED, str(err), "run this as root")
    except IscsiIpsecError as err:
        return _fail(Exit.PROBLEMS, str(err), "")


def _verb_in(arguments: Sequence[str]) -> str | None:
    """The first word that is neither an option nor an option's value."""
    is_value = False
    for word in arguments:
        if is_value:
            is_value = False
        elif not word.startswith("-"):
            return word
        elif word.startswith("--") and "=" not in word:
            is_value = any(option.startswith(word) for option in OPTIONS)
    return None


def _drop_output() -> None:
    """Drop unwritten output, which would fail again at the end of the process."""
    with open(os.devnull, "w", encoding="ascii") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def _fail(code: Exit, message: str, hint: str) -> int:
    sys.stderr.write(f"iscsi-ipsec: {printable(message)}\n" + (f"  {printable(hint)}\n" if hint else ""))
    return code


if __name__ == "__main__":
    sys.exit(main())
