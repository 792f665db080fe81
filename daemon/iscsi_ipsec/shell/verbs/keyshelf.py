"""Key files as the command changes them: found, written whole, removed, and waited for.

Law: a file is only written where the daemon will take it: into a folder that
only root can change, under a name that no other file hides, for an identity
that no other file already has for the same portals.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property

from iscsi_ipsec.adapters import credentials, files
from iscsi_ipsec.adapters.filewrite import write_private
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.model import (
    MAX_KEY_FILE_BYTES,
    IdType,
    IkeId,
    IpsecChoice,
    PortalPattern,
    PortalRange,
    Problem,
    parse_portal_pattern,
)
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.flags import interpret, parse_flags
from iscsi_ipsec.core.keyfile import (
    CredentialRef,
    KeyDraft,
    KeyFileRef,
    KeySource,
    PreviousDraft,
    moment_text,
    parse_key_file,
    weak_key_problem,
)
from iscsi_ipsec.core.keytext import description_of, make_key_text
from iscsi_ipsec.shell import keyinput
from iscsi_ipsec.shell.client import CommandError, Exit, daemon_runs, not_permitted, try_status
from iscsi_ipsec.shell.paths import Paths
from iscsi_ipsec.shell.progress import Progress
from iscsi_ipsec.shell.verbs.wait import POLL, shortened, unread

CREDENTIAL_PREFIX = "iscsi-ipsec-"
"""What the names of credentials that we make begin with; only those are ever removed with their key file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A key file in force."""

    draft: KeyDraft
    description: str
    persistent: bool


class Shelf:
    """The key files of one instance. ``runtime``: new files go where they last until the next boot."""

    def __init__(self, paths: Paths, *, runtime: bool = False) -> None:
        self.paths = paths
        self.persistent_folder, self.runtime_folder = paths.psk_folders
        self.folder = self.runtime_folder if runtime else self.persistent_folder
        self.problems: tuple[Problem, ...] = ()

    def path_of(self, name: str) -> str:
        """Where the file of this name is or will be."""
        return f"{self.folder}/{name}{files.SUFFIX}"

    def at(self, name: str) -> Stored | None:
        """The file that is to be replaced; :class:`ConfigError` where it is broken."""
        path = self.path_of(name)
        may(self.folder, os.R_OK | os.X_OK)
        if not os.path.lexists(path):
            return None
        if os.path.islink(path):
            raise CommandError(Exit.PROBLEMS, f"{path} is a link", "remove it first")
        return self._read(path, name)

    def _read(self, path: str, name: str) -> Stored:
        text = files.decode_config(files.read_config(path, private=True), path)
        return Stored(
            draft=parse_key_file(text, path, name),
            description=description_of(text, path),
            persistent=os.path.dirname(path) == self.persistent_folder,
        )

    @cached_property
    def stored(self) -> tuple[Stored, ...]:
        """All key files in force, by name; what is wrong with others goes to ``problems``."""
        for folder in self.paths.psk_folders:
            may(folder, os.R_OK | os.X_OK)
        found = files.find_config(self.paths.psk_folders)
        stored, problems = [], list(found.problems)
        for file in found.files:
            try:
                stored.append(self._read(file.path, file.name))
            except ConfigError as err:
                problems.extend(err.problems)
        self.problems = tuple(problems)
        return tuple(stored)

    @cached_property
    def _by_owner(self) -> dict[tuple[IdType, str] | None, list[KeyDraft]]:
        owners: dict[tuple[IdType, str] | None, list[KeyDraft]] = {}
        for draft in (stored.draft for stored in self.stored):
            owners.setdefault(draft.id.match_key if draft.id else None, []).append(draft)
        return owners

    def refuse_conflict(self, draft: KeyDraft, but: Container[str] = ()) -> None:
        """:class:`CommandError` where the file would be hidden, or its identity is another file's already.

        ``but``: names of files that policies name, so that nothing is left to choose.
        """
        hider = f"{self.persistent_folder}/{draft.name}{files.SUFFIX}"
        if self.folder == self.runtime_folder and os.path.lexists(hider):
            raise CommandError(
                Exit.PROBLEMS, f"{hider} would hide it", "leave out --runtime, or remove that file first"
            )
        mine = draft.id.match_key if draft.id else None
        for other in self._by_owner.get(mine, ()):
            if other.name != draft.name and other.name not in but and _overlap(other.portals, draft.portals):
                whose = str(draft.id) if draft.id else "the group"
                raise CommandError(
                    Exit.PROBLEMS, f"{other.path} already has a key of {whose}",
                    f"put the new key into that file (NAME: {other.name}), or remove it, or give both different portals",
                )  # fmt: skip


def _overlap(one: tuple[PortalPattern, ...], other: tuple[PortalPattern, ...]) -> bool:
    """Whether two keys may be meant for one portal; names could be any address."""
    if not one or not other:
        return True
    for a in one:
        for b in other:
            if not isinstance(a, PortalRange) or not isinstance(b, PortalRange):
                if a == b:
                    return True
            elif a.port == b.port and a.network.version == b.network.version:
                first, second = sorted((a.network, b.network), key=lambda n: n.prefixlen)
                if first.supernet_of(second):  # type: ignore[arg-type]  # both are of one version
                    return True
    return False


def may(path: str, what: int) -> None:
    """:class:`CommandError` where the caller lacks this right to something that exists."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return
    except PermissionError as err:
        raise not_permitted(path) from err
    if not os.access(path, what, effective_ids=True):
        raise not_permitted(path)


def make_folder(folder: str) -> None:
    """Make a folder for keys, if it is missing, and refuse one that others could change."""
    if not os.path.isdir(folder):
        os.makedirs(os.path.dirname(folder), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, mode=0o700)
    files.check_folder(folder, strict=True)
    may(folder, os.R_OK | os.W_OK | os.X_OK)


def checked_name(name: str) -> str:
    """A key file's name as given, without ``.toml``; :class:`CommandError` where it is none."""
    name = name.removesuffix(files.SUFFIX)
    if name.startswith(".") or "/" in name or not name.isprintable() or len(name.encode()) > 200:
        raise CommandError(
            Exit.USAGE, "NAME must be a file name without folder that does not begin with a dot"
        )
    return name


# -- options that psk and group-psk share


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
    keyinput.add_options(parser)


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
    if old and (old.draft.id and old.draft.id.match_key) != (identity and identity.match_key):
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
    if encrypt and _systemd_creds() is None:
        raise CommandError(
            Exit.PROBLEMS, "systemd-creds is not installed (it is part of systemd 250 and later)",
            "leave out --encrypt: the key then lies in a file that only root can read",
        )  # fmt: skip
    secret = keyinput.read_key(options)
    draft = replace(draft, source=secret)
    if len(make_key_text(draft, description).encode()) > MAX_KEY_FILE_BYTES:
        raise CommandError(Exit.PROBLEMS, f"with this key the file would exceed {MAX_KEY_FILE_BYTES} bytes")
    if encrypt:
        draft = _encrypted(draft, old_source, runtime=shelf.folder == shelf.runtime_folder)
    write_private(draft.path, make_key_text(draft, description).encode())
    sys.stdout.write(f"{'replaced the key in' if old else 'wrote'} {draft.path}\n")
    if draft.previous:
        sys.stdout.write(f"the previous key stays valid until {moment_text(draft.previous.until)}\n")
    for source in _sources(old.draft) if old else ():
        if isinstance(source, KeyFileRef) and source not in _sources(draft):
            sys.stderr.write(f"note: the old key still lies in {source.path}, which is not used any more\n")
        if isinstance(source, CredentialRef) and source not in _sources(draft):
            _drop_credential(shelf, source, but=name)
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


def _encrypted(draft: KeyDraft, old_source: KeySource | None, *, runtime: bool) -> KeyDraft:
    """The draft with its keys put into credentials; one that must stay valid is not overwritten."""
    credential = CREDENTIAL_PREFIX + draft.name
    previous = draft.previous
    if isinstance(old_source, CredentialRef):
        credential = _another(old_source.name, draft.name) if previous else old_source.name
    assert isinstance(draft.source, Secret)  # as it was read
    _encrypt(draft.source, credential, runtime=runtime)
    if previous and isinstance(previous.source, Secret):
        beside = _another(credential, draft.name)
        _encrypt(previous.source, beside, runtime=runtime)
        previous = replace(previous, source=CredentialRef(beside))
    return replace(draft, source=CredentialRef(credential), previous=previous)


def _another(credential: str, name: str) -> str:
    """A name for a credential beside this one of the same key file."""
    plain = CREDENTIAL_PREFIX + name
    return f"{plain}.2" if credential == plain else plain


# -- credentials


def _systemd_creds() -> str | None:
    return shutil.which("systemd-creds")


def _encrypt(secret: Secret, name: str, *, runtime: bool) -> None:
    """Encrypt with the machine's key or TPM into the store where systemd, and the daemon, look."""
    store = credentials.ENCRYPTED_STORES[1 if runtime else 0]
    make_folder(store)
    command = [_systemd_creds() or "systemd-creds", "encrypt", f"--name={name}", "-", "-"]
    try:
        done = subprocess.run(
            command, input=secret.reveal(), capture_output=True, timeout=credentials.TIMEOUT, check=False
        )
    except (OSError, subprocess.SubprocessError) as err:
        # without its cause: what the exception holds may be a key
        raise CommandError(Exit.PROBLEMS, f"systemd-creds failed: {type(err).__name__}") from None
    if done.returncode or not done.stdout:
        raise CommandError(
            Exit.PROBLEMS, "systemd-creds could not encrypt the key, nothing was changed",
            f"try: echo test | systemd-creds encrypt --name={name} - -",
        )  # fmt: skip
    write_private(f"{store}/{name}", done.stdout)


def _sources(draft: KeyDraft) -> tuple[KeySource, ...]:
    return (draft.source, draft.previous.source) if draft.previous else (draft.source,)


def _drop_credential(shelf: Shelf, source: CredentialRef, but: str) -> None:
    """Remove a credential that we made and that no other key file names."""
    users = [s.draft.name for s in shelf.stored if source in _sources(s.draft) and s.draft.name != but]
    if users or not source.name.startswith(CREDENTIAL_PREFIX):
        return
    for store in credentials.ENCRYPTED_STORES[:2]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{store}/{source.name}")
            sys.stdout.write(f"removed {store}/{source.name}\n")


# -- remove


def run_remove(options: argparse.Namespace, shelf: Shelf, name: str, *, group: bool) -> Exit:
    """Remove one key file, broken or not, and say what stays closed."""
    path = shelf.path_of(name)
    may(shelf.folder, os.R_OK | os.W_OK | os.X_OK)
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
    for source in _sources(draft) if draft else ():
        if isinstance(source, CredentialRef):
            _drop_credential(shelf, source, but=name)
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


def wait_until_none(timeout: float, lacking: Callable[[], list[str]], paths: Paths) -> None:
    """Return when nothing is lacking; :class:`CommandError` where there is no daemon or the time is over."""
    end = time.monotonic() + timeout
    with Progress() as progress:
        while True:
            if not daemon_runs(paths):
                raise CommandError(
                    Exit.NOT_RUNNING, "the file is changed, but iscsi-ipsecd is not running",
                    "start it with: systemctl start iscsi-ipsecd",
                )  # fmt: skip
            missing = lacking()
            if not missing:
                return
            if time.monotonic() >= end:
                document = try_status(paths)
                away = document is not None and not document["charon"]["reachable"]
                raise CommandError(
                    Exit.NO_CHARON if away else Exit.PROBLEMS,
                    f"the file is changed, but not in force after {timeout:g} s: " + "; ".join(missing),
                    "iscsi-ipsec status says more",
                )
            progress.tell(f"waiting: {shortened(missing)}")
            time.sleep(POLL)


def _not_yet_in_force(paths: Paths, path: str, name: str) -> list[str]:
    """What keeps charon from having this key, in words."""
    document = try_status(paths)
    row = next((row for row in document["files"] if row["path"] == path), None) if document else None
    if document is None or row is None or path in unread(paths, document):
        return [f"{path} has not been read in its present form"]
    lacking = []
    if row["state"] != "ok" or all(key["name"] != name for key in document["keys"]):
        told = [p["message"] for p in document["problems"] if p["file"] == path]
        lacking += told or [f"{path} is not in force"]
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
