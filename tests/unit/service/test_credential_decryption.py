"""Decrypting beside the loop: nothing waits for it, nothing is done twice, and what fails is tried again with pauses."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from iscsi_ipsec.adapters import credentials
from iscsi_ipsec.adapters.files import FileStat
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.service.config_files import FileReader
from iscsi_ipsec.service.credential_decryption import AT_ONCE, FIRST_DELAY, PENDING, Decryption
from iscsi_ipsec.service.paths import Paths

OLD = FileStat.at("/")
NEW = FileStat.at("/proc")
BROKEN = ConfigError((Problem(code="bad-credential", message="cannot be decrypted"),))


@dataclass
class Tpm:
    """Decrypts when it is let; counts."""

    answer: Secret | ConfigError = field(default_factory=lambda: Secret(b"k1"))
    asked: int = 0
    at_once: int = 0
    most: int = 0
    at: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)
    done: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def decrypt(self, _name: str, _path: str, _asked_by: str) -> Secret:
        with self.lock:
            self.asked += 1
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        assert self.gate.wait(10)
        with self.lock:
            self.at_once -= 1
        if isinstance(self.answer, ConfigError):
            raise self.answer
        return self.answer

    def finished(self, count: int = 1) -> None:
        """Let it work, and return when so many decryptions are done."""
        self.gate.set()
        for _ in range(count):
            assert self.done.acquire(timeout=10)


@pytest.fixture
def tpm() -> Iterator[Tpm]:
    tpm = Tpm()
    yield tpm
    tpm.gate.set()


@pytest.fixture
def decryption(tpm: Tpm) -> Decryption:
    return Decryption(tpm.done.release, decrypt=tpm.decrypt, clock=lambda: tpm.at)


def code(decryption: Decryption, stat: FileStat | None = OLD, name: str = "db1") -> str:
    with pytest.raises(ConfigError) as err:
        decryption(name, f"/store/{name}", stat, "psk.d/db1.toml")
    (problem,) = err.value.problems
    return problem.code


def read(decryption: Decryption, stat: FileStat | None = OLD) -> bytes:
    return decryption("db1", "/store/db1", stat, "psk.d/db1.toml").reveal()


def test_a_read_returns_at_once_and_has_the_bytes_when_they_are_there(
    tpm: Tpm, decryption: Decryption
) -> None:
    assert [code(decryption) for _ in range(3)] == [PENDING] * 3
    tpm.finished()
    assert read(decryption) == b"k1"
    assert tpm.asked == 1


def test_the_same_file_is_decrypted_once_and_another_in_its_place_again(
    tpm: Tpm, decryption: Decryption
) -> None:
    code(decryption)
    tpm.finished()
    assert [read(decryption) for _ in range(5)] == [b"k1"] * 5
    tpm.answer = Secret(b"k2")
    assert code(decryption, NEW) == PENDING
    tpm.finished()
    assert read(decryption, NEW) == b"k2"
    assert tpm.asked == 2


def test_a_result_for_a_file_that_was_replaced_meanwhile_is_not_taken_for_the_new_ones(
    tpm: Tpm, decryption: Decryption
) -> None:
    code(decryption)
    code(decryption, NEW)
    tpm.finished(2)
    tpm.answer = Secret(b"k2")
    assert read(decryption, NEW) == b"k1"
    assert tpm.asked == 2


def test_what_fails_is_tried_again_after_growing_pauses_and_says_so_meanwhile(
    tpm: Tpm, decryption: Decryption
) -> None:
    tpm.answer = BROKEN
    code(decryption)
    tpm.finished()
    for pause in (FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY):
        asked = tpm.asked
        tpm.at += pause - 0.1
        assert code(decryption) == "bad-credential"
        assert tpm.asked == asked
        tpm.at += 0.2
        assert code(decryption) == "bad-credential", "not flapping between two problems"
        tpm.finished()
        assert tpm.asked == asked + 1


def test_a_reload_tries_at_once_what_failed_and_nothing_else(tpm: Tpm, decryption: Decryption) -> None:
    tpm.answer = BROKEN
    code(decryption)
    tpm.finished()
    tpm.answer = Secret(b"k1")
    decryption.try_failed_again()
    assert code(decryption) == "bad-credential"
    tpm.finished()
    assert read(decryption) == b"k1"
    decryption.try_failed_again()
    assert read(decryption) == b"k1"
    assert tpm.asked == 2


def test_few_are_decrypted_at_once(tpm: Tpm, decryption: Decryption) -> None:
    for number in range(20):
        assert code(decryption, name=f"db{number}") == PENDING
    tpm.finished(20)
    assert (tpm.asked, tpm.most <= AT_ONCE) == (20, True)


def test_a_problem_has_nothing_of_the_key(tpm: Tpm, decryption: Decryption) -> None:
    tpm.answer = Secret(b"canary-0123456789")
    with pytest.raises(ConfigError) as err:
        decryption("db1", "/store/db1", OLD, "psk.d/db1.toml")
    tpm.finished()
    assert "canary" not in str(err.value) + repr(decryption.__dict__)


def test_a_file_reader_waits_for_no_decryption_and_keeps_the_last_key_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tpm: Tpm, decryption: Decryption
) -> None:
    credential = tmp_path / "store" / "db1"
    credential.parent.mkdir()
    monkeypatch.setattr(credentials, "ENCRYPTED_STORES", (str(credential.parent),))
    (tmp_path / "etc/psk.d").mkdir(parents=True, mode=0o700)
    key_file = tmp_path / "etc/psk.d/db1.toml"
    key_file.touch(0o600)
    key_file.write_text('id_type = "ID_FQDN"\nid = "db1"\nkey_credential = "db1"\n')
    paths = Paths(config_dir=str(tmp_path / "etc"), runtime_dir=str(tmp_path), state_dir=str(tmp_path))
    reader = FileReader(paths, None, decryption=decryption)

    def written(content: str) -> None:
        """The credential, replaced and older than the clock's grain."""
        fresh = credential.with_name("fresh")
        fresh.write_text(content)
        os.utime(fresh, ns=(time.time_ns() - 10**11,) * 2)
        os.replace(fresh, credential)

    def keys() -> list[bytes]:
        return [key.secret.reveal() for key in reader.read().keys]

    written("first")
    assert keys() == []
    assert [problem.code for problem in reader.read().problems] == [PENDING]
    tpm.finished()
    assert keys() == [b"k1"]
    tpm.gate.clear()
    tpm.answer = Secret(b"k2")
    written("second")
    assert keys() == [b"k1"], "its last good key stays in force"
    tpm.finished()
    assert keys() == [b"k2"]
    assert tpm.asked == 2
