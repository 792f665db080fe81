"""The memory of earlier sessions outlives the daemon, but not the boot."""

from __future__ import annotations

import ipaddress
import stat
from pathlib import Path

import pytest

from iscsi_ipsec.base.iscsi import IscsiSession
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.service.preexisting_sessions import PreexistingSessions

PORTAL = Portal(ipaddress.ip_address("10.0.0.20"), 3260)


def session(port: int) -> IscsiSession:
    return IscsiSession(
        sid=port, target="iqn.x:a", state="LOGGED_IN", iface="default", local_address=None, local_port=port,
        remote=PORTAL, persistent=None,
    )  # fmt: skip


def reported(path: Path, *sessions: IscsiSession) -> list[str]:
    """The problems that a daemon reports about the sessions right after its start."""
    return [p.message.split()[2] for p in PreexistingSessions(str(path)).follow((PORTAL,), sessions)]


def test_first_daemon_of_a_boot_reports_every_session(tmp_path: Path) -> None:
    assert reported(tmp_path / "earlier.json", session(1), session(2)) == ["1", "2"]


def test_next_daemon_of_a_boot_reports_the_same_sessions_only(tmp_path: Path) -> None:
    reported(tmp_path / "earlier.json", session(1))

    assert reported(tmp_path / "earlier.json", session(1), session(2)) == ["1"]
    assert stat.S_IMODE((tmp_path / "earlier.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", '{"closed": 1, "connections": []}', '{"closed": []}'])
def test_a_file_that_is_not_ours_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "earlier.json").write_text(text)

    assert reported(tmp_path / "earlier.json", session(1)) == ["1"]


def test_unwritable_folder_is_reported_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    following = PreexistingSessions(str(tmp_path / "gone" / "earlier.json"))

    first = following.follow((PORTAL,), (session(1),))
    again = following.follow((PORTAL,), (session(1),))

    assert [p.code for p in first] == [p.code for p in again] == ["earlier-session", "state-unsaved"]
