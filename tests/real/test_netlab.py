"""The lab itself: a recorder that misses frames would make every "nothing unencrypted" worthless."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.netlab import Charon, CommandFailedError, Esp, Lab, Node, available_esp, wait_until
from tests.support.netlab.space import NETNS_DIR
from tests.support.netlab.wire import parse_frame


def tunnel(local: Node, remote: Node, *, ours: str, theirs: str, start: str) -> dict[str, object]:
    """One side of a tunnel between the inner addresses, which every kind of ESP can do."""
    child = {
        "mode": "tunnel",
        "esp_proposals": ["aes128gcm16"],
        "local_ts": [f"{local.at.inner_v4}/32{ours}"],
        "remote_ts": [f"{remote.at.inner_v4}/32{theirs}"],
        "start_action": start,
    }
    return {
        "version": "2",
        "local_addrs": [local.at.v4],
        "remote_addrs": [remote.at.v4],
        "proposals": ["aes128-sha256-ecp256"],
        "local": {"auth": "psk", "id": f"fqdn:{local.label}.lab"},
        "remote": {"auth": "psk", "id": f"fqdn:{remote.label}.lab"},
        "children": {"iscsi": child},
    }


def route_inner_addresses(here: Node, there: Node) -> None:
    here.route(there.at.inner_v4, via=there.at.v4, source=here.at.inner_v4)
    there.route(here.at.inner_v4, via=here.at.v4, source=there.at.inner_v4)


def test_a_real_unencrypted_login_is_seen_frame_by_frame(lab: Lab) -> None:
    there = lab.node("target")
    target = lab.target("target", there.at.v4, there.at.v6)
    initiator = lab.initiator("initiator")
    for address in (there.at.v4, there.at.v6):
        mark = lab.wire.mark()
        result = initiator.discover(address)
        assert result.ok, result
        assert target.name in result.out
        frames = lab.wire.tcp(since=mark)
        assert {frame.src for frame in frames} >= {address}
        assert len(frames) > 20
        assert not lab.wire.esp(since=mark)
    assert lab.wire.dropped == 0
    target.stop()


@pytest.mark.skipif(available_esp() is Esp.NONE, reason="neither kernel nor charon can do ESP here")
def test_a_real_login_through_esp_shows_no_unencrypted_frame() -> None:
    with Lab("here", "there") as lab:
        here, there = lab.node("here"), lab.node("there")
        route_inner_addresses(here, there)
        target, initiator = lab.target("there", there.at.inner_v4), lab.initiator("here")
        ours, theirs = lab.charon("here"), lab.charon("there")
        for charon in (ours, theirs):
            charon.load_psk("k", b"a key of the lab, long enough", ["fqdn:here.lab", "fqdn:there.lab"])
        theirs.load_conn("c", tunnel(there, here, ours="[6/3260]", theirs="[6]", start="none"))

        mark = lab.wire.mark()
        assert initiator.discover(there.at.inner_v4).ok  # control: without SA the same login is unencrypted
        assert lab.wire.tcp(since=mark)

        ours.load_conn("c", tunnel(here, there, ours="[6]", theirs="[6/3260]", start="start"))
        wait_until(ours.children, "the CHILD SA is installed", detail=ours.tail)
        mark = lab.wire.mark()
        assert initiator.read(there.at.inner_v4, target.name, seconds=1).ok
        assert not lab.wire.tcp(since=mark)
        assert len(lab.wire.esp(since=mark)) > 100
        assert lab.wire.dropped == 0


def test_a_cable_that_is_pulled_still_shows_what_was_sent(lab: Lab) -> None:
    here, there = lab.node("initiator"), lab.node("target")
    target = lab.target("target", there.at.v4)
    lab.initiator("initiator").discover(there.at.v4)  # so that the neighbour is known
    lab.hub.pull(there)
    try:
        mark = lab.wire.mark()
        assert not lab.initiator("initiator").discover(there.at.v4, timeout=1.5).ok
        sources = {frame.src for frame in lab.wire.tcp(since=mark)}
        assert sources == {here.at.v4}
    finally:
        lab.hub.push_in(there)
        target.stop()


def test_udp_on_port_4500_is_esp_unless_it_carries_the_marker_of_ike() -> None:
    head = bytes(12) + b"\x08\x00" + bytes([0x45]) + bytes(8) + bytes([17]) + bytes(10)
    ports = bytes([0x11, 0x94, 0x11, 0x94]) + bytes(4)
    kinds = [parse_frame(head + ports + payload, 100, 0.0) for payload in (b"\0\0\0\x01", bytes(4))]
    assert [frame.kind for frame in kinds if frame] == ["esp-udp", "udp"]


def test_a_lab_leaves_nothing_behind_even_when_the_story_in_it_fails() -> None:
    seen: list[tuple[Path, list[str], list[int]]] = []

    def fail_in_a_lab() -> None:
        with Lab("one", "two") as lab:
            charon = lab.ike_only("one")
            target = lab.target("two", lab.node("two").at.v4)
            names = [lab.hub.name, lab.node("one").name, lab.node("two").name]
            seen.append((lab.folder, names, [charon.pid, target.pid]))
            assert all((NETNS_DIR / name).exists() for name in names)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_a_lab()
    [(folder, names, pids)] = seen
    assert not folder.exists()
    assert not any((NETNS_DIR / name).exists() for name in names)
    assert not any(Path("/proc", str(pid)).exists() for pid in pids)


def test_two_labs_at_once_do_not_meet(lab: Lab) -> None:
    with Lab("initiator", "target") as other:
        assert other.node("target").name != lab.node("target").name
        mark = lab.wire.mark()
        other.target("target", other.node("target").at.v4)
        assert other.initiator("initiator").discover(other.node("target").at.v4).ok
        assert not lab.wire.tcp(since=mark)


def test_a_command_that_hangs_is_ended(lab: Lab) -> None:
    with pytest.raises(CommandFailedError, match="exit 124"):
        lab.node("initiator").run(["sleep", "60"], timeout=0.2)


def test_charons_share_neither_socket_nor_plugins_they_were_not_given(lab: Lab, charon: Charon) -> None:
    other = lab.ike_only("target")
    assert other.socket != charon.socket
    assert not {"kernel-libipsec", "bypass-lan"} & other.plugins()
    other.kill()
