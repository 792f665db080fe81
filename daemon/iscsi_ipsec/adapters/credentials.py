"""Reads keys from systemd credentials (systemd.exec(5), CREDENTIALS; systemd-creds(1)).

A plain credential lies in ``$CREDENTIALS_DIRECTORY``, as it was when the
service started. An encrypted one in a credstore is decrypted whenever it is
read, so that it can be changed without a restart.
"""

from __future__ import annotations

import os
import subprocess

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.keys import MAX_KEY_FILE_BYTES
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.base.secret import Secret

ENCRYPTED_STORES = ("/etc/credstore.encrypted", "/run/credstore.encrypted", "/usr/lib/credstore.encrypted")
"""Where systemd itself looks for encrypted credentials, the strongest first."""

TIMEOUT = 10.0
"""Seconds for one decryption; a TPM takes a second."""


def credential_folders() -> tuple[str, ...]:
    """Where credentials are looked for, the strongest first. An encrypted one wins: it is the fresher."""
    own = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return (*ENCRYPTED_STORES, own) if own else ENCRYPTED_STORES


def locate_credential(name: str) -> str:
    """The path of the credential's file, empty where there is none."""
    paths = (os.path.join(folder, name) for folder in credential_folders())
    return next(filter(os.path.exists, paths), "")


def is_encrypted(path: str) -> bool:
    """Whether the file that :func:`locate_credential` found must be decrypted."""
    return os.path.dirname(path) in ENCRYPTED_STORES


def decrypt_credential(name: str, path: str, asked_by: str, systemd_creds: str = "systemd-creds") -> Secret:
    """The credential's bytes without one trailing newline; :class:`ConfigError` about ``asked_by`` where it fails."""
    # systemd-creds would notify the service manager in our name
    env = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    try:
        done = subprocess.run(
            [systemd_creds, "decrypt", f"--name={name}", "--newline=no", path, "-"],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False, env=env,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as err:
        # the exception may hold output, which is a key
        raise _problem(
            asked_by,
            f"credential {name} cannot be decrypted: {type(err).__name__}",
            "is systemd-creds installed?",
        ) from None
    if done.returncode:
        raise _problem(
            asked_by,
            f"credential {name} cannot be decrypted",
            f"try: systemd-creds decrypt --name={name} {path} -",
        )
    if len(done.stdout) > MAX_KEY_FILE_BYTES:
        raise _problem(asked_by, f"credential {name} is too large", "a key has at most 65,535 bytes")
    return Secret(done.stdout.removesuffix(b"\n"))


def missing_credential(name: str, asked_by: str) -> ConfigError:
    """The error that no such credential exists."""
    hint = f"make one: systemd-creds encrypt --name={name} - {ENCRYPTED_STORES[0]}/{name}"
    return _problem(asked_by, f"there is no credential {name}", hint)


def _problem(file: str, message: str, hint: str) -> ConfigError:
    return ConfigError((Problem(code="bad-credential", message=message, hint=hint, file=file),))
