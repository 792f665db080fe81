"""How often charon is written to, files are opened and passes are made: these counts must not grow unnoticed.

No time is measured here. A pass that reads or writes more than it must is slow on every machine.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.support.admin import CONNECTION, key_file, our_secrets, portal_file, wait_for_connection
from tests.support.ike import KEY_A, KEY_B
from tests.support.netlab import Charon, Daemon, wait_until

MANY = 300
LONG = 60.0
QUIET = 2.2  # a change is looked at once more after 2 s

LOADED = re.compile(r"loaded IKE shared key with id 'iscsi-ipsec-\w+' for: '(?:fqdn:)?([\w.]+)'")


def counters(daemon: Daemon) -> Counter[str]:
    text = (daemon.runtime / "metrics.prom").read_text()
    found = re.findall(r"^iscsi_ipsec_(passes|vici_writes|files_opened)_total (\d+)", text, re.MULTILINE)
    return Counter({name: int(value) for name, value in found})


def write(path: Path, number: int, version: int) -> None:
    """A whole key file at once, as an admin's tool drops it."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.touch(mode=0o600)
    fresh.write_text(key_file(f"k{number}.lab", b"a key of version %06d" % version))
    fresh.replace(path)


def key_path(daemon: Daemon, number: int) -> Path:
    return daemon.psk / f"k{number:04}.toml"


@pytest.fixture
def many(charon: Charon, daemon: Daemon) -> Daemon:
    """A daemon at rest with many keys, which has loaded each once."""
    for number in range(MANY):
        write(key_path(daemon, number), number, 0)
    daemon.put_portal("san", portal_file(psk="k0000"))
    daemon.put_settings("resync_interval = 3600\n")  # no pass but those that are counted
    daemon.start(timeout=LONG)
    wait_for_connection(charon, daemon)
    daemon.settle(QUIET, timeout=LONG)
    assert counters(daemon)["vici_writes"] == MANY + 1
    return daemon


def test_a_file_is_opened_and_charon_is_written_to_only_for_what_changed(
    charon: Charon, many: Daemon
) -> None:
    held, before = our_secrets(charon), counters(many)
    write(key_path(many, 200), 200, 1)
    wait_until(lambda: our_secrets(charon) - held, "the changed key is loaded", timeout=LONG)
    many.settle(QUIET, timeout=LONG)
    # one pass for the change, one that looks once more
    assert counters(many) - before == {"files_opened": 1, "vici_writes": 2, "passes": 2}
    assert len(our_secrets(charon) - held) == len(held - our_secrets(charon)) == 1

    held, before = our_secrets(charon), counters(many)
    os.utime(key_path(many, 200), (1, 1))  # a touch
    wait_until(lambda: counters(many)["files_opened"] > before["files_opened"], "it is read", timeout=LONG)
    many.settle(QUIET, timeout=LONG)
    assert counters(many) - before == {"files_opened": 1, "passes": 1}
    assert our_secrets(charon) == held

    many.put_settings("resync_interval = 1\n")
    many.settle(0.9, timeout=LONG)
    before = counters(many)
    wait_until(
        lambda: counters(many)["passes"] >= before["passes"] + 3, "three more passes are made", timeout=LONG
    )
    assert set(counters(many) - before) == {"passes"}


def test_a_burst_ends_in_the_files_content_and_loads_no_key_more_than_twice(
    charon: Charon, daemon: Daemon
) -> None:
    daemon.start()
    mark = charon.log_mark()
    for version in range(2):
        for number in range(MANY):
            write(key_path(daemon, number), number, version)
    for number in range(0, MANY, 2):
        key_path(daemon, number).unlink()
    wait_until(
        lambda: len(our_secrets(charon)) == MANY // 2, "the files that are left are loaded", timeout=LONG
    )
    daemon.settle(QUIET, timeout=LONG)
    assert len(our_secrets(charon)) == MANY // 2
    loads = Counter(LOADED.findall(charon.log_text(mark)))
    assert {
        f"k{number}.lab" for number in range(1, MANY, 2)
    } <= loads.keys()  # control: the log is understood
    assert max(loads.values()) <= 2


def fill(charon: Charon) -> None:
    """Foreign secrets whose names alone are more than one answer of charon's can hold."""
    with charon.vici(timeout=LONG) as session:
        for number in range(10):
            secret = {
                "id": f"foreign-{number}-{'x' * 60_000}",
                "type": "IKE",
                "data": b"foreign",
                "owners": ["x.lab"],
            }
            session.load_shared(secret)


def test_with_more_secrets_than_charon_can_list_keys_are_still_loaded_once_and_changed(
    charon: Charon, daemon: Daemon
) -> None:
    fill(charon)
    daemon.put_settings("resync_interval = 1\n")
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file())
    mark = charon.log_mark()
    daemon.start()
    wait_until(
        lambda: any("more secrets than it can list" in text for text in daemon.problems()), "it is reported"
    )
    passes = counters(daemon)["passes"]
    wait_until(lambda: counters(daemon)["passes"] >= passes + 3, "three more passes are made", timeout=LONG)
    assert counters(daemon)["vici_writes"] == 2
    assert daemon.row("10.10.0.2:3260")["ready"]
    daemon.put_key("a", key_file("a.lab", KEY_B))
    wait_until(
        lambda: "unloaded shared key with id 'iscsi-ipsec-" in charon.log_text(mark), "the old key goes"
    )
    wait_until(lambda: counters(daemon)["vici_writes"] >= 6, "secret and connection are changed")
    passes = counters(daemon)["passes"]
    wait_until(lambda: counters(daemon)["passes"] >= passes + 3, "three more passes are made", timeout=LONG)
    assert counters(daemon)["vici_writes"] == 6
    assert len(LOADED.findall(charon.log_text(mark))) == 2
    assert CONNECTION in charon.connections()


def test_secrets_that_others_unload_while_charon_cannot_list_them_are_loaded_again(
    charon: Charon, daemon: Daemon
) -> None:
    # not by swanctl: it waits for the list for ever
    fill(charon)
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file())
    mark = charon.log_mark()
    daemon.start()
    wait_for(charon, daemon, mark, 1)
    daemon.settle(QUIET)
    (ours,) = re.findall(r"with id '(iscsi-ipsec-\w+)'", charon.log_text(mark))
    charon.unload_psk(ours)
    wait_for(charon, daemon, mark, 2)


def wait_for(charon: Charon, daemon: Daemon, mark: int, loads: int) -> None:
    wait_until(
        lambda: len(LOADED.findall(charon.log_text(mark))) == loads, f"loads are {loads}", detail=daemon.tail
    )


class Mount:
    """A Kubernetes secret mounted on psk.d: what kubelet's atomic writer does (pkg/volume/util/atomic_writer.go)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def exchange(self, files: dict[str, str]) -> None:
        self._count += 1
        fresh = self.folder / f"..2026_11_22_00_00_0{self._count}.1234"
        fresh.mkdir(mode=0o755)
        for name, text in files.items():
            path = fresh / name
            path.touch(mode=0o400)
            path.write_text(text)
        data, temporary = self.folder / "..data", self.folder / "..data_tmp"
        old = data.resolve() if data.is_symlink() else None
        temporary.symlink_to(fresh.name)
        temporary.rename(data)
        for name in files:
            link = self.folder / name
            if not link.is_symlink():
                link.symlink_to(f"..data/{name}")
        for link in self.folder.glob("[!.]*"):
            if link.name not in files:
                link.unlink()
        if old is not None:
            for path in old.iterdir():
                path.unlink()
            old.rmdir()


def test_a_kubernetes_secret_that_is_exchanged_is_loaded_as_a_whole(charon: Charon, daemon: Daemon) -> None:
    named = 'id_type = "ID_FQDN"\nid = "a.lab"\nkey_file = "a.key"\n'
    daemon.psk.chmod(0o1777)  # as kubelet makes it
    mount = Mount(daemon.psk)
    mount.exchange({"a.toml": named, "a.key": KEY_A.decode() + "\n", "b.toml": key_file("b.lab", KEY_A)})
    daemon.put_portal("san", portal_file(psk="a"))
    daemon.start()
    wait_for_connection(charon, daemon)
    assert len(our_secrets(charon)) == 2
    daemon.settle(QUIET)
    held, before = our_secrets(charon), counters(daemon)
    mount.exchange({"a.toml": named, "a.key": KEY_B.decode() + "\n", "c.toml": key_file("c.lab", KEY_B)})
    wait_until(lambda: not our_secrets(charon) & held and len(our_secrets(charon)) == 2, "both are exchanged")
    daemon.settle(QUIET)
    assert {row["name"] for row in daemon.status()["keys"]} == {"a", "c"}
    assert {row["state"] for row in daemon.status()["files"]} == {"ok"}
    assert daemon.problems() == []
    # two secrets and the connection whose key changed, each loaded once and unloaded once
    assert (counters(daemon) - before)["vici_writes"] == 6
