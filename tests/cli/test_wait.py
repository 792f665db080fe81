"""``wait``: what is missing, and when it returns."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from iscsi_ipsec.adapters import files
from tests.support import reported
from tests.support.reported import (
    FINE,
    NOT_RUNNING,
    ORPHANED,
    PROBLEMS,
    USAGE,
    Instance,
)
from tests.support.values import (
    SOURCE,
    managed,
    per_id,
    record,
)

charon, instance, running = (
    reported.charon,
    reported.instance,
    reported.running,
)  # fixtures, found by their names here
KEY = 'id_type = "ID_FQDN"\nid = "db1"\nkey = "canary-key-0123456789"\n'


def signature(path: Path) -> str:
    (found,) = [f for f in files.find_config([str(path.parent)]).files if f.path == str(path)]
    return found.stat.signature


def row_of(path: Path, state: str = "ok") -> dict[str, str]:
    return {"path": str(path), "kind": "psk", "state": state, "signature": signature(path)}


def test_wait_returns_at_once_when_everything_is_in_place(running: Instance) -> None:
    key = running.write("etc/psk.d/db1.toml", KEY)
    running.report(files=[row_of(key)])
    assert running.call("wait", "--timeout", "0").code == FINE
    assert running.call("wait", "--timeout", "0", "10.0.0.20").code == FINE


def test_wait_does_not_believe_the_status_of_a_daemon_that_is_dead(running: Instance) -> None:
    running.report(pid=4711)
    (running.root / "run/daemon.lock").write_text("4712\n")
    answer = running.call("wait", "--timeout", "0")
    assert answer.code == PROBLEMS
    assert "no status yet" in answer.err
    running.report(pid=4712)
    assert running.call("wait", "--timeout", "0").code == FINE


def test_wait_without_a_daemon_gives_up_saying_so(instance: Instance) -> None:
    answer = instance.call("wait", "--timeout", "0")
    assert answer.code == NOT_RUNNING
    assert "systemctl start iscsi-ipsecd" in answer.err


@pytest.mark.parametrize("time", ["nan", "-5", "inf", "soon"])
def test_wait_for_an_invalid_time_is_wrong_usage(running: Instance, time: str) -> None:
    answer = running.call("wait", "--timeout", time)
    assert answer.code == USAGE
    assert "number of seconds" in answer.err
    assert len(answer.err.splitlines()) == 2


def test_wait_waits_for_the_settings_too(running: Instance) -> None:
    assert running.call("wait").code == FINE
    running.write("etc/iscsi-ipsecd.toml", "require_ipsec = true\n")
    answer = running.call("wait", "--timeout", "0")
    assert answer.code == PROBLEMS
    assert "iscsi-ipsecd.toml" in answer.err


def test_wait_shows_what_is_missing(running: Instance) -> None:
    document = running.report(ORPHANED)
    document["charon"]["reachable"] = False
    document["guard"]["installed"] = False
    running.report(ORPHANED, charon=document["charon"], guard=document["guard"])
    answer = running.call("wait", "--timeout", "0")
    assert answer.code == PROBLEMS
    for words in ("charon is unreachable", "guard is not installed", "10.0.0.20:3260: no file covers"):
        assert words in answer.err


@pytest.mark.parametrize("change", ["new", "changed", "removed"])
def test_wait_waits_for_a_file_that_the_daemon_has_not_seen(running: Instance, change: str) -> None:
    key = running.write("etc/psk.d/db1.toml", KEY)
    running.report(files=[] if change == "new" else [row_of(key)])
    if change == "changed":
        running.write("etc/psk.d/db1.toml", KEY + "# more\n")
    if change == "removed":
        key.unlink()
    answer = running.call("wait", "--timeout", "0")
    assert answer.code == PROBLEMS
    assert f"has not read the current version of {key}" in answer.err


def test_wait_for_an_unmanaged_portal_says_that_nothing_manages_it(running: Instance) -> None:
    answer = running.call("wait", "--timeout", "0", "10.9.9.9")
    assert answer.code == PROBLEMS
    assert "10.9.9.9:3260 is not managed" in answer.err


def test_wait_for_one_portal_does_not_wait_for_another(running: Instance) -> None:
    running.report(managed(per_id(SOURCE), record(), record("10.0.0.21"), sources={"10.0.0.21": None}))
    assert running.call("wait", "--timeout", "0", "10.0.0.20").code == FINE
    assert running.call("wait", "--timeout", "0").code == PROBLEMS


def test_wait_returns_when_the_daemon_is_done(running: Instance) -> None:
    running.report(ORPHANED)
    daemon = threading.Timer(0.1, running.report)
    daemon.start()
    answer = running.call("wait", "--timeout", "60")
    daemon.join()
    assert answer.code == FINE


def test_wait_as_json_lists_what_is_missing(running: Instance) -> None:
    assert json.loads(running.call("wait", "--json", "--timeout", "0").out) == {"ready": True, "missing": []}
    running.report(ORPHANED)
    reported = json.loads(running.call("wait", "--json", "--timeout", "0").out)
    assert reported["ready"] is False
    assert len(reported["missing"]) == 1
