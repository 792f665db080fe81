"""Behaviour of all verbs: exit codes, help, path options, colours, interruption, and imported modules."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iscsi_ipsec.cli.main import build_parser
from iscsi_ipsec.core.report.schema import SCHEMA
from tests.support import reported
from tests.support.netlab.waiting import wait_until
from tests.support.reported import (
    FINE,
    NOBODY,
    NOT_PERMITTED,
    NOT_RUNNING,
    ORPHANED,
    PROBLEMS,
    USAGE,
    Instance,
    needs_root,
)
from tests.support.values import (
    derived,
    per_id,
    portal,
    record,
)

charon, instance, running = (
    reported.charon,
    reported.instance,
    reported.running,
)  # fixtures, found by their names here


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


READERS = (["status"], ["explain", "10.0.0.20"], ["release", "10.0.0.20"], ["verify"])


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_without_a_daemon_the_exit_code_is_3(instance: Instance, words: list[str]) -> None:
    answer = instance.call(*words)
    assert answer.code == NOT_RUNNING
    assert "not running" in answer.err
    assert "systemctl start iscsi-ipsecd" in answer.err


@pytest.mark.parametrize("verb", ["explain", "release"])
def test_a_text_that_is_not_a_portal_is_wrong_usage_without_a_daemon_too(
    instance: Instance, verb: str
) -> None:
    answer = instance.call(verb, "10.0.0.20:3260,1")
    assert answer.code == USAGE
    assert "leave out the comma" in answer.err


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_a_status_file_that_a_dead_daemon_left_is_not_believed(instance: Instance, words: list[str]) -> None:
    instance.report()
    instance.write("run/daemon.lock", "")
    assert instance.call(*words).code == NOT_RUNNING


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_a_daemon_without_status_has_only_just_started(instance: Instance, words: list[str]) -> None:
    instance.run_daemon()
    answer = instance.call(*words)
    assert answer.code == NOT_RUNNING
    assert "just started" in answer.err


@needs_root
@pytest.mark.parametrize("words", [*READERS, ["wait", "--timeout", "0"]], ids=" ".join)
def test_another_user_is_not_permitted(running: Instance, words: list[str]) -> None:
    build_parser(words[:1])  # loads the verb: the checkout may be out of that user's reach
    with as_nobody():
        answer = running.call(*words)
    assert answer.code == NOT_PERMITTED
    assert "root" in answer.err


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_a_status_of_another_version_is_not_read(running: Instance, words: list[str]) -> None:
    running.report(schema=SCHEMA + 1)
    answer = running.call(*words)
    assert answer.code == PROBLEMS
    assert "another version" in answer.err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["status", "--nonsense"],
        ["explain"],
        ["explain", "10.0.0.0/24"],
        ["explain", "san.example.com"],
        ["release"],
        ["release", "nonsense!"],
        ["flags"],
        ["flags", "0x80"],
        ["flags", "NONSENSE"],
        ["wait", "--timeout", "soon"],
        ["wait", "nonsense!"],
        ["check", "/nonexistent/file.toml"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(running: Instance, words: list[str]) -> None:
    answer = running.call(*words)
    assert answer.code == USAGE
    assert answer.err
    assert not answer.out


def test_help_names_every_verb_and_the_exit_codes(instance: Instance) -> None:
    answer = instance.call("--help")
    assert answer.code == FINE
    for word in ("status", "verify", "explain", "check", "plan", "wait", "release", "flags", "exit codes"):
        assert word in answer.out


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["shwo", "status"], "one of:"), (["--config-dir", "plan", "statsu"], "did you mean status?")],
)
def test_a_mistyped_verb_is_one_line_and_a_hint(instance: Instance, words: list[str], hint: str) -> None:
    answer = instance.call(*words, places=[])
    assert answer.code == USAGE
    assert f'there is no verb "{words[-1] if hint != "one of:" else words[0]}"' in answer.err
    assert hint in answer.err
    assert len(answer.err.splitlines()) == 2


def test_the_help_of_a_verb_leaves_out_options_of_all_verbs(instance: Instance) -> None:
    answer = instance.call("release", "--help", places=[])
    assert "--config-dir" not in answer.out
    assert "unencrypted from then on" in " ".join(answer.out.split())


def test_a_full_disk_below_standard_output_is_no_traceback(running: Instance) -> None:
    command = [sys.executable, "-m", "iscsi_ipsec.cli.main", *running.places, "status"]
    with open("/dev/full", "w") as full:  # a device
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == PROBLEMS
    assert done.stderr == "iscsi-ipsec: cannot write the answer: No space left on device\n"


def test_control_c_is_no_traceback(running: Instance) -> None:
    running.report(ORPHANED)
    command = [sys.executable, "-m", "iscsi_ipsec.cli.main", *running.places, "wait", "--timeout", "60"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: _has_loaded(process.pid), "the command waits")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def _has_loaded(pid: int) -> bool:
    """Whether the process sleeps between two looks."""
    return (
        "hrtimer" in Path(f"/proc/{pid}/wchan").read_text()
        or "nanosleep" in Path(f"/proc/{pid}/wchan").read_text()
    )


def test_places_may_stand_before_and_behind_the_verb(running: Instance) -> None:
    before = running.call("explain", "10.0.0.20")
    behind = running.call("explain", "10.0.0.20", *running.places, places=[])
    half = len(running.places) // 2
    both = running.call("explain", "10.0.0.20", *running.places[half:], places=running.places[:half])
    assert before == behind == both
    assert before.code == FINE


def test_a_place_behind_the_verb_beats_one_before_it(running: Instance) -> None:
    answer = running.call("explain", "10.0.0.20", places=[*running.places, "--runtime-dir", "/nonexistent"])
    assert answer.code == NOT_RUNNING
    behind = ["explain", "10.0.0.20", "--runtime-dir", str(running.root / "run")]
    assert running.call(*behind, places=["--runtime-dir", "/nonexistent"]).code == FINE


def test_a_portal_is_named_alike_in_every_verb(running: Instance) -> None:
    running.report(derived(per_id("db1"), record("fd00::20")))
    for text in ("fd00::20", "[fd00::20]", "[FD00:0::20]:3260"):
        (row,) = json.loads(running.call("explain", "--json", text).out)
        assert row["portal"] == str(portal("fd00::20")) == "[fd00::20]:3260"


@pytest.mark.parametrize("verb", ["status", "wait", "explain", "flags"])
def test_a_verb_does_not_import_modules_that_only_the_daemon_needs(verb: str) -> None:
    """Scripts call the command again and again, and pyroute2 alone is half of the daemon's import time."""
    verbs = f"from iscsi_ipsec.cli import main; main.build_parser([{verb!r}])"
    heavy = {"pyroute2", "watchdog", "sqlite3", "tomllib"}
    # less what any Python here has: one that measures coverage needs some of them itself
    assert not heavy & (loaded_by(verbs) - loaded_by("pass"))


def loaded_by(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(shown.stdout.split())
