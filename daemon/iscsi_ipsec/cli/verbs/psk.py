"""``psk``: sets, looks up, lists and removes keys of identities, as files of ``psk.d``.

``set`` is Windows' SetPresharedKeyForId, ``--runtime`` its Persist=FALSE;
``get`` is GetPresharedKeyForId, which says whether there is a key, and never shows the key. ``set`` keeps the
portals, flags and description of a file that it replaces unless they are given; its comments are lost.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.portal import portal_texts
from iscsi_ipsec.cli import confirm, key_change, key_input
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs
from iscsi_ipsec.cli.key_folder import Shelf, Stored, checked_name
from iscsi_ipsec.cli.output import print_json, print_table
from iscsi_ipsec.core.config import fields
from iscsi_ipsec.core.config.key_file import CredentialRef, KeyFileRef, moment_text
from iscsi_ipsec.core.config.security_flags import encode, flag_names
from iscsi_ipsec.core.config.writer import file_name
from iscsi_ipsec.service.paths import Paths, add_options


def add(subparsers: Verbs) -> None:
    """Describe the verb and what it can do."""
    parser = subparsers.add_parser("psk", help="set, look up, list and remove keys; a key is never shown")
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", required=True, parser_class=key_input.DiscreetParser
    )
    setter = actions.add_parser(
        "set", help="write a key file, or put a new key into one",
        description="Writes a key file. A file that is replaced keeps the settings that are not given here, but not its comments.",
    )  # fmt: skip
    setter.add_argument(
        "name", nargs="?", metavar="NAME",
        help="the key file's name (default: made from the id); alone: put a new key into that file",
    )  # fmt: skip
    _add_id(setter)
    setter.add_argument("--id", help="whose key it is: the identity that goes into the IKE payload")
    key_change.add_set_options(setter)
    setter.set_defaults(run=_set)
    getter = actions.add_parser("get", help="an identity's flags, file and portals; never the key")
    getter.add_argument("id", metavar="ID")
    _add_id(getter, named=False)
    getter.set_defaults(run=_get)
    lister = actions.add_parser("list", help="all keys there are, without their bytes")
    lister.set_defaults(run=_list)
    for reader in (getter, lister):
        reader.add_argument("--json", action="store_true", help="the same as JSON")
    undoer = actions.add_parser(
        "undo", help="put a key file back as it was before it was replaced or removed",
        description="Puts a key file back as it was before the last set, remove or undo, if that was within a day.",
    )  # fmt: skip
    undoer.add_argument(
        "undo_name", nargs="?", metavar="NAME", help="the key file's name (default: the last change)"
    )
    confirm.add_options(undoer)
    key_change.add_wait_options(undoer)
    undoer.set_defaults(run=key_change.run_undo)
    remover = actions.add_parser(
        "remove", help="remove a key file; the portals that it protected stay closed"
    )
    remover.add_argument("id", nargs="?", metavar="ID", help="whose key to remove")
    _add_id(remover)
    key_change.add_remove_options(remover)
    remover.add_argument(
        "--runtime", action="store_true", help="the file of that name that lasts until the next boot"
    )
    remover.set_defaults(run=_remove)
    for action in (setter, getter, lister, undoer, remover):
        add_options(action, again=True)


def _add_id(parser: argparse.ArgumentParser, *, named: bool = True) -> None:
    parser.add_argument(
        "--id-type", type=_id_type, metavar="TYPE",
        help=", ".join(f"{t.name} or {t.value}" for t in IdType) + " (default: what the id looks like)",
    )  # fmt: skip
    if named:
        parser.add_argument("--name", dest="by_name", metavar="NAME", help="the key file, by its name")


def _id_type(text: str) -> IdType:
    if text.upper() in IdType.__members__:
        return IdType[text.upper()]
    if text in {str(t.value) for t in IdType}:
        return IdType(int(text))
    raise argparse.ArgumentTypeError("one of " + ", ".join(f"{t.name} ({t.value})" for t in IdType))


# -- set


def _set(options: argparse.Namespace, paths: Paths) -> Exit:
    identity = None
    if options.id is not None:
        try:
            identity = (
                IkeId.parse(options.id_type, options.id) if options.id_type else fields.guess_id(options.id)
            )
        except ValueError as err:
            raise CommandError(Exit.USAGE, str(err), "give its type with --id-type") from err
    elif options.id_type is not None:
        raise CommandError(Exit.USAGE, "--id-type without --id")
    if options.name and options.by_name:
        raise CommandError(Exit.USAGE, "two names are given")
    name = checked_name(options.name or options.by_name or "")
    if identity is None and not name:
        raise CommandError(Exit.USAGE, "whose key? Give --id, or the NAME of a key file that exists")
    shelf = Shelf(paths, runtime=options.runtime)
    old = shelf.at(name or file_name(identity))
    if identity is None:
        if old is None:
            raise CommandError(
                Exit.PROBLEMS, f"there is no key file {shelf.path_of(name)}", "say whose key it is with --id"
            )
        if old.draft.id is None:
            raise CommandError(
                Exit.PROBLEMS, f"{old.draft.path} is a group key", "use: iscsi-ipsec group-psk set"
            )
        identity = old.draft.id
    return key_change.run_set(options, shelf, identity, name or file_name(identity), old)


# -- get, list


def _get(options: argparse.Namespace, paths: Paths) -> Exit:
    found = _of_identity(Shelf(paths), options.id, options.id_type)
    if options.json:
        print_json([_row(stored) for stored in found])
        return Exit.FINE
    for stored in found:
        row = _row(stored)
        flags = row["security_flags"]
        for label, value in (
            ("id", f"{row['id']} ({row['id_type']})"),
            ("file", row["file"]),
            ("persistent", "yes" if row["persistent"] else "no, until the next boot"),
            (
                "flags",
                "not specified" if flags is None else f"0x{flags:02x} {' '.join(row['security_flag_names'])}",
            ),
            ("portals", ", ".join(row["portals"]) or "managed ones"),
            ("key", row["key_source"]),
            ("previous key", row["previous_until"] and f"valid beside it until {row['previous_until']}"),
            ("description", row["description"]),
        ):
            if value:
                sys.stdout.write(f"{label:<12} {value}\n")
    return Exit.FINE


def _of_identity(shelf: Shelf, text: str, kind: IdType | None) -> list[Stored]:
    wanted = set()
    for candidate in [kind] if kind else list(IdType):
        try:
            wanted.add(IkeId.parse(candidate, text))
        except ValueError as err:
            if kind:
                raise CommandError(Exit.USAGE, str(err)) from err
    stored = [s for s in shelf.stored if s.draft.id in wanted]
    if stored:
        return stored
    group = next((s.draft.path for s in shelf.stored if s.draft.id is None), "")
    for problem in shelf.problems:
        sys.stderr.write(f"{problem}\n")
    raise CommandError(
        Exit.PROBLEMS, f"there is no key for {text}", f"the group key of {group} serves it" if group else ""
    )


def _list(options: argparse.Namespace, paths: Paths) -> Exit:
    shelf = Shelf(paths)
    rows = [_row(stored) for stored in shelf.stored]
    if options.json:
        print_json(rows)
    elif not rows:
        sys.stdout.write(
            "no keys yet: iscsi-ipsec psk set --id ID, or iscsi-ipsec group-psk set, writes one\n"
        )
    else:
        print_table(
            ("NAME", "ID", "TYPE", "FLAGS", "PORTALS", "PERSISTENT", "KEY", "PREVIOUS UNTIL"),
            [
                (
                    row["name"],
                    row["id"] or "(group)",
                    row["id_type"] or "-",
                    "-" if row["security_flags"] is None else f"0x{row['security_flags']:02x}",
                    ", ".join(row["portals"]) or "managed ones",
                    "yes" if row["persistent"] else "no",
                    row["key_source"],
                    row["previous_until"] or "-",
                )
                for row in rows
            ],
        )
    for problem in shelf.problems:
        sys.stderr.write(f"{problem}\n")
    return Exit.PROBLEMS if shelf.problems else Exit.FINE


def _row(stored: Stored) -> dict[str, Any]:
    draft = stored.draft
    flags = encode(draft.choice) if draft.choice else None
    match draft.source:
        case KeyFileRef(path=path):
            source = f"file {path}"
        case CredentialRef(name=name):
            source = f"credential {name}"
        case _:
            source = "in the file"
    return {
        "name": draft.name,
        "file": draft.path,
        "id": draft.id.text if draft.id else None,
        "id_type": draft.id.type.name if draft.id else None,
        "group": draft.id is None,
        "security_flags": None if flags is None else int(flags),
        "security_flag_names": [] if flags is None else list(flag_names(flags)),
        "portals": list(portal_texts(draft.portals)),
        "persistent": stored.persistent,
        "key_source": source,
        "previous_until": moment_text(draft.previous.until) if draft.previous else None,
        "description": stored.description,
    }


# -- remove


def _remove(options: argparse.Namespace, paths: Paths) -> Exit:
    if (options.id is None) == (options.by_name is None):
        raise CommandError(Exit.USAGE, "give either the ID or --name")
    shelf = Shelf(paths, runtime=options.runtime)
    if options.by_name is not None:
        return key_change.run_remove(options, shelf, checked_name(options.by_name), group=False)
    found = _of_identity(shelf, options.id, options.id_type)
    if len(found) > 1:
        raise CommandError(
            Exit.PROBLEMS, f"{options.id} has several keys: " + ", ".join(s.draft.path for s in found),
            "say which with --name (and --runtime)",
        )  # fmt: skip
    if options.runtime and found[0].persistent:
        raise CommandError(Exit.PROBLEMS, f"{found[0].draft.path} is persistent", "leave out --runtime")
    shelf = Shelf(paths, runtime=not found[0].persistent)
    return key_change.run_remove(options, shelf, found[0].draft.name, group=False)
