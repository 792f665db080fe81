"""``group-psk``: sets and removes the group key, Windows' SetGroupPresharedKey.

It serves identities that have no key of their own; whoever has it can pose as the target to any of them (RFC
3723, 2.3.2); ``set`` warns about that.
"""

from __future__ import annotations

import argparse
import sys

from iscsi_ipsec.cli import key_change, key_input
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs
from iscsi_ipsec.cli.key_folder import Shelf, checked_name
from iscsi_ipsec.core.config.writer import GROUP_NAME
from iscsi_ipsec.service.paths import Paths, add_options


def add(subparsers: Verbs) -> None:
    """Describe the verb and what it can do."""
    parser = subparsers.add_parser("group-psk", help="set and remove the key of identities without their own")
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", required=True, parser_class=key_input.DiscreetParser
    )
    setter = actions.add_parser("set", help="write the group key's file, or put a new key into it")
    key_change.add_set_options(setter)
    setter.set_defaults(run=_set)
    remover = actions.add_parser(
        "remove", help="remove the group key's file; the portals that it protected stay closed"
    )
    key_change.add_remove_options(remover)
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
    code = key_change.run_set(options, shelf, None, name, shelf.at(name))
    if options.dry_run:
        return code
    sys.stderr.write(
        "note: anyone who has a group key can pose as the target; give identities keys of their own\n"
    )
    return code


def _remove(options: argparse.Namespace, paths: Paths) -> Exit:
    return key_change.run_remove(options, Shelf(paths, runtime=options.runtime), _name(options), group=True)


def _name(options: argparse.Namespace) -> str:
    name = checked_name(options.by_name)
    if not name:
        raise CommandError(Exit.USAGE, "the name is empty")
    return name
