"""Measures how soon an SA is gone at both ends after its key was removed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from tests.bench.living import POLL
from tests.bench.loading import LONG
from tests.bench.report import Report
from tests.support.ike import Ike
from tests.support.netlab import Charon, wait_until
from tests.support.staging import OLD, Session, plain_file


def measure(runs: int, report: Report, say: Callable[[str], None]) -> None:
    """Beside ``swanctl --terminate``, which has only to do it."""
    say("a key is removed under its SA")
    with Session.in_a_lab(Ike.V2) as session:
        session.set_up(OLD)
        session.daemon.start()
        by_hand = [_ended_by_hand(session) for _ in range(runs)]
        removed = [_ended_by_removal(session) for _ in range(runs)]
    what = "the SA of a removed key is gone"
    base = report.add(what, "swanctl --terminate, by hand", by_hand, note="ratios are to this one")
    report.add(
        what, "daemon, from the file's removal", removed, base=base, note="settle time included; target: 1 s"
    )


def _bring_up(session: Session) -> None:
    session.daemon.put_key("a", plain_file(OLD, tunnel=True))
    session.wait_for_key("current", timeout=LONG)
    session.daemon.settle(2.5)


def _gone(session: Session, began: float) -> float:
    for charon in (session.host, session.target):
        wait_until(partial(_without_sa, charon), "no SA is left", timeout=LONG, interval=POLL)
    return time.perf_counter() - began


def _without_sa(charon: Charon) -> bool:
    return not charon.sas()


def _ended_by_removal(session: Session) -> float:
    _bring_up(session)
    began = time.perf_counter()
    (session.daemon.psk / "a.toml").unlink()
    return _gone(session, began)


def _ended_by_hand(session: Session) -> float:
    """Without the daemon, which would bring it up again at once."""
    _bring_up(session)
    session.daemon.terminate()
    (name, _), *_ = session.host.sas()
    began = time.perf_counter()
    session.host.swanctl("--terminate", "--ike", name)
    took = _gone(session, began)
    session.daemon.start()
    return took
