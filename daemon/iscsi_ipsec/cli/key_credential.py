"""Keeps keys encrypted, as credentials of systemd (systemd-creds(1)).

Law: a credential that must stay valid is not overwritten, and only those that were made here are removed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Container
from dataclasses import replace
from pathlib import Path

from iscsi_ipsec.adapters import credentials
from iscsi_ipsec.adapters.atomic_write import write_private
from iscsi_ipsec.adapters.files import SUFFIX
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.cli.daemon_client import CommandError, Exit
from iscsi_ipsec.cli.key_folder import Shelf, make_folder
from iscsi_ipsec.core.config.key_file import CredentialRef, KeyDraft, KeySource

CREDENTIAL_PREFIX = "iscsi-ipsec-"
"""The prefix of credentials that this program makes; only those are ever removed with their key file."""


def systemd_creds() -> str | None:
    """The program's path, None where it is not installed."""
    return shutil.which("systemd-creds")


def encrypted(draft: KeyDraft, old_source: KeySource | None, shelf: Shelf) -> KeyDraft:
    """The draft with its keys put into credentials; one that must stay valid, or that another file names, is not overwritten."""
    previous = draft.previous
    taken = {
        source.name
        for stored in shelf.stored
        if stored.draft.path != draft.path
        for source in sources(stored.draft)
        if isinstance(source, CredentialRef)
    }
    for source in (old_source, previous.source) if previous else ():
        if isinstance(source, CredentialRef):
            taken.add(source.name)
    if isinstance(old_source, CredentialRef) and old_source.name not in taken:
        credential = old_source.name
    else:
        credential = _free(draft.name, taken)
    runtime = shelf.folder == shelf.runtime_folder
    assert isinstance(draft.source, Secret)  # as it was read
    _encrypt(draft.source, credential, runtime=runtime)
    if previous and isinstance(previous.source, Secret):
        beside = _free(draft.name, {*taken, credential})
        _encrypt(previous.source, beside, runtime=runtime)
        previous = replace(previous, source=CredentialRef(beside))
    return replace(draft, source=CredentialRef(credential), previous=previous)


def _free(name: str, taken: Container[str]) -> str:
    """The first name for a credential of this key file that is not taken."""
    plain = CREDENTIAL_PREFIX + name
    names = itertools.chain((plain,), (f"{plain}.{number}" for number in itertools.count(2)))
    return next(credential for credential in names if credential not in taken)


def _encrypt(secret: Secret, name: str, *, runtime: bool) -> None:
    """Encrypt with the machine's key or TPM into the store where systemd, and the daemon, look."""
    store = credentials.ENCRYPTED_STORES[1 if runtime else 0]
    make_folder(store)
    command = [systemd_creds() or "systemd-creds", "encrypt", f"--name={name}", "-", "-"]
    try:
        done = subprocess.run(
            command, input=secret.reveal(), capture_output=True, timeout=credentials.TIMEOUT, check=False
        )
    except (OSError, subprocess.SubprocessError) as err:
        # without its cause: the exception may hold a key
        raise CommandError(Exit.PROBLEMS, f"systemd-creds failed: {type(err).__name__}") from None
    if done.returncode or not done.stdout:
        raise CommandError(
            Exit.PROBLEMS, "systemd-creds could not encrypt the key, nothing was changed",
            f"try: echo test | systemd-creds encrypt --name={name} - -",
        )  # fmt: skip
    write_private(f"{store}/{name}", done.stdout)


def sources(draft: KeyDraft) -> tuple[KeySource, ...]:
    """Where the bytes of a file's keys are."""
    return (draft.source, draft.previous.source) if draft.previous else (draft.source,)


def drop_credential(shelf: Shelf, source: CredentialRef, but: str) -> None:
    """Remove a credential that this program made and that no other key file names."""
    if not source.name.startswith(CREDENTIAL_PREFIX) or is_named(shelf, source.name, but):
        return
    for store in credentials.ENCRYPTED_STORES[:2]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{store}/{source.name}")
            sys.stdout.write(f"removed {store}/{source.name}\n")


def is_named(shelf: Shelf, credential: str, but: str) -> bool:
    """Whether a key file other than ``but`` names the credential; a broken one counts by its text, as it will be fixed."""
    if any(
        CredentialRef(credential) in sources(stored.draft)
        for stored in shelf.stored
        if stored.draft.name != but
    ):
        return True
    name = re.compile(rb"""["']%s["']""" % re.escape(credential.encode()))
    for folder in shelf.paths.psk_folders:
        for path in Path(folder).glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                if path.stem != but and name.search(path.read_bytes()):
                    return True
    return False


def credential_files(draft: KeyDraft) -> tuple[str, ...]:
    """Where the credentials lie that we made for a key file."""
    names = [
        s.name
        for s in sources(draft)
        if isinstance(s, CredentialRef) and s.name.startswith(CREDENTIAL_PREFIX)
    ]
    return tuple(f"{store}/{name}" for name in names for store in credentials.ENCRYPTED_STORES[:2])
