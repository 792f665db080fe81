"""Two charons in namespaces, the daemon beside one of them: fixtures for tests with the real thing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.admin import key_file, portal_file, wait_for_connection
from tests.support.ike import KEY_A, TARGET, Ike, connection
from tests.support.netlab import Charon, Daemon, Lab, missing_for_lab, wait_until


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    missing = missing_for_lab()
    if missing:
        pytest.skip(f"no lab without {', '.join(missing)}")
    with Lab("initiator", "target") as lab:
        yield lab


@pytest.fixture
def charon(lab: Lab) -> Iterator[Charon]:
    """The initiator's charon."""
    charon = lab.ike_only("initiator")
    yield charon
    charon.kill()


SIGNS_OF_FAILURE = (
    "could not decrypt payloads",
    "calculated HASH does not match",
    "MAC mismatched",
    "AUTHENTICATION_FAILED",
    "INVALID_KE_PAYLOAD",
    "NO_PROPOSAL_CHOSEN",
    "no shared key found",
    "giving up after",
)


@dataclass(frozen=True)
class Pair:
    """Two charons whose connection "c" differs in nothing but direction."""

    lab: Lab
    initiator: Charon
    target: Charon

    def connect(self, ike: Ike, ident: str, *, name: str = "c", address: str | None = None) -> None:
        ours = address or self.lab.node("initiator").at.v4
        theirs = self.lab.node("target").at.v4
        self.initiator.load_conn(
            name, connection(ike, local=ours, remote=theirs, local_id=ident, remote_id=TARGET)
        )
        self.target.load_conn(
            name, connection(ike, local=theirs, remote=ours, local_id=TARGET, remote_id=ident)
        )

    def comes_up(self, name: str = "c") -> bool:
        """Whether the IKE SA comes up. Read from the logs: a wrong key in main mode is a
        mere timeout for who waits for the answer of `initiate`. After a refusal both ends are idle.
        """
        marks = {charon: charon.log_mark() for charon in (self.initiator, self.target)}
        self.initiator.start_initiate(ike=name)

        def verdict() -> str:
            if any(sa["state"] == b"ESTABLISHED" for _, sa in self.initiator.sas()):
                return "up"
            said = "".join(charon.log_text(mark) for charon, mark in marks.items())
            return "refused" if any(sign in said for sign in SIGNS_OF_FAILURE) else ""

        seen = wait_until(verdict, "the IKE SA comes up or is refused", detail=self.target.tail)
        if seen != "up":
            self.forget()  # one end may be yet to say so, and the next attempt would be taken for refused
        return seen == "up"

    def forget(self) -> None:
        """No SA on either side, as if nothing had been tried."""
        self.initiator.forget_sas()
        self.target.forget_sas()
        wait_until(lambda: not self.initiator.sas() and not self.target.sas(), "both ends are idle")


@pytest.fixture
def pair(lab: Lab, charon: Charon) -> Iterator[Pair]:
    target = lab.ike_only("target")
    yield Pair(lab, charon, target)
    target.kill()


@pytest.fixture
def daemon(lab: Lab, charon: Charon) -> Iterator[Daemon]:
    """The daemon beside the initiator's charon, on empty folders, not started yet."""
    daemon = lab.daemon("initiator", charon)
    yield daemon
    daemon.close()
    # what outlives the daemon by design would be the next test's start
    lab.node("initiator").run(["nft", "delete", "table", "inet", "iscsi_ipsec"], check=False)


@pytest.fixture
def managed(charon: Charon, daemon: Daemon) -> Daemon:
    """A running daemon with one key and one portal in charon."""
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file())
    daemon.start()
    wait_for_connection(charon, daemon)
    daemon.settle()
    return daemon


@pytest.fixture
def hosts(lab: Lab) -> Iterator[Path]:
    """The initiator's /etc/hosts, which `ip netns exec` puts in the place of the machine's."""
    folder = Path("/etc/netns") / lab.node("initiator").name
    folder.mkdir(parents=True)
    path = folder / "hosts"
    path.write_text("127.0.0.1 localhost\n")
    yield path
    path.unlink()
    folder.rmdir()
