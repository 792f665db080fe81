"""One pass with everything that can fail failing: what is done, in which order, and what is left alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iscsi_ipsec.adapters.netlink import GuardMonitor
from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.policy import Role, Tuning
from iscsi_ipsec.core.ike.vici_messages import PREFIX
from iscsi_ipsec.service.charon_contents import BULK, UNSETTLED_AT_MOST
from iscsi_ipsec.service.pass_schedule import AFTER_CHANGE_RECHECK, CHARON_STARTING_RECHECK, RELOAD
from tests.support.fakes import AWAY, NO_BUFFERS, READ_ONLY
from tests.support.service_host import Host
from tests.support.values import TARGET, address, kernel_policy, per_id, policy, portal, record, session

KEY = per_id("10.0.0.1", "db1")
SAN = policy(TARGET)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.put(KEY, SAN, record(), session())
    return host


@pytest.fixture
def up(host: Host) -> Host:
    """Everything is loaded, and the SA is up."""
    host.run()
    host.establish()
    host.run()
    host.charon.log.clear()
    return host


# -- order


def test_the_guard_is_loaded_and_the_portal_remembered_before_charon_hears_of_it(host: Host) -> None:
    seen: list[tuple[bool, bool]] = []
    take = host.charon._take

    def watching(command: str, item: str, message: Mapping[str, Any]) -> None:
        closed = portal() in host.firewall.closed()
        seen.append((closed, (portal(), Role.INITIATOR) in host.store.portals))
        take(command, item, message)

    host.charon._take = watching  # type: ignore[method-assign]  # to look at the moment
    host.run()
    assert seen
    assert set(seen) == {(True, True)}


def test_secrets_are_loaded_before_the_connection_that_needs_them(host: Host) -> None:
    host.run()
    commands = host.charon.commands()
    assert commands.index("load-shared") < commands.index("load-conn")


def test_a_changed_guard_is_put_back_before_anything_is_read(up: Host) -> None:
    reads: list[bool] = []
    read = up.files.read

    def watching(*, all_files: bool = True) -> object:
        reads.append(bool(up.firewall.text))
        return read(all_files=all_files)

    up.files.read = watching  # type: ignore[method-assign,assignment]  # to look at the moment
    up.firewall.text = ""
    up.run(GuardMonitor.gone)
    assert reads == [True]


# -- an upgrade from a version whose connections had no reqid of their own


def elements(text: str, name: str = "sas4") -> str:
    return text.split(f"set {name} {{", 1)[1].split("}\n\t}", 1)[0]


def with_reqid(host: Host, reqid: int) -> None:
    """All SAs have this reqid."""
    host.charon.sas_now = tuple(
        replace(sa, children=tuple(replace(child, reqid=reqid) for child in sa.children))
        for sa in host.charon.sas_now
    )


def test_the_first_guard_admits_the_sas_that_are_up_and_the_file_does_not(up: Host) -> None:
    loaded: list[str] = []
    load = up.firewall.load

    def watching(text: str) -> None:
        loaded.append(text)
        load(text)

    up.firewall.load = watching  # type: ignore[method-assign]  # to look at the first text
    with_reqid(up, 7)
    up.start()
    up.run()
    assert "10.0.0.20 . 3260 . 7," in elements(loaded[0])
    assert ". 7," not in elements(Path(up.paths.guard_file).read_text())


def test_an_earlier_sa_is_admitted_until_its_successor_has_replaced_it(up: Host) -> None:
    own = up.charon.sas_now
    with_reqid(up, 7)
    up.start()
    assert up.run().recheck_in > 0
    up.charon.sas_now = own
    assert up.run().recheck_in == 0, "the guard lags by one pass"
    up.run()
    assert ". 7" not in elements(up.firewall.text)


def test_an_earlier_sa_stays_admitted_while_charon_cannot_be_asked(up: Host) -> None:
    with_reqid(up, 7)
    up.start()
    up.run()
    up.charon.fail(AWAY, "observe", "sas")
    up.run()
    assert ". 7," in elements(up.firewall.text)


def test_the_reqid_is_stored_before_the_guard_and_charon_get_it_and_is_kept(host: Host) -> None:
    host.store.fail(READ_ONLY, "set_reqids")
    assert "state-unsaved" in host.codes(host.run())
    assert not host.store.numbers
    host.store.recover()
    desired = host.run().snapshot.desired
    assert host.store.numbers == desired.reqids
    host.store.numbers = {name: reqid + 5 for name, reqid in host.store.numbers.items()}
    host.start()
    assert host.run().snapshot.desired.reqids == host.store.numbers


def test_a_reqid_that_somebody_else_uses_is_left_to_him(host: Host) -> None:
    (reqid,) = host.run().snapshot.desired.reqids.values()
    theirs = kernel_policy(address("10.0.0.1"), portal(), reqid, proto=0, dport=0, dport_mask=0)
    host.xfrm.policies_now = (theirs,)
    host.start()
    assert reqid not in host.run().snapshot.desired.reqids.values()


# -- calm


def test_nothing_is_written_when_nothing_changed(up: Host) -> None:
    loads = up.firewall.calls["load"]
    for _ in range(20):
        up.run()
    assert up.charon.log == []
    assert up.firewall.calls["load"] == loads
    assert up.store.calls["set_managed"] == 1


def test_a_change_is_compared_once_more_soon(host: Host) -> None:
    assert host.run().recheck_in == AFTER_CHANGE_RECHECK


# -- charon


def test_a_charon_that_is_away_leaves_the_guard_and_is_reported(host: Host) -> None:
    host.charon.fail(AWAY, "observe")
    outcome = host.run()
    assert "charon-unreachable" in host.codes(outcome)
    assert outcome.settled, "READY=1 does not wait for a charon that is down"
    assert portal() in host.firewall.closed()
    assert (portal(), Role.INITIATOR) in host.store.portals


def test_a_charon_that_is_back_gets_everything_in_the_next_pass(host: Host) -> None:
    host.charon.fail(AWAY, "observe")
    host.run()
    host.charon.recover()
    outcome = host.run("charon-up")
    assert len(host.charon.secrets) == len(host.charon.conns) == 1
    assert "charon-unreachable" not in host.codes(outcome)


@pytest.mark.parametrize("effective", [0, 1])
def test_a_charon_that_dies_within_a_load_is_compared_again_and_completed(host: Host, effective: int) -> None:
    host.charon.breaks_after = effective
    assert "charon-unreachable" in host.codes(host.run())
    host.charon.breaks_after = None
    host.run("charon-up")
    assert len(host.charon.secrets) == len(host.charon.conns) == 1


def test_a_wiped_charon_is_loaded_again_though_no_file_changed(up: Host) -> None:
    up.charon.secrets.clear()
    up.charon.conns.clear()
    up.run()
    assert up.charon.commands()[:2] == ["load-shared", "load-conn"]


def test_only_names_with_the_prefix_are_ever_unloaded(up: Host) -> None:
    up.charon.secrets.add("somebody-else")
    up.charon.conns["site-vpn"] = frozenset({"net"})
    up.put()
    up.run()
    assert up.charon.secrets == {"somebody-else"}
    assert set(up.charon.conns) == {"site-vpn"}
    assert all(item.startswith((PREFIX, "ike ")) for _, item in up.charon.log)


def test_a_unit_that_is_still_starting_is_waited_for_and_not_for_ever(host: Host) -> None:
    host.service_manager.units = {"strongswan.service": "activating"}
    outcome = host.run()
    assert (outcome.settled, outcome.recheck_in) == (False, CHARON_STARTING_RECHECK)
    assert host.charon.log == []
    host.clock.advance(UNSETTLED_AT_MOST + 1)
    host.run("due")
    assert "load-conn" in host.charon.commands()


def test_two_running_units_of_strongswan_are_reported_at_the_first_pass_and_after_a_change(
    host: Host,
) -> None:
    host.service_manager.units = {"strongswan.service": "active", "strongswan-starter.service": "active"}
    (problem,) = [p for p in host.run().problems if p.code == "two-charons"]
    assert "strongswan-starter.service and strongswan.service both run" in problem.message
    host.service_manager.units = {"strongswan.service": "active", "strongswan-starter.service": "inactive"}
    host.charon.conns.clear()
    assert "two-charons" not in host.codes(host.run("charon-up"))


def test_a_refused_secret_is_reported_with_its_key(host: Host) -> None:
    host.run()
    (secret,) = host.charon.secrets
    host.charon.secrets.clear()
    host.charon.refuses[secret] = "unsupported type"
    outcome = host.run()
    assert any(p.code == "charon-refused" and "unsupported type" in str(p) for p in outcome.problems)


def test_a_large_load_is_sent_without_listening_to_charons_log(host: Host) -> None:
    host.put(*(per_id(f"10.1.{n // 250}.{n % 250 + 1}") for n in range(BULK + 1)), SAN, record())
    host.run()
    assert host.charon.calls["without_log"] == 1


# -- what charon refuses


MISTYPED = Tuning(esp_proposals=("aes256gcm61-ecp384",))


def refusing(up: Host) -> Host:
    """A policy with a mistyped proposal, and a charon that takes none of that."""
    up.charon.refuses_proposal = "aes256gcm61-ecp384"
    up.put(KEY, policy(TARGET, tuning=MISTYPED), record(), session())
    return up


def test_a_refused_change_leaves_the_connection_that_charon_accepted_and_its_sa(up: Host) -> None:
    held, sas = dict(up.charon.conns), up.charon.sas_now
    outcome = refusing(up).run("files")
    assert "charon-refused" in up.codes(outcome)
    assert (up.charon.conns, up.charon.sas_now) == (held, sas)
    assert up.charon.ended() == []


def test_a_refused_change_is_tried_again_with_growing_pauses(up: Host) -> None:
    refusing(up).run("files")
    tries = []
    for second in range(600):
        up.charon.log.clear()
        up.run("sa")
        if up.charon.log:
            tries.append(second)
        up.clock.advance(1)
    assert tries == [10, 30, 70, 150, 310]
    assert up.charon.ended() == []


def test_a_refused_change_is_reported_as_long_as_it_is_refused(up: Host) -> None:
    refusing(up).run("files")
    for _ in range(5):
        outcome = up.run()
        assert "charon-refused" in up.codes(outcome)
        (name,) = up.charon.conns
        assert (outcome.observed.causes or {})[name].code == "charon-refused"
    up.put(KEY, SAN, record(), session())
    assert "charon-refused" not in up.codes(up.run("files"))


def test_a_refused_change_keeps_the_accepted_secret_of_another_identity(up: Host) -> None:
    up.charon.refuses_proposal = "aes256gcm61-ecp384"
    secrets = set(up.charon.secrets)
    other = IkeId.parse(IdType.ID_FQDN, "san.example.com")
    up.put(KEY, replace(policy(TARGET, tuning=MISTYPED), target_id=other), record(), session())
    up.run("files")
    assert secrets < up.charon.secrets
    up.put(KEY, replace(SAN, target_id=other), record(), session())
    up.run("files")
    assert not secrets & up.charon.secrets


def test_a_removed_key_does_not_stay_for_the_sake_of_a_refused_change(up: Host) -> None:
    up.charon.refuses_proposal = "aes256gcm61-ecp384"
    secrets = set(up.charon.secrets)
    up.put(per_id("10.0.0.1", "new"), policy(TARGET, tuning=MISTYPED), record(), session())
    up.run("files")
    assert not secrets & up.charon.secrets
    assert up.charon.ended(), "what the removed key authenticated ends"


def test_a_wiped_charon_gets_the_accepted_connection_while_it_refuses_the_new_one(up: Host) -> None:
    held = dict(up.charon.conns)
    refusing(up).run("files")
    up.charon.conns.clear()
    up.run("wiped")
    assert up.charon.conns == held
    assert up.charon.ended() == []


def test_a_restarted_daemon_leaves_a_connection_alone_whose_new_version_is_refused(up: Host) -> None:
    held, sas = dict(up.charon.conns), up.charon.sas_now
    refusing(up).start()
    for _ in range(5):
        up.run()
    assert (up.charon.conns, up.charon.sas_now) == (held, sas)


def test_a_charon_that_is_restarted_is_asked_at_once_to_take_what_it_refused(up: Host) -> None:
    refusing(up).run("files")
    up.charon.refuses_proposal = ""
    outcome = up.run("charon-up")
    assert "charon-refused" not in up.codes(outcome)


# -- the kernel, nft, the store


def test_an_nft_that_fails_is_reported_and_tried_again(host: Host) -> None:
    host.firewall.fail(NO_BUFFERS, "load")
    outcome = host.run()
    assert "guard-missing" in host.codes(outcome)
    assert outcome.guard is None
    host.firewall.recover()
    assert host.run("due").guard is not None


def test_a_read_only_store_stops_neither_guard_nor_keys(host: Host) -> None:
    host.store.fail(READ_ONLY, "repair", "set_managed", "put_last_good", "set_names")
    outcome = host.run()
    assert "state-unsaved" in host.codes(outcome)
    assert portal() in host.firewall.closed()
    assert len(host.charon.conns) == 1


def test_a_portal_that_could_not_be_stored_is_stored_when_the_disk_is_back(host: Host) -> None:
    host.store.fail(READ_ONLY, "repair", "set_managed")
    host.run()
    host.store.recover()
    host.run()
    assert (portal(), Role.INITIATOR) in host.store.portals


def test_a_portal_that_could_not_be_stored_stays_closed_when_its_files_vanish(host: Host) -> None:
    host.store.fail(READ_ONLY, "repair", "set_managed")
    host.run()
    host.put(record())
    host.run()
    assert portal() in host.firewall.closed()


def test_a_digest_key_that_cannot_be_read_any_more_does_not_stop_a_pass(up: Host) -> None:
    up.store.fail(READ_ONLY, "digest_key")
    up.put(KEY, per_id("10.0.0.9", "db9"), SAN, record(), session())
    up.run("files")
    assert len(up.charon.secrets) == 2


def test_a_reload_reads_every_file_again(up: Host) -> None:
    up.run(RELOAD)
    assert up.files.calls["forget"] == 1


# -- a restart of the daemon


def test_a_restarted_daemon_loads_nothing_and_ends_nothing(up: Host) -> None:
    up.start()
    up.run()
    up.run()
    assert up.charon.log == []


def test_a_restarted_daemon_keeps_a_portal_closed_whose_files_were_lost_meanwhile(up: Host) -> None:
    up.put(record())
    up.start()
    outcome = up.run()
    assert portal() in up.firewall.closed()
    (view,) = outcome.snapshot.desired.portals
    assert (view.managed, view.closed, view.connection) == (True, True, None)


# -- algorithms, and failures that no pattern knows


def test_what_charon_lacks_is_not_offered_in_the_same_pass(host: Host) -> None:
    host.charon.algorithms = frozenset(
        {"AES_CBC", "AES_GCM_16", "HMAC_SHA2_256_128", "PRF_HMAC_SHA2_256", "ECP_256"}
    )
    host.run()
    (message,) = host.charon.messages.values()
    assert message["proposals"] == ["aes256gcm16-aes128gcm16-prfsha256-ecp256", "aes256-aes128-sha256-ecp256"]


def test_attempts_that_come_to_nothing_without_a_known_cause_show_charons_last_line(host: Host) -> None:
    host.run()
    ((conn, _),) = host.charon.conns.items()
    host.failure_log.on_event(
        "log", {"msg": "no one has foreseen this", "ikesa-name": conn, "ikesa-uniqueid": "1"}
    )
    host.clock.advance(5)
    causes = host.run("due").observed.causes or {}
    assert causes[conn].code == "negotiation-failed"
    assert "no one has foreseen this" in causes[conn].message
    host.establish()
    assert not host.run("sa").observed.causes
