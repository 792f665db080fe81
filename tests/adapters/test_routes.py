"""Answers of rtnetlink that no test can make a kernel give, and both lines of the library that asks for them."""

from __future__ import annotations

import errno
import ipaddress
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from pyroute2 import NetlinkDumpInterrupted, NetlinkError

from iscsi_ipsec.adapters.netlink import Routes, routes
from iscsi_ipsec.base.errors import KernelUnavailable
from tests.support.source import TOP

ANYWHERE = ipaddress.ip_address("192.0.2.1")
OLDEST = TOP / "build/pyroute2-0.7.2"
"""The oldest release that we take, which Debian 12 has; ``make test`` puts it there."""

INTERRUPTED = NetlinkDumpInterrupted()


class Message(dict[str, Any]):
    """A message of the library's, as far as it is asked for."""

    def get_attr(self, name: str) -> Any:
        return self.get(name)


def route(source: str) -> list[Message]:
    return [Message(RTA_PREFSRC=source)]


def addresses(*texts: str) -> list[Message]:
    return [Message(IFA_LOCAL=text) for text in texts]


class Scripted:
    """The library's socket, which answers each question with what a test wrote; the last one again and again."""

    def __init__(self, *answers: list[Message] | Exception) -> None:
        self._answers = list(answers)
        self.asked = self.opened = self.closed = 0

    def _answer(self) -> list[Message]:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def route(self, command: str, **_request: Any) -> list[Message]:
        assert command == "get"
        return self._answer()

    def get_addr(self) -> list[Message]:
        return self._answer()

    def close(self) -> None:
        self.closed += 1


Script = Callable[..., Scripted]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    def script(*answers: list[Message] | Exception) -> Scripted:
        scripted = Scripted(*answers)

        def opened() -> Scripted:
            scripted.opened += 1
            return scripted

        monkeypatch.setattr(routes, "IPRoute", opened)
        return scripted

    return script


def listed(*texts: str) -> frozenset[Any]:
    return frozenset(ipaddress.ip_address(text) for text in texts)


def test_local_addresses_takes_the_own_end_of_a_point_to_point_link(script: Script) -> None:
    script([Message(IFA_LOCAL="10.0.0.1", IFA_ADDRESS="10.0.0.2"), Message(IFA_ADDRESS="fd00::1"), Message()])
    assert Routes().local_addresses() == listed("10.0.0.1", "fd00::1")


def test_a_list_that_changed_while_it_was_read_is_asked_for_again_by_a_new_socket(script: Script) -> None:
    scripted = script(INTERRUPTED, addresses("10.0.0.2"))
    assert Routes().local_addresses() == listed("10.0.0.2")
    assert (scripted.asked, scripted.opened, scripted.closed) == (2, 2, 1)


def test_a_list_that_changes_every_time_is_given_up(script: Script) -> None:
    scripted = script(INTERRUPTED)
    with pytest.raises(KernelUnavailable, match="kept changing"):
        Routes().local_addresses()
    assert scripted.asked == routes.ATTEMPTS


def test_half_a_list_is_an_error(script: Script) -> None:
    script(NetlinkError(errno.ENOMEM))
    with pytest.raises(KernelUnavailable, match="memory"):
        Routes().local_addresses()


@pytest.mark.parametrize(
    "code",
    [
        errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENODEV,
        errno.EOPNOTSUPP, errno.EAFNOSUPPORT,
    ],
)  # fmt: skip
def test_no_way_is_no_error_and_keeps_the_socket(script: Script, code: int) -> None:
    scripted = script(NetlinkError(code))
    assert Routes().source_for(ANYWHERE) is None
    assert not scripted.closed


def test_an_interface_whose_name_has_a_nul_gives_no_route() -> None:
    assert Routes().source_for(ANYWHERE, "san\0evil") is None


def test_a_look_up_that_the_kernel_refuses_is_an_error(script: Script) -> None:
    script(NetlinkError(errno.EPERM))
    with pytest.raises(KernelUnavailable, match="not permitted"):
        Routes().source_for(ANYWHERE)


@pytest.mark.parametrize(
    ("failure", "reported"),
    [
        (OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)), "rtnetlink: No buffer space available"),
        (ValueError("unpack"), "rtnetlink: ValueError unpack"),
    ],
    ids=["a lost answer", "an answer that cannot be read"],
)
def test_an_answer_that_does_not_come_is_a_typed_error_and_the_next_question_has_a_new_socket(
    script: Script, failure: Exception, reported: str
) -> None:
    scripted = script(failure, route("10.0.0.1"))
    asker = Routes()
    with pytest.raises(KernelUnavailable, match=reported):
        asker.source_for(ANYWHERE)
    assert scripted.closed == 1
    assert asker.source_for(ANYWHERE) == ipaddress.ip_address("10.0.0.1")
    assert scripted.opened == 2


def test_close_can_be_called_twice() -> None:
    asker = Routes()
    asker.source_for(ipaddress.ip_address("127.0.0.1"))
    asker.close()
    asker.close()


@pytest.mark.skipif(not OLDEST.is_dir(), reason="make test installs the oldest pyroute2 that we take")
def test_everything_holds_with_the_oldest_release_of_the_library() -> None:
    tests = [f"{TOP}/tests/adapters/{name}" for name in ("test_netlink.py", "test_routes.py")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "not oldest_release",
        *tests,
    ]
    env = os.environ | {"PYTHONPATH": str(OLDEST)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=TOP)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not OLDEST.is_dir(), reason="make test installs the oldest pyroute2 that we take")
def test_the_oldest_release_is_the_one_that_is_tried() -> None:
    program = "import pyroute2; from importlib.metadata import version; print(pyroute2.__file__, version('pyroute2'))"
    env = os.environ | {"PYTHONPATH": str(OLDEST)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout.split() == [f"{OLDEST}/pyroute2/__init__.py", "0.7.2"]
