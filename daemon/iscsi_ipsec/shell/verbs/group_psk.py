"""``group-psk``: sets and removes the group key, Windows' SetGroupPresharedKey.

It serves identities that have no key of their own; whoever has it can be the
target to any of them (RFC 3723, 2.3.2), which ``set`` says.
"""

from __future__ import annotations

import argparse
import sys

from iscsi_ipsec.core.keytext import GROUP_NAME
from iscsi_ipsec.shell import keyinput
from iscsi_ipsec.shell.client import CommandError, Exit, Verbs
from iscsi_ipsec.shell.paths import Paths, add_options
from iscsi_ipsec.shell.verbs import keychange
from iscsi_ipsec.shell.verbs.keyshelf import Shelf, checked_name


def add(subparsers: Verbs) -> None:
    """Describe the verb and what it can do."""
    parser = subparsers.add_parser("group-psk", help="set and remove the key of identities without their own")
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", required=True, parser_class=keyinput.DiscreetParser
    )
    setter = actions.add_parser("set", help="write the group key's file, or put a new key into it")
    keychange.add_set_options(setter)
    setter.set_defaults(run=_set)
    remover = actions.add_parser("remove", help="remove the group key's file; what it protected stays closed")
    keychange.add_wait_options(remover)
    remover.add_argument(
        "--runtime", action="store_true", help="the file of that name that lasts until the next boot"
    )
    remover.set_defaults(run=_remove)
    for action in (setter, remover):
        action.add_argument(
            "--name", dest="by_name", default=GROUP_NAME, metavar="NAME", help="the file's name (%(default)s)"
        )
        add_options(action, again=True)


def _set(options: argparse.Namespace, paths: Paths) -> Exit:
    name = _name(options)
    shelf = Shelf(paths, runtime=options.runtime)
    code = keychange.run_set(options, shelf, None, name, shelf.at(name))
    sys.stderr.write(
        "note: anyone who has a group key can pose as the target; give identities keys of their own\n"
    )
    return code


def _remove(options: argparse.Namespace, paths: Paths) -> Exit:
    return keychange.run_remove(options, Shelf(paths, runtime=options.runtime), _name(options), group=True)


def _name(options: argparse.Namespace) -> str:
    name = checked_name(options.by_name)
    if not name:
        raise CommandError(Exit.USAGE, "the name is empty")
    return name
