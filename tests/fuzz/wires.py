"""Targets that are streams and datagrams: charon, the kernel, nft."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from contextlib import closing, suppress

from iscsi_ipsec.adapters import nft, resolver
from iscsi_ipsec.adapters.charon import Charon, CharonEvents
from iscsi_ipsec.adapters.charon.commands import OWN_PREFIX
from iscsi_ipsec.adapters.netlink import kernel, monitor
from iscsi_ipsec.base.errors import CharonRefused, CharonUnavailable
from iscsi_ipsec.base.netlink_framing import attributes, messages
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.guard.ruleset import guard_table, parse_elements
from iscsi_ipsec.core.ike.ike_failures import classify, doubts_key
from iscsi_ipsec.service.ike_failure_log import IkeFailureLog
from tests.fuzz.target import Target
from tests.support.fake_charon import CONFIRM, CONN, UNKNOWN_COMMAND, UNKNOWN_EVENT, event, response
from tests.support.hostile_log import IMITATIONS, SLOTS

# --- charon -------------------------------------------------------------------------------------

MARK = b"\xff\xfe"
"""In a framed input: where a packet ends. Its length is then the right one, so that what is behind is reached."""


class Listener:
    """A Unix socket whose every client is answered with bytes that were written beforehand."""

    def __init__(self) -> None:
        self.path = f"\0iscsi-ipsec-fuzz-{os.getpid()}"  # abstract: nothing to remove
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.path)
        self._socket.listen(4)

    def meet(self, answer: bytes, visit: Callable[[str], None]) -> None:
        """Call *visit* with the path; the connection it makes finds *answer* and then the end.

        All in one thread: the answer waits in the socket's buffer before anything reads, and
        the first bytes of a request fit into the buffer of the other direction.
        """
        real = socket.socket.connect

        def connect(self: socket.socket, address: str) -> None:
            real(self, address)
            peer, _ = listener.accept()
            with peer:
                peer.sendall(answer)
                peer.shutdown(socket.SHUT_WR)
                peers.append(peer.dup())

        listener = self._socket
        peers: list[socket.socket] = []
        socket.socket.connect = connect  # type: ignore[method-assign,assignment]  # nothing else connects here
        try:
            visit(self.path)
        finally:
            socket.socket.connect = real  # type: ignore[method-assign]
            for peer in peers:
                peer.close()


_listener: list[Listener] = []

EVENT_PREFIXES = (b"list-conn", b"list-sa", b"log", b"ike-updown", b"child-rekey")


def frames(data: bytes) -> bytes:
    return b"".join(struct.pack("!I", len(part)) + part for part in data.split(MARK))


def charon_observes(path: str) -> None:
    with closing(Charon(path, timeout=2.0)) as charon:
        state = charon.observe()
    assert all(name.startswith(OWN_PREFIX) for name in (*(state.secrets or ()), *state.conns))


def charon_lists(path: str) -> None:
    with closing(Charon(path, timeout=2.0)) as charon:
        sas = charon.sas()
    assert all(sa.conn.startswith(OWN_PREFIX) and sa.unique_id >= 0 for sa in sas)


def charon_applies(path: str) -> None:
    message = {"id": OWN_PREFIX + "1", "type": "IKE", "data": Secret(b"a key"), "owners": ["a", "b"]}
    with closing(Charon(path, timeout=2.0)) as charon:
        results = charon.apply([("load-shared", message), ("unload-shared", {"id": "x"})])
    assert len(results) == 2
    assert all(result is None or isinstance(result, CharonRefused) for result in results)


def charon_acts(path: str) -> None:
    with closing(Charon(path, timeout=2.0)) as charon:
        with suppress(CharonRefused):
            charon.initiate("c", "c")
        with suppress(CharonRefused):
            assert charon.terminate(ike_id=3) >= 0


def charon_tells(path: str) -> None:
    failure_log = IkeFailureLog(lambda reason: None)
    events = CharonEvents(path, failure_log.on_event, lambda: None, lambda: None, timeout=2.0)
    try:
        events._connect_and_listen()
    finally:
        events.stop()
    assert all(conn.startswith(OWN_PREFIX) for conn in failure_log.causes())


CALLS = (charon_observes, charon_lists, charon_applies, charon_acts, charon_tells)


def run_vici(data: bytes) -> None:
    """The first byte says what the daemon does, its highest bit whether the rest is framed."""
    if not data:
        return
    if not _listener:
        _listener.append(Listener())
    answer = frames(data[1:]) if data[0] & 0x80 else data[1:]
    try:
        _listener[0].meet(answer[:65536], CALLS[(data[0] & 0x7F) % len(CALLS)])
    except CharonUnavailable as err:
        assert str(err)
        assert "a key" not in str(err)


SA = {
    "uniqueid": "1", "version": "2", "state": "ESTABLISHED", "local-host": "10.0.0.1", "remote-host": "10.0.0.2",
    "local-id": "a", "remote-id": "b", "initiator": "yes", "encr-alg": "AES_GCM_16", "encr-keysize": "256",
    "established": "5", "rekey-time": "100",
    "child-sas": {"c-1": {"name": "iscsi-ipsec-00aa", "uniqueid": "2", "reqid": "1", "state": "INSTALLED", "mode": "TRANSPORT",
                          "spi-in": "c0000001", "spi-out": "c0000002", "bytes-in": "1", "local-ts": ["10.0.0.1/32[tcp]"]}},
}  # fmt: skip
OURS = "iscsi-ipsec-10.0.0.2-3260"


def framed(call: int, *packets: bytes) -> bytes:
    return bytes([0x80 | call]) + MARK.join(packet[4:] for packet in packets)


FRAMED = (
    framed(
        0, response({"version": "5.9.8"}), response({"plugins": ["vici"]}), CONFIRM, event("list-conn", {OURS: CONN}),
        response({}), CONFIRM, response({"keys": ["iscsi-ipsec-1", "x"]}),
    ),
    framed(1, CONFIRM, event("list-sa", {OURS: SA}), event("list-sa", {"home": {}}), response({}), CONFIRM),
    framed(2, response({"success": "yes"}), response({"success": "no", "errmsg": "not found"})),
    framed(2, UNKNOWN_COMMAND, UNKNOWN_EVENT),
    framed(3, response({"success": "yes"}), response({"success": "no", "matches": "0"})),
    framed(4, *[CONFIRM] * 5, event("log", {"ikesa-name": OURS, "msg": "received AUTHENTICATION_FAILED"}),
           event("ike-updown", {"up": "yes", OURS: SA})),
)  # fmt: skip
# the same as charon sends it, lengths and all
VICI_SEEDS = FRAMED + tuple(bytes([seed[0] & 0x7F]) + frames(seed[1:]) for seed in FRAMED)

# --- netlink ------------------------------------------------------------------------------------


def run_netlink(data: bytes) -> None:
    """A datagram of XFRM's or of nftables' notifications; and the same bytes as a bare payload."""
    payloads = [(kind, payload) for kind, _, _, payload in messages(data)]
    assert sum(len(payload) for _, payload in payloads) <= len(data)
    for payload in (data, *(payload for _, payload in payloads)):
        policy = kernel.parse_policy(payload)
        assert policy is None or policy.direction in ("in", "out", "fwd")
        state = kernel.parse_state(payload, 1_700_000_000)
        assert state is None or state.age >= 0
        assert all(0 <= kind < 1 << 14 for kind, _ in attributes(payload))
    for _, name in monitor.tables(data):
        assert len(name) <= len(data)


def netlink(kind: int, payload: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, 2, 1, 0) + payload.ljust(
        (len(payload) + 3) & ~3, b"\0"
    )


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value.ljust((len(value) + 3) & ~3, b"\0")


def selector(family: int, length: int) -> bytes:
    return struct.pack(
        "=16s16s8sHBBB3xiI",
        bytes(range(16)),
        bytes(16),
        b"\x0c\xbc\xff\xff\0\0\0\0",
        family,
        length,
        length,
        6,
        0,
        0,
    )


_TEMPLATE = struct.pack("=16s4sB3xH2x16sIBBBx12x", bytes(16), bytes(4), 50, 2, bytes(16), 7, 0, 0, 0)
_POLICY = (selector(2, 32) + bytes(96) + struct.pack("=IIBBBB", 100, 8, 1, 0, 0, 0)).ljust(168, b"\0")
_STATE = (
    selector(10, 128) + struct.pack("!16sIB3x", bytes(16), 0xC0000001, 50) + bytes(16 + 64 + 32 + 12)
    + struct.pack("=IIHBBB", 1, 7, 10, 0, 32, 0)
).ljust(224, b"\0")  # fmt: skip

NETLINK_SEEDS = (
    netlink(kernel.XFRM_MSG_NEWPOLICY, _POLICY + attribute(5, _TEMPLATE) + attribute(21, bytes(8)))
    + netlink(3, bytes(4)),
    netlink(kernel.XFRM_MSG_NEWSA, _STATE + attribute(2, bytes(72))),
    _POLICY + attribute(5, _TEMPLATE),
    _STATE,
    netlink(2, struct.pack("=i", -1)),
    netlink(0x0A00, bytes(4) + attribute(1, b"iscsi_ipsec\0")) + netlink(0x0A0F, bytes(4)),
)

# --- nft ----------------------------------------------------------------------------------------


def run_nft(data: bytes) -> None:
    """The output of `nft -j list table`."""
    try:
        state = nft.parse_state(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):  # as Guard.installed takes them
        return
    assert all(0 < portal.port < 65536 for portals in state.sets.values() for portal in portals)


NFT_SEEDS = (
    (
        b'{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": "inet", "name": "iscsi_ipsec", "handle": 1}},'
        b'{"set": {"name": "portals4", "elem": [{"concat": ["10.0.0.20", 3260]}, {"concat": ["x", 1]}]}},'
        b'{"chain": {"name": "output", "hook": "output", "prio": -150}},'
        b'{"rule": {"chain": "output", "expr": [{"counter": {"packets": 3, "bytes": 9}}, {"drop": null}]}}]}'
    ),
)

# --- names ----------------------------------------------------------------------------------------


def run_names(data: bytes) -> None:
    """Answers of the process that asks DNS become elements of the guard, and nothing else."""
    try:
        addresses = resolver.addresses_in(data.decode("utf-8", "backslashreplace"))
    except OSError as err:
        assert str(err).isascii()
        assert str(err).isprintable()
        return
    portals = sorted({Portal(address) for address in addresses}, key=lambda portal: portal.sort_key)
    assert parse_elements(guard_table(portals, ())) == (tuple(portals), ())


NAMES_SEEDS = (
    b"address 10.0.0.20\naddress fd00::20\n",
    b"failed Name or service not known\n",
    b"address ::ffff:10.0.0.20\naddress fe80::1\n",
)

# --- charon's log -------------------------------------------------------------------------------

_OWN_LINE = "received AUTHENTICATION_FAILED notify error"


def run_charon_log(data: bytes) -> None:
    """A peer's identity in each of charon's lines that hold one, and as a whole line."""
    # charon prints an identity with what is not printable replaced (identification.c, chunk_printable)
    text = "".join(c if 32 <= ord(c) < 127 else "?" for c in data.decode("latin-1"))
    woken: list[str] = []
    log = IkeFailureLog(woken.append)
    log.nameless = True
    for conn in (f"{OWN_PREFIX}x", "(unnamed)", None):
        for slot in SLOTS:
            line = slot.format(text)
            assert not classify(line), line
            assert not doubts_key(line), line
            log.on_event("log", {"msg": line, "ikesa-name": conn, "ikesa-uniqueid": "1"})
    assert (woken, dict(log.causes()), dict(log.doubts()), log.aggressive_off()) == ([], {}, {}, False), text
    log.on_event("log", {"msg": _OWN_LINE, "ikesa-name": f"{OWN_PREFIX}x", "ikesa-uniqueid": "2"})
    assert woken == ["doubt", "cause"], "charon's own words are still heard"
    log.on_event("log", {"msg": data.decode("utf-8", "replace"), "ikesa-name": f"{OWN_PREFIX}x"})


CHARON_LOG_SEEDS = (*(text.encode() for text in IMITATIONS), b"a.lab", b"%s%n", b"x' - 'y", b"\n\r\x1b[2J")

WIRES = (
    Target(
        name="charonlog",
        run=run_charon_log,
        seeds=CHARON_LOG_SEEDS,
        words=(OWN_PREFIX, "' ", "[", "]...", " successful", ", received", " due to ", "initiating ", "unloaded shared key with id '"),
        max_len=400,
    ),
    Target(
        name="vici",
        run=run_vici,
        seeds=VICI_SEEDS,
        words=(MARK, b"\xff\xff\xff\xff", b"\0\0\0\1", *EVENT_PREFIXES, OURS, "keys", "plugins", "child-sas", "uniqueid", "msg"),
        max_len=3000,
    ),
    Target(name="netlink", run=run_netlink, seeds=NETLINK_SEEDS, words=(b"\2\0", b"\x0a\0", "iscsi_ipsec"), max_len=2048),
    Target(
        name="nft",
        run=run_nft,
        seeds=NFT_SEEDS,
        words=('"concat": [', '"elem": ', '"rule": {', '"set": {', '"counter": {', '"packets": ', '"nftables": ', '"drop": null'),
        max_len=2048,
    ),
    Target(name="names", run=run_names, seeds=NAMES_SEEDS, words=("address ", "failed ", "%", "::", " }", ";"), max_len=400),
)  # fmt: skip
