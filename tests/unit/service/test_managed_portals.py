"""Portals that were managed stay closed, whatever the disk and the request folder do."""

from __future__ import annotations

from pathlib import Path

import pytest

from iscsi_ipsec.adapters.state_db import ManagedRecord
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.portal import Portal
from tests.support.fakes import READ_ONLY, FakeStore
from tests.support.service_host import Host
from tests.support.values import TARGET, group, per_id, policy, portal, record, session

KEY, SAN = per_id("10.0.0.1", "db1"), policy(TARGET)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.put(KEY, SAN, record())
    host.run()
    return host


def ask_for_release(host: Host, text: str, name: str = "request") -> Path:
    path = Path(host.paths.requests_dir) / name
    path.write_text(text)
    return path


def closed(host: Host, of: Portal | None = None) -> bool:
    return (of or portal()) in host.firewall.closed()


def test_a_portal_that_no_file_covers_any_more_stays_closed(host: Host) -> None:
    host.put(record())
    host.run()
    assert closed(host)


def test_a_store_that_cannot_be_read_at_the_start_is_replaced_by_what_the_guard_file_closes(
    host: Host,
) -> None:
    host.put(record())
    host.store.fail(READ_ONLY, "managed", "set_managed", "repair")
    host.start()
    host.run()
    assert closed(host)


def test_an_empty_store_learns_from_the_guard_file_and_keeps_it(host: Host) -> None:
    host.put(record())
    host.store = FakeStore(host.clock)
    host.start()
    host.run()
    assert closed(host)
    assert host.store.managed()


def test_a_store_that_began_empty_while_running_gets_everything_again(host: Host) -> None:
    host.store.portals.clear()
    host.store.renewals += 1
    host.run()
    assert host.store.managed()


def test_a_release_opens_the_portal_and_takes_the_request_away(host: Host) -> None:
    host.put(record())
    request = ask_for_release(host, "10.0.0.20:3260\n")
    host.run("files")
    assert not closed(host)
    assert not host.store.managed()
    assert not request.exists()


@pytest.mark.parametrize(
    "text", ["", "nonsense", "10.0.0.99:3260", "10.0.0.20:3261", "10.0.0.20:3260\n10.0.0.21:3260"]
)
def test_a_request_for_no_managed_portal_opens_nothing_and_is_taken_away(host: Host, text: str) -> None:
    host.put(record())
    request = ask_for_release(host, text)
    host.run("files")
    assert closed(host)
    assert not request.exists()


def test_a_request_that_is_not_text_opens_nothing(host: Host) -> None:
    host.put(record())
    path = Path(host.paths.requests_dir) / "binary"
    path.write_bytes(b"\xff\xfe10.0.0.20:3260")
    host.run("files")
    assert closed(host)


def test_a_release_that_cannot_be_stored_is_reported_and_granted_later(host: Host) -> None:
    host.put(record())
    host.store.fail(READ_ONLY, "drop_managed")
    request = ask_for_release(host, "10.0.0.20:3260")
    assert "state-unsaved" in host.codes(host.run("files"))
    assert closed(host), "a restart would close it again"
    assert request.exists()
    host.store.recover()
    host.run("files")
    assert not closed(host)


def test_a_released_portal_that_a_file_covers_is_managed_again_at_once(host: Host) -> None:
    ask_for_release(host, "10.0.0.20:3260")
    host.run("files")
    assert closed(host)
    assert host.store.managed()


def test_a_request_folder_that_vanished_stops_nothing(host: Host) -> None:
    Path(host.paths.requests_dir).rmdir()
    assert closed(host)
    host.run("files")
    assert closed(host)


# -- in each role, and from an earlier version


@pytest.mark.parametrize("first", [Role.TARGET, Role.INITIATOR])
def test_a_portal_that_was_managed_in_one_role_is_remembered_in_the_other_too(
    host: Host, first: Role
) -> None:
    second = Role.TARGET if first is Role.INITIATOR else Role.INITIATOR
    host.store = FakeStore(host.clock)
    host.store.fresh = False
    host.start()
    for role in (first, second):
        host.put(KEY, policy(TARGET, role=role))
        host.run()
    host.start()  # and after a restart, with all files lost
    host.put()
    closed_views = [view for view in host.run().snapshot.desired.portals if view.closed]
    assert {view.role for view in closed_views} == set(Role)
    assert closed(host)


def test_the_guard_file_reports_a_portal_in_both_roles(host: Host) -> None:
    host.put(KEY, SAN, policy(TARGET, name="us", role=Role.TARGET))
    host.run()
    host.put()
    host.store = FakeStore(host.clock)
    host.start()
    host.run()
    assert {role for _, role in host.store.portals} == set(Role)


def test_a_release_forgets_both_roles(host: Host) -> None:
    host.put(KEY, SAN, policy(TARGET, name="us", role=Role.TARGET))
    host.run()
    host.put(record())
    ask_for_release(host, "10.0.0.20:3260\n")
    host.run("files")
    assert not host.store.portals
    assert not closed(host)


def inherit(host: Host) -> None:
    """The memory of a version in which a key without portals managed every portal."""
    host.store = FakeStore(host.clock)
    host.store.fresh = False
    host.store.set_managed(
        [ManagedRecord(portal=portal(), role=Role.INITIATOR, since=1, why="psk.d/group.toml", inherited=True)]
    )


def test_an_upgrade_keeps_the_connection_that_only_an_unrestricted_key_made(host: Host) -> None:
    inherit(host)
    host.put(group(), record(), session())
    host.start()
    outcome = host.run()
    assert closed(host)
    assert [view.connection is not None for view in outcome.snapshot.desired.portals] == [True]
    assert "unrestricted-key" in host.codes(outcome)
    assert host.store.portals[portal(), Role.INITIATOR].inherited, "the next start must decide as this one"


def test_an_inherited_portal_that_a_file_covers_is_like_any_other_from_then_on(host: Host) -> None:
    inherit(host)
    host.put(group(), SAN, record())
    host.start()
    host.run()
    assert not host.store.portals[portal(), Role.INITIATOR].inherited
    host.put(group(), record())
    outcome = host.run()
    assert "orphaned" in host.codes(outcome), "the policy is gone, and no file says that the key is for it"
    assert closed(host)


def test_an_inherited_portal_stays_so_while_its_key_is_away(host: Host) -> None:
    inherit(host)
    host.put(record())
    host.start()
    assert "orphaned" in host.codes(host.run())
    assert closed(host)
    host.put(group(), record())
    assert "unrestricted-key" in host.codes(host.run())


def test_a_release_opens_an_inherited_portal_although_the_key_is_there(host: Host) -> None:
    inherit(host)
    host.put(group(), record())
    host.start()
    host.run()
    ask_for_release(host, "10.0.0.20:3260")
    host.run("files")
    assert not closed(host)
    assert not host.store.portals


def test_a_portal_stays_closed_while_its_address_is_this_hosts_own_and_when_it_goes(host: Host) -> None:
    own = host.routing.local
    host.routing.local = own | {portal().address}
    outcome = host.run("network")
    assert closed(host)
    assert outcome.snapshot.desired.connections == ()
    host.put(record())
    host.run("network")
    assert closed(host), "its files were lost meanwhile"
    host.routing.local = own
    host.run("network")
    assert closed(host)
