"""Sessions that are older than their portal's protection are reported for as long as their connection lasts."""

from __future__ import annotations

import ipaddress

from iscsi_ipsec.base.iscsi import IscsiSession
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Severity
from iscsi_ipsec.core.report.preexisting_sessions import Preexisting, next_preexisting, preexisting_problems

PORTAL = Portal(ipaddress.ip_address("fd00::20"), 3260)


def session(sid: int = 1, port: int = 40000) -> IscsiSession:
    return IscsiSession(
        sid=sid, target="iqn.x:a", state="LOGGED_IN", iface="default", local_address=None, local_port=port,
        remote=PORTAL, persistent=None,
    )  # fmt: skip


def codes(earlier: Preexisting, *sessions: IscsiSession) -> list[str]:
    return [problem.code for problem in preexisting_problems(earlier, sessions)]


def test_preexisting_session_is_reported_when_its_portal_is_closed() -> None:
    earlier = next_preexisting(Preexisting(), frozenset({str(PORTAL)}), [session()])

    (reported,) = preexisting_problems(earlier, [session()])
    assert (reported.code, reported.portal, reported.severity) == (
        "earlier-session",
        "[fd00::20]:3260",
        Severity.WARNING,
    )
    assert reported.hint.startswith("log out and in again")


def test_a_session_to_a_portal_that_was_closed_before_is_not() -> None:
    closed = next_preexisting(Preexisting(), frozenset({str(PORTAL)}), [])

    assert codes(next_preexisting(closed, frozenset({str(PORTAL)}), [session()]), session()) == []


def test_a_session_to_an_open_portal_is_not() -> None:
    assert codes(next_preexisting(Preexisting(), frozenset(), [session()]), session()) == []


def test_it_is_reported_again_in_every_pass_and_with_another_session_beside_it() -> None:
    earlier = next_preexisting(Preexisting(), frozenset({str(PORTAL)}), [session()])
    again = next_preexisting(earlier, frozenset({str(PORTAL)}), [session(), session(2, 40001)])

    assert codes(again, session(), session(2, 40001)) == ["earlier-session"]


def test_it_ends_when_the_session_connects_anew() -> None:
    earlier = next_preexisting(Preexisting(), frozenset({str(PORTAL)}), [session()])
    down = next_preexisting(earlier, frozenset({str(PORTAL)}), [session(port=0)])
    up = next_preexisting(down, frozenset({str(PORTAL)}), [session(port=40001)])

    assert codes(down, session(port=0)) == codes(up, session(port=40001)) == []


def test_a_session_that_is_down_when_its_portal_is_closed_comes_back_inside_esp() -> None:
    down = next_preexisting(Preexisting(), frozenset({str(PORTAL)}), [session(port=0)])
    up = next_preexisting(down, frozenset({str(PORTAL)}), [session(port=40001)])

    assert codes(down, session(port=0)) == codes(up, session(port=40001)) == []


def test_a_portal_that_was_opened_and_closed_again_begins_anew() -> None:
    closed = next_preexisting(Preexisting(), frozenset({str(PORTAL)}), [])
    opened = next_preexisting(closed, frozenset(), [session()])

    assert codes(next_preexisting(opened, frozenset({str(PORTAL)}), [session()]), session()) == [
        "earlier-session"
    ]
