"""The inputs of a pass: nothing is asked twice, and a failed question is never taken for an answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from iscsi_ipsec.adapters.netlink import RouteMonitor
from iscsi_ipsec.adapters.openiscsi import Records
from iscsi_ipsec.adapters.resolver import ResolveFailure
from iscsi_ipsec.base.policy import EspMode
from iscsi_ipsec.base.problem import Problem
from tests.support.fakes import READ_ONLY
from tests.support.service_host import Host
from tests.support.values import TARGET, address, choice, per_id, policy, portal, record, session

KEY = per_id("10.0.0.1", "db1")
NAMED = policy("san.example.com", name="named")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.put(KEY, policy(TARGET), record())
    return host


def connected(host: Host) -> set[str]:
    return set(host.charon.conns)


# -- names


def test_a_name_that_does_not_resolve_is_reported_with_the_file_that_names_it(host: Host) -> None:
    host.put(KEY, NAMED)
    host.names.answers["san.example.com"] = ResolveFailure("san.example.com", "timed out")
    outcome = host.run()
    (problem,) = [p for p in outcome.problems if p.code == "name-not-resolved"]
    assert problem.file == NAMED.path
    assert "timed out" in problem.message
    assert outcome.recheck_in <= 6.0


def test_a_name_that_fails_later_keeps_its_addresses_and_is_reported(host: Host) -> None:
    host.put(KEY, NAMED)
    host.names.answers["san.example.com"] = (address(TARGET),)
    host.run()
    host.names.failed = (ResolveFailure("san.example.com", "server failure"),)
    outcome = host.run()
    assert "name-stale" in host.codes(outcome)
    assert connected(host)
    assert portal() in host.firewall.closed()


def test_answers_are_stored_for_a_start_without_dns(host: Host) -> None:
    host.put(KEY, NAMED)
    host.names.answers["san.example.com"] = (address(TARGET),)
    host.run()
    assert host.store.names() == {"san.example.com": (address(TARGET),)}


def test_answers_that_did_not_change_are_not_written_again(host: Host) -> None:
    host.put(KEY, NAMED)
    host.names.answers["san.example.com"] = (address(TARGET),)
    for _ in range(5):
        host.run()
    assert host.store.calls["set_names"] == 1


def test_answers_that_could_not_be_stored_are_stored_when_that_works_again(host: Host) -> None:
    host.put(KEY, NAMED)
    host.names.answers["san.example.com"] = (address(TARGET),)
    host.store.fail(READ_ONLY, "set_names")
    assert "state-unsaved" in host.codes(host.run())
    host.store.recover()
    host.run()
    assert host.store.names()


@pytest.mark.parametrize("restarted", [False, True])
def test_an_answer_that_changes_leaves_key_and_policy_to_the_address_that_a_session_uses(
    host: Host, restarted: bool
) -> None:
    named = per_id("db1.example.com", "db1", portals=["san.example.com"])
    host.put(named, NAMED, session())
    host.names.answers["san.example.com"] = (address(TARGET),)
    host.run()
    host.establish()
    before = connected(host)
    host.names.answers["san.example.com"] = (address("10.0.0.21"),)
    if restarted:
        host.start()
    outcome = host.run("names")
    assert before < connected(host), "the new address has a connection too"
    assert "orphaned" not in host.codes(outcome)
    assert host.charon.ended() == []
    host.put(named, NAMED)
    assert "orphaned" in host.codes(host.run("sa")), "nothing uses it any more"
    assert connected(host).isdisjoint(before)


# -- records


def test_problems_of_records_are_reported_and_the_others_count(host: Host) -> None:
    bad = Problem(code="bad-record", message="no address", file="/etc/iscsi/nodes/x")
    host.open_iscsi.found = Records(records=(record(),), problems=(bad,))
    outcome = host.run()
    assert "bad-record" in host.codes(outcome)
    assert connected(host)


def test_records_are_read_again_only_when_something_called_for_it(host: Host) -> None:
    host.run()
    for _ in range(3):
        host.run("sa")
    assert host.open_iscsi.calls["records"] == 1
    host.run("files")
    assert host.open_iscsi.calls["records"] == 2


def test_a_record_that_was_being_written_is_read_again_in_the_next_pass(host: Host) -> None:
    host.open_iscsi.found = Records(records=(record(),), torn=("/etc/iscsi/nodes/x",))
    host.run()
    host.run("sa")
    assert host.open_iscsi.calls["records"] == 2


# -- decisions


def test_nothing_is_decided_again_when_nothing_differs(host: Host) -> None:
    host.run()
    second, third = host.run(), host.run()
    assert third.snapshot.desired is second.snapshot.desired
    assert third.snapshot.connections is second.snapshot.connections


def test_another_session_alone_changes_no_connection(host: Host) -> None:
    first = host.run()
    host.open_iscsi.sessions_now = (session(),)
    assert host.run("sa").snapshot.connections == first.snapshot.connections


def test_another_source_address_gives_another_connection(host: Host) -> None:
    host.put(per_id("db1.example.com", "db1"), policy(TARGET), record())
    (before,) = host.run().snapshot.desired.connections
    host.routing.sources[address(TARGET), ""] = address("10.0.0.5")
    (after,) = host.run(RouteMonitor.reason).snapshot.desired.connections
    assert (before.local_address, after.local_address) == (address("10.0.0.1"), address("10.0.0.5"))


def test_user_space_esp_is_seen_by_charons_plugins_and_decided_in_the_same_pass(host: Host) -> None:
    host.put(KEY, policy(TARGET, flags=choice(esp=EspMode.TUNNEL)), record())
    host.charon.plugins = frozenset({"kernel-libipsec"})
    (connection,) = host.run().snapshot.desired.connections
    assert connection.user_space_esp


def test_the_settings_of_a_file_reach_the_decision(host: Host) -> None:
    settings = replace(host.files.says.settings, require_ipsec=True)
    host.files.put(KEY, policy(TARGET), settings=settings)
    outcome = host.run()
    assert outcome.snapshot.desired.networks, "unknown portals are closed"
