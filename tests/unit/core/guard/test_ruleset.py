"""The guard's text: what it holds, that nft takes it, and that it is nothing but our table."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from iscsi_ipsec.base.portal import Portal, PortalRange, parse_portal, parse_portal_pattern
from iscsi_ipsec.core.guard.ruleset import HOLDING, guard_table, held_portals, hold_ike, parse_elements
from tests.support.values import portal


def network(text: str) -> PortalRange:
    pattern = parse_portal_pattern(text)
    assert isinstance(pattern, PortalRange)
    return pattern


V4, V6, SERVED = portal("10.0.0.20"), portal("[fd00::20]:3261"), portal("10.0.0.1")

needs_nft = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("nft") or not shutil.which("unshare"), reason="nft -c needs root"
)


def nft(text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """In a network namespace of its own, which ends with the command."""
    return subprocess.run(
        ["unshare", "--net", "nft", *options, "-f", "-"],
        input=text, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


TEXTS = {
    "empty": guard_table([], []),
    "both versions and roles": guard_table([V4, V6], [SERVED, portal("fd00::1")]),
    "own SAs": guard_table(
        [V4, V6], [SERVED], sas=[(SERVED, 0x49000003), (V4, 0x49000001), (V6, 2**32 - 1), (V4, 1)]
    ),
    "not what is routed": guard_table([V4, V6], [SERVED], sas=[(V4, 0x49000001)], forward=False),
    "no RDMA": guard_table([V4, V6], [SERVED], rdma=True),
    "devices": guard_table([V4], [], ["ipsec0", "tun-1.2"]),
    "ports of one address": guard_table([portal(f"10.0.0.20:{port}") for port in (1, 3260, 65535)], []),
    "a thousand portals": guard_table([portal(f"10.0.{n // 250}.{n % 250 + 1}") for n in range(1000)], []),
    "networks that overlap": guard_table(
        [V4], [], networks=map(network, ("10.0.0.0/8", "10.0.0.0/24", "fd00::/64"))
    ),
    "everywhere but two": guard_table(
        [V4],
        [],
        networks=map(network, ("0.0.0.0/0", "::/0")),
        clear_exceptions=[network(f"{V6.address}/128"), network(f"{SERVED.address}/32")],
    ),
    "odd addresses": guard_table(
        [portal("::1"), portal("2001:db8::ffff:1"), portal("[64:ff9b::a00:1]:1")], []
    ),
}


@needs_nft
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_nft_takes_the_text(text: str) -> None:
    done = nft(text, "-c")
    assert (done.returncode, done.stderr) == (0, "")


@needs_nft
def test_the_text_may_be_loaded_again_and_again() -> None:
    text = TEXTS["both versions and roles"]
    done = nft(text * 3 + "list ruleset\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("table inet iscsi_ipsec") == 1


@needs_nft
def test_a_table_of_others_stays() -> None:
    done = nft("table inet theirs { chain c { counter; }; }\n" + TEXTS["devices"] + "list ruleset\n")
    assert "table inet theirs" in done.stdout


WHOLE = """\
# Made by iscsi-ipsecd; loaded at boot by iscsi-ipsec-guard.service.
# Portals in these sets are reached inside their own IPsec SAs or not at all.

table inet iscsi_ipsec
delete table inet iscsi_ipsec
table inet iscsi_ipsec {
	set sas4 {
		typeof ip daddr . tcp dport . ipsec out reqid
		elements = { 10.0.0.1 . 3260 . 1224736771, 10.0.0.20 . 3260 . 1224736769 }
	}
	set sas6 {
		typeof ip6 daddr . tcp dport . ipsec out reqid
		elements = { fd00::20 . 3261 . 1224736770 }
	}
	set open4 {
		type ipv4_addr . inet_service
		flags interval
		elements = { 10.1.2.0/23 . 3260 }
	}
	set open6 {
		type ipv6_addr . inet_service
		flags interval
		elements = { fd01::1/128 . 3260 }
	}
	set portals4 {
		type ipv4_addr . inet_service
		elements = { 10.0.0.20 . 3260, 10.0.0.21 . 3260 }
	}
	set portals6 {
		type ipv6_addr . inet_service
		elements = { fd00::20 . 3261 }
	}
	set served4 {
		type ipv4_addr . inet_service
		elements = { 10.0.0.1 . 3260 }
	}
	set served6 {
		type ipv6_addr . inet_service
	}
	set ike_held {
		typeof @th,64,64
		flags timeout
	}
	chain output {
		type filter hook output priority -150; policy accept;
		oifname { "lo", "tun0" } accept
		udp sport 500 @th,64,64 @ike_held @th,208,8 { 5, 37 } drop
		udp sport 4500 @th,64,32 0 @th,96,64 @ike_held @th,240,8 { 5, 37 } drop
		ip daddr . tcp dport . ipsec out reqid @sas4 accept
		ip saddr . tcp sport . ipsec out reqid @sas4 accept
		ip daddr . tcp dport @portals4 counter drop
		ip saddr . tcp sport @served4 counter drop
		ip daddr . tcp dport @open4 accept
		ip daddr 10.1.0.0/16 tcp dport 3260 counter drop
		meta nfproto ipv4 tcp dport 3261 counter drop
		ip6 daddr . tcp dport . ipsec out reqid @sas6 accept
		ip6 saddr . tcp sport . ipsec out reqid @sas6 accept
		ip6 daddr . tcp dport @portals6 counter drop
		ip6 saddr . tcp sport @served6 counter drop
		ip6 daddr . tcp dport @open6 accept
		ip6 daddr fd01::/64 tcp dport 3260 counter drop
	}
	chain postrouting {
		type filter hook postrouting priority 300; policy accept;
		oifname { "lo", "tun0" } accept
		ip daddr . tcp dport . ipsec out reqid @sas4 accept
		ip saddr . tcp sport . ipsec out reqid @sas4 accept
		ip daddr . tcp dport @portals4 counter drop
		ip saddr . tcp sport @served4 counter drop
		ip daddr . tcp dport @open4 accept
		ip daddr 10.1.0.0/16 tcp dport 3260 counter drop
		meta nfproto ipv4 tcp dport 3261 counter drop
		ip6 daddr . tcp dport . ipsec out reqid @sas6 accept
		ip6 saddr . tcp sport . ipsec out reqid @sas6 accept
		ip6 daddr . tcp dport @portals6 counter drop
		ip6 saddr . tcp sport @served6 counter drop
		ip6 daddr . tcp dport @open6 accept
		ip6 daddr fd01::/64 tcp dport 3260 counter drop
	}
	chain prerouting {
		type filter hook prerouting priority -150; policy accept;
		iifname { "lo", "tun0" } accept
		ip saddr . tcp sport . ipsec in reqid @sas4 accept
		ip saddr . tcp sport . ipsec in spnum 1 reqid @sas4 accept
		ip daddr . tcp dport . ipsec in reqid @sas4 accept
		ip daddr . tcp dport . ipsec in spnum 1 reqid @sas4 accept
		ip saddr . tcp sport @portals4 counter drop
		ip daddr . tcp dport @served4 counter drop
		ip saddr . tcp sport @open4 accept
		ip saddr 10.1.0.0/16 tcp sport 3260 counter drop
		meta nfproto ipv4 tcp sport 3261 counter drop
		ip6 saddr . tcp sport . ipsec in reqid @sas6 accept
		ip6 saddr . tcp sport . ipsec in spnum 1 reqid @sas6 accept
		ip6 daddr . tcp dport . ipsec in reqid @sas6 accept
		ip6 daddr . tcp dport . ipsec in spnum 1 reqid @sas6 accept
		ip6 saddr . tcp sport @portals6 counter drop
		ip6 daddr . tcp dport @served6 counter drop
		ip6 saddr . tcp sport @open6 accept
		ip6 saddr fd01::/64 tcp sport 3260 counter drop
	}
	chain input {
		type filter hook input priority -150; policy accept;
		iifname { "lo", "tun0" } accept
		ip saddr . tcp sport . ipsec in reqid @sas4 accept
		ip saddr . tcp sport . ipsec in spnum 1 reqid @sas4 accept
		ip daddr . tcp dport . ipsec in reqid @sas4 accept
		ip daddr . tcp dport . ipsec in spnum 1 reqid @sas4 accept
		ip saddr . tcp sport @portals4 counter drop
		ip daddr . tcp dport @served4 counter drop
		ip saddr . tcp sport @open4 accept
		ip saddr 10.1.0.0/16 tcp sport 3260 counter drop
		meta nfproto ipv4 tcp sport 3261 counter drop
		ip6 saddr . tcp sport . ipsec in reqid @sas6 accept
		ip6 saddr . tcp sport . ipsec in spnum 1 reqid @sas6 accept
		ip6 daddr . tcp dport . ipsec in reqid @sas6 accept
		ip6 daddr . tcp dport . ipsec in spnum 1 reqid @sas6 accept
		ip6 saddr . tcp sport @portals6 counter drop
		ip6 daddr . tcp dport @served6 counter drop
		ip6 saddr . tcp sport @open6 accept
		ip6 saddr fd01::/64 tcp sport 3260 counter drop
	}
}
"""


def test_the_whole_text_with_one_of_everything_is_this() -> None:
    assert (
        guard_table(
            [portal("10.0.0.21"), V4, V6],
            [SERVED],
            ["tun0"],
            sas=[(SERVED, 0x49000003), (V4, 0x49000001), (V6, 0x49000002)],
            networks=map(network, ("10.1.0.0/16", "0.0.0.0/0:3261", "[fd01::/64]:3260")),
            clear_exceptions=map(network, ("10.1.2.0/24", "10.1.3.0/24", "[fd01::1]:3260")),
        )
        == WHOLE
    )


def test_only_our_table_is_ever_named() -> None:
    for text in TEXTS.values():
        rows = [
            line.split()
            for line in text.splitlines()
            if line.startswith(("table ", "delete ", "add ", "flush "))
        ]
        assert [row[:3] for row in rows] == [
            ["table", "inet", "iscsi_ipsec"],
            ["delete", "table", "inet"],
            ["table", "inet", "iscsi_ipsec"],
        ]
        assert rows[1][3] == "iscsi_ipsec"


def test_each_portal_stands_in_the_set_of_its_kind() -> None:
    text = TEXTS["both versions and roles"]
    for name, element in (
        ("portals4", "10.0.0.20 . 3260"), ("portals6", "fd00::20 . 3261"),
        ("served4", "10.0.0.1 . 3260"), ("served6", "fd00::1 . 3260"),
    ):  # fmt: skip
        section = text.split(f"set {name} {{", 1)[1].split("}\n\t}", 1)[0]
        assert f"elements = {{ {element} " in section


def chains(text: str) -> dict[str, list[str]]:
    """The rules of each chain, without its head."""
    sections = (part.split("\n\t}", 1)[0].splitlines() for part in text.split("chain ")[1:])
    return {lines[0].split()[0]: [line.strip() for line in lines[2:]] for lines in sections}


@pytest.mark.parametrize("chain", ["output", "postrouting", "prerouting", "input"])
def test_what_is_not_inside_an_own_sa_is_dropped_in_every_chain(chain: str) -> None:
    rules = chains(TEXTS["both versions and roles"])[chain]
    remote, own = ("daddr . tcp dport", "saddr . tcp sport")
    if chain in ("prerouting", "input"):
        remote, own = own, remote
    for family, version in (("ip", 4), ("ip6", 6)):
        for end, name in ((remote, "portals"), (own, "served")):
            drop = rules.index(f"{family} {end} @{name}{version} counter drop")
            way = "out" if chain in ("output", "postrouting") else "in"
            assert rules.index(f"{family} {end} . ipsec {way} reqid @sas{version} accept") < drop


def test_what_comes_inside_an_sa_within_another_is_judged_by_the_inner_one() -> None:
    for chain in ("prerouting", "input"):
        rules = chains(TEXTS["own SAs"])[chain]
        assert "ip saddr . tcp sport . ipsec in spnum 1 reqid @sas4 accept" in rules


def test_what_is_routed_for_others_is_left_alone_only_where_it_leaves_and_enters() -> None:
    judged, left = chains(TEXTS["own SAs"]), chains(TEXTS["not what is routed"])
    assert left.keys() == {"output", "postrouting", "input"}
    assert left["postrouting"] == [
        judged["postrouting"][0],
        "meta iif != 0 accept",
        *judged["postrouting"][1:],
    ]
    assert (left["output"], left["input"]) == (judged["output"], judged["input"])


def test_a_device_of_user_space_esp_is_let_pass_in_both_directions() -> None:
    text = TEXTS["devices"]
    assert 'oifname { "lo", "ipsec0", "tun-1.2" } accept' in text
    assert 'iifname { "lo", "ipsec0", "tun-1.2" } accept' in text
    assert text.count("accept") - TEXTS["empty"].count("accept") == 0


def test_the_text_does_not_depend_on_the_order_of_portals() -> None:
    assert guard_table([V4, V6, SERVED], []) == guard_table([SERVED, V6, V4], [])


def test_an_opened_portal_is_let_pass_before_its_network_drops_it_but_after_a_closed_one() -> None:
    for chain in TEXTS["everywhere but two"].split("chain ")[1:]:
        order = [
            chain.index(what)
            for what in ("@sas4", "@portals4", "@served4", "@open4", "meta nfproto ipv4 tcp")
        ]
        assert order == sorted(order)


def test_held_portals_counts_only_sets_that_hold_portals_closed() -> None:
    inside, other = portal("10.0.0.20"), portal("10.0.0.99")
    sets: dict[str, frozenset[Portal]] = {
        HOLDING[0]: frozenset({inside}),
        "somebody_elses": frozenset({other}),
    }
    assert held_portals(sets) == {inside}


def test_parse_elements_skips_an_address_with_a_zone() -> None:
    text = "set portals6 {\n elements = { fd00::1%x . 3260, fd00::2 . 3260 } }"
    assert parse_elements(text) == ((portal("fd00::2"),), ())


# -- read back


def test_parse_elements_reads_the_portals_of_a_guard_back_from_its_text() -> None:
    guarded = (parse_portal("10.0.0.20"), parse_portal("10.0.0.21:3261"), parse_portal("[fd00::20]:3260"))
    served = (parse_portal("10.9.0.1"),)
    assert parse_elements(guard_table(guarded, served, ["ipsec0"])) == (guarded, served)


def test_parse_elements_reads_ports_from_1_to_65535_only() -> None:
    text = "set portals4 { elements = { %s } }"
    for port, read in ((0, False), (1, True), (65535, True), (65536, False)):
        found, _ = parse_elements(text % f"10.0.0.1 . {port}")
        assert [str(portal) for portal in found] == ([f"10.0.0.1:{port}"] if read else [])


def test_parse_elements_finds_no_portals_in_a_text_that_is_no_guard() -> None:
    assert parse_elements("set portals4 { elements = { x . y, 10.0.0.1 . 99999, 10.0.0.1 . z } }") == ((), ())
    assert parse_elements("") == ((), ())


def test_hold_ike_adds_each_spi_once_and_for_a_while() -> None:
    assert hold_ike(["17142e4eee50181a", "a", "17142e4eee50181a"], 120) == (
        "add element inet iscsi_ipsec ike_held { 0x17142e4eee50181a timeout 120s, 0x000000000000000a timeout 120s }\n"
    )
