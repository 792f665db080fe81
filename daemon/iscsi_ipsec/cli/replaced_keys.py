"""Keeps copies of replaced and removed key files for ``psk undo``: readable by root only, one for each file, for a day.

Law: a copy is complete (the file's bytes, and those of the credentials that were made for it) and is
written before anything is changed; it never outlives its day where the command or systemd-tmpfiles runs.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from iscsi_ipsec.adapters.atomic_write import write_private
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.cli.key_folder import make_folder
from iscsi_ipsec.service.paths import Paths

LIFETIME = 86400
"""Seconds; systemd/iscsi-ipsec.tmpfiles.conf says the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """An earlier version of a key file, with the credentials that it named."""

    path: str
    time: float
    content: Secret
    credentials: Mapping[str, Secret]


def keep(paths: Paths, path: str, credentials: Iterable[str]) -> bool:
    """Copy a file and its credentials' files as they are now; False where there is no file: a link to /dev/null has no content."""
    kept(paths)  # deletes those whose day is over
    if not os.path.isfile(path):
        return False
    record = {
        "path": path,
        "time": time.time(),
        "content": _encoded(path),
        "credentials": {name: text for name in credentials if (text := _encoded(name)) is not None},
    }
    folder = _folder(paths, path)
    make_folder(folder)
    write_private(_place(folder, path), json.dumps(record).encode())
    return True


def drop(paths: Paths, path: str) -> None:
    """Delete the copy of a file whose key must not survive."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_place(_folder(paths, path), path))


def kept(paths: Paths) -> tuple[Copy, ...]:
    """All copies, the latest first; those whose day is over are deleted."""
    copies = []
    for folder in paths.replaced_folders:
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(folder):
                place = os.path.join(folder, name)
                copy = _read(place)
                # a file that was not written here cannot be undone, and may hold a key
                if copy is None or time.time() - copy.time > LIFETIME:
                    os.unlink(place)
                else:
                    copies.append(copy)
    return tuple(sorted(copies, key=lambda copy: -copy.time))


def _read(place: str) -> Copy | None:
    try:
        with open(place, encoding="ascii") as file:
            record = json.load(file)
        return Copy(
            path=record["path"], time=float(record["time"]), content=Secret(base64.b64decode(record["content"])),
            credentials={name: Secret(base64.b64decode(text)) for name, text in record["credentials"].items()},
        )  # fmt: skip
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _encoded(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return base64.b64encode(file.read()).decode()
    except FileNotFoundError:
        return None


def _folder(paths: Paths, path: str) -> str:
    """The folder for a file's copy: a key that must not outlive the boot leaves no persistent copy."""
    return paths.replaced_folders[0 if os.path.dirname(path) == paths.psk_folders[0] else 1]


def _place(folder: str, path: str) -> str:
    return os.path.join(folder, f"{os.path.basename(path)}.json")
