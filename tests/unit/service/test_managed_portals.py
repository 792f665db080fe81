"""Portals that were managed stay closed, whatever the disk and the request folder do."""

from __future__ import annotations

from pathlib import Path

import pytest

from iscsi_ipsec.base.portal import Portal
from tests.support.fakes import READ_ONLY, FakeStore
from tests.support.service_host import Host
from tests.support.values import TARGET, per_id, policy, portal, record

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
    host.store.fail(READ_ONLY, "managed", "set_managed", "mend")
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
