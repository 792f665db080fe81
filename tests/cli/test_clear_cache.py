"""``clear-cache``: the daemon reads everything again, and the command returns when it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Instance


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes a line for each SIGHUP."""
    source = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [1])\nprint('on', flush=True)\nwhile signal.sigwait([1]): print('hup', flush=True)"
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


def status(pid: int, generation: int = 1, *, reachable: bool = True) -> dict[str, object]:
    return {"schema": 1, "pid": pid, "generation": generation, "charon": {"reachable": reachable}}


@pytest.mark.parametrize(("reachable", "code"), [(True, 0), (False, 4)])
def test_clear_cache_sends_sighup_and_waits_for_the_next_pass(
    instance: Instance, child: subprocess.Popen[bytes], reachable: bool, code: int
) -> None:
    instance.pretend_daemon(status(child.pid), pid=child.pid)

    def passes() -> None:
        assert child.stdout
        assert child.stdout.readline() == b"hup\n"
        (request,) = (instance.root / "run/requests").iterdir()  # it is there before the signal
        fresh = instance.put(instance.root / "run/new", json.dumps(status(child.pid, 2, reachable=reachable)))
        fresh.replace(instance.root / "run/status.json")
        request.unlink()

    daemon = threading.Thread(target=passes)
    daemon.start()
    answer = instance.run("clear-cache")
    daemon.join()
    assert answer.code == code


def test_clear_cache_reports_a_daemon_that_does_not_answer(
    instance: Instance, child: subprocess.Popen[bytes]
) -> None:
    instance.pretend_daemon(status(child.pid), pid=child.pid)
    assert instance.run("clear-cache", "--timeout", "0.2").code == 1


def test_clear_cache_without_a_daemon_is_exit_code_3(instance: Instance) -> None:
    assert instance.run("clear-cache").code == 3


def test_clear_cache_does_not_signal_a_process_that_only_has_the_daemons_old_number(
    instance: Instance, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, int]] = []
    instance.pretend_daemon(status(child.pid), pid=os.getpid())
    with monkeypatch.context() as here:  # no longer than this: the fixture kills its process
        here.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
        assert instance.run("clear-cache").code == 3
    assert sent == []


def test_clear_cache_does_not_take_a_pass_that_began_before_the_signal(
    instance: Instance, child: subprocess.Popen[bytes]
) -> None:
    instance.pretend_daemon(status(child.pid), pid=child.pid)
    stop = threading.Event()

    def passes() -> None:
        """Ever new generations, none of which looked at everything."""
        for generation in range(2, 1000):
            if stop.wait(0.01):
                return
            fresh = instance.put(instance.root / "run/new", json.dumps(status(child.pid, generation)))
            fresh.replace(instance.root / "run/status.json")

    daemon = threading.Thread(target=passes)
    daemon.start()
    try:
        assert instance.run("clear-cache", "--timeout", "0.5").code == 1
    finally:
        stop.set()
        daemon.join()
    assert list((instance.root / "run/requests").iterdir()) == []
