"""The admin's files on a real file system: nothing that happens to a file makes things worse."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from iscsi_ipsec.adapters import credentials, files
from iscsi_ipsec.adapters.state_db import Store
from iscsi_ipsec.base.keys import GroupKey, PerIdKey
from iscsi_ipsec.base.portal import parse_portal_pattern
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.service.config_files import ConfigFiles, FileReader
from iscsi_ipsec.service.paths import Paths

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")

GOOD = 'id_type = "ID_FQDN"\nid = "db1"\nkey = "a good key of db1"\n'
NEWER = 'id_type = "ID_FQDN"\nid = "db1"\nkey = "a newer key of db1"\n'
LATER = 10**10
"""Nanoseconds; a clock that is this far ahead takes every file for settled."""


@dataclass
class Host:
    """One instance's folders, and a reader that can be restarted."""

    root: Path
    paths: Paths = field(init=False)
    store: Store = field(init=False)
    reader: FileReader = field(init=False)

    def __post_init__(self) -> None:
        self.paths = Paths(
            config_dir=str(self.root / "etc"),
            runtime_dir=str(self.root / "run"),
            vendor_dir=str(self.root / "usr"),
            state_dir=str(self.root / "state"),
        )
        for folder in ("etc/psk.d", "etc/portal.d", "run/psk.d", "run/portal.d", "usr/portal.d"):
            (self.root / folder).mkdir(mode=0o700, parents=True)
        self.store = Store(self.paths.store_file)
        self.reader = FileReader(self.paths, self.store, clock=self.clock)

    @staticmethod
    def clock() -> int:
        return 1 << 62

    def write(self, path: str, text: str | bytes, mode: int = 0o600) -> Path:
        """As an editor writes: a new file, renamed into place."""
        at = self.root / path
        beside = at.with_name(f".{at.name}.new")
        beside.write_bytes(text.encode() if isinstance(text, str) else text)
        beside.chmod(mode)
        return beside.rename(at)

    def read(self) -> ConfigFiles:
        """One pass."""
        config = self.reader.read()
        assert self.reader.save() is None
        return config

    def restart(self) -> None:
        self.store.close()
        self.store = Store(self.paths.store_file)
        self.reader = FileReader(self.paths, self.store, clock=self.clock)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.store.close()


def key_of(config: ConfigFiles, name: str = "db1") -> bytes | None:
    found = [key.secret.reveal() for key in config.keys if key.name == name]
    assert len(found) <= 1
    return found[0] if found else None


def state_of(config: ConfigFiles, name: str = "db1.toml") -> str | None:
    states = [row.state for row in config.rows if row.path.endswith(f"/{name}")]
    assert len(states) <= 1
    return states[0] if states else None


def codes(config: ConfigFiles) -> list[str]:
    return [problem.code for problem in config.problems]


# -- reading


def test_every_kind_of_file_is_read(host: Host) -> None:
    host.write("etc/psk.d/db1.toml", GOOD)
    host.write("etc/psk.d/group.toml", 'group = true\nkey = "a good key of the group"\n')
    host.write("etc/portal.d/san.toml", 'portals = ["10.0.0.20"]\n')
    host.write("usr/portal.d/vendor.toml", 'portals = ["10.0.0.21"]\n')
    host.write("etc/iscsi-ipsecd.toml", "require_ipsec = true\n")
    config = host.read()
    assert [type(key) for key in config.keys] == [PerIdKey, GroupKey]
    assert [policy.name for policy in config.policies] == ["san", "vendor"]
    assert config.settings.require_ipsec
    assert {row.state for row in config.rows} == {"ok"}
    assert config.problems == ()


def test_without_any_file_the_defaults_hold(host: Host) -> None:
    config = host.read()
    assert (config.keys, config.policies, config.problems) == ((), (), ())
    assert config.settings.guard


def test_a_file_in_etc_beats_one_of_the_same_name_in_run(host: Host) -> None:
    host.write("run/psk.d/db1.toml", NEWER)
    host.write("etc/psk.d/db1.toml", GOOD)
    assert key_of(host.read()) == b"a good key of db1"


def test_a_link_to_dev_null_masks_the_file_of_that_name(host: Host) -> None:
    host.write("usr/portal.d/vendor.toml", 'portals = ["10.0.0.21"]\n')
    (host.root / "etc/portal.d/vendor.toml").symlink_to("/dev/null")
    config = host.read()
    assert config.policies == ()
    assert state_of(config, "vendor.toml") == "masked"


def test_masking_a_key_that_was_in_force_takes_it_out_of_force(host: Host) -> None:
    file = host.write("run/psk.d/db1.toml", GOOD)
    assert key_of(host.read())
    (host.root / "etc/psk.d/db1.toml").symlink_to("/dev/null")
    assert key_of(host.read()) is None
    assert file.exists()


def test_a_weak_key_is_in_force_with_a_warning_at_its_line(host: Host) -> None:
    host.write("etc/psk.d/db1.toml", 'id_type = "ID_FQDN"\nid = "db1"\nkey = "short"\n')
    config = host.read()
    assert key_of(config) == b"short"
    assert [(p.code, p.line) for p in config.problems] == [("weak-key", 3)]


@pytest.mark.parametrize("line", ['key_hex = "0x"', 'key_hex = ":"', 'key_file = "empty.key"'])
def test_an_empty_key_is_refused(host: Host, line: str) -> None:
    host.write("etc/psk.d/empty.key", b"\n")
    host.write("etc/psk.d/db1.toml", f'id_type = "ID_FQDN"\nid = "db1"\n{line}\n')
    config = host.read()
    assert key_of(config) is None
    assert codes(config) == ["empty-key"]


# -- what breaks, and heals


def truncate(file: Path) -> None:
    file.write_text(file.read_text()[:-8])


def vanish_into_symlink(file: Path) -> None:
    elsewhere = file.parent.parent / "elsewhere.toml"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def become_a_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


BREAKAGES: dict[str, Callable[[Path], object]] = {
    "no TOML": lambda file: file.write_text("key = = nonsense"),
    "TOML with a mistake": lambda file: file.write_text(GOOD.replace("ID_FQDN", "ID_FDQN")),
    "readable by others": lambda file: file.chmod(0o644),
    "writable by its group": lambda file: file.chmod(0o620),
    "a link out of the folder": vanish_into_symlink,
    "truncated": truncate,
    "emptied": lambda file: file.write_bytes(b""),
    "a megabyte of noise": lambda file: file.write_bytes(os.urandom(1 << 20)),
    "a megabyte of NUL": lambda file: file.write_bytes(bytes(1 << 20)),
    "not UTF-8": lambda file: file.write_bytes(GOOD.encode().replace(b"good", b"g\xff\xfed")),
    "a huge number": lambda file: file.write_text(f"group = {'1' * 6000}"),
    "a folder": become_a_folder,
    "a FIFO": become_a_fifo,
    "another name for it": lambda file: os.link(file, file.with_suffix(".bak")),
}
each_breakage = pytest.mark.parametrize("spoil", BREAKAGES.values(), ids=BREAKAGES)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@each_breakage
def test_a_broken_files_last_good_content_stays_in_force_and_heals(
    host: Host, spoil: Callable[[Path], object]
) -> None:
    file = host.write("etc/psk.d/db1.toml", GOOD)
    other = host.write("etc/psk.d/db2.toml", GOOD.replace("db1", "db2"))
    host.read()
    spoil(file)

    for _ in range(2):
        config = host.read()
        assert key_of(config) == b"a good key of db1"
        assert key_of(config, "db2") == b"a good key of db2"
        assert state_of(config) == "last-good"
        assert config.problems
        assert all(p.file == str(file) for p in config.problems)
        assert all("last good content stays in force" in p.message for p in config.problems)
        assert "a good key" not in " ".join(map(repr, config.problems))

    remove(file)
    Path(file.with_suffix(".bak")).unlink(missing_ok=True)
    host.write("etc/psk.d/db1.toml", NEWER)
    healed = host.read()
    assert key_of(healed) == b"a newer key of db1"
    assert state_of(healed) == "ok"
    assert healed.problems == ()
    assert other.exists()


@each_breakage
def test_a_broken_files_last_good_content_is_known_after_a_restart(
    host: Host, spoil: Callable[[Path], object]
) -> None:
    file = host.write("etc/psk.d/db1.toml", GOOD)
    host.read()
    spoil(file)
    host.restart()

    config = host.read()
    assert key_of(config) == b"a good key of db1"
    assert state_of(config) == "last-good"
    assert config.problems
    host.restart()
    assert key_of(host.read()) == b"a good key of db1"


@needs_root
def test_a_file_given_to_another_user_is_not_read_any_more(host: Host) -> None:
    file = host.write("etc/psk.d/db1.toml", GOOD)
    host.read()
    file.write_text(NEWER)
    os.chown(file, NOBODY, NOBODY)
    config = host.read()
    assert key_of(config) == b"a good key of db1"
    assert codes(config) == ["bad-owner"]
    assert config.problems[0].hint.startswith("chown ")
    os.chown(file, 0, 0)
    assert key_of(host.read()) == b"a newer key of db1"


def test_a_broken_file_that_was_never_good_is_refused(host: Host) -> None:
    host.write("etc/psk.d/db1.toml", "key = = nonsense")
    config = host.read()
    assert config.keys == ()
    assert state_of(config) == "refused"


def test_a_broken_policy_and_broken_settings_stay_as_they_were(host: Host) -> None:
    policy = host.write("etc/portal.d/san.toml", 'portals = ["10.0.0.20"]\n')
    settings = host.write("etc/iscsi-ipsecd.toml", "require_ipsec = true\n")
    host.read()
    policy.write_text('portals = ["10.0.0.20"]\nrole = "server"\n')
    settings.write_text("require_ipsec = 1\n")
    for _ in range(2):
        config = host.read()
        assert [p.name for p in config.policies] == ["san"]
        assert config.settings.require_ipsec
        assert [p.line for p in config.problems] == [1, 2]
        host.restart()


MISTAKE = "resync_intervall = 10\n"


@pytest.mark.parametrize(
    "good", ["", "require_ipsec = false\nguard = false\n[defaults]\nsecurity_flags = 0x01\n"]
)
@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("mistake", [MISTAKE, "this is no TOML\n"], ids=["unknown key", "no TOML"])
def test_what_closes_in_broken_settings_is_in_force_at_once_and_nothing_that_opens(
    host: Host, good: str, restarted: bool, mistake: str
) -> None:
    if good:
        host.write("etc/iscsi-ipsecd.toml", good)
        before = host.read()
        assert (before.settings.require_ipsec, before.settings.guard) == (False, False)
    host.write(
        "etc/iscsi-ipsecd.toml",
        f"{mistake}require_ipsec = true\nguard = true\nsettle_time = 3\n[defaults]\nsecurity_flags = 0x33\n",
    )
    if restarted:
        host.restart()
    settings = host.read().settings
    assert (settings.require_ipsec, settings.guard, settings.settle_time) == (True, True, 0.05)
    assert settings.default_choice is None or settings.default_choice.required
    assert host.reader.read_settings() == settings
    generation = host.read().generation
    host.write("etc/iscsi-ipsecd.toml", f"{mistake}require_ipsec = false\n")
    config = host.read()
    assert config.generation != generation
    assert config.settings.require_ipsec is False, "the last good ones say so"


def test_broken_settings_open_nothing_that_the_last_good_ones_close(host: Host) -> None:
    host.write("etc/iscsi-ipsecd.toml", "require_ipsec = true\n[defaults]\nsecurity_flags = 0x33\n")
    good = host.read().settings
    host.write(
        "etc/iscsi-ipsecd.toml",
        f"{MISTAKE}require_ipsec = false\nguard = false\n[defaults]\nsecurity_flags = 0x01\n",
    )
    assert host.read().settings == good


@pytest.mark.parametrize("restarted", [False, True])
def test_a_portal_that_an_edit_with_a_mistake_adds_is_closed_and_the_others_are_as_they_were(
    host: Host, restarted: bool
) -> None:
    host.write("etc/portal.d/san.toml", 'portals = ["10.0.0.20"]\n')
    host.write("etc/psk.d/db1.toml", GOOD)
    assert host.read().broken == ()
    host.write("etc/portal.d/san.toml", 'portals = ["10.0.0.20", "10.0.0.30"]\nnonsense = 1\n')
    host.write("etc/psk.d/db1.toml", GOOD + 'portals = ["10.0.0.40"]\nnonsense = 1\n')
    if restarted:
        host.restart()
    config = host.read()
    assert [policy.patterns for policy in config.policies] == [(parse_portal_pattern("10.0.0.20"),)]
    assert {(f.name, f.is_policy, f.patterns) for f in config.broken} == {
        ("san", True, (parse_portal_pattern("10.0.0.30"),)),
        ("db1", False, (parse_portal_pattern("10.0.0.40"),)),
    }


def test_a_key_file_that_is_refused_for_its_mode_closes_the_portals_it_names(host: Host) -> None:
    host.write("etc/psk.d/db1.toml", GOOD + 'portals = ["10.0.0.40"]\n', mode=0o644)
    config = host.read()
    assert config.keys == ()
    assert [file.patterns for file in config.broken] == [(parse_portal_pattern("10.0.0.40"),)]


def test_reader_reports_both_mistakes_of_a_file_at_once(host: Host) -> None:
    host.write("etc/psk.d/db1.toml", 'id_type = "ID_FDQN"\nid = "db1"\nkey_hex = "xyz"\n')
    assert [p.line for p in host.read().problems] == [1, 3]


# -- key files beside


def test_a_changed_key_file_is_seen_though_the_file_that_names_it_is_not_changed(host: Host) -> None:
    host.write("etc/psk.d/db1.key", b"the bytes of the key\n")
    host.write("etc/psk.d/db1.toml", 'id_type = 2\nid = "db1"\nkey_file = "db1.key"\n')
    assert key_of(host.read()) == b"the bytes of the key"
    host.write("etc/psk.d/db1.key", b"other bytes of the key\n\n")
    assert key_of(host.read()) == b"other bytes of the key\n"


def test_a_key_file_that_vanished_stays_known_also_after_a_restart(host: Host) -> None:
    beside = host.write("etc/psk.d/db1.key", b"the bytes of the key")
    host.write("etc/psk.d/db1.toml", 'id_type = 2\nid = "db1"\nkey_file = "db1.key"\n')
    host.read()
    beside.unlink()
    for _ in range(2):
        config = host.read()
        assert key_of(config) == b"the bytes of the key"
        assert state_of(config) == "last-good"
        assert codes(config) == ["missing"]
        host.restart()
    host.write("etc/psk.d/db1.key", b"the newer bytes of it")
    assert key_of(host.read()) == b"the newer bytes of it"


def test_the_folder_of_a_key_file_is_watched(host: Host) -> None:
    (host.root / "keys").mkdir(mode=0o700)
    host.write("keys/db1.key", b"the bytes of the key")
    host.write("etc/psk.d/db1.toml", f'id_type = 2\nid = "db1"\nkey_file = "{host.root}/keys/db1.key"\n')
    assert str(host.root / "keys") in host.read().watched


def test_a_key_file_that_others_may_read_is_refused(host: Host) -> None:
    host.write("etc/psk.d/db1.key", b"the bytes of the key", 0o640)
    host.write("etc/psk.d/db1.toml", 'id_type = 2\nid = "db1"\nkey_file = "db1.key"\n')
    config = host.read()
    assert key_of(config) is None
    assert codes(config) == ["bad-mode"]
    assert "chmod 600" in config.problems[0].hint


# -- credentials


def test_a_key_comes_from_a_systemd_credential(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    (host.root / "credentials").mkdir(mode=0o700)
    host.write("credentials/db1", b"the bytes of the credential\n", 0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(host.root / "credentials"))
    host.write("etc/psk.d/db1.toml", 'id_type = 2\nid = "db1"\nkey_credential = "db1"\n')
    assert key_of(host.read()) == b"the bytes of the credential"


def test_reader_reports_a_missing_credential_with_the_command_that_makes_it(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    host.write("etc/psk.d/db1.toml", 'id_type = 2\nid = "db1"\nkey_credential = "no-such-credential"\n')
    config = host.read()
    assert key_of(config) is None
    assert codes(config) == ["bad-credential"]
    assert "systemd-creds encrypt" in config.problems[0].hint


CREDENTIAL = 'id_type = 2\nid = "db1"\nkey_credential = "c"\n'


@pytest.fixture
def stores(host: Host, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two stores of encrypted credentials, the stronger first; systemd-creds gives the file's bytes, and then runs a hook."""
    found = host.root / "strong", host.root / "weak"
    for folder in found:
        folder.mkdir(mode=0o700)
    program = host.root / "bin" / "systemd-creds"
    program.parent.mkdir()
    hook = host.root / "hook"
    program.write_text(f'#!/bin/sh\ncat "$4"\n[ ! -x {hook} ] || {hook}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(credentials, "ENCRYPTED_STORES", tuple(map(str, found)))
    return found


def test_a_credential_that_is_replaced_while_it_is_decrypted_is_read_again(
    host: Host, stores: tuple[Path, Path]
) -> None:
    """A TPM takes a second, and the file was looked at only after it."""
    _, weak = stores
    host.write("weak/c", b"the first key of db1")
    host.write("etc/psk.d/db1.toml", CREDENTIAL)
    host.write("next", b"the third key of db1")
    hook = host.root / "hook"
    hook.write_text(f"#!/bin/sh\nmv {host.root}/next {weak}/c\nrm {hook}\n")
    hook.chmod(0o755)
    assert key_of(host.read()) == b"the first key of db1"
    assert not hook.exists()
    assert key_of(host.reader.read(all_files=False)) == b"the third key of db1"
    opened = host.reader.opened
    host.read()
    assert host.reader.opened == opened


def test_a_credential_in_a_stronger_store_wins_at_once(host: Host, stores: tuple[Path, Path]) -> None:
    strong, _ = stores
    host.write("weak/c", b"the weaker key of db1")
    host.write("etc/psk.d/db1.toml", CREDENTIAL)
    config = host.read()
    assert key_of(config) == b"the weaker key of db1"
    assert str(strong) in config.watched  # so that its event wakes the loop
    host.write("strong/c", b"the stronger key of db1")
    assert key_of(host.reader.read(all_files=False)) == b"the stronger key of db1"
    (strong / "c").unlink()
    assert key_of(host.reader.read(all_files=False)) == b"the weaker key of db1"


def test_a_credential_that_was_never_there_is_watched_for(host: Host, stores: tuple[Path, Path]) -> None:
    host.write("etc/psk.d/db1.toml", CREDENTIAL)
    config = host.read()
    assert codes(config) == ["bad-credential"]
    assert set(map(str, stores)) <= set(config.watched)
    host.write("weak/c", b"the weaker key of db1")
    assert key_of(host.reader.read(all_files=False)) == b"the weaker key of db1"


def test_a_key_file_that_is_replaced_while_it_is_read_is_read_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.write("etc/psk.d/db1.key", b"the first key of db1")
    host.write("etc/psk.d/db1.toml", 'id_type = 2\nid = "db1"\nkey_file = "db1.key"\n')
    really_read = files.read_key_file

    def replaced_behind_the_reader(path: str, folder: str) -> Secret:
        secret = really_read(path, folder)
        host.write("etc/psk.d/db1.key", b"the other key of db1")
        monkeypatch.setattr(files, "read_key_file", really_read)
        return secret

    monkeypatch.setattr(files, "read_key_file", replaced_behind_the_reader)
    assert key_of(host.read()) == b"the first key of db1"
    assert key_of(host.reader.read(all_files=False)) == b"the other key of db1"


@pytest.mark.parametrize("beside", [False, True], ids=["in the file", "beside"])
def test_a_key_that_was_just_written_is_read_again_until_its_stat_must_tell(host: Host, beside: bool) -> None:
    """Kernels before 6.13 leave no trace of a second write within a tick, even of its time if rsync sets that."""
    if beside:
        host.write("etc/psk.d/db1.toml", 'id_type = 2\nid = "db1"\nkey_file = "db1.key"\n')
        time.sleep(0.03)
    at = (
        host.write("etc/psk.d/db1.key", b"the first key of db1")
        if beside
        else host.write("etc/psk.d/db1.toml", GOOD)
    )
    os.utime(at, (1_700_000_000, 1_700_000_000))
    now = at.stat().st_ctime_ns + 1_000_000
    host.reader = FileReader(host.paths, host.store, clock=lambda: now)
    for count in (1, 2, 3):
        host.reader.read(all_files=False)
        assert host.reader.opened == count
    now += 100_000_000
    for count in (4, 4):
        host.reader.read(all_files=False)
        assert host.reader.opened == count


def test_a_credentials_bytes_are_not_stored(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    (host.root / "credentials").mkdir(mode=0o700)
    host.write("credentials/db1", b"canary-credential-bytes", 0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(host.root / "credentials"))
    host.write("etc/psk.d/db1.toml", 'id_type = 2\nid = "db1"\nkey_credential = "db1"\n')
    host.read()
    host.store.close()
    assert b"canary" not in Path(host.paths.store_file).read_bytes()


# -- removing


def test_a_removed_file_is_forgotten_also_by_the_store(host: Host) -> None:
    file = host.write("etc/psk.d/db1.toml", GOOD)
    host.read()
    file.unlink()
    assert host.read().keys == ()
    assert host.store.all_last_good() == {}
    host.restart()
    host.write("etc/psk.d/db1.toml", "broken")
    assert host.read().keys == ()


def test_a_file_removed_while_we_were_down_is_forgotten(host: Host) -> None:
    file = host.write("etc/psk.d/db1.toml", GOOD)
    host.read()
    file.unlink()
    host.restart()
    assert host.read().keys == ()
    assert host.store.all_last_good() == {}


def test_reader_does_not_revive_a_file_that_was_removed_and_came_back_broken(host: Host) -> None:
    file = host.write("etc/psk.d/db1.toml", GOOD)
    host.read()
    file.unlink()
    host.reader.read()
    host.write("etc/psk.d/db1.toml", "broken")
    config = host.read()
    assert config.keys == ()
    assert state_of(config) == "refused"


def test_a_folder_emptied_on_purpose_is_empty(host: Host) -> None:
    host.write("etc/psk.d/db1.toml", GOOD)
    host.read()
    shutil.rmtree(host.root / "etc/psk.d")
    (host.root / "etc/psk.d").mkdir(mode=0o700)
    config = host.read()
    assert (config.keys, config.problems) == ((), ())


@needs_root
def test_an_unmounted_folders_files_stay_in_force_and_its_return_heals(host: Host) -> None:
    folder = host.root / "etc/psk.d"
    mount = ["mount", "-t", "tmpfs", "-o", "mode=700", "none", str(folder)]
    host.write("run/psk.d/db1.toml", NEWER)
    host.read()
    subprocess.run(mount, check=True)
    try:
        host.write("etc/psk.d/db1.toml", GOOD)
        assert key_of(host.read()) == b"a good key of db1"
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    for _ in range(2):
        config = host.read()
        assert key_of(config) == b"a good key of db1"
        assert codes(config) == ["folder-gone"]
    subprocess.run(mount, check=True)
    try:
        host.write("etc/psk.d/db1.toml", NEWER)
        assert key_of(host.read()) == b"a newer key of db1"
        assert codes(host.read()) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    host.restart()
    assert host.root / "run/psk.d/db1.toml" in map(Path, [row.path for row in host.read().rows])


def test_a_vanished_folder_goes_on_hiding_what_it_hid(host: Host) -> None:
    host.write("run/psk.d/db1.toml", NEWER)
    host.write("run/psk.d/db2.toml", NEWER)
    host.write("etc/psk.d/db1.toml", GOOD)
    (host.root / "etc/psk.d/db2.toml").symlink_to("/dev/null")
    host.read()
    (host.root / "etc/psk.d").rename(host.root / "etc/elsewhere")
    for _ in range(2):
        config = host.read()
        assert key_of(config) == b"a good key of db1"
        assert key_of(config, "db2") is None


def test_a_file_renamed_is_the_same_key_under_its_new_name(host: Host) -> None:
    file = host.write("etc/psk.d/db1.toml", GOOD)
    host.read()
    file.rename(file.with_name("db9.toml"))
    config = host.read()
    assert [key.name for key in config.keys] == ["db9"]
    assert list(host.store.all_last_good()) == [str(file.with_name("db9.toml"))]


# -- folders that vanish


@pytest.mark.parametrize("restarted", [False, True])
def test_a_vanished_folders_files_stay_in_force_and_its_return_heals(host: Host, restarted: bool) -> None:
    host.write("etc/psk.d/db1.toml", GOOD)
    host.read()
    (host.root / "etc/psk.d").rename(host.root / "away")
    if restarted:
        host.restart()

    config = host.read()
    assert key_of(config) == b"a good key of db1"
    assert codes(config) == ["folder-gone"]
    assert config.problems[0].file == str(host.root / "etc/psk.d")

    (host.root / "away").rename(host.root / "etc/psk.d")
    healed = host.read()
    assert key_of(healed) == b"a good key of db1"
    assert (state_of(healed), healed.problems) == ("ok", ())


@pytest.mark.parametrize("restarted", [False, True])
def test_settings_and_policies_stay_in_force_when_the_whole_configuration_vanishes(
    host: Host, restarted: bool
) -> None:
    host.write("etc/psk.d/db1.toml", GOOD)
    host.write("etc/portal.d/san.toml", 'portals = ["10.0.0.20"]\n')
    host.write("etc/iscsi-ipsecd.toml", "require_ipsec = true\n")
    host.read()
    (host.root / "etc").rename(host.root / "away")
    if restarted:
        host.restart()

    config = host.read()
    assert key_of(config) == b"a good key of db1"
    assert [p.name for p in config.policies] == ["san"]
    assert config.settings.require_ipsec


def test_a_folder_that_others_may_write_is_not_trusted_with_changes(host: Host) -> None:
    host.write("etc/psk.d/db1.toml", GOOD)
    host.read()
    (host.root / "etc/psk.d").chmod(0o777)
    host.write("etc/psk.d/db1.toml", NEWER)
    host.write("etc/psk.d/evil.toml", GOOD)
    config = host.read()
    assert [key.name for key in config.keys] == ["db1"]
    assert key_of(config) == b"a good key of db1"
    assert "bad-folder" in codes(config)
    (host.root / "etc/psk.d").chmod(0o700)
    assert {key.name for key in host.read().keys} == {"db1", "evil"}


def test_reader_reads_a_replaced_folder_again(host: Host) -> None:
    host.write("etc/psk.d/db1.toml", GOOD)
    host.read()
    (host.root / "etc/psk.d").rename(host.root / "etc/old")
    (host.root / "etc/psk.d").mkdir(mode=0o700)
    host.write("etc/psk.d/db1.toml", NEWER)
    assert key_of(host.read()) == b"a newer key of db1"


# -- what is not persistent


def test_files_in_run_are_never_stored(host: Host) -> None:
    host.write("run/psk.d/db1.toml", GOOD)
    host.write("run/portal.d/san.toml", 'portals = ["10.0.0.20"]\n')
    assert key_of(host.read())
    assert host.store.all_last_good() == {}


def test_a_broken_file_in_run_keeps_its_last_good_content_until_the_restart(host: Host) -> None:
    file = host.write("run/psk.d/db1.toml", GOOD)
    host.read()
    file.write_text("broken")
    assert key_of(host.read()) == b"a good key of db1"
    host.restart()
    assert key_of(host.read()) is None


def test_a_key_file_that_a_file_in_run_names_is_not_stored(host: Host) -> None:
    host.write("etc/psk.d/db1.key", b"canary-key-bytes")
    host.write("run/psk.d/db1.toml", f'id_type = 2\nid = "db1"\nkey_file = "{host.root}/etc/psk.d/db1.key"\n')
    assert key_of(host.read()) == b"canary-key-bytes"
    host.store.close()
    assert b"canary" not in Path(host.paths.store_file).read_bytes()


# -- how often files are opened


def test_unchanged_files_are_not_opened_again(host: Host) -> None:
    for n in range(20):
        host.write(f"etc/psk.d/db{n}.toml", GOOD.replace("db1", f"db{n}"))
    host.read()
    assert host.reader.opened == 20
    host.read()
    host.read()
    assert host.reader.opened == 20


def test_after_a_reload_every_file_is_opened_once_more(host: Host) -> None:
    for n in range(3):
        host.write(f"etc/psk.d/db{n}.toml", GOOD.replace("db1", f"db{n}"))
    host.read()
    host.reader.forget()
    host.read()
    assert host.reader.opened == 6
    host.read()
    assert host.reader.opened == 6


def test_only_the_changed_file_is_opened_again(host: Host) -> None:
    for n in range(5):
        host.write(f"etc/psk.d/db{n}.toml", GOOD.replace("db1", f"db{n}"))
    host.read()
    host.write("etc/psk.d/db1.toml", NEWER)
    host.read()
    assert host.reader.opened == 6


def test_a_file_written_within_the_clocks_tick_is_read_once_more(host: Host) -> None:
    file = host.write("etc/psk.d/db1.toml", GOOD)
    now = [file.stat().st_mtime_ns]
    reader = FileReader(host.paths, host.store, clock=lambda: now[0])
    reader.read()
    reader.read()
    assert reader.opened == 2
    now[0] += LATER
    reader.read()
    reader.read()
    assert reader.opened == 3


def test_a_reader_without_store_remembers_nothing_on_disk(host: Host) -> None:
    host.write("etc/psk.d/db1.toml", GOOD)
    reader = FileReader(host.paths, None)
    assert key_of(reader.read()) == b"a good key of db1"
    assert reader.save() is None
    assert host.store.all_last_good() == {}


# -- a previous key beside the new one


def staged(until: datetime, previous: str = 'previous_key = "a key of before, of db1"') -> str:
    return f"{NEWER}{previous}\nprevious_until = {until:%Y-%m-%dT%H:%M:%SZ}\n"


def previous_of(config: ConfigFiles) -> bytes | None:
    (key,) = config.keys
    return key.previous.secret.reveal() if key.previous else None


class Clock:
    """Wall-clock time that a test can move."""

    def __init__(self, host: Host) -> None:
        self.now = datetime.fromtimestamp(host.clock() / 1e9, UTC).replace(microsecond=0)
        host.reader = FileReader(host.paths, host.store, clock=lambda: int(self.now.timestamp() * 10**9))


def test_a_previous_key_is_in_force_until_its_time_and_then_out_of_use_without_a_change_of_its_file(
    host: Host,
) -> None:
    clock = Clock(host)
    host.write("etc/psk.d/db1.toml", staged(clock.now + timedelta(hours=1)))
    before = host.read()
    assert previous_of(before) == b"a key of before, of db1"
    assert before.expires_in == 3600
    assert host.read().generation == before.generation
    clock.now += timedelta(hours=1)
    after = host.read()
    assert previous_of(after) is None
    assert key_of(after) == b"a newer key of db1"
    assert after.generation != before.generation
    assert after.expires_in is None
    (reported,) = after.problems
    assert (reported.code, reported.line, reported.severity.value) == ("previous-key-over", 4, "warning")
    assert host.read().generation == after.generation
    clock.now -= timedelta(minutes=1)  # a clock that was wrong
    assert previous_of(host.read()) == b"a key of before, of db1"


def test_without_a_rotation_there_is_no_time_to_wait_for(host: Host) -> None:
    host.write("etc/psk.d/db1.toml", GOOD)
    assert host.read().expires_in is None


def test_a_changed_file_of_the_previous_key_is_seen(host: Host) -> None:
    clock = Clock(host)
    host.write("etc/psk.d/old.key", "a key of before, of db1\n")
    host.write("etc/psk.d/db1.toml", staged(clock.now + timedelta(days=1), 'previous_key_file = "old.key"'))
    assert previous_of(host.read()) == b"a key of before, of db1"
    host.write("etc/psk.d/old.key", "another key of before\n")
    assert previous_of(host.read()) == b"another key of before"


@pytest.mark.parametrize(
    "form", ['previous_key = "a key of before, of db1"', 'previous_key_file = "old.key"']
)
def test_a_broken_files_previous_key_stays_in_force_too_after_a_restart(host: Host, form: str) -> None:
    clock = Clock(host)
    host.write("etc/psk.d/old.key", "a key of before, of db1\n")
    host.write("etc/psk.d/db1.toml", staged(clock.now + timedelta(days=1), form))
    assert previous_of(host.read()) == b"a key of before, of db1"
    host.write("etc/psk.d/db1.toml", "key = \n")
    host.write("etc/psk.d/old.key", "")
    host.restart()
    Clock(host)
    config = host.read()
    assert state_of(config) == "last-good"
    assert previous_of(config) == b"a key of before, of db1"


def test_reader_refuses_an_empty_previous_key_and_reports_an_equal_one(host: Host) -> None:
    clock = Clock(host)
    host.write("etc/psk.d/old.key", "\n")
    host.write("etc/psk.d/db1.toml", staged(clock.now + timedelta(days=1), 'previous_key_file = "old.key"'))
    assert codes(host.read()) == ["empty-key"]
    same = staged(clock.now + timedelta(days=1), 'previous_key = "a newer key of db1"')
    host.write("etc/psk.d/db1.toml", same)
    assert codes(host.read()) == ["same-key"]
    assert previous_of(host.read()) is None


def test_reader_returns_the_same_object_while_nothing_differs(host: Host) -> None:
    host.write("etc/psk.d/db1.toml", GOOD)
    before = host.read()
    assert host.read() is before
    host.write("etc/psk.d/db1.toml", NEWER)
    after = host.read()
    assert after is not before
    assert after.generation != before.generation
    assert host.read() is after


def rewrite(path: Path, text: str) -> None:
    """Change a file in place, which leaves its folder as it was."""
    path.write_text(text)


def test_as_long_as_nothing_calls_no_file_is_looked_at(host: Host) -> None:
    path = host.write("etc/psk.d/db1.toml", GOOD)
    before = host.read()
    rewrite(path, NEWER)
    assert host.reader.read(all_files=False) is before
    assert key_of(host.read()) == b"a newer key of db1"


@pytest.mark.parametrize("change", ["new", "gone", "folder", "settings"])
def test_reader_sees_a_changed_folder_without_a_call(host: Host, change: str) -> None:
    path = host.write("etc/psk.d/db1.toml", GOOD)
    before = host.read()
    match change:
        case "new":
            host.write("etc/psk.d/db2.toml", GOOD.replace("db1", "db2"))
        case "gone":
            path.unlink()
        case "folder":
            shutil.move(path.parent, host.root / "elsewhere")
            path.parent.mkdir(mode=0o700)
        case "settings":
            host.write("etc/iscsi-ipsecd.toml", "require_ipsec = true\n")
    assert host.reader.read(all_files=False).generation != before.generation


def test_what_is_not_at_rest_is_looked_at_without_a_call(host: Host) -> None:
    path = host.write("etc/psk.d/db1.toml", "key =\n")
    beside = host.write("etc/psk.d/a.key", "a key of another file\n")
    host.write("etc/psk.d/db2.toml", 'id_type = "ID_FQDN"\nid = "db2"\nkey_file = "a.key"\n')
    host.read()
    rewrite(beside, "a newer key of another file\n")
    (key,) = host.reader.read(all_files=False).keys
    assert key.secret.reveal() == b"a newer key of another file"
    rewrite(path, GOOD)
    assert len(host.reader.read(all_files=False).keys) == 2


def test_a_previous_key_goes_out_of_use_without_a_call(host: Host) -> None:
    clock = Clock(host)
    host.write("etc/psk.d/db1.toml", staged(clock.now + timedelta(hours=1)))
    host.read()
    clock.now += timedelta(hours=1)
    assert previous_of(host.reader.read(all_files=False)) is None
