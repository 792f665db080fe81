"""The nft adapter, against nft and the kernel in a namespace of its own."""

from __future__ import annotations

import ipaddress
import json
import socket
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iscsi_ipsec.adapters.nft import Guard, GuardState, parse_state
from iscsi_ipsec.base.errors import KernelUnavailable
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.core.guard.ruleset import SETS, guard_table, hold_ike
from tests.support.netlab.space import Namespace
from tests.support.netlab.waiting import wait_until

PORTAL4 = Portal(ipaddress.IPv4Address("10.0.0.2"), 3260)
PORTAL6 = Portal(ipaddress.IPv6Address("fd00::2"), 3261)
SERVED = Portal(ipaddress.IPv4Address("10.0.0.1"), 3260)
OURS = 0x49000001
TEXT = guard_table([PORTAL4, PORTAL6], [SERVED], sas=[(PORTAL4, OURS), (PORTAL6, OURS), (PORTAL6, OURS + 1)])


def loaded(space: Namespace, text: str = TEXT) -> GuardState:
    space.inside(lambda: Guard().load(text))
    return installed(space)


def installed(space: Namespace) -> GuardState:
    state = space.inside(Guard().installed)
    assert state is not None
    return state


def test_without_a_table_nothing_is_installed(space: Namespace) -> None:
    assert space.inside(Guard().installed) is None


def test_a_loaded_table_is_read_back(space: Namespace) -> None:
    state = loaded(space)

    assert {name: portals for name, portals in state.sets.items() if portals} == {
        "portals4": {PORTAL4},
        "portals6": {PORTAL6},
        "served4": {SERVED},
    }
    assert state.sets.keys() == set(SETS)
    assert state.other_elements == {}
    assert state.reqids == {PORTAL4: {OURS}, PORTAL6: {OURS, OURS + 1}}
    assert {chain: len(rules) for chain, rules in state.rules.items()} == {
        "output": 13, "postrouting": 11, "prerouting": 15, "input": 15,
    }  # fmt: skip
    assert state.dropped == dict.fromkeys(state.rules, 0)


def test_loading_the_same_text_again_gives_an_equal_state(space: Namespace) -> None:
    assert loaded(space) == loaded(space)


@pytest.mark.parametrize(
    "change",
    [
        "delete element inet iscsi_ipsec portals4 { 10.0.0.2 . 3260 }",
        "add element inet iscsi_ipsec sas4 { 10.0.0.2 . 3260 . 1 }",
        "delete element inet iscsi_ipsec sas6 { fd00::2 . 3261 . 1224736769 }",
        "flush chain inet iscsi_ipsec postrouting",
        "add element inet iscsi_ipsec portals4 { 10.0.0.9 . 3260 }",
        "flush chain inet iscsi_ipsec input",
        "insert rule inet iscsi_ipsec output accept",
        "add rule inet iscsi_ipsec output counter",
        "add set inet iscsi_ipsec more { type ipv4_addr; }",
        "add chain inet iscsi_ipsec more",
        "add counter inet iscsi_ipsec more",
        "add chain inet iscsi_ipsec output { policy drop; }",
        "add table inet iscsi_ipsec { flags dormant; }",
    ],
)
def test_whatever_somebody_changes_makes_the_state_differ(space: Namespace, change: str) -> None:
    before = loaded(space)
    space.run(["nft", change])
    assert installed(space) != before


def test_loading_again_repairs_what_somebody_changed(space: Namespace) -> None:
    before = loaded(space)
    space.run(["nft", "add table inet iscsi_ipsec { flags dormant; }"])
    space.run(["nft", "flush chain inet iscsi_ipsec input"])
    assert loaded(space) == before


def test_the_order_of_rules_matters(space: Namespace) -> None:
    table = "table inet iscsi_ipsec {{\nchain output {{ type filter hook output priority 0; {}; }}\n}}\n"
    one = loaded(space, table.format("tcp dport 1 drop; tcp dport 2 accept"))
    space.inside(Guard().delete)
    other = loaded(space, table.format("tcp dport 2 accept; tcp dport 1 drop"))
    assert one != other


def test_dropped_packets_are_counted_and_are_no_difference(space: Namespace) -> None:
    before = loaded(space)

    def knock() -> None:
        with socket.socket() as client:
            client.setblocking(False)
            # the packet is dropped on the way out, which connect() may report or not
            client.connect_ex((str(PORTAL4.address), PORTAL4.port))

    space.inside(knock)
    after = installed(space)

    assert after.dropped["output"] > 0
    assert after.dropped["input"] == 0
    assert after == before


def test_counters_of_rules_that_drop_nothing_are_not_drops(space: Namespace) -> None:
    space.inside(
        lambda: Guard().load(
            "table inet iscsi_ipsec {\nchain output { type filter hook output priority 0; counter; counter accept; }\n}\n"
        )
    )

    def knock() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", ("10.0.0.1", 9))

    space.inside(knock)
    assert installed(space).dropped == {"output": 0}
    listing = space.run(["nft", "list", "table", "inet", "iscsi_ipsec"]).out
    assert "packets 0 " not in listing  # there was something to count


def test_elements_that_are_no_single_portal_are_distinguished(space: Namespace) -> None:
    state = loaded(
        space,
        "table inet iscsi_ipsec {\nset portals4 { type ipv4_addr . inet_service; flags interval; "
        "elements = { 10.0.0.2 . 3260, 10.1.0.0/24 . 3260 }; }\n}\n",
    )
    assert state.sets["portals4"] == {PORTAL4}
    (other,) = state.other_elements["portals4"]
    assert "10.1.0.0" in other


def test_delete_removes_the_table_and_may_be_repeated(space: Namespace) -> None:
    loaded(space)
    space.inside(Guard().delete)
    space.inside(Guard().delete)
    assert space.inside(Guard().installed) is None


IKE_HEADER = struct.Struct("!QQBBBBII")  # RFC 7296, 3.1
OUR_SPI, THEIR_SPI = 0x1122334455667788, 0x99
INFORMATIONAL, CREATE_CHILD_SA, INFORMATIONAL_V1, IKE_SA_INIT = 37, 36, 5, 34


@pytest.mark.parametrize("port", [500, 4500])
def test_held_ike_sas_send_no_delete_and_everything_else(space: Namespace, port: int) -> None:
    before = loaded(space)
    space.inside(lambda: Guard().load(hold_ike([f"{OUR_SPI:016x}"], 60)))
    space.ip("link", "add", "eth9", "type", "veth", "peer", "name", "eth8")
    space.ip("link", "set", "eth8", "up")
    space.ip("address", "add", "10.9.9.1/24", "dev", "eth9")
    space.ip("link", "set", "eth9", "up")

    def sent(spi: int, exchange: int) -> bool:
        message = IKE_HEADER.pack(spi, 5, 46, 0x20, exchange, 0x08, 0, 28)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as charon:
            charon.bind(("10.9.9.1", port))
            try:
                charon.sendto(bytes(4) * (port == 4500) + message, ("10.9.9.2", port))
            except PermissionError:
                return False
            return True

    def tries() -> list[tuple[int, int]]:
        exchanges = (INFORMATIONAL, INFORMATIONAL_V1, CREATE_CHILD_SA, IKE_SA_INIT)
        return [(spi, what) for spi in (OUR_SPI, THEIR_SPI) for what in exchanges if not sent(spi, what)]

    assert space.inside(tries) == [(OUR_SPI, INFORMATIONAL), (OUR_SPI, INFORMATIONAL_V1)]
    assert installed(space) == before, "what is held is no change of the table"


def test_what_is_held_expires_by_itself(space: Namespace) -> None:
    loaded(space)
    space.inside(lambda: Guard().load(hold_ike(["11"], 1)))

    def held() -> bool:
        return "0x11" in space.run(["nft", "list", "set", "inet", "iscsi_ipsec", "ike_held"]).out

    assert held()
    wait_until(lambda: not held(), "it is gone", timeout=10)


def test_other_tables_are_left_alone(space: Namespace) -> None:
    space.run(["nft", "add table inet someone"])
    loaded(space)
    space.inside(Guard().delete)
    assert "someone" in space.run(["nft", "list", "tables"]).out


def test_check_loads_nothing(space: Namespace) -> None:
    space.inside(lambda: Guard().check(TEXT))
    assert space.inside(Guard().installed) is None


def test_check_refuses_a_text_that_load_would_refuse(space: Namespace) -> None:
    with pytest.raises(KernelUnavailable, match="syntax error"):
        space.inside(lambda: Guard().check("table x {"))


def test_a_text_that_is_refused_changes_nothing(space: Namespace) -> None:
    before = loaded(space)
    with pytest.raises(KernelUnavailable, match="syntax error"):
        space.inside(lambda: Guard().load("delete table inet iscsi_ipsec\nnonsense\n"))
    assert installed(space) == before


def test_ten_thousand_portals_are_loaded_and_read_back(space: Namespace) -> None:
    portals = [Portal(ipaddress.IPv4Address(0x0A000000 + n)) for n in range(10_000)]
    assert loaded(space, guard_table(portals, [])).sets["portals4"] == set(portals)


def test_without_nft_the_kernel_is_unavailable() -> None:
    for call in (Guard("/nowhere/nft").installed, Guard("/nowhere/nft").delete):
        with pytest.raises(KernelUnavailable, match="cannot be run"):
            call()


def test_without_the_right_the_kernel_is_unavailable(space: Namespace) -> None:
    script = (
        "from iscsi_ipsec.adapters.nft import Guard\n"
        "from iscsi_ipsec.base.errors import KernelUnavailable\n"
        "for call in (Guard().installed, Guard().delete):\n"
        "    try:\n"
        "        call()\n"
        "    except KernelUnavailable as err:\n"
        "        print(err)\n"
    )
    daemon = str(Path(__file__).parents[2] / "daemon")
    done = space.run(
        ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", sys.executable, "-c", script],
        env={"PYTHONPATH": daemon},
    )
    assert done.out.count("Operation not permitted") == 2


def program(folder: Path, script: str) -> str:
    path = folder / "nft"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return str(path)


def test_an_nft_that_hangs_is_given_up(tmp_path: Path) -> None:
    guard = Guard(program(tmp_path, "exec sleep 60"), timeout=0.2)
    with pytest.raises(KernelUnavailable, match=r"within 0\.2 s"):
        guard.installed()


@pytest.mark.parametrize(
    "output", ["", "{", "[]", '{"nftables": 7}', '{"nftables": [7]}', "\\377", "[" * 5000]
)
def test_an_nft_that_babbles_is_unavailable(tmp_path: Path, output: str) -> None:
    with pytest.raises(KernelUnavailable, match="unreadable"):
        Guard(program(tmp_path, f"printf '{output}'")).installed()


def test_a_table_with_flags_that_nft_cannot_print_differs_from_every_loaded_one(tmp_path: Path) -> None:
    """With nft 1.0.6, whose JSON sometimes breaks off at the flags."""
    broken = """printf '{"nftables": [{"table": {"flags": '"""
    listing = r"printf 'table inet iscsi_ipsec {\n\tflags dormant\n}\n'"
    state = Guard(program(tmp_path, f'case "$1" in -j) {broken};; *) {listing};; esac')).installed()
    assert state is not None
    assert state.definitions == {"flags dormant"}


def test_an_nft_that_crashes_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(KernelUnavailable, match="failed"):
        Guard(program(tmp_path, "kill -SEGV $$")).installed()


def test_a_path_that_is_no_program_is_unavailable(tmp_path: Path) -> None:
    for path in (str(tmp_path), "nul\0byte"):
        with pytest.raises(KernelUnavailable):
            Guard(path).installed()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
NAMES = st.sampled_from(["chain", "name", "expr", "elem", "handle", "counter", "packets", "concat", "drop"])
BODIES = st.dictionaries(NAMES, VALUES | st.lists(st.dictionaries(NAMES, VALUES, max_size=3), max_size=3))
OBJECTS = st.dictionaries(
    st.sampled_from(["table", "set", "chain", "rule", "map", "metainfo"]), BODIES | VALUES
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(VALUES | st.fixed_dictionaries({"nftables": st.lists(OBJECTS | VALUES, max_size=4)}))
def test_any_json_is_parsed_or_is_a_value_error(document: object) -> None:
    try:
        state = parse_state(json.dumps(document))
    except ValueError:
        return
    assert isinstance(state, GuardState)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=40))
def test_any_text_is_parsed_or_is_a_value_error(text: str) -> None:
    try:
        parse_state(text)
    except ValueError:
        return
