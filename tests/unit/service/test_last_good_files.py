"""What the store holds of files, and when it is written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iscsi_ipsec.adapters.state_db import LastGood
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.service.last_good_files import LastGoodFiles
from tests.support.fakes import READ_ONLY, FakeClock, FakeStore

DB1 = LastGood(path="/etc/psk.d/db1.toml", kind="psk", raw=Secret(b"key"), key=None, signature="1:2:3:4")
SAN = LastGood(
    path="/etc/portal.d/san.toml", kind="portal", raw=Secret(b"san"), key=None, signature="1:2:3:5"
)


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore(FakeClock())
    store.put_last_good([DB1, SAN])
    store.calls.clear()
    return store


@pytest.fixture
def files(store: FakeStore) -> LastGoodFiles:
    files = LastGoodFiles(store, "/var/lib/iscsi-ipsec")
    files.load()
    return files


def test_load_reads_the_store_once(store: FakeStore) -> None:
    files = LastGoodFiles(store, "/var/lib/iscsi-ipsec")
    assert (files.load(), files.load()) == (True, False)
    assert store.calls["all_last_good"] == 1
    assert files.get(DB1.path) == DB1
    assert dict(files.of_kind("portal")) == {SAN.path: SAN}


def test_load_of_a_store_that_cannot_be_read_knows_nothing_and_stops_nothing(store: FakeStore) -> None:
    store.fail(READ_ONLY, "all_last_good")
    files = LastGoodFiles(store, "/var/lib/iscsi-ipsec")
    assert files.load()
    assert files.get(DB1.path) is None


def test_keep_stores_what_differs_and_not_what_is_stored(store: FakeStore, files: LastGoodFiles) -> None:
    files.keep(DB1)
    assert files.save() is None
    assert not store.calls["put_last_good"]
    changed = replace(SAN, raw=Secret(b"other"))
    files.keep(changed)
    assert files.save() is None
    assert store.all_last_good()[SAN.path] == changed


def test_keep_lets_go_of_a_stored_text_that_is_in_memory_now(files: LastGoodFiles) -> None:
    files.keep(DB1)
    assert files.get(DB1.path) is None
    assert dict(files.of_kind("psk")) == {}


def test_forget_deletes_a_file_that_was_stored_and_one_that_was_not_saved_yet(
    store: FakeStore, files: LastGoodFiles
) -> None:
    files.keep(replace(DB1, raw=Secret(b"new")))
    files.forget(DB1.path)
    files.forget(SAN.path)
    assert files.save() is None
    assert dict(store.all_last_good()) == {}


def test_keep_of_a_file_that_came_back_stores_it(store: FakeStore, files: LastGoodFiles) -> None:
    files.forget(DB1.path)
    files.keep(DB1)
    files.save()
    assert DB1.path in store.all_last_good()


def test_save_that_fails_says_so_and_is_tried_again(store: FakeStore, files: LastGoodFiles) -> None:
    files.keep(replace(DB1, raw=Secret(b"new")))
    store.fail(READ_ONLY, "put_last_good")
    problem = files.save()
    assert problem is not None
    assert problem.code == "state-unsaved"
    assert "/var/lib/iscsi-ipsec" in problem.hint
    store.recover()
    assert files.save() is None
    assert store.all_last_good()[DB1.path].raw == Secret(b"new")


def test_after_the_database_was_begun_anew_everything_is_stored_again(
    store: FakeStore, files: LastGoodFiles
) -> None:
    files.keep(DB1)
    store.drop_last_good([DB1.path, SAN.path])
    store.renewals += 1
    assert files.was_lost()
    files.store_all_again()
    assert not files.was_lost()
    files.keep(DB1)
    files.save()
    assert dict(store.all_last_good()) == {DB1.path: DB1}


def test_without_a_store_nothing_is_kept_and_nothing_fails() -> None:
    files = LastGoodFiles(None, "")
    assert files.load()
    files.keep(DB1)
    assert (files.save(), files.was_lost()) == (None, False)
