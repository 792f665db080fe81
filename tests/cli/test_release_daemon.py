"""``release`` with the real daemon: what it forgets is open in the kernel's guard, and what it must not open stays closed."""

from __future__ import annotations

import pytest

from tests.support.admin import (
    PORTAL,
    ROW,
    group_file,
    knock,
    known_to_open_iscsi,
    our_connections,
    portal_file,
    wait_for_connection,
)
from tests.support.ike import KEY_GROUP
from tests.support.netlab import Charon, Daemon, Lab, wait_until

OTHER = "10.10.0.77"


def orphaned(daemon: Daemon, portal: str) -> None:
    wait_until(
        lambda: ((daemon.row(portal) or {}).get("problem") or {}).get("code") == "orphaned",
        f"no file covers {portal} any more",
        detail=daemon.tail,
    )


def test_a_portal_that_no_file_covers_is_closed_until_it_is_released(
    lab: Lab, charon: Charon, managed: Daemon
) -> None:
    known_to_open_iscsi(managed)
    refused = managed.cli("release", PORTAL)
    assert (refused.rc, "still covered by" in refused.err) == (1, True)
    (managed.portal / "san.toml").unlink()
    orphaned(managed, ROW)
    assert knock(lab) == 0
    dry = managed.cli("release", PORTAL, "--dry-run")
    assert dry.rc == 0
    assert knock(lab) == 0
    managed.cli("release", PORTAL, check=True)
    assert knock(lab)
    assert not our_connections(charon)
    managed.kill()
    managed.start()
    assert knock(lab), "it is forgotten, after a restart too"


def test_under_require_ipsec_a_released_portal_is_forgotten_and_stays_closed(
    lab: Lab, managed: Daemon
) -> None:
    known_to_open_iscsi(managed)
    managed.put_settings("require_ipsec = true\n")
    (managed.portal / "san.toml").unlink()
    (managed.psk / "a.toml").unlink()
    orphaned(managed, ROW)
    answer = managed.cli("release", PORTAL)
    assert answer.rc == 1
    assert "is forgotten, but stays closed" in answer.err
    assert "require_ipsec" in answer.err
    assert knock(lab) == 0
    managed.put_settings("require_ipsec = false\n")
    wait_until(lambda: knock(lab), "nothing closes it any more", detail=managed.tail)


def test_a_portal_that_require_ipsec_manages_by_a_key_is_not_released_before_that_is_unset(
    lab: Lab, managed: Daemon
) -> None:
    known_to_open_iscsi(managed)
    managed.put_settings("require_ipsec = true\n")
    (managed.portal / "san.toml").unlink()
    wait_until(
        lambda: managed.row(ROW) and not managed.row(ROW)["covered"], "no file covers it", detail=managed.tail
    )
    answer = managed.cli("release", PORTAL)
    assert answer.rc == 1
    assert "is managed since require_ipsec is set and the key a applies" in answer.err
    assert knock(lab) == 0
    managed.put_settings("require_ipsec = false\n")
    orphaned(managed, ROW)
    assert knock(lab) == 0
    managed.cli("release", PORTAL, check=True)
    assert knock(lab)


@pytest.mark.parametrize("other", [OTHER, "fd00::77"])
def test_a_portal_that_left_its_policy_is_released_though_a_key_is_for_any_portal(
    lab: Lab, charon: Charon, daemon: Daemon, other: str
) -> None:
    shown = f"[{other}]:3260" if ":" in other else f"{other}:3260"
    daemon.put_key("group", group_file(KEY_GROUP))
    daemon.put_portal("san", portal_file(f'{PORTAL}", "{other}'))
    daemon.start()
    wait_for_connection(charon, daemon)
    wait_until(lambda: daemon.row(shown), "both are managed", detail=daemon.tail)
    daemon.put_portal("san", portal_file())
    orphaned(daemon, shown)
    daemon.cli("release", shown, check=True)
    daemon.settle()
    assert not (daemon.row(shown) or {}).get("closed")
    assert daemon.row(ROW)["closed"], "the other one is as it was"
    assert knock(lab) == 0
    assert daemon.cli("wait", "--timeout", "5").rc == 0
