"""A key is rotated on the host while its target has the old one still, or the new one already."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from tests.support.admin import changes_in
from tests.support.ike import Ike
from tests.support.netlab import Daemon, Esp, available_esp, missing_for_lab, wait_until
from tests.support.staging import LONG, NEW, OLD, Session, plain_file, staged_file

pytestmark = pytest.mark.skipif(available_esp() is not Esp.LIBIPSEC, reason="needs ESP by charon itself")
ALL_IKE = pytest.mark.parametrize("ike", list(Ike), ids=lambda ike: ike.name)


@pytest.fixture
def ike() -> Ike:
    return Ike.V2


@pytest.fixture
def session(ike: Ike) -> Iterator[Session]:
    """An SA of the old key is up, and both ends have no other key."""
    if missing := missing_for_lab():
        pytest.skip(f"no lab without {', '.join(missing)}")
    with Session.in_a_lab(ike) as session:
        session.set_up(OLD)
        session.daemon.put_key("a", plain_file(OLD, ike=ike, tunnel=True))
        session.daemon.start()
        session.wait_for_key("current")
        session.daemon.settle()
        yield session


@contextmanager
def never_without_an_sa(session: Session) -> Iterator[None]:
    """Ask charon again and again meanwhile."""
    over, gaps = threading.Event(), []

    def watch() -> None:
        while not over.wait(0.02):
            if not session.children():
                gaps.append("a moment without any SA")

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert gaps == []


def stage(session: Session, for_: timedelta = LONG) -> None:
    session.daemon.put_key("a", staged_file(NEW, OLD, for_, ike=session.ike, tunnel=True))


def try_new_key_now(daemon: Daemon) -> None:
    os.kill(daemon.pid, signal.SIGHUP)


@ALL_IKE
def test_the_host_changes_first_and_its_sa_of_the_old_key_stays_until_the_target_has_the_new_one(
    session: Session, ike: Ike
) -> None:
    before = session.children()
    mark = session.target.log_mark()
    with never_without_an_sa(session):
        stage(session)
        session.wait_until_fallen_back()
        tried = "initiating" if ike is not Ike.V2 else "is initiating an IKE_SA"
        assert tried in session.target.log_text(mark), "the new key was tried"
        assert session.children() == before
        assert session.row["protected"]
        assert session.row["problem"]["code"] == "previous-key-in-use"
        session.target_has(NEW)
        try_new_key_now(session.daemon)
        session.wait_for_key("current")
        wait_until(lambda: not session.children().keys() & before.keys(), "the SA of the old key ended")
    wait_until(lambda: session.row["problem"] is None, "no problem is left")


@ALL_IKE
def test_the_target_changes_first_and_the_host_moves_to_the_new_key_without_a_gap(
    session: Session, ike: Ike
) -> None:
    before = session.children()
    session.target_has(NEW)
    with never_without_an_sa(session):
        stage(session)
        wait_until(
            lambda: session.children() and not session.children().keys() & before.keys(),
            "a new SA took the old one's place",
            detail=session.daemon.tail,
        )
        session.wait_for_key("current")


@pytest.mark.parametrize("ike", [Ike.V2, Ike.MAIN], ids=lambda ike: ike.name)
def test_a_lost_sa_comes_back_by_whichever_key_the_target_has(session: Session, ike: Ike) -> None:
    stage(session)
    session.wait_until_fallen_back()
    session.target.forget_sas()
    session.wait_for_key("previous")
    session.target_has(NEW)
    session.target.forget_sas()
    session.wait_for_key("current")
    session.target_has(OLD)
    session.target.forget_sas()
    session.wait_for_key("previous")


def test_at_the_end_of_its_time_the_old_key_is_gone_with_its_sa_and_nobody_had_to_ask(
    session: Session,
) -> None:
    old_secrets = set(session.host.secrets())
    stage(session)
    session.wait_until_fallen_back()
    before = session.children()
    stage(session, timedelta(seconds=2))
    wait_until(
        lambda: not session.children().keys() & before.keys(), "the SA of the old key ended",
        timeout=12, detail=session.daemon.tail,
    )  # fmt: skip
    assert not set(session.host.secrets()) & old_secrets
    wait_until(lambda: session.row["previous_until"] is None, "status says so too")
    assert any("no longer used, since" in said for said in session.daemon.problems())
    session.target.forget_sas()  # whose charon takes the old key and no other
    mark = session.target.log_mark()
    wait_until(
        lambda: any(w in session.target.log_text(mark) for w in ("MAC mismatched", "HASH", "decrypt")),
        "the host came again, with a key that the target does not have",
        detail=session.target.tail,
    )
    assert session.children() == {}


def test_at_the_end_of_its_time_an_sa_of_the_new_key_is_made_anew_without_a_gap(session: Session) -> None:
    session.target_has(NEW)
    stage(session)
    session.wait_for_key("current")
    session.daemon.settle()
    during = session.children()
    with never_without_an_sa(session):
        stage(session, timedelta(seconds=2))
        wait_until(
            lambda: session.children() and not session.children().keys() & during.keys(),
            "the SA was negotiated again, where only the new key would do",
            timeout=12, detail=session.daemon.tail,
        )  # fmt: skip
    session.wait_for_key("current")


def test_a_daemon_restarted_in_the_middle_loads_nothing_and_keeps_the_sa(session: Session) -> None:
    stage(session)
    session.wait_until_fallen_back()
    before, mark = session.children(), session.host.log_mark()
    session.daemon.kill()
    session.daemon.start()
    session.daemon.settle()
    assert changes_in(session.host.log_text(mark)) == []
    assert "nothing to do" in str(session.daemon.cli("plan"))
    assert session.children() == before
    assert session.key_in_use == "previous"
    session.target_has(NEW)
    try_new_key_now(session.daemon)
    session.wait_for_key("current")


def test_taking_the_old_key_out_of_the_file_early_ends_its_sa(session: Session) -> None:
    stage(session)
    session.wait_until_fallen_back()
    before = session.children()
    session.daemon.put_key("a", plain_file(NEW, tunnel=True))
    wait_until(
        lambda: not session.children().keys() & before.keys(), "the SA of the old key ended",
        timeout=5, detail=session.daemon.tail,
    )  # fmt: skip


def test_no_key_of_a_rotation_is_ever_said_aloud(session: Session) -> None:
    stage(session)
    session.wait_until_fallen_back()
    said = [
        session.daemon.tail(10_000), (session.daemon.runtime / "status.json").read_text(), session.host.log_text(),
        *(str(session.daemon.cli(verb)) for verb in ("status", "check")),
        str(session.daemon.cli("explain", session.row_name)),
    ]  # fmt: skip
    for text in said:
        assert text.strip()
        for key in (OLD, NEW):
            assert key.decode() not in text
