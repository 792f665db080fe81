"""Proof from the kernel: everything in place proves, and each thing missing is named."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import Any

import pytest

from iscsi_ipsec.base.portal import Flow, Portal
from iscsi_ipsec.base.xfrm import Selector
from iscsi_ipsec.core.report.kernel_proof import (
    Expectation,
    Facts,
    offloaded_session,
    verify_flow,
    verify_portal,
)
from tests.support.values import address, portal, session
from tests.support.xfrm_values import policy, state

ME, SAN = Portal(address("10.0.0.1"), 40001), portal("10.0.0.20")
FLOW = Flow(local=ME, remote=SAN)


def narrowed(**more: Any) -> Selector:
    fields: dict[str, Any] = {"sport": 0, "sport_mask": 0, "dport": 0, "dport_mask": 0, **more}
    return Selector(src=ipaddress.ip_network("10.0.0.1"), dst=ipaddress.ip_network("10.0.0.20"), **fields)


def facts(**more: Any) -> Facts:
    given: dict[str, Any] = {
        "policies": (policy("out"), policy("in")),
        "states": (state("out"), state("in")),
        "guarded": frozenset({SAN}),
        "reqids": {SAN: frozenset({7})},
    }
    return Facts(**{**given, **more})


EXPECTED = Expectation(
    portal=SAN, managed=True, closed=True, mode="transport", user_space_esp=False, reqids=frozenset({7})
)


def failures(given: Facts, expected: Expectation | None = EXPECTED) -> str:
    verdict = verify_flow(FLOW, expected, given)
    assert verdict.proven is (not verdict.failures)
    return "; ".join(verdict.failures)


def test_policy_sas_and_guard_together_prove_a_session() -> None:
    verdict = verify_flow(FLOW, EXPECTED, facts())
    assert verdict.proven
    assert not verdict.clear
    assert [line.split(":")[0] for line in verdict.evidence] == ["out", "in", "the guard holds it"]
    assert "c0ffee01" in verdict.evidence[0]


@pytest.mark.parametrize("direction", ["out", "in"])
def test_verify_flow_reports_a_missing_policy_by_its_direction(direction: str) -> None:
    other = "in" if direction == "out" else "out"
    assert failures(facts(policies=(policy(other),))) == f"{direction}: no policy covers it"


@pytest.mark.parametrize("direction", ["out", "in"])
def test_verify_flow_reports_a_missing_sa_by_its_direction(direction: str) -> None:
    other = "in" if direction == "out" else "out"
    assert failures(facts(states=(state(other),))) == f"{direction}: no SA with reqid 7 is installed"


@pytest.mark.parametrize(
    "wrong",
    [
        {"reqid": 8},
        {"spi": 0},
        {"proto": 51},
        {"mode": "tunnel"},
        {"dst": address("10.0.0.99")},
        {"src": address("10.0.0.99")},
        {"sel": narrowed(proto=6, sport=5, sport_mask=0xFFFF)},
        {"sel": narrowed(proto=17)},
    ],
    ids=str,
)
def test_an_sa_that_does_not_serve_the_policy_proves_nothing(wrong: dict[str, Any]) -> None:
    assert "no SA with reqid 7" in failures(facts(states=(state("out", **wrong), state("in"))))


@pytest.mark.parametrize("direction", ["out", "in"])
@pytest.mark.parametrize("cipher", ["ecb(cipher_null)", "cipher_null", "rfc4543(gcm(aes))", ""])
def test_an_sa_that_does_not_encrypt_proves_nothing(direction: str, cipher: str) -> None:
    states = [state(way, cipher=cipher) if way == direction else state(way) for way in ("out", "in")]
    shown = cipher or "no cipher"
    assert (
        failures(facts(states=tuple(states)))
        == f"{direction}: SA c0ffee01 uses {shown}: packets are not encrypted"
    )


def test_an_sa_that_does_not_encrypt_is_found_beside_one_that_does() -> None:
    unencrypted = state("in", spi=0xBAD, cipher="ecb(cipher_null)")
    found = failures(facts(states=(state("out"), state("in"), unencrypted)))
    assert found == "in: SA 00000bad uses ecb(cipher_null): packets are not encrypted"


THEIRS = {
    "policies": tuple(policy(way, reqid=1, proto=0, dport_mask=0, sport_mask=0) for way in ("out", "in")),
    "states": (state("out", reqid=1), state("in", reqid=1)),
}


def test_an_sa_of_somebody_else_over_the_same_addresses_proves_nothing() -> None:
    found = failures(facts(**THEIRS))
    assert found.count("an SA with reqid 1, which is not the portal's own (7)") == 2
    assert "not the portal's own" in "; ".join(verify_portal(EXPECTED, facts(**THEIRS)).failures)


def test_a_portal_without_a_connection_is_not_proven_by_anybodys_sa() -> None:
    blocked = dataclasses.replace(EXPECTED, reqids=frozenset())
    assert "not the portal's own (none)" in failures(facts(**THEIRS, reqids={}), blocked)


def test_the_sa_of_an_earlier_version_proves_as_long_as_the_guard_admits_it() -> None:
    assert failures(facts(**THEIRS, reqids={SAN: frozenset({1, 7})})) == ""


def test_without_a_guard_the_reqid_is_compared_with_the_connections() -> None:
    off: dict[str, Any] = {"guarded": None, "guard_wanted": False, "reqids": {}}
    assert failures(facts(**off)) == ""
    assert "not the portal's own (7)" in failures(facts(**THEIRS, **off))


def test_the_flow_of_a_portal_that_is_not_closed_may_be_in_anybodys_sa() -> None:
    assert failures(facts(**THEIRS), dataclasses.replace(EXPECTED, closed=False)) == ""
    assert failures(facts(**THEIRS), None) == ""


def test_verify_flow_reports_another_mode_than_asked_for() -> None:
    tunnel = {"mode": "tunnel", "tmpl_src": address("10.0.0.1"), "tmpl_dst": address("10.0.0.20")}
    back = {"mode": "tunnel", "tmpl_src": address("10.0.0.20"), "tmpl_dst": address("10.0.0.1")}
    given = facts(
        policies=(policy("out", **tunnel), policy("in", **back)),
        states=(state("out", mode="tunnel"), state("in", mode="tunnel")),
    )
    assert "out: the policy demands tunnel mode, transport was asked for" in failures(given)
    assert failures(given, dataclasses.replace(EXPECTED, mode="tunnel")) == ""


def test_verify_flow_reports_a_missing_guard() -> None:
    verdict = verify_flow(FLOW, EXPECTED, facts(guarded=None))
    assert "not installed" in "; ".join(verdict.failures)
    assert not verdict.clear


def test_verify_flow_reports_a_portal_that_the_guard_does_not_hold() -> None:
    assert (
        failures(facts(guarded=frozenset({portal("10.0.0.20:3261")})))
        == "the guard does not hold this portal"
    )


def test_a_guard_that_is_switched_off_is_no_failure() -> None:
    assert failures(facts(guarded=None, guard_wanted=False)) == ""


def test_neither_policy_nor_guard_means_clear_text() -> None:
    verdict = verify_flow(FLOW, EXPECTED, facts(policies=(), states=(), guarded=None))
    assert (verdict.proven, verdict.clear) == (False, True)
    assert not verify_flow(FLOW, EXPECTED, facts(policies=(), states=())).clear


@pytest.mark.parametrize("bypass", [{"tmpl_proto": 0, "mode": ""}, {"action": "block"}, {"tmpl_proto": 51}])
def test_a_bypass_policy_with_a_lower_priority_number_wins_and_is_a_failure(bypass: dict[str, Any]) -> None:
    lan = ipaddress.ip_network("10.0.0.0/24")
    over = policy("out", src=lan, dst=lan, proto=0, dport_mask=0, priority=10, **bypass)
    reported = failures(facts(policies=(policy("out"), over, policy("in"))))
    assert reported == "out: the policy that applies (priority 10) does not demand ESP"


@pytest.mark.parametrize(
    "other",
    [
        {"priority": 2000},
        {"priority": 10, "restricted": True},
        {"priority": 10, "proto": 17},
        {"priority": 10, "dport": 3261},
        {"priority": 10, "dport": 0xCBD, "dport_mask": 0xFFFF},
        {"priority": 10, "dst": ipaddress.ip_network("10.0.1.0/24")},
        {"priority": 10, "src": ipaddress.ip_network("fd00::/8"), "dst": ipaddress.ip_network("::/0")},
    ],
    ids=str,
)
def test_a_policy_that_does_not_apply_changes_nothing(other: dict[str, Any]) -> None:
    bypass = policy("out", **{"tmpl_proto": 0, **other})
    assert failures(facts(policies=(bypass, policy("out"), policy("in")))) == ""


def test_tables_gives_of_thousands_what_may_match_in_the_kernels_order() -> None:
    hosts = [policy("out", dst=ipaddress.ip_network(0x0A010000 + n), reqid=n) for n in range(1000)]
    networks = [policy("out", dst=ipaddress.ip_network("10.0.0.0/8"), reqid=n) for n in (5000, 6000)]
    given = facts(
        policies=(networks[0], *hosts, networks[1], policy("in")),
        states=tuple(state("out", reqid=n) for n in range(1000)),
    )
    assert given.tables.policies("out", ipaddress.ip_address("10.1.0.7")) == [
        networks[0],
        hosts[7],
        networks[1],
    ]
    assert given.tables.states(7) == [state("out", reqid=7)]
    assert given.tables.states(1000) == []


def test_a_tunnels_sas_run_between_its_outer_addresses() -> None:
    out = {"mode": "tunnel", "tmpl_src": address("198.51.100.1"), "tmpl_dst": address("203.0.113.1")}
    back = {"mode": "tunnel", "tmpl_src": address("203.0.113.1"), "tmpl_dst": address("198.51.100.1")}
    given = facts(
        policies=(policy("out", **out), policy("in", **back)),
        states=(
            state("out", mode="tunnel", src=address("198.51.100.1"), dst=address("203.0.113.1")),
            state("in", mode="tunnel", src=address("203.0.113.1"), dst=address("198.51.100.1")),
        ),
    )
    assert failures(given, dataclasses.replace(EXPECTED, mode="tunnel")) == ""


def test_a_tunnels_sas_take_what_is_inside_whatever_the_outer_addresses_are() -> None:
    # such a state has no selector of its own, and what the kernel shows in its place is of the outer IP version
    inner, san, outer = "fd00::1", "fd00::20", ("198.51.100.1", "203.0.113.1")
    any_v4 = dataclasses.replace(
        narrowed(proto=0), src=ipaddress.ip_network("0.0.0.0/0"), dst=ipaddress.ip_network("0.0.0.0/0")
    )
    policies, states = [], []
    for direction, (src, dst), (near, far) in (
        ("out", (inner, san), outer),
        ("in", (san, inner), outer[::-1]),
    ):
        ends = {"tmpl_src": address(near), "tmpl_dst": address(far)}
        nets = {"src": ipaddress.ip_network(src), "dst": ipaddress.ip_network(dst)}
        policies.append(policy(direction, mode="tunnel", **ends, **nets))
        states.append(state(direction, mode="tunnel", src=address(near), dst=address(far), sel=any_v4))
    flow = Flow(local=Portal(address(inner), 40001), remote=portal(f"[{san}]:3260"))
    assert verify_flow(flow, None, facts(policies=tuple(policies), states=tuple(states))).proven


def test_a_session_of_an_unknown_portal_needs_no_guard() -> None:
    assert failures(facts(guarded=None), None) == ""
    assert verify_flow(FLOW, None, facts(policies=(), guarded=None)).clear


def test_user_space_esp_is_proven_by_the_route_into_its_device() -> None:
    expected = dataclasses.replace(EXPECTED, user_space_esp=True)
    given = facts(policies=(), states=(), devices=frozenset({"ipsec0"}))
    assert failures(dataclasses.replace(given, routed_via={SAN: "ipsec0"}), expected) == ""
    assert "routed by eth0" in failures(dataclasses.replace(given, routed_via={SAN: "eth0"}), expected)
    assert "routed by nothing" in failures(given, expected)


# -- portals without a session


@pytest.mark.parametrize(
    ("cipher", "proven"),
    [("AES_GCM_16-256", True), ("NULL/HMAC_SHA2_256_128", False), ("NULL_AES_GMAC-256", False)],
)
def test_user_space_esp_that_does_not_encrypt_is_not_proven(cipher: str, proven: bool) -> None:
    expected = dataclasses.replace(EXPECTED, user_space_esp=True, ciphers=frozenset({cipher}))
    given = facts(policies=(), states=(), devices=frozenset({"ipsec0"}), routed_via={SAN: "ipsec0"})
    verdict = verify_flow(FLOW, expected, given)
    assert verdict.proven is proven
    assert proven or verdict.failures == (f"charon's SA uses {cipher}: packets are not encrypted",)
    assert verify_portal(expected, given).failures == verdict.failures


def test_a_portal_with_policy_and_guard_is_proven() -> None:
    assert verify_portal(EXPECTED, facts()).proven


@pytest.mark.parametrize(
    "given",
    [
        facts(policies=()),
        facts(guarded=None),
        facts(guarded=frozenset()),
        facts(policies=(policy("in"),)),
        facts(policies=(policy("out", tmpl_proto=0),)),
        facts(policies=(policy("out", action="block"),)),
        facts(policies=(policy("out", dport=3261),)),
        facts(policies=(policy("out", restricted=True),)),
        facts(policies=(policy("out"), policy("out", priority=10, tmpl_proto=0, proto=0, dport_mask=0))),
    ],
)
def test_a_portal_that_lacks_anything_is_not_proven(given: Facts) -> None:
    assert not verify_portal(EXPECTED, given).proven


def test_a_portal_whose_sa_does_not_encrypt_is_not_proven_before_there_is_a_session() -> None:
    given = facts(
        states=(state("out"), state("in", cipher="ecb(cipher_null)"), state("in", spi=0, cipher=""))
    )
    found = verify_portal(EXPECTED, given).failures
    assert found == ("SA c0ffee01 uses ecb(cipher_null): packets are not encrypted",)


def test_a_blocked_portal_needs_no_policy() -> None:
    assert verify_portal(dataclasses.replace(EXPECTED, reqids=frozenset()), facts(policies=())).proven


def test_an_offloaded_session_is_never_proven() -> None:
    verdict = offloaded_session(session(transport="iscsi_iser"))
    assert not verdict.proven
    assert "iscsi_iser" in verdict.failures[0]
