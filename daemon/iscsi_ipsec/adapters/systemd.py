"""Notifies systemd, asks it about strongSwan's units, and logs to the journal.

Law: one-line verbs; nothing here fails a pass. Without systemd (containers,
tests, a terminal) every verb is silent and every question has a harmless answer.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from iscsi_ipsec.base.printable import printable
from systemd import daemon, journal  # type: ignore[attr-defined]  # mypy takes the folder of units for it

SYSLOG_IDENTIFIER = "iscsi-ipsecd"

CHARON_UNITS = (
    "strongswan.service",  # charon-systemd; named strongswan-swanctl.service on some releases
    "strongswan-swanctl.service",
    "strongswan-starter.service",  # ipsec.conf
    "ipsec.service",
)

# --- sd_notify(3) -----------------------------------------------------------


def ready(status: str = "") -> None:
    """Report that startup is complete."""
    _notify("READY=1", status)


def stopping(status: str = "") -> None:
    """Report that shutdown begins."""
    _notify("STOPPING=1", status)


def watchdog() -> None:
    """Report that the main loop is alive."""
    _notify("WATCHDOG=1")


def status(text: str) -> None:
    """Set the line that ``systemctl status`` shows."""
    _notify("", text)


def _notify(state: str, text: str = "") -> None:
    lines = [state] if state else []
    if text:
        # a line break would start a further assignment
        lines.append("STATUS=" + " ".join(text.split()))
    try:
        daemon.notify("\n".join(lines))
    except OSError as err:  # systemd is being re-executed, or its socket is full
        logging.getLogger(__name__).debug("systemd was not notified: %s", err.strerror)


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two :func:`watchdog`: half of what the unit allows, as sd_watchdog_enabled(3) advises.

    None: no watchdog, or it is another process' (``WATCHDOG_PID``).
    """
    pid = environ.get("WATCHDOG_PID")
    if pid is not None and pid != str(os.getpid()):
        return None
    usec = environ.get("WATCHDOG_USEC", "")
    if not (usec.isascii() and usec.isdigit()) or int(usec) == 0:
        return None
    return int(usec) / 2_000_000


# --- questions --------------------------------------------------------------


def charon_units(
    units: Sequence[str] = CHARON_UNITS,
    *,
    systemctl: str = "systemctl",
    timeout: float = 2.0,
    root: str = "/",
) -> Mapping[str, str]:
    """The ActiveState of each unit of strongSwan, by the unit's own name: two names of one unit count once.

    Empty where systemd does not run or does not answer in ``timeout`` seconds.
    """
    if not os.path.isdir(os.path.join(root, "run/systemd/system")):  # as sd_booted(3)
        return {}
    try:
        done = subprocess.run(
            [systemctl, "show", "--property=Id,ActiveState", "--", *units],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    if done.returncode != 0:
        return {}
    states: dict[str, str] = {}
    for block in done.stdout.decode("ascii", "replace").split("\n\n"):
        shown = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in shown:
            states[shown["Id"]] = shown.get("ActiveState", "")
    return states


# --- journal ----------------------------------------------------------------

_FIELD = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
"""The field names that journald accepts; a leading underscore is reserved for fields it adds itself."""
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class JournalHandler(logging.Handler):
    """Sends records with their fields to the journal.

    python-systemd's own handler also sends ``record.args``, and with them
    whatever was formatted; this one sends the message and what the caller put
    into ``extra={"fields": {...}}``, and nothing else of the record.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; an error is reported as :mod:`logging` does."""
        try:
            # the binding formats this one field as a number
            journal.send(self.format(record), CODE_LINE=record.lineno, **journal_fields(record))
        except Exception:  # noqa: BLE001  # as every handler of logging: a log line must never end the daemon
            self.handleError(record)


def journal_fields(record: logging.LogRecord) -> dict[str, str]:
    """The journal's fields for a record, without MESSAGE and CODE_LINE."""
    fields = {
        "PRIORITY": str(next((number for level, number in _PRIORITIES if record.levelno >= level), 7)),
        "SYSLOG_IDENTIFIER": SYSLOG_IDENTIFIER,
        "LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_FUNC": record.funcName or "",
    }
    extra = getattr(record, "fields", None)
    if isinstance(extra, Mapping):
        fields.update(
            {k: str(v) for k, v in extra.items() if _FIELD.fullmatch(k) and k not in ("MESSAGE", "CODE_LINE")}
        )
    return fields


class _OneLine(logging.Formatter):
    """A record's message becomes one line, whatever names it contains; a traceback follows unchanged."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        return printable(super().formatMessage(record))


def stderr_is_journal(environ: Mapping[str, str] = os.environ, fd: int = 2) -> bool:
    """Whether ``fd`` is the stream that systemd connected to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        st = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{st.st_dev}:{st.st_ino}"


def set_up_logging(level: str) -> None:
    """Send all records to the journal, or to stderr when that is something else.

    ``level``: debug, info, warning or error; it is for our own loggers (:func:`set_log_level`).
    Handlers set before are removed.
    """
    handler: logging.Handler
    if stderr_is_journal():
        handler = JournalHandler()
        handler.setFormatter(_OneLine("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    # a handler that fails would print the record's arguments
    logging.raiseExceptions = False
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    # the libraries' debug records say nothing about this program, and watchdog's would report the log's own growth
    root.setLevel(logging.WARNING)
    set_log_level(level)


def set_log_level(level: str) -> None:
    """Set the level of this program's loggers: debug, info, warning or error."""
    logging.getLogger("iscsi_ipsec").setLevel(level.upper())
