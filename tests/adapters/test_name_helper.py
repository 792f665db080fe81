"""Names are looked up by a process without rights, whose answers are not trusted."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from iscsi_ipsec.adapters.resolver import MAX_ANSWER, MAX_NAME, resolve_through

LOCAL = {ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")}
START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
from iscsi_ipsec.service.name_helper import main
main()
"""


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[str]:
    """The program, with a listening socket as descriptor 3 as systemd gives it; its socket's path."""
    path = str(tmp_path / "names")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)
        argv = [sys.executable, "-c", START, str(listener.fileno())]
        process = subprocess.Popen(argv, pass_fds=[listener.fileno()])
        try:
            yield path
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[tuple[str, list[bytes], list[bytes]]]:
    """A helper that was taken over: its path, what it answers, what it was asked."""
    path = str(tmp_path / "names")
    answers: list[bytes] = []
    asked: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                asked.append(client.recv(4096))
                with suppress(BrokenPipeError):  # it was more than the client wanted to hear
                    client.sendall(answers.pop(0))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)
        thread = threading.Thread(target=serve)
        thread.start()
        yield path, answers, asked
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_a_name_is_looked_up_by_the_helper(helper: str) -> None:
    assert set(resolve_through(helper, "localhost")) <= LOCAL
    assert resolve_through(helper, "192.0.2.7") == (ipaddress.ip_address("192.0.2.7"),)


def test_a_name_that_does_not_exist_fails_with_the_reason(helper: str) -> None:
    with pytest.raises(OSError, match=r"\w"):
        resolve_through(helper, "no-such-host.invalid")


def test_a_label_that_is_too_long_fails_and_the_helper_lives_on(helper: str) -> None:
    with pytest.raises((OSError, UnicodeError)):
        resolve_through(helper, "x" * 64 + ".example")
    assert resolve_through(helper, "192.0.2.8")


@pytest.mark.parametrize("sent", [b"", b"x" * (MAX_NAME + 5), b"\n", b"\xff\xfe\n", b"a\0b\n", b"localhost"])
def test_the_helper_answers_rubbish_with_a_failure_and_lives_on(helper: str, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(helper)
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while data := client.recv(4096):
                answer += data
        except ConnectionResetError:  # it closed before it had read all of too much
            answer = b"failed "
    assert answer.startswith(b"failed ")
    assert resolve_through(helper, "192.0.2.9")


def test_without_the_unit_names_are_looked_up_here(tmp_path: Path) -> None:
    assert resolve_through(str(tmp_path / "none"), "192.0.2.7") == (ipaddress.ip_address("192.0.2.7"),)


@pytest.mark.parametrize(
    ("answer", "reported"),
    [
        (b"", None),
        (b"failed Name or service not known\n", "Name or service not known"),
        (b"failed \x1b[2J\xff\n", r"\\x1b\[2J"),
        (b"failed " + b"x" * 5000, "x{200}$"),
        (b"address 10.0.0.1\nfailed half\n", "half"),
        (b"address 10.0.0.1; drop\n", "no address"),
        (b"address \n", "no address"),
        # Python takes anything for a zone, and an address becomes text that nft reads
        (b"address fd00::1%x . 3260 } } ; flush ruleset #\n", "no address"),
        (b"address fe80::1%eth0\n", "no address"),
        (b"address fd00::1%\n", "no address"),
        (b"rubbish\n", "no answer"),
        (b"address 10.0.0.1\n" * (MAX_ANSWER // 10), "too long"),
    ],
)
def test_a_helper_that_was_taken_over_can_only_give_addresses_or_fail(
    liar: tuple[str, list[bytes], list[bytes]], answer: bytes, reported: str | None
) -> None:
    path, answers, asked = liar
    answers.append(answer)
    if reported is None:
        assert resolve_through(path, "san") == ()
    else:
        with pytest.raises(OSError, match=reported):
            resolve_through(path, "san")
    assert asked == [b"san\n"]


def test_only_host_addresses_of_the_helpers_answer_count(
    liar: tuple[str, list[bytes], list[bytes]],
) -> None:
    path, answers, _ = liar
    mapped, link, host = "::ffff:10.0.0.1", "fe80::1", "fd00::1"
    answers.append("".join(f"address {a}\n" for a in (mapped, link, "224.0.0.1", "::", host)).encode())
    assert set(resolve_through(path, "san")) == {ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address(host)}


def test_a_helper_that_is_down_is_a_failure_and_not_a_hole(tmp_path: Path) -> None:
    path = str(tmp_path / "names")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(ConnectionRefusedError):
        resolve_through(path, "192.0.2.7")
