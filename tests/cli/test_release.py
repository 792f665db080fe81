"""``release``: asks the daemon, and shows first what would be unencrypted."""

from __future__ import annotations

import threading

from iscsi_ipsec.core.config.settings import Settings
from tests.support import reported
from tests.support.netlab.waiting import wait_until
from tests.support.reported import (
    FINE,
    ORPHANED,
    PROBLEMS,
    Instance,
    write_session,
)
from tests.support.values import (
    SOURCE,
    derived,
    per_id,
    policy,
    record,
)

charon, instance, running = (
    reported.charon,
    reported.instance,
    reported.running,
)  # fixtures, found by their names here


def test_release_asks_the_daemon_and_returns_when_it_is_done(running: Instance) -> None:
    running.report(ORPHANED)
    requests = running.root / "run/requests"
    asked: list[str] = []

    def daemon() -> None:
        (request,) = wait_until(
            lambda: [p for p in requests.iterdir() if not p.name.startswith(".")], "a request", timeout=60
        )
        asked.append(request.read_text())
        request.unlink()
        running.report(derived(record()))

    thread = threading.Thread(target=daemon)
    thread.start()
    answer = running.call("release", "10.0.0.20")
    thread.join()
    assert answer.code == FINE
    assert asked == ["10.0.0.20:3260\n"]
    assert "10.0.0.20:3260 is released" in answer.out


def test_release_refuses_a_covered_portal(running: Instance) -> None:
    running.report(derived(per_id(SOURCE), record(), policy("10.0.0.20", name="san")))
    answer = running.call("release", "10.0.0.20")
    assert answer.code == PROBLEMS
    assert "still covered by portal.d/san.toml" in answer.err
    assert not list((running.root / "run/requests").iterdir())


def test_release_says_that_require_ipsec_keeps_the_portal_closed(running: Instance) -> None:
    running.report(ORPHANED)
    requests = running.root / "run/requests"

    def daemon() -> None:
        (request,) = wait_until(
            lambda: [p for p in requests.iterdir() if not p.name.startswith(".")], "a request", timeout=60
        )
        request.unlink()
        running.report(derived(record(), settings=Settings(require_ipsec=True)))

    thread = threading.Thread(target=daemon)
    thread.start()
    answer = running.call("release", "10.0.0.20")
    thread.join()
    assert answer.code == PROBLEMS
    assert "forgotten, but stays closed" in answer.err
    assert "require_ipsec" in answer.err


def test_release_shows_a_session_that_would_be_unencrypted(running: Instance) -> None:
    running.report(ORPHANED)
    write_session(running.root / "sys", 7, "10.0.0.20")
    for more, code in ((), PROBLEMS), (("--dry-run",), FINE):
        answer = running.call("release", "10.0.0.20", *more)
        assert answer.code == code
        assert "session 7, iqn.2026-01.com.example:disk: sdx" in answer.err
    assert not list((running.root / "run/requests").iterdir())


def test_release_of_an_unmanaged_portal_is_a_problem(running: Instance) -> None:
    running.report(derived(record()))
    answer = running.call("release", "10.0.0.20")
    assert answer.code == PROBLEMS
    assert "not managed" in answer.err
