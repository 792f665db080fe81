"""Sets and removes key files for ``psk`` and ``group-psk``, and waits until that is in force.

Law: a key is read last, when nothing else can refuse the file any more, and written whole.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from iscsi_ipsec.adapters import credentials, files
from iscsi_ipsec.adapters.atomic_write import write_private
from iscsi_ipsec.base.identity import IkeId
from iscsi_ipsec.base.keys import MAX_KEY_FILE_BYTES
from iscsi_ipsec.base.policy import IpsecChoice
from iscsi_ipsec.base.portal import PortalPattern, parse_portal_pattern
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.cli import key_input
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, daemon_runs, try_status
from iscsi_ipsec.cli.key_credential import drop_credential, encrypted, sources, systemd_creds
from iscsi_ipsec.cli.key_folder import Shelf, Stored, make_folder, require_access
from iscsi_ipsec.cli.waiting import unread, wait_until_none
from iscsi_ipsec.core.config.key_file import (
    CredentialRef,
    KeyDraft,
    KeyFileRef,
    PreviousDraft,
    moment_text,
    weak_key_problem,
)
from iscsi_ipsec.core.config.security_flags import interpret, parse_flags
from iscsi_ipsec.core.config.writer import make_key_text
from iscsi_ipsec.service.paths import Paths


def add_set_options(parser: argparse.ArgumentParser) -> None:
    """What can be said of a new key besides whose it is."""
    parser.add_argument(
        "--flags", nargs="+", metavar="FLAG", help="0x37, or names with or without ISCSI_SECURITY_FLAG_"
    )
    parser.add_argument(
        "--portal", action="append", metavar="P", help="use it only towards this portal or network; may be repeated"
    )  # fmt: skip
    parser.add_argument("--description", metavar="TEXT")
    parser.add_argument(
        "--runtime", action="store_true", help="keep it only until the next boot (Windows' Persist = FALSE)"
    )
    parser.add_argument(
        "--keep-previous", type=_span, metavar="TIME",
        help="let the key that is replaced stay valid beside the new one for so long: 30m, 12h, 7d, 2w",
    )  # fmt: skip
    parser.add_argument(
        "--encrypt", action=argparse.BooleanOptionalAction,
        help=f"keep the key encrypted with systemd-creds in {credentials.ENCRYPTED_STORES[0]} (default: as it was)",
    )  # fmt: skip
    add_wait_options(parser)
    key_input.add_options(parser)


def add_wait_options(parser: argparse.ArgumentParser) -> None:
    """The options of waiting."""
    parser.add_argument("--wait", action="store_true", help="return when charon has it")
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="seconds to wait at most (%(default)g)"
    )


def parse_choice(given: Sequence[str]) -> IpsecChoice | None:
    """``--flags`` as in a file: one number, or names."""
    words = [word for text in given for word in text.split(",") if word]
    try:
        return interpret(parse_flags(words[0] if len(words) == 1 else words))
    except ValueError as err:
        raise CommandError(Exit.USAGE, str(err)) from err


def _parse_portals(given: Sequence[str]) -> tuple[PortalPattern, ...]:
    try:
        return tuple(dict.fromkeys(parse_portal_pattern(text) for text in given))
    except ValueError as err:
        raise CommandError(Exit.USAGE, str(err)) from err


# -- set


def run_set(
    options: argparse.Namespace, shelf: Shelf, identity: IkeId | None, name: str, old: Stored | None
) -> Exit:
    """Write the key file, and wait for it if asked to."""
    if old and old.draft.id != identity:
        whose = f"belongs to {old.draft.id}" if old.draft.id else "is a group key"
        raise CommandError(
            Exit.PROBLEMS, f"{old.draft.path} {whose}", "choose another --name, or remove it first"
        )
    choice = parse_choice(options.flags) if options.flags else old.draft.choice if old else None
    portals = _parse_portals(options.portal) if options.portal else old.draft.portals if old else ()
    description = options.description if options.description is not None else old.description if old else ""
    if not description.isprintable():
        raise CommandError(Exit.USAGE, "the description holds a character that cannot be printed")
    previous = _kept_previous(options.keep_previous, old)
    draft = KeyDraft(
        name=name, path=shelf.path_of(name), id=identity, source=Secret(b""), choice=choice,
        portals=portals, previous=previous,
    )  # fmt: skip
    make_folder(shelf.folder)
    shelf.refuse_conflict(draft)
    old_source = old.draft.source if old else None
    encrypt = isinstance(old_source, CredentialRef) if options.encrypt is None else options.encrypt
    if encrypt and systemd_creds() is None:
        raise CommandError(
            Exit.PROBLEMS, "systemd-creds is not installed (it is part of systemd 250 and later)",
            "leave out --encrypt: the key then lies in a file that only root can read",
        )  # fmt: skip
    secret = key_input.read_key(options)
    draft = replace(draft, source=secret)
    if len(make_key_text(draft, description).encode()) > MAX_KEY_FILE_BYTES:
        raise CommandError(Exit.PROBLEMS, f"with this key the file would exceed {MAX_KEY_FILE_BYTES} bytes")
    if encrypt:
        draft = encrypted(draft, old_source, runtime=shelf.folder == shelf.runtime_folder)
    write_private(draft.path, make_key_text(draft, description).encode())
    sys.stdout.write(f"{'replaced the key in' if old else 'wrote'} {draft.path}\n")
    if draft.previous:
        sys.stdout.write(f"the previous key stays valid until {moment_text(draft.previous.until)}\n")
    for source in sources(old.draft) if old else ():
        if isinstance(source, KeyFileRef) and source not in sources(draft):
            sys.stderr.write(f"note: the old key still lies in {source.path}, which is not used any more\n")
        if isinstance(source, CredentialRef) and source not in sources(draft):
            drop_credential(shelf, source, but=name)
    if weak := weak_key_problem(draft, secret):
        sys.stderr.write(f"warning: {weak.message} ({weak.hint})\n")
    if options.wait:
        wait_until_none(
            options.timeout, lambda: _not_yet_in_force(shelf.paths, draft.path, name), shelf.paths
        )
    return Exit.FINE


def _kept_previous(seconds: int | None, old: Stored | None) -> PreviousDraft | None:
    """The key that is being replaced, with the end of its time."""
    if seconds is None:
        return None
    if old is None:
        raise CommandError(
            Exit.PROBLEMS, "there is no key that could stay valid beside the new one", "leave out --keep-previous"
        )  # fmt: skip
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
    return PreviousDraft(source=old.draft.source, until=until)


def _span(text: str) -> int:
    """A span of time as people write it, in seconds."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text)
    if match is None:
        # the text is not quoted: it may be a key
        raise argparse.ArgumentTypeError("must be a number and a unit: 30m, 12h, 7d or 2w")
    return int(match[1]) * {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}[match[2]]


# -- remove


def run_remove(options: argparse.Namespace, shelf: Shelf, name: str, *, group: bool) -> Exit:
    """Remove one key file, broken or not, and say what stays closed."""
    path = shelf.path_of(name)
    require_access(shelf.folder, os.R_OK | os.W_OK | os.X_OK)
    if not os.path.lexists(path):
        raise CommandError(Exit.PROBLEMS, f"there is no {path}")
    draft = next((s.draft for s in shelf.stored if s.draft.path == path), None)
    if draft and (draft.id is None) != group:
        right = "group-psk" if draft.id is None else "psk"
        raise CommandError(
            Exit.PROBLEMS, f"{path} holds a key of the other kind", f"use: iscsi-ipsec {right} remove"
        )
    portals = _served_by(shelf.paths, path)
    os.unlink(path)
    sys.stdout.write(f"removed {path}\n")
    for source in sources(draft) if draft else ():
        if isinstance(source, CredentialRef):
            drop_credential(shelf, source, but=name)
        if isinstance(source, KeyFileRef):
            sys.stderr.write(f"note: the key itself still lies in {source.path}\n")
    below = f"{shelf.runtime_folder}/{name}{files.SUFFIX}"
    if path != below and os.path.lexists(below):
        sys.stderr.write(f"note: {below} of the same name is in force now\n")
    if options.wait:
        wait_until_none(options.timeout, lambda: _not_yet_gone(shelf.paths, path), shelf.paths)
    if portals:
        sys.stderr.write(
            f"note: without another key these stay closed: {', '.join(portals)}; iscsi-ipsec release opens what no file covers\n"
        )
    return Exit.FINE


def _served_by(paths: Paths, path: str) -> list[str]:
    """Portals that the daemon gives this file's key."""
    document = try_status(paths) if daemon_runs(paths) else None
    return [row["portal"] for row in document["portals"] if row["key_file"] == path] if document else []


# -- waiting


def _not_yet_in_force(paths: Paths, path: str, name: str) -> list[str]:
    """What keeps charon from having this key, in words."""
    document = try_status(paths)
    row = next((row for row in document["files"] if row["path"] == path), None) if document else None
    if document is None or row is None or path in unread(paths, document):
        return [f"{path} has not been read in its present form"]
    lacking = []
    if row["state"] != "ok" or all(key["name"] != name for key in document["keys"]):
        reported = [p["message"] for p in document["problems"] if p["file"] == path]
        lacking += reported or [f"{path} is not in force"]
    if not document["charon"]["reachable"]:
        lacking.append("charon is unreachable")
    elif not document["charon"]["settled"]:
        lacking.append("charon is still starting")
    lacking += [
        p["message"] for p in document["problems"] if p["code"] == "charon-refused" and not p["portal"]
    ]
    for portal in document["portals"]:
        if portal["key"] == name and portal["managed"] and not portal["ready"]:
            problem = portal["problem"]["message"] if portal["problem"] else "its connection is not loaded"
            lacking.append(f"{portal['portal']}: {problem}")
    return lacking


def _not_yet_gone(paths: Paths, path: str) -> list[str]:
    document = try_status(paths)
    if document is None or any(row["path"] == path for row in document["files"]):
        return [f"the daemon has not seen that {path} is gone"]
    return [] if document["charon"]["reachable"] else ["charon is unreachable"]
