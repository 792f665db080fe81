"""The XFRM adapter: real databases in a namespace of their own, and bytes that no kernel would send."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iscsi_ipsec.adapters.netlink import kernel
from iscsi_ipsec.base import netlink_framing
from iscsi_ipsec.base.errors import KernelUnavailable
from iscsi_ipsec.base.xfrm import KernelPolicy, KernelState
from tests.support.netlab.space import Namespace
from tests.support.netlab.waiting import wait_until

IP_XFRM_POLICY = 17
XFRMGRP_ACQUIRE = 1


def add_policy(space: Namespace, *words: str) -> None:
    space.ip("xfrm", "policy", "add", *words)


OUT = (
    *("src", "10.0.0.1/32", "dst", "10.0.0.2/32", "proto", "tcp", "dport", "3260", "dir", "out"),
    *("priority", "100", "tmpl", "src", "10.0.0.1", "dst", "10.0.0.2", "proto", "esp", "reqid", "7"),
    *("mode", "transport"),
)


def test_an_empty_kernel_has_no_policies_and_no_states(space: Namespace) -> None:
    assert space.inside(kernel.policies) == ()
    assert space.inside(kernel.states) == ()


def test_a_policy_is_read_with_selector_and_template(space: Namespace) -> None:
    add_policy(space, *OUT)

    (policy,) = space.inside(kernel.policies)

    assert (policy.direction, policy.action, policy.priority) == ("out", "allow", 100)
    assert (str(policy.src), str(policy.dst), policy.proto) == ("10.0.0.1/32", "10.0.0.2/32", 6)
    assert (policy.sport, policy.sport_mask, policy.dport, policy.dport_mask) == (0, 0, 3260, 0xFFFF)
    assert (policy.reqid, policy.mode, policy.tmpl_proto) == (7, "transport", 50)
    assert (str(policy.tmpl_src), str(policy.tmpl_dst)) == ("10.0.0.1", "10.0.0.2")
    assert not policy.restricted


def test_ipv6_tunnel_and_forward_policies_are_read(space: Namespace) -> None:
    add_policy(
        space,
        *("src", "fd01::/64", "dst", "fd00::1/128", "dir", "fwd", "priority", "5"),
        *("tmpl", "src", "fd00::9", "dst", "fd00::1", "proto", "esp", "reqid", "8", "mode", "tunnel"),
    )
    (policy,) = space.inside(kernel.policies)
    assert (policy.direction, str(policy.src), str(policy.dst)) == ("fwd", "fd01::/64", "fd00::1/128")
    assert (policy.mode, policy.reqid) == ("tunnel", 8)
    assert (str(policy.tmpl_src), str(policy.tmpl_dst)) == ("fd00::9", "fd00::1")


def test_a_policy_without_ipsec_has_no_mode(space: Namespace) -> None:
    add_policy(space, "src", "10.0.0.0/24", "dst", "10.0.0.1/32", "dir", "in", "action", "block")
    (policy,) = space.inside(kernel.policies)
    assert (policy.direction, policy.action) == ("in", "block")
    assert (policy.mode, policy.reqid, policy.tmpl_src, policy.tmpl_dst) == ("", 0, None, None)


@pytest.mark.parametrize("bound", [("mark", "1", "mask", "0xf"), ("if_id", "5"), ("dev", "v0")])
def test_a_policy_that_needs_more_than_its_selector_is_restricted(
    space: Namespace, bound: tuple[str, ...]
) -> None:
    selector = ("src", "10.0.0.1/32", "dst", "10.0.0.2/32")
    own = bound if bound[0] != "dev" else ()
    device = bound if bound[0] == "dev" else ()
    add_policy(space, *selector, *device, "dir", "out", *own)
    (policy,) = space.inside(kernel.policies)
    assert policy.restricted


def test_the_policies_of_sockets_are_left_out(space: Namespace) -> None:
    """IKE daemons exempt their own sockets this way (include/uapi/linux/in.h, IP_XFRM_POLICY)."""
    add_policy(space, *OUT)
    own = bytearray(168)
    struct.pack_into("=H", own, 40, socket.AF_INET)
    own[160] = 1  # XFRM_POLICY_OUT

    def with_socket_policy() -> tuple[str, tuple[KernelPolicy, ...]]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exempt:
            exempt.setsockopt(socket.IPPROTO_IP, IP_XFRM_POLICY, bytes(own))
            return space.ip("xfrm", "policy").out, kernel.policies()

    listing, policies = space.inside(with_socket_policy)
    assert "socket out" in listing
    assert [policy.direction for policy in policies] == ["out"]


def test_thousands_of_policies_come_in_many_parts(space: Namespace) -> None:
    lines = "".join(
        f"xfrm policy add src 10.0.0.1/32 dst 10.{n >> 8}.{n & 255}.1/32 dir out priority {n + 1}\n"
        for n in range(3000)
    )
    space.run(["ip", "-batch", "-"], text=lines)
    assert {policy.priority for policy in space.inside(kernel.policies)} == set(range(1, 3001))


def test_a_larval_state_is_recognised(space: Namespace) -> None:
    """The kernel makes one when a packet meets a policy and someone listens for what it then asks for."""
    add_policy(space, *OUT)

    def provoke() -> tuple[KernelState, ...]:
        with (
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink_framing.NETLINK_XFRM) as listener,
            socket.socket() as client,
        ):
            listener.bind((0, XFRMGRP_ACQUIRE))
            client.setblocking(False)
            client.connect_ex(("10.0.0.2", 3260))
            return wait_until(kernel.states, "a larval state")

    (state,) = space.inside(provoke)

    assert state.larval
    assert (state.spi, state.spi_hex, state.proto, state.reqid, state.mode) == (
        0,
        "00000000",
        50,
        7,
        "transport",
    )
    assert (str(state.src), str(state.dst)) == ("10.0.0.1", "10.0.0.2")
    assert (state.bytes, state.packets) == (0, 0)
    assert 0 <= state.age < 60
    assert state.sel is not None
    assert (str(state.sel.src), str(state.sel.dst)) == ("10.0.0.1/32", "10.0.0.2/32")
    assert (state.sel.proto, state.sel.dport) == (6, 3260)


def test_without_the_right_every_question_is_a_typed_error(space: Namespace) -> None:
    script = (
        "from iscsi_ipsec.adapters.netlink import kernel\n"
        "from iscsi_ipsec.base.errors import KernelUnavailable\n"
        "for call in (kernel.policies, kernel.states):\n"
        "    try:\n"
        "        call()\n"
        "    except KernelUnavailable as err:\n"
        "        print(err)\n"
    )
    done = space.run(
        ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", sys.executable, "-c", script],
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "daemon")},
    )
    assert done.out == "XFRM: Operation not permitted\n" * 2


# -- what a kernel would not do -----------------------------------------------------------------

KEY = b"correct-horse-battery"


def message(kind: int, payload: bytes, flags: int = 2) -> bytes:
    header = struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0)
    return header + payload.ljust((len(payload) + 3) & ~3, b"\0")


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value.ljust((len(value) + 3) & ~3, b"\0")


def a_state(
    *, spi: int = 0x1234, family: int = socket.AF_INET, added: int = 1000, cipher: bytes = b"cbc(aes)"
) -> bytes:
    """An established ESP state as XFRM_MSG_NEWSA has it, key and all."""
    state = bytearray(224)
    struct.pack_into("!4s", state, 56, bytes([10, 0, 0, 2]))
    struct.pack_into("!IB", state, 72, spi, 50)
    struct.pack_into("!4s", state, 80, bytes([10, 0, 0, 1]))
    struct.pack_into("=4Q", state, 160, 5000, 40, added, 0)
    struct.pack_into("=IHB", state, 208, 9, family, 1)
    algorithm = struct.pack("=64sI", cipher, 8 * len(KEY)) + KEY
    hash_of = struct.pack("=64sI", b"hmac(sha256)", 8 * len(KEY)) + KEY
    kind = kernel.XFRMA_ALG_AEAD if cipher.startswith(b"rfc") else kernel.XFRMA_ALG_CRYPT
    return bytes(state) + attribute(kernel.XFRMA_ALG_AUTH, hash_of) + attribute(kind, algorithm)


NEWSA = message(kernel.XFRM_MSG_NEWSA, a_state())
DONE = message(netlink_framing.NLMSG_DONE, struct.pack("=i", 0))


def test_an_established_state_is_read_and_its_key_is_not() -> None:
    state = kernel.parse_state(a_state(), now=1060)

    assert state is not None
    assert not state.larval
    assert (state.spi_hex, state.proto, state.reqid, state.mode) == ("00001234", 50, 9, "tunnel")
    assert (str(state.src), str(state.dst)) == ("10.0.0.1", "10.0.0.2")
    assert (state.bytes, state.packets, state.age) == (5000, 40, 60)
    assert KEY.decode() not in repr(state)


@pytest.mark.parametrize("cipher", ["cbc(aes)", "ecb(cipher_null)", "rfc4106(gcm(aes))", "rfc4543(gcm(aes))"])
def test_the_cipher_of_a_state_is_read_by_its_name(cipher: str) -> None:
    whole = a_state(cipher=cipher.encode())
    state = kernel.parse_state(whole, now=0)
    assert state is not None
    assert state.cipher == cipher
    for cut in range(4, len(KEY) + 80):  # padding aside; what is cut short names none
        shorter = kernel.parse_state(whole[:-cut], now=0)
        assert shorter is not None
        assert shorter.cipher == ""


def test_a_clock_that_was_set_back_makes_no_negative_age() -> None:
    state = kernel.parse_state(a_state(added=5000), now=1000)
    assert state is not None
    assert state.age == 0


def test_a_mode_that_we_have_no_name_for_keeps_its_number() -> None:
    state = bytearray(a_state())
    state[214] = 99
    parsed = kernel.parse_state(bytes(state), now=0)
    assert parsed is not None
    assert parsed.mode == "mode-99"


@pytest.mark.parametrize("family", [0, 1, 255])
def test_a_state_of_an_unknown_family_is_passed_over(family: int) -> None:
    assert kernel.parse_state(a_state(family=family), now=0) is None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=400), st.integers(min_value=0, max_value=2**40))
def test_any_bytes_are_a_state_or_none(data: bytes, now: int) -> None:
    kernel.parse_state(data, now)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(min_size=224, max_size=300))
def test_any_bytes_long_enough_are_a_state_or_none(data: bytes) -> None:
    kernel.parse_state(data, 0)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=400))
def test_any_bytes_are_a_policy_or_none(data: bytes) -> None:
    kernel.parse_policy(data)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(min_size=168, max_size=168),
    st.lists(st.tuples(st.sampled_from([5, 21, 31, 2, 0x8005]), st.binary(max_size=70))),
    st.integers(0, 255),
)
def test_any_policy_with_any_attributes_is_parsed(
    fixed: bytes, parts: list[tuple[int, bytes]], cut: int
) -> None:
    data = bytearray(fixed)
    struct.pack_into("=HBB", data, 40, socket.AF_INET, 32, 32)
    data[160] %= 3
    whole = bytes(data) + b"".join(attribute(kind, value) for kind, value in parts)
    assert kernel.parse_policy(whole) is not None
    kernel.parse_policy(whole[: len(whole) - cut])


def test_networks_of_one_address_and_addresses_of_one_text_are_distinguished() -> None:
    ends = kernel._Ends()
    raw = bytes([10, 0, 0, 0]).ljust(16, b"\0")
    lengths = [ends.network(raw, length, socket.AF_INET) for length in (8, 24, 8)]
    assert list(map(str, lengths)) == ["10.0.0.0/8", "10.0.0.0/24", "10.0.0.0/8"]
    assert str(ends.network(raw, 8, socket.AF_INET6)) == "a00::/8"
    assert [str(ends.address(raw, family)) for family in (socket.AF_INET, socket.AF_INET6)] == [
        "10.0.0.0",
        "a00::",
    ]
    assert ends.network(raw, 33, socket.AF_INET) is None is ends.address(raw, socket.AF_UNIX)


class Scripted:
    """A netlink socket that gives out what a test wrote, then times out. Each open begins the next dump."""

    def __init__(self, *dumps: list[bytes], flags: int = 0, sender: int = 0) -> None:
        self._dumps = iter(dumps)
        self._flags, self._sender = flags, sender
        self._parts: Iterator[bytes] = iter(())
        self.opened = 0

    def __enter__(self) -> Self:
        self.opened += 1
        self._parts = iter(next(self._dumps, []))
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self, data: bytes) -> int:
        return len(data)

    def recvmsg(self, size: int) -> tuple[bytes, list[Any], int, tuple[int, int]]:
        return self.recv(size), [], self._flags, (self._sender, 0)

    def recv(self, size: int) -> bytes:
        try:
            return next(self._parts)
        except StopIteration:
            raise TimeoutError(errno.EAGAIN, "timed out") from None


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    def script(*dumps: list[bytes], **more: int) -> Scripted:
        scripted = Scripted(*dumps, **more)
        monkeypatch.setattr(kernel, "bound", lambda *_: scripted)
        return scripted

    return script


INTERRUPTED = message(kernel.XFRM_MSG_NEWSA, a_state(), flags=2 | netlink_framing.NLM_F_DUMP_INTR)


def test_parts_are_put_together(script: Any) -> None:
    script([NEWSA + NEWSA, NEWSA, DONE])
    assert len(kernel.states()) == 3


def test_messages_of_other_kinds_are_passed_over(script: Any) -> None:
    script([message(99, b"x") + NEWSA + message(kernel.XFRM_MSG_NEWPOLICY, bytes(168)) + DONE])
    assert len(kernel.states()) == 1


def test_a_dump_that_was_interrupted_is_taken_again(script: Any) -> None:
    scripted = script([NEWSA, INTERRUPTED], [NEWSA, DONE])
    assert len(kernel.states()) == 1
    assert scripted.opened == 2


def test_a_dump_that_is_interrupted_every_time_is_given_up(script: Any) -> None:
    scripted = script(*[[INTERRUPTED]] * 100)
    with pytest.raises(KernelUnavailable, match="kept changing"):
        kernel.states()
    assert scripted.opened == kernel.ATTEMPTS


def test_an_error_in_the_middle_is_an_error(script: Any) -> None:
    script([NEWSA, message(netlink_framing.NLMSG_ERROR, struct.pack("=i", -errno.ENOBUFS))])
    with pytest.raises(KernelUnavailable, match="buffer"):
        kernel.states()


def test_an_error_at_the_end_is_an_error(script: Any) -> None:
    script([NEWSA, message(netlink_framing.NLMSG_DONE, struct.pack("=i", -errno.ENOMEM))])
    with pytest.raises(KernelUnavailable, match="memory"):
        kernel.states()


def test_a_message_cut_short_is_no_half_truth(script: Any) -> None:
    script([NEWSA[:100]])
    with pytest.raises(KernelUnavailable, match="timed out"):
        kernel.states()


def test_an_entry_longer_than_the_buffer_is_an_error(script: Any) -> None:
    script([NEWSA, DONE], flags=socket.MSG_TRUNC)
    with pytest.raises(KernelUnavailable, match="too long"):
        kernel.states()


def test_messages_of_another_process_are_not_taken_for_the_kernels(script: Any) -> None:
    script([NEWSA, DONE], sender=4711)
    with pytest.raises(KernelUnavailable, match="timed out"):
        kernel.states()


def test_an_endless_dump_ends(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "MAX_ENTRIES", 100)
    script([NEWSA] * 1000)
    with pytest.raises(KernelUnavailable, match="more than 100"):
        kernel.states()


def test_an_endless_dump_of_nothing_ends_too(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "TIMEOUT", 0.05)
    script([message(99, b"")] * 10_000_000)
    with pytest.raises(KernelUnavailable, match="did not end"):
        kernel.states()


def test_no_frame_of_an_error_holds_received_bytes(script: Any) -> None:
    script([NEWSA, NEWSA[:-30]])
    with pytest.raises(KernelUnavailable) as caught:
        kernel.states()

    err: BaseException | None = caught.value
    while err is not None:
        trace: TracebackType | None = err.__traceback__
        while trace is not None:
            if "/tests/" not in trace.tb_frame.f_code.co_filename:
                assert KEY.decode() not in repr(trace.tb_frame.f_locals)
            trace = trace.tb_next
        assert KEY.decode() not in "".join(traceback.format_exception(err))
        err = err.__cause__ or err.__context__


def test_addresses_of_a_parsed_state_are_of_its_family() -> None:
    state = bytearray(a_state(family=socket.AF_INET6))
    state[56:72] = ipaddress.IPv6Address("fd00::2").packed
    state[80:96] = ipaddress.IPv6Address("fd00::1").packed
    parsed = kernel.parse_state(bytes(state), now=0)
    assert parsed is not None
    assert (str(parsed.src), str(parsed.dst)) == ("fd00::1", "fd00::2")
