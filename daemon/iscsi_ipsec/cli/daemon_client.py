"""Reads what the daemon reports: its lock, its status file, and the kernel beside it."""

from __future__ import annotations

import argparse
import enum
import fcntl
import json
from typing import Any, TypeAlias

from iscsi_ipsec.base.errors import IscsiIpsecError
from iscsi_ipsec.base.printable import printable
from iscsi_ipsec.core.report.schema import SCHEMA
from iscsi_ipsec.service.paths import Paths

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001  # argparse has no public name for it
"""The type of ``subparsers`` that a verb's ``add`` gets."""


class Exit(enum.IntEnum):
    """The command's exit codes."""

    FINE = 0
    PROBLEMS = 1
    USAGE = 2
    NOT_RUNNING = 3
    NO_CHARON = 4
    NOT_PERMITTED = 5


class CommandError(IscsiIpsecError):
    """Ends the command with a message and an exit code."""

    def __init__(self, code: Exit, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint


def daemon_runs(paths: Paths) -> bool:
    """Whether a daemon holds the lock of this runtime folder."""
    try:
        with open(paths.lock_file, encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except PermissionError as err:
        raise not_permitted(paths.lock_file) from err
    return False


def holder(paths: Paths) -> int | None:
    """The process that holds the lock, as it wrote itself into the file."""
    try:
        with open(paths.lock_file, encoding="ascii") as lock:
            return int(lock.read(32))
    except (OSError, ValueError):
        return None


def read_status(paths: Paths) -> dict[str, Any]:
    """The running daemon's status document; :class:`CommandError` where there is none, or not a current one."""
    if not daemon_runs(paths):
        raise not_running()
    document = try_status(paths)
    if document is None:
        raise CommandError(
            Exit.NOT_RUNNING, "iscsi-ipsecd has just started and has no status yet", "try again"
        )
    return document


def not_running() -> CommandError:
    """The error that there is no daemon."""
    return CommandError(
        Exit.NOT_RUNNING, "iscsi-ipsecd is not running", "start it with: systemctl start iscsi-ipsecd"
    )


def try_status(paths: Paths) -> dict[str, Any] | None:
    """The status document; None where it is absent, or of a daemon that another one has taken the lock from."""
    try:
        with open(paths.status_file, encoding="utf-8") as file:
            document = json.load(file)
    except FileNotFoundError:
        return None
    except PermissionError as err:
        raise not_permitted(paths.status_file) from err
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise CommandError(
            Exit.PROBLEMS, f"{paths.status_file} is of another version of the daemon", "restart the daemon"
        )
    if (pid := holder(paths)) is not None and document.get("pid", pid) != pid:
        return None
    return {name: _shown(value) for name, value in document.items()}


def last_status(paths: Paths) -> dict[str, Any] | None:
    """The last report of any daemon in this boot, as far as it can be read: SAs outlive the daemon."""
    try:
        with open(paths.status_file, encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return None
    return {name: _shown(value) for name, value in document.items()}


def _shown(value: Any) -> Any:
    """A JSON value whose texts are safe to print: it holds names that targets choose."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if isinstance(value, dict):
        return {name: _shown(inner) for name, inner in value.items()}
    return value


def not_permitted(what: str, verb: str = "read") -> CommandError:
    """The error that the caller is not root."""
    return CommandError(Exit.NOT_PERMITTED, f"you may not {verb} {what}", "run this as root")
