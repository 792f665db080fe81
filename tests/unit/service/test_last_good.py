"""An input that cannot be asked leaves its last good answer in force: no SA ends, and the other inputs are still read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from iscsi_ipsec.adapters.netlink import PolicyMonitor, RouteMonitor
from iscsi_ipsec.adapters.resolver import ResolveFailure
from iscsi_ipsec.base.keys import PerIdKey
from iscsi_ipsec.base.policy import Tuning
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.service.credential_decryption import PENDING
from iscsi_ipsec.service.pass_schedule import RELOAD
from tests.support.fakes import AWAY, NO_BUFFERS, READ_ONLY
from tests.support.service_host import Host
from tests.support.values import (
    CLEAR,
    TARGET,
    address,
    group,
    per_id,
    policy,
    record,
    serves,
    session,
)

MANY = [f"10.0.0.{n}" for n in range(20, 28)]
KEY = per_id("db1")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Eight portals with a session and an SA each."""
    host = Host(tmp_path)
    host.put(KEY, *(policy(p) for p in MANY), *(record(p) for p in MANY), *(session(p) for p in MANY))
    return host


@pytest.fixture
def up(host: Host) -> Host:
    host.run()
    host.establish()
    host.run()
    assert len(host.charon.sas_now) == len(MANY)
    host.charon.log.clear()
    return host


def everything_stays(up: Host, *reasons: str, passes: int = 5) -> None:
    """Whatever wakes the loop, charon keeps what it holds and every SA lives."""
    before = (set(up.charon.secrets), dict(up.charon.conns), up.charon.sas_now)
    for _ in range(passes):
        up.run(*reasons)
        up.clock.advance(30)
    assert before[0] <= up.charon.secrets
    assert (up.charon.conns, up.charon.sas_now) == before[1:]
    assert {command for command, _ in up.charon.log} <= {"load-shared"}, "a key may wait for its use"


# -- routes


@pytest.mark.parametrize("failing", [address(p) for p in MANY])
def test_one_route_that_cannot_be_asked_keeps_no_other_portal_from_being_ready(
    host: Host, failing: object
) -> None:
    host.routing.unanswered = {address(str(failing)): NO_BUFFERS}
    outcome = host.run()
    assert len(host.charon.conns) == len(MANY) - 1
    assert "kernel-unavailable" in host.codes(outcome)


def test_routes_that_cannot_be_asked_after_a_change_leave_all_as_it_is(up: Host) -> None:
    up.routing.fail(NO_BUFFERS, "source_for")
    everything_stays(up, RouteMonitor.reason)


def test_routes_that_cannot_be_asked_are_asked_again_in_the_next_pass(up: Host) -> None:
    up.routing.fail(NO_BUFFERS, "source_for")
    up.run(RouteMonitor.reason)
    up.routing.recover()
    up.open_iscsi.sessions_now = ()
    up.routing.sources = {(address(MANY[0]), ""): address("10.0.0.2")}
    up.run("sa")
    assert up.charon.messages[f"iscsi-ipsec-{MANY[0]}-3260"]["local_addrs"] == ["10.0.0.2"]


@pytest.mark.parametrize("reason", [RouteMonitor.reason, "files", "sa"])
def test_a_restarted_daemon_without_an_answer_from_routing_ends_nothing(up: Host, reason: str) -> None:
    up.start()
    up.routing.fail(NO_BUFFERS, "source_for")
    up.run()
    everything_stays(up, reason)


def test_a_route_that_goes_leaves_the_sa_that_a_session_uses_and_its_connection(up: Host) -> None:
    up.routing.sources = {(address(MANY[0]), ""): None}
    everything_stays(up, RouteMonitor.reason)
    outcome = up.run()
    assert {"no-route", "held-back"} <= up.codes(outcome)
    up.routing.sources.clear()
    assert not {"no-route", "held-back"} & up.codes(up.run(RouteMonitor.reason))


def test_a_route_that_goes_takes_the_connection_that_no_session_uses(up: Host) -> None:
    up.open_iscsi.sessions_now = ()
    up.routing.sources = {(address(MANY[0]), ""): None}
    up.run(RouteMonitor.reason)
    assert len(up.charon.conns) == len(MANY) - 1


# -- source addresses


def test_a_preferred_address_that_rotates_leaves_the_sa_of_a_session_on_the_old_one(tmp_path: Path) -> None:
    host, far = Host(tmp_path), "fd00::20"
    old, new = address("fd00::1"), address("fd00::abcd")
    on_old = replace(session(f"[{far}]:3260"), local_address=old)
    host.put(group(), policy(f"[{far}]:3260"), on_old)
    host.run()
    host.establish()
    host.charon.log.clear()
    host.routing.local |= {new}
    host.routing.sources = {(address(far), ""): new}
    everything_stays(host, RouteMonitor.reason)
    host.routing.local -= {old}
    host.run(RouteMonitor.reason)
    assert host.charon.messages[f"iscsi-ipsec-{far}-3260"]["local_addrs"] == [str(new)]


def test_a_preferred_address_that_rotates_is_followed_where_no_session_is_on_the_old_one(
    tmp_path: Path,
) -> None:
    host, far = Host(tmp_path), "fd00::20"
    host.put(group(), policy(f"[{far}]:3260"))
    host.run()
    host.routing.local |= {address("fd00::abcd")}
    host.routing.sources = {(address(far), ""): address("fd00::abcd")}
    host.run(RouteMonitor.reason)
    assert host.charon.messages[f"iscsi-ipsec-{far}-3260"]["local_addrs"] == ["fd00::abcd"]


# -- this host's addresses


@pytest.fixture
def target(tmp_path: Path) -> Host:
    """A host that serves a network's portal to a peer."""
    host = Host(tmp_path)
    host.put(per_id("db1", portals=["10.0.0.0/24"]), serves("10.0.0.0/24"))
    host.run()
    host.establish()
    host.charon.log.clear()
    assert host.charon.conns
    return host


@pytest.mark.parametrize("restarted", [False, True])
def test_addresses_that_cannot_be_asked_leave_all_served_connections(target: Host, restarted: bool) -> None:
    target.routing.fail(NO_BUFFERS, "local_addresses")
    if restarted:
        target.start()
        target.run()
    everything_stays(target, RouteMonitor.reason)


def test_addresses_that_could_not_be_asked_are_asked_in_the_next_pass(target: Host) -> None:
    target.routing.fail(NO_BUFFERS, "local_addresses")
    target.run(RouteMonitor.reason)
    target.routing.recover()
    asked = target.routing.calls["local_addresses"]
    target.run("sa")
    assert target.routing.calls["local_addresses"] == asked + 1


@pytest.mark.parametrize("restarted", [False, True])
def test_interfaces_that_cannot_be_asked_leave_a_binding_as_it_is(tmp_path: Path, restarted: bool) -> None:
    host = Host(tmp_path)
    host.routing.interfaces = {"52:54:00:10:10:01": "san0"}
    host.routing.sources = {(address(TARGET), "san0"): address("10.0.0.9")}
    host.routing.local |= {address("10.0.0.9")}
    bound = replace(record(), hwaddress="52:54:00:10:10:01")
    host.put(KEY, policy(), bound, session())
    host.run()
    host.establish()
    assert set(host.charon.conns) == {f"iscsi-ipsec-{TARGET}-3260-san0", f"iscsi-ipsec-{TARGET}-3260"}
    host.charon.log.clear()
    host.routing.fail(NO_BUFFERS, "iface_by_hwaddress")
    if restarted:
        host.start()
        host.run()
    everything_stays(host, RouteMonitor.reason)


# -- the kernel's policies and states


@pytest.mark.parametrize("method", ["policies", "states"])
def test_a_dump_that_fails_ends_no_sa_and_is_reported(up: Host, method: str) -> None:
    up.xfrm.fail(NO_BUFFERS, method)
    everything_stays(up, PolicyMonitor.reason)
    assert "kernel-unavailable" in up.codes(up.run(PolicyMonitor.reason))


def test_states_that_fail_at_the_second_look_end_no_sa(up: Host) -> None:
    states, calls = up.xfrm.states, []

    def failing() -> object:
        calls.append(1)
        if len(calls) > 1:
            raise NO_BUFFERS
        return ()

    up.xfrm.states = failing  # type: ignore[method-assign,assignment]  # fails between two looks
    up.run(PolicyMonitor.reason)
    assert up.charon.ended() == []
    up.xfrm.states = states  # type: ignore[method-assign]


# -- names


def test_a_name_that_fails_or_answers_otherwise_leaves_the_sa_that_a_session_uses(tmp_path: Path) -> None:
    host, name = Host(tmp_path), "san.example.com"
    host.names.answers = {name: (address(TARGET),)}
    host.put(KEY, policy(name), session(TARGET))
    host.run()
    host.establish()
    host.charon.log.clear()
    held = dict(host.charon.conns)
    for answer in ((address("10.0.0.21"),), ResolveFailure(name, "SERVFAIL"), None):
        host.names.answers = {name: answer}
        for _ in range(3):
            host.run()
        assert held.items() <= host.charon.conns.items()
        assert host.charon.ended() == []


# -- charon, records, sessions, the store


def test_a_charon_that_does_not_answer_ends_nothing(up: Host) -> None:
    for method in ("observe", "sas", "apply"):
        up.charon.fail(AWAY, method)
        everything_stays(up, "charon-down")
        up.charon.recover()


def test_records_that_vanish_leave_the_sas_that_sessions_use(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.put(group(portals=["10.0.0.0/24"]), *(record(p) for p in MANY), *(session(p) for p in MANY))
    host.run()
    host.establish()
    host.charon.log.clear()
    host.open_iscsi.found = type(host.open_iscsi.found)()
    everything_stays(host, "files")


def test_a_store_that_fails_from_the_start_ends_nothing(up: Host) -> None:
    up.store.fail(
        READ_ONLY, "repair", "managed", "set_managed", "names", "set_names", "put_last_good", "drop_last_good"
    )
    up.start()
    everything_stays(up, "files")
    assert "state-unsaved" in up.codes(up.run())


# -- what is held back


@pytest.mark.parametrize("count", [1, 2, len(MANY)])
def test_sas_in_use_that_nothing_but_the_environment_ends_are_held_back_and_released_by_a_reload(
    up: Host, count: int
) -> None:
    up.routing.sources = {(address(p), ""): None for p in MANY[:count]}
    everything_stays(up, RouteMonitor.reason)
    up.run(RELOAD)
    assert len(up.charon.ended()) == count
    assert len(up.charon.conns) == len(MANY) - count


def passing(host: Host) -> set[str]:
    """The portals with an SA that the guard lets through."""
    return {
        portal
        for portal in MANY
        for sa in host.charon.sas_now
        if sa.conn == f"iscsi-ipsec-{portal}-3260" and f"{portal} . 3260 . {sa.children[0].reqid}" in host.firewall.text
    }  # fmt: skip


def test_the_guard_lets_through_the_sas_that_are_held_back(up: Host) -> None:
    assert passing(up) == set(MANY)
    up.routing.sources = {(address(p), ""): None for p in MANY}
    assert up.run(RouteMonitor.reason).recheck_in == 0, "the guard follows at once"
    up.run()
    assert passing(up) == set(MANY)
    up.put(*(policy(p) for p in MANY), *(record(p) for p in MANY), *(session(p) for p in MANY))
    up.run("files")
    up.run()
    assert " . 3260 . " not in up.firewall.text, "without its key no SA is held back"


def contradicting(up: Host, key: PerIdKey = KEY) -> None:
    """The policies ask for PFS, and now for a proposal without a group."""
    tuning = Tuning(esp_proposals=("aes256gcm16",))
    wrong = (replace(policy(p), tuning=tuning) for p in MANY)
    up.put(key, *wrong, *(record(p) for p in MANY), *(session(p) for p in MANY))


def test_settings_that_contradict_each_other_leave_the_sas_that_sessions_use(up: Host) -> None:
    contradicting(up)
    everything_stays(up, "files")
    assert {"pfs-without-group", "held-back"} <= up.codes(up.run())
    assert passing(up) == set(MANY)
    up.put(KEY, *(policy(p) for p in MANY), *(record(p) for p in MANY), *(session(p) for p in MANY))
    assert "held-back" not in up.codes(up.run("files"))
    assert up.charon.ended() == []


def test_served_settings_that_contradict_each_other_leave_the_sas_of_initiators(target: Host) -> None:
    target.charon.sas_now = tuple(replace(sa, initiator=False) for sa in target.charon.sas_now)
    reqids = [child.reqid for sa in target.charon.sas_now for child in sa.children]
    wrong = replace(serves("10.0.0.0/24"), tuning=Tuning(esp_proposals=("aes256gcm16",)))
    target.put(per_id("db1", portals=["10.0.0.0/24"]), wrong)
    everything_stays(target, "files")
    assert {"pfs-without-group", "held-back"} <= target.codes(target.run())
    assert all(f" . {reqid}" in target.firewall.text for reqid in reqids)


def test_a_replaced_key_is_out_of_use_although_settings_contradict_each_other(up: Host) -> None:
    contradicting(up, per_id("db1", secret=b"a brand new key of db1"))
    up.run("files")
    assert len(up.charon.ended()) == len(MANY)


def test_a_removed_key_ends_its_sas_while_others_are_held_back(up: Host) -> None:
    up.routing.sources = {(address(MANY[0]), ""): None}
    up.run(RouteMonitor.reason)
    up.put(*(policy(p) for p in MANY), *(record(p) for p in MANY), *(session(p) for p in MANY))
    up.run("files")
    assert len(up.charon.ended()) == len(MANY)
    assert up.charon.secrets == set()


def test_a_policy_that_opens_a_portal_ends_its_sa(up: Host) -> None:
    clear = replace(policy(MANY[0]), choice=CLEAR)
    up.put(
        KEY, clear, *(policy(p) for p in MANY[1:]), *(record(p) for p in MANY), *(session(p) for p in MANY)
    )
    up.run("files")
    assert len(up.charon.ended()) == 1


def test_a_portal_that_no_file_covers_any_more_is_not_held_back(up: Host) -> None:
    restricted = per_id("db1", portals=MANY[1:])
    up.put(
        restricted, *(policy(p) for p in MANY[1:]), *(record(p) for p in MANY), *(session(p) for p in MANY)
    )
    up.run("files")
    assert len(up.charon.ended()) == 1


# -- keys that are still being decrypted


@dataclass(frozen=True)
class Row:
    path: str = "psk.d/db1.toml"
    kind: str = "psk"
    state: str = "refused"
    signature: str = ""


def decrypting(up: Host) -> None:
    """The key's file is there, but what it holds is not known yet."""
    up.put(*(policy(p) for p in MANY), *(record(p) for p in MANY), *(session(p) for p in MANY))
    pending = Problem(code=PENDING, message="is being decrypted", file=Row.path)
    up.files.says = replace(up.files.says, rows=(Row(),), problems=(pending,))


def test_a_restarted_daemon_stops_no_packet_while_a_key_is_being_decrypted(up: Host) -> None:
    decrypting(up)
    up.start()
    for _ in range(3):
        up.run()
        assert passing(up) == set(MANY)


def test_a_restarted_daemon_ends_nothing_while_a_key_is_being_decrypted(up: Host) -> None:
    decrypting(up)
    up.start()
    everything_stays(up, "files")
    up.put(KEY, *(policy(p) for p in MANY), *(record(p) for p in MANY), *(session(p) for p in MANY))
    up.files.says = replace(up.files.says, rows=(), problems=())
    everything_stays(up, "files")


def test_a_restarted_daemon_ends_what_rests_on_a_key_that_cannot_be_decrypted(up: Host) -> None:
    decrypting(up)
    up.start()
    up.run()
    failed = Problem(code="bad-credential", message="cannot be decrypted", file=Row.path)
    up.files.says = replace(up.files.says, problems=(failed,))
    up.run("files")
    assert len(up.charon.ended()) == len(MANY)
