"""Notifications and questions to systemd, and the fields of a log record that reach the journal."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import iscsi_ipsec
from iscsi_ipsec.adapters import systemd
from iscsi_ipsec.base.secret import Secret

PACKAGES = str(Path(iscsi_ipsec.__file__).parents[1])

# --- notify -----------------------------------------------------------------


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The end of the notification socket that systemd holds."""
    path = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield listener


def test_every_verb_says_its_word(supervisor: socket.socket) -> None:
    systemd.ready("3 portals protected")
    systemd.ready()
    systemd.watchdog()
    systemd.status("2 portals protected")
    systemd.stopping("charon keeps the policies")
    assert [supervisor.recv(4096).decode() for _ in range(5)] == [
        "READY=1\nSTATUS=3 portals protected",
        "READY=1",
        "WATCHDOG=1",
        "STATUS=2 portals protected",
        "STOPPING=1\nSTATUS=charon keeps the policies",
    ]


def test_a_status_cannot_smuggle_in_another_assignment(supervisor: socket.socket) -> None:
    systemd.status("a\nMAINPID=1\r\nb")
    assert supervisor.recv(4096) == b"STATUS=a MAINPID=1 b"


def test_without_systemd_every_verb_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.ready("x")
    systemd.watchdog()


def test_a_vanished_socket_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/gone")
    systemd.ready("x")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_twice_in_its_time(environ: dict[str, str], seconds: float | None) -> None:
    assert systemd.watchdog_interval(environ) == seconds


# --- charon's unit ----------------------------------------------------------


@pytest.fixture
def booted(tmp_path: Path) -> Path:
    """A root where systemd runs."""
    (tmp_path / "root/run/systemd/system").mkdir(parents=True)
    return tmp_path / "root"


def fake_systemctl(tmp_path: Path, script: str) -> str:
    path = tmp_path / "systemctl"
    path.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/argv\n{script}\n')
    path.chmod(0o755)
    return str(path)


def test_two_names_of_one_unit_count_once(booted: Path, tmp_path: Path) -> None:
    shown = "Id=strongswan.service\nActiveState=active\n"
    other = "Id=strongswan-starter.service\nActiveState=inactive\n"
    (tmp_path / "shown").write_text(f"{shown}\n{shown}\n{other}")
    fake = fake_systemctl(tmp_path, f"cat {tmp_path}/shown")
    assert systemd.charon_units(systemctl=fake, root=str(booted)) == {
        "strongswan.service": "active",
        "strongswan-starter.service": "inactive",
    }
    asked = (tmp_path / "argv").read_text().split()
    assert asked[asked.index("--") + 1 :] == list(systemd.CHARON_UNITS)


@pytest.mark.parametrize("script", ["echo Id=strongswan.service; exit 1", "exec sleep 60"])
def test_a_systemctl_that_fails_or_hangs_delays_nothing(booted: Path, tmp_path: Path, script: str) -> None:
    fake = fake_systemctl(tmp_path, script)
    assert systemd.charon_units(systemctl=fake, root=str(booted), timeout=0.5) == {}


def test_without_systemd_no_unit_is_queried(tmp_path: Path) -> None:
    fake = fake_systemctl(tmp_path, "echo Id=strongswan.service")
    assert systemd.charon_units(systemctl=fake, root=str(tmp_path)) == {}
    assert not (tmp_path / "argv").exists()


def test_a_missing_systemctl_delays_nothing(booted: Path, tmp_path: Path) -> None:
    assert systemd.charon_units(systemctl=f"{tmp_path}/none", root=str(booted)) == {}


# --- journal ----------------------------------------------------------------


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The calls that reach libsystemd."""
    entries: list[dict[str, str]] = []

    def send(message: str, **fields: str) -> None:
        entries.append({"MESSAGE": message, **fields})

    monkeypatch.setattr("iscsi_ipsec.adapters.systemd.journal.send", send)
    return entries


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.getLogger("test-of-the-journal")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    handler = systemd.JournalHandler()
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def test_a_record_goes_out_with_its_fields(log: logging.Logger, sent: list[dict[str, str]]) -> None:
    log.warning(
        "portal %s closed", "10.0.0.20", extra={"fields": {"ISCSI_PORTAL": "10.0.0.20:3260", "TRIES": 3}}
    )
    (entry,) = sent
    assert entry["MESSAGE"] == "portal 10.0.0.20 closed"
    assert (entry["ISCSI_PORTAL"], entry["TRIES"], entry["PRIORITY"]) == ("10.0.0.20:3260", "3", "4")
    assert entry["SYSLOG_IDENTIFIER"] == "iscsi-ipsecd"
    assert entry["CODE_FILE"] == __file__


def test_arguments_of_a_record_are_sent_only_as_formatted(
    log: logging.Logger, sent: list[dict[str, str]]
) -> None:
    log.info("key of %(name)s loaded", {"name": "db1", "key": "topsecret"})
    log.info("key %s", Secret(b"topsecret"))
    assert "topsecret" not in repr(sent)
    assert not any("ARGS" in field for entry in sent for field in entry)


def test_fields_that_journald_would_refuse_or_that_forge_are_left_out(
    log: logging.Logger, sent: list[dict[str, str]]
) -> None:
    log.info(
        "x",
        extra={"fields": {"_PID": "1", "lower": "1", "MESSAGE": "forged", "A B": "1", "": "1", "GOOD": "1"}},
    )
    (entry,) = sent
    assert entry["MESSAGE"] == "x"
    assert {"_PID", "lower", "A B", ""}.isdisjoint(entry)
    assert entry["GOOD"] == "1"


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.CRITICAL, "2"),
        (logging.ERROR, "3"),
        (logging.WARNING, "4"),
        (logging.INFO, "6"),
        (logging.DEBUG, "7"),
    ],
)
def test_levels_become_syslog_priorities(
    log: logging.Logger, sent: list[dict[str, str]], level: int, priority: str
) -> None:
    log.log(level, "x")
    assert sent[0]["PRIORITY"] == priority


def test_a_journal_that_fails_stops_nothing(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def send(message: str, **fields: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("iscsi_ipsec.adapters.systemd.journal.send", send)
    log.info("x")
    assert "No space left on device" in capsys.readouterr().err


def test_a_traceback_is_part_of_the_message(log: logging.Logger, sent: list[dict[str, str]]) -> None:
    try:
        raise ValueError("what was wrong")
    except ValueError:
        log.exception("a bug")
    assert "ValueError: what was wrong" in sent[0]["MESSAGE"]


def test_stderr_is_the_journals_only_when_systemd_says_so_of_this_very_stream(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream:
        st = os.fstat(stream.fileno())
        assert systemd.stderr_is_journal({"JOURNAL_STREAM": f"{st.st_dev}:{st.st_ino}"}, stream.fileno())
        assert not systemd.stderr_is_journal(
            {"JOURNAL_STREAM": f"{st.st_dev}:{st.st_ino + 1}"}, stream.fileno()
        )
        assert not systemd.stderr_is_journal({}, stream.fileno())
    assert not systemd.stderr_is_journal({"JOURNAL_STREAM": "1:2"}, 987654)


def test_elsewhere_lines_go_to_stderr_and_quiet_levels_are_dropped() -> None:
    program = (
        "import logging; from iscsi_ipsec.adapters.systemd import set_up_logging\n"
        "set_up_logging('debug'); set_up_logging('warning')\n"
        "logging.info('quiet'); logging.warning('portal %s closed', 'a', extra={'fields': {'ISCSI_PORTAL': 'a'}})"
    )
    environ = {k: v for k, v in os.environ.items() if k != "JOURNAL_STREAM"} | {"PYTHONPATH": PACKAGES}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environ, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.endswith("WARNING portal a closed")


def test_a_record_reaches_the_journals_binding_in_a_form_that_it_takes() -> None:
    class Strict(systemd.JournalHandler):
        def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
            del record
            raise  # noqa: PLE0704  # called from the except clause of emit

    handler = Strict()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.emit(logging.LogRecord("x", logging.INFO, "/file", 3, "said %s", ("so",), None, "func"))
