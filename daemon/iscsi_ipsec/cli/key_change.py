"""Sets and removes key files for ``psk`` and ``group-psk``, and waits until the change is in force.

Law: a key is read last, after all other checks of the file, and written whole.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from iscsi_ipsec.adapters import credentials, files
from iscsi_ipsec.adapters.atomic_write import write_private
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.identity import IkeId
from iscsi_ipsec.base.keys import MAX_KEY_FILE_BYTES
from iscsi_ipsec.base.policy import IpsecChoice
from iscsi_ipsec.base.portal import PortalPattern, parse_portal_patterns, refuse_misread
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.cli import confirm, key_input, replaced_keys
from iscsi_ipsec.cli.daemon_client import CommandError, Exit
from iscsi_ipsec.cli.impact import Impact, opened_now, served_by
from iscsi_ipsec.cli.key_credential import (
    credential_files,
    drop_credential,
    encrypted,
    is_named,
    sources,
    systemd_creds,
)
from iscsi_ipsec.cli.key_folder import Shelf, Stored, make_folder, require_access
from iscsi_ipsec.cli.waiting import (
    add_timeout,
    key_is_unused,
    not_yet_gone,
    not_yet_in_force,
    wait_until_none,
)
from iscsi_ipsec.core.config.key_file import (
    CredentialRef,
    KeyDraft,
    KeyFileRef,
    PreviousDraft,
    moment_text,
    parse_key_file,
    weak_key_problem,
)
from iscsi_ipsec.core.config.security_flags import interpret, parse_flags
from iscsi_ipsec.core.config.writer import make_key_text
from iscsi_ipsec.service.paths import Paths

DAY = 86400
"""Seconds that a replaced key stays valid unless another time is given."""


def add_set_options(parser: argparse.ArgumentParser) -> None:
    """The options of a new key besides its identity."""
    parser.add_argument(
        "--flags", nargs="+", metavar="FLAG", help="0x37, or names with or without ISCSI_SECURITY_FLAG_"
    )
    parser.add_argument(
        "--portal", action="append", metavar="P", help="use it only towards this portal or network, and manage it; may be repeated"
    )  # fmt: skip
    parser.add_argument("--description", metavar="TEXT")
    parser.add_argument(
        "--runtime", action="store_true", help="keep it only until the next boot (Windows' Persist = FALSE)"
    )
    previous = parser.add_mutually_exclusive_group()
    previous.add_argument(
        "--keep-previous", type=_span, metavar="TIME",
        help="how long the key that is replaced stays valid beside the new one: 30m, 12h, 7d, 2w (default: 1d)",
    )  # fmt: skip
    previous.add_argument(
        "--revoke", action="store_true", help="the key that is replaced stops being valid at once, and no copy is kept"
    )  # fmt: skip
    parser.add_argument(
        "--encrypt", action=argparse.BooleanOptionalAction,
        help=f"keep the key encrypted with systemd-creds in {credentials.ENCRYPTED_STORES[0]} (default: as it was)",
    )  # fmt: skip
    confirm.add_options(parser)
    add_wait_options(parser)
    key_input.add_options(parser)


def add_remove_options(parser: argparse.ArgumentParser) -> None:
    """The options of removing."""
    confirm.add_options(parser)
    parser.add_argument("--revoke", action="store_true", help="keep no copy for psk undo")
    add_wait_options(parser)


def add_wait_options(parser: argparse.ArgumentParser) -> None:
    """The options of waiting."""
    parser.add_argument(
        "--wait", action="store_true", help="return when charon has it; other portals are not waited for"
    )
    add_timeout(parser, 30.0)


def parse_choice(given: Sequence[str]) -> IpsecChoice | None:
    """``--flags`` as in a file: one number, or names."""
    words = [word for text in given for word in text.split(",") if word]
    try:
        return interpret(parse_flags(words[0] if len(words) == 1 else words))
    except ValueError as err:
        raise CommandError(Exit.USAGE, str(err)) from err


def _parse_portals(given: Sequence[str]) -> tuple[PortalPattern, ...]:
    try:
        for text in given:
            refuse_misread(text)
        return tuple(dict.fromkeys(p for text in given for p in parse_portal_patterns(text)))
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
    identity = old.draft.id if old else identity  # DB1 is db1, and stays as it is written there
    choice = parse_choice(options.flags) if options.flags else old.draft.choice if old else None
    portals = _parse_portals(options.portal) if options.portal else old.draft.portals if old else ()
    description = options.description if options.description is not None else old.description if old else ""
    if not description.isprintable():
        raise CommandError(Exit.USAGE, "the description holds a character that cannot be printed")
    served = Impact(shelf.paths, served_by(shelf.path_of(name)))
    previous = _kept_previous(options, old, served, shelf)
    draft = KeyDraft(
        name=name, path=shelf.path_of(name), id=identity, source=Secret(b""), choice=choice,
        portals=portals, previous=previous,
    )  # fmt: skip
    if not options.dry_run:
        make_folder(shelf.folder)
    shelf.refuse_conflict(draft)
    old_source = old.draft.source if old else None
    encrypt = isinstance(old_source, CredentialRef) if options.encrypt is None else options.encrypt
    if encrypt and systemd_creds() is None:
        raise CommandError(
            Exit.PROBLEMS, "systemd-creds is not installed (it is part of systemd 250 and later)",
            "leave out --encrypt: the key then lies in a file that only root can read",
        )  # fmt: skip
    closed = Impact(shelf.paths, opened_now(() if choice and not choice.required else portals))
    if not confirm.agreed(
        options, _shown_before(draft, old, served, closed), ask=bool(old and served.is_live) or closed.is_live
    ):
        return Exit.FINE
    secret = key_input.read_key(options)
    draft = replace(draft, source=secret)
    if old and old.draft.source == secret:
        draft = replace(draft, previous=None if options.revoke else old.draft.previous)
    if len(make_key_text(draft, description).encode()) > MAX_KEY_FILE_BYTES:
        raise CommandError(Exit.PROBLEMS, f"with this key the file would exceed {MAX_KEY_FILE_BYTES} bytes")
    if old and not options.revoke:
        replaced_keys.keep(shelf.paths, draft.path, credential_files(old.draft))
    if encrypt:
        draft = encrypted(draft, old_source, shelf)
    write_private(draft.path, make_key_text(draft, description).encode())
    if options.revoke:
        replaced_keys.drop(shelf.paths, draft.path)
    _report(options, shelf, draft, old)
    if weak := weak_key_problem(draft, secret):
        sys.stderr.write(f"warning: {weak.message} ({weak.hint})\n")
    if not portals and not files.find_config(shelf.paths.portal_folders).files:
        sys.stderr.write(f"note: {unmanaged_note(shelf.paths)}, or give --portal\n")
    if options.wait:
        wait_until_none(options.timeout, lambda: not_yet_in_force(shelf.paths, draft.path, name), shelf.paths)
    return Exit.FINE


def _shown_before(draft: KeyDraft, old: Stored | None, served: Impact, closed: Impact) -> list[str]:
    """The lines about what the new key replaces and cuts."""
    lines = []
    if old and (served.is_live or draft.previous):
        lines.append(f"{draft.path} has a key, which is replaced")
        lines += served.lines()
        if draft.previous:
            lines.append(f"  the previous key stays valid until {moment_text(draft.previous.until)}")
        elif served.is_live:
            lines.append(
                "  the previous key stops being valid at once: these SAs end unless the far end has the new key"
            )
    if closed.rows:
        lines += ["these portals are open now, and closed until IKE succeeds with this key:", *closed.lines()]
    return lines


def _report(options: argparse.Namespace, shelf: Shelf, draft: KeyDraft, old: Stored | None) -> None:
    """Print what was written, what is left of the old key, and how to read a generated one."""
    whose = f"{draft.id} ({draft.id.type.name})" if draft.id else "the group"
    sys.stdout.write(f"{'replaced the key in' if old else 'wrote'} {draft.path}, for {whose}\n")
    if draft.previous:
        sys.stdout.write(f"the previous key stays valid until {moment_text(draft.previous.until)}\n")
    if old and not options.revoke:
        sys.stdout.write(f"back within a day with: iscsi-ipsec psk undo {shlex.quote(draft.name)}\n")
    if options.generate is not None:
        sys.stdout.write(f"read it once, for the far end, with: {_reading(draft)}\n")
    for source in sources(old.draft) if old else ():
        if isinstance(source, KeyFileRef) and source not in sources(draft):
            sys.stderr.write(f"note: the old key still lies in {source.path}, which is not used any more\n")
        if isinstance(source, CredentialRef) and source not in sources(draft):
            drop_credential(shelf, source, but=draft.name)


def _reading(draft: KeyDraft) -> str:
    """The command that shows the key of a file that was just written."""
    if isinstance(draft.source, CredentialRef):
        path = credentials.locate_credential(draft.source.name)
        return f"systemd-creds decrypt --name={draft.source.name} {shlex.quote(path)} -"
    return f"sed -n 's/^key = //p' {shlex.quote(draft.path)}   (without the quotes)"


def unmanaged_note(paths: Paths) -> str:
    """The note that no portal is managed, where no file names one."""
    return (
        "a key without portals manages none by itself; put a file into"
        f' {paths.portal_folders[0]} that says: portals = ["10.0.0.20"]'
    )


def _kept_previous(
    options: argparse.Namespace, old: Stored | None, served: Impact, shelf: Shelf
) -> PreviousDraft | None:
    """The key that stays valid beside the new one: the replaced key, or the one before it if that is still in use."""
    if options.revoke:
        return None
    if old is None:
        if options.keep_previous is None:
            return None
        raise CommandError(
            Exit.PROBLEMS, "there is no key that could stay valid beside the new one", "leave out --keep-previous"
        )  # fmt: skip
    now = datetime.now(UTC).replace(microsecond=0)
    until = now + timedelta(seconds=DAY if options.keep_previous is None else options.keep_previous)
    before = old.draft.previous
    if before is None or before.until <= now:
        return PreviousDraft(source=old.draft.source, until=until)
    used = {row["sa"]["key"] for row in served.rows if row["sa"]}
    if used == {"previous"}:  # the far end does not have the current key yet, and may never need it
        return PreviousDraft(source=before.source, until=max(until, before.until))
    if used == {"current"} or options.keep_previous is not None or key_is_unused(shelf.paths, old.draft.name):
        return PreviousDraft(source=old.draft.source, until=until)
    raise CommandError(
        Exit.PROBLEMS,
        f"{old.draft.path} has two valid keys, the previous one until {moment_text(before.until)},"
        " and no SA shows which of them the far end has",
        f"go back with: iscsi-ipsec psk undo {shlex.quote(old.draft.name)}; or --keep-previous TIME drops the previous"
        " one, --revoke both",
    )


def _span(text: str) -> int:
    """A span of time as people write it, in seconds."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text)
    if match is None:
        # the text is not quoted: it may be a key
        raise argparse.ArgumentTypeError("must be a number and a unit: 30m, 12h, 7d or 2w")
    return int(match[1]) * {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}[match[2]]


# -- remove


def run_remove(options: argparse.Namespace, shelf: Shelf, name: str, *, group: bool) -> Exit:
    """Remove one key file, broken or not, after showing what ends with it."""
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
    served = Impact(shelf.paths, served_by(path))
    lines = [
        f"{path} is the key of these portals; without another key their SAs end and they stay closed",
        *served.lines(),
    ]
    if not confirm.agreed(options, lines if served.rows else (), ask=served.is_live):
        return Exit.FINE
    if options.revoke:
        replaced_keys.drop(shelf.paths, path)
    has_copy = not options.revoke and replaced_keys.keep(
        shelf.paths, path, credential_files(draft) if draft else ()
    )
    os.unlink(path)
    sys.stdout.write(f"removed {path}\n")
    if has_copy:
        sys.stdout.write(f"back within a day with: iscsi-ipsec psk undo {shlex.quote(name)}\n")
    for source in sources(draft) if draft else ():
        if isinstance(source, CredentialRef):
            drop_credential(shelf, source, but=name)
        if isinstance(source, KeyFileRef):
            sys.stderr.write(f"note: the key itself still lies in {source.path}\n")
    below = f"{shelf.runtime_folder}/{name}{files.SUFFIX}"
    if path != below and os.path.lexists(below):
        sys.stderr.write(f"note: {below}, which has the same name, is in force now\n")
    if options.wait:
        wait_until_none(options.timeout, lambda: not_yet_gone(shelf.paths, path), shelf.paths)
    if served.rows:
        sys.stderr.write("note: iscsi-ipsec release PORTAL opens a portal that no file covers\n")
    return Exit.FINE


# -- undo


def run_undo(options: argparse.Namespace, paths: Paths) -> Exit:
    """Put a key file back as it was before it was replaced or removed; doing it again reverts that."""
    copies = replaced_keys.kept(paths)
    wanted = options.undo_name
    copy = next(
        (c for c in copies if wanted in (None, os.path.basename(c.path).removesuffix(files.SUFFIX))), None
    )
    if copy is None:
        what = f"no key file {wanted}" if wanted else "no key file"
        raise CommandError(Exit.PROBLEMS, f"{what} was replaced or removed within the last day", "")
    name = os.path.basename(copy.path).removesuffix(files.SUFFIX)
    shelf = Shelf(paths, runtime=os.path.dirname(copy.path) == paths.psk_folders[1])
    now: Stored | None = None
    with contextlib.suppress(ConfigError):  # a broken file is replaced too
        now = shelf.at(name)
    _refuse_undo(copy, name, now, shelf)
    served = Impact(paths, served_by(copy.path))
    when = datetime.fromtimestamp(copy.time, UTC).replace(microsecond=0)
    lines = [f"{copy.path} goes back to its content before {moment_text(when)}", *served.lines()]
    if not confirm.agreed(options, lines, ask=served.is_live):
        return Exit.FINE
    if os.path.lexists(copy.path):
        replaced_keys.keep(paths, copy.path, credential_files(now.draft) if now else ())
    else:
        replaced_keys.drop(paths, copy.path)
    make_folder(shelf.folder)
    for place, content in copy.credentials.items():
        make_folder(os.path.dirname(place))
        write_private(place, content.reveal())
    write_private(copy.path, copy.content.reveal())
    sys.stdout.write(f"{copy.path} is as it was before {moment_text(when)}\n")
    if options.wait:
        wait_until_none(options.timeout, lambda: not_yet_in_force(paths, copy.path, name), paths)
    return Exit.FINE


def _refuse_undo(copy: replaced_keys.Copy, name: str, now: Stored | None, shelf: Shelf) -> None:
    """:class:`CommandError` where the daemon would not take the earlier content beside the other key files of now."""
    for place in copy.credentials:
        if os.path.lexists(place) and is_named(shelf, os.path.basename(place), name):
            raise CommandError(
                Exit.PROBLEMS, f"{place} holds the key of another file now, and undo would overwrite it",
                "set that file's key again, then undo",
            )  # fmt: skip
    try:
        before = parse_key_file(files.decode_config(copy.content.reveal(), copy.path), copy.path, name)
    except ConfigError:
        return  # the file was broken, so it was not in force either
    if now and (now.draft.id, now.draft.portals) == (before.id, before.portals):
        return
    shelf.refuse_conflict(before)
