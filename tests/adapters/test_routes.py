"""Answers of rtnetlink that no test can make a kernel give; and what of the library is loaded for them."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from iscsi_ipsec.adapters.netlink import Routes, routes
from iscsi_ipsec.base.errors import KernelUnavailable
from iscsi_ipsec.base.netlink_framing import ATTRIBUTE, HEADER, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR

RTM_NEWADDR, RTM_NEWROUTE = 20, 24
RTA_OIF, RTA_PREFSRC, IFA_LOCAL = 4, 7, 2
ANYWHERE = ipaddress.ip_address("192.0.2.1")

Said = tuple[int, bytes, int]
"""Type, payload, flags."""


def attribute(kind: int, value: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value


def route(source: str) -> Said:
    """``rtmsg`` (include/uapi/linux/rtnetlink.h): family, lengths, TOS, table, protocol, scope, type, flags."""
    fixed = struct.pack("=8BI", socket.AF_INET, 32, 0, 0, 254, 0, 0, 1, 0)
    return RTM_NEWROUTE, fixed + attribute(RTA_PREFSRC, socket.inet_aton(source)), 0


def an_address(text: str, flags: int = 0) -> Said:
    """``ifaddrmsg`` (include/uapi/linux/if_addr.h): family, length, flags, scope, index."""
    fixed = struct.pack("=4BI", socket.AF_INET, 24, 0, 0, 1)
    return RTM_NEWADDR, fixed + attribute(IFA_LOCAL, socket.inet_aton(text)), flags


def done(code: int = 0, flags: int = 0) -> Said:
    return NLMSG_DONE, struct.pack("=i", -code), flags


def error(code: int) -> Said:
    return NLMSG_ERROR, struct.pack("=i", -code), 0


class Scripted:
    """A netlink socket that answers each question with what a test wrote, then times out."""

    def __init__(self, *answers: list[Said], flags: int = 0, sender: int = 0, late: int = 0) -> None:
        self._answers = iter(answers)
        self._flags, self._sender, self._late = flags, sender, late
        self._data: list[bytes] = []
        self.asked, self.closed = 0, 0

    def send(self, data: bytes) -> int:
        self.asked += 1
        _, _, _, number, _ = HEADER.unpack_from(data)
        self._data = [
            HEADER.pack(HEADER.size + len(payload), kind, flags, number - self._late, 0) + payload
            for kind, payload, flags in next(self._answers, [])
        ]
        return len(data)

    def recvmsg(self, _size: int) -> tuple[bytes, list[Any], int, tuple[int, int]]:
        if not self._data:
            raise TimeoutError("timed out")
        return self._data.pop(0), [], self._flags, (self._sender, 0)

    def close(self) -> None:
        self.closed += 1


Script = Callable[..., Scripted]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    def script(*answers: list[Said], **more: int) -> Scripted:
        scripted = Scripted(*answers, **more)
        monkeypatch.setattr(routes, "bound", lambda *_: scripted)
        return scripted

    return script


def listed(*texts: str) -> frozenset[Any]:
    return frozenset(ipaddress.ip_address(text) for text in texts)


def test_a_list_is_put_together_from_its_parts(script: Script) -> None:
    script([an_address("10.0.0.1"), an_address("10.0.0.2"), done()])
    assert Routes().local_addresses() == listed("10.0.0.1", "10.0.0.2")


@pytest.mark.parametrize(
    "interrupted",
    [
        [an_address("10.0.0.1", NLM_F_DUMP_INTR), done()],
        [an_address("10.0.0.1"), done(flags=NLM_F_DUMP_INTR)],
    ],
    ids=["in an entry", "at the end"],
)
def test_a_list_that_changed_while_it_was_told_is_asked_for_again(
    script: Script, interrupted: list[Said]
) -> None:
    scripted = script(interrupted, [an_address("10.0.0.2"), done()])
    assert Routes().local_addresses() == listed("10.0.0.2")
    assert scripted.asked == 2


def test_a_list_that_changes_every_time_is_given_up(script: Script) -> None:
    scripted = script(*[[done(flags=NLM_F_DUMP_INTR)]] * 100)
    with pytest.raises(KernelUnavailable, match="kept changing"):
        Routes().local_addresses()
    assert scripted.asked == routes.ATTEMPTS


@pytest.mark.parametrize("end", [done(errno.ENOMEM), error(errno.ENOMEM)], ids=["DONE", "ERROR"])
def test_half_a_list_is_an_error(script: Script, end: Said) -> None:
    script([an_address("10.0.0.1"), end])
    with pytest.raises(KernelUnavailable, match="memory"):
        Routes().local_addresses()


@pytest.mark.parametrize(
    "code", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENODEV]
)
def test_no_way_is_no_error(script: Script, code: int) -> None:
    scripted = script([error(code)])
    asker = Routes()
    assert asker.source_for(ANYWHERE) is None
    assert not scripted.closed


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EAFNOSUPPORT])
def test_a_family_that_the_kernel_does_not_route_is_no_route(script: Script, code: int) -> None:
    script([error(code)])
    with_no_ipv6 = Routes()
    assert with_no_ipv6.source_for(ipaddress.ip_address("fd00::20")) is None
    with_no_ipv6.close()


def test_an_interface_whose_name_has_a_nul_is_no_way_out() -> None:
    assert Routes().source_for(ANYWHERE, "san\0evil") is None


def test_a_look_up_that_the_kernel_refuses_is_an_error(script: Script) -> None:
    script([error(errno.EPERM)])
    with pytest.raises(KernelUnavailable, match="not permitted"):
        Routes().source_for(ANYWHERE)


@pytest.mark.parametrize(
    ("more", "reported"),
    [({"sender": 4711}, "timed out"), ({"late": 1}, "timed out"), ({"flags": socket.MSG_TRUNC}, "too long")],
    ids=["another process", "the answer to an older question", "cut short"],
)
def test_what_is_not_the_kernels_answer_is_not_taken_for_it(
    script: Script, more: dict[str, int], reported: str
) -> None:
    scripted = script([route("10.0.0.1")], [route("10.0.0.1")], **more)
    with pytest.raises(KernelUnavailable, match=reported):
        Routes().source_for(ANYWHERE)
    assert scripted.closed == 1


def test_an_answer_that_cannot_be_read_is_a_typed_error(script: Script) -> None:
    scripted = script([(RTM_NEWROUTE, b"\2", 0)], [route("10.0.0.1")])
    asker = Routes()
    with pytest.raises(KernelUnavailable, match="rtnetlink"):
        asker.source_for(ANYWHERE)
    assert scripted.closed == 1
    assert asker.source_for(ANYWHERE) == ipaddress.ip_address("10.0.0.1")


def test_an_endless_list_ends(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "TIMEOUT", 0.05)
    script([an_address("10.0.0.1")] * 100_000)
    with pytest.raises(KernelUnavailable, match="timed out"):
        Routes().local_addresses()


def python(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_library_is_whole_for_whoever_imports_it_afterwards() -> None:
    program = (
        "from iscsi_ipsec.adapters.netlink import Routes\n"
        "import pyroute2\n"
        "with pyroute2.IPRoute() as library:\n"
        "    print(len(library.get_links()) > 0)\n"
    )
    assert set(python(program).split()) == {"True"}


def test_a_library_that_was_imported_before_is_taken_as_it_is() -> None:
    program = (
        "import pyroute2\n"
        "from iscsi_ipsec.adapters.netlink import Routes, library\n"
        "import sys\n"
        "print(sys.modules['pyroute2'] is pyroute2, library.rtmsg is pyroute2.netlink.rtnl.rtmsg.rtmsg)\n"
    )
    assert set(python(program).split()) == {"True"}


def test_a_library_that_is_missing_is_named() -> None:
    program = (
        "import sys\n"
        "sys.path = [p for p in sys.path if not p.endswith('-packages')] + [sys.argv[1]]\n"
        "try:\n"
        "    import iscsi_ipsec.adapters.netlink.library\n"
        "except ModuleNotFoundError as err:\n"
        "    print(err.name)\n"
    )
    source = routes.__file__.rpartition("/iscsi_ipsec/")[0]
    assert python(program, source).split() == ["pyroute2"]
