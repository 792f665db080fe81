"""Events that wake the loop, events that must not, and watches that are made again."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from watchdog.events import DirDeletedEvent
from watchdog.observers.inotify import InotifyObserver

from iscsi_ipsec.adapters import inotify as module
from iscsi_ipsec.adapters.atomic_write import write_private
from iscsi_ipsec.adapters.files import find_config, read_config
from iscsi_ipsec.adapters.inotify import FileWatch
from iscsi_ipsec.base.wakeups import Wakeups

PATIENCE = 10.0


class Watched:
    """A FileWatch and the reasons that it woke with."""

    def __init__(self) -> None:
        self.wakeups = Wakeups()
        self.count = 0
        self.watch = FileWatch(self._wake)

    def _wake(self, reason: str) -> None:
        self.count += 1
        self.wakeups.wake(reason)

    def ensure(self, *paths: Path, recursive: bool = False) -> None:
        self.watch.ensure([(str(path), recursive) for path in paths])

    def woken_by(self, act: Callable[[], object]) -> bool:
        """Do it, and wait for a wakeup."""
        self.drain(0.1)
        act()
        return self.wakeups.wait(PATIENCE) == {"files"}

    def drain(self, quiet: float = 0.7) -> None:
        """Wait until nothing came for a while; watchdog holds the first half of a rename back for 0.5 s."""
        while self.wakeups.wait(quiet):
            pass

    def silent_after(self, act: Callable[[], object], marker: Path) -> bool:
        """Do it, then touch ``marker``; only the marker's own events may wake."""
        self.drain()
        before = self.count
        act()
        self.drain()
        silent = self.count == before
        assert self.woken_by(marker.touch), "the watch is deaf, so silence proves nothing"
        return silent


@pytest.fixture
def watched() -> Iterator[Watched]:
    one = Watched()
    yield one
    one.watch.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "etc" / "psk.d"
    path.mkdir(parents=True, mode=0o700)
    return path


def put(path: Path, text: str = "x", mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


# --- what wakes -------------------------------------------------------------


def test_every_kind_of_change_wakes(watched: Watched, folder: Path, tmp_path: Path) -> None:
    watched.ensure(folder)
    path = folder / "db1.toml"
    put(tmp_path / "elsewhere")
    assert watched.woken_by(path.touch), "created"
    assert watched.woken_by(lambda: path.write_text("y")), "written in place"
    assert watched.woken_by(lambda: path.chmod(0o640)), "mode changed"
    assert watched.woken_by(lambda: os.rename(path, folder / "db2.toml")), "renamed"
    assert watched.woken_by(lambda: os.rename(tmp_path / "elsewhere", folder / "db3.toml")), "moved in"
    assert watched.woken_by(lambda: os.rename(folder / "db3.toml", tmp_path / "elsewhere")), "moved out"
    assert watched.woken_by((folder / "db2.toml").unlink), "deleted"
    assert watched.woken_by(lambda: (folder / "db4.toml").symlink_to("/dev/null")), "masked"


def test_our_own_reads_wake_nobody(watched: Watched, folder: Path) -> None:
    put(folder / "db1.toml")
    watched.ensure(folder)

    def read() -> None:
        for found in find_config([str(folder)]).files:
            read_config(found.path, private=True)
        watched.ensure(folder)

    assert watched.silent_after(read, folder / "marker")


def test_temp_files_do_not_wake_the_loop_but_their_rename_does(watched: Watched, folder: Path) -> None:
    watched.ensure(folder)
    assert watched.silent_after((folder / ".db1.toml.swp").touch, folder / "marker")
    assert watched.woken_by(lambda: write_private(f"{folder}/db1.toml", b"x"))


def test_open_iscsis_lock_wakes_nobody(watched: Watched, folder: Path) -> None:
    watched.ensure(folder, recursive=True)

    def lock() -> None:
        (folder / "lock").touch()
        os.link(folder / "lock", folder / "lock.write")
        (folder / "lock.write").unlink()

    assert watched.silent_after(lock, folder / "marker")


def test_the_exchange_of_a_kubernetes_secret_wakes(watched: Watched, folder: Path) -> None:
    (folder / "..data").symlink_to("..1")
    (folder / "..new").symlink_to("..2")
    watched.ensure(folder)
    assert watched.woken_by(lambda: os.rename(folder / "..new", folder / "..data"))


def test_a_record_deep_in_a_new_tree_wakes(watched: Watched, tmp_path: Path) -> None:
    nodes = tmp_path / "iscsi"
    nodes.mkdir()
    watched.ensure(nodes, recursive=True)
    portal = nodes / "nodes" / "iqn.2024-01.com.example:a" / "10.0.0.20,3260,1"
    assert watched.woken_by(lambda: portal.mkdir(parents=True))
    watched.drain()
    assert watched.woken_by((portal / "default").touch)
    assert watched.woken_by(lambda: (portal / "default").write_text("x"))
    assert watched.woken_by(lambda: shutil.rmtree(nodes / "nodes"))


def test_a_tree_that_is_not_watched_recursively_does_not_wake(watched: Watched, folder: Path) -> None:
    (folder / "sub").mkdir()
    watched.ensure(folder)
    assert watched.silent_after((folder / "sub" / "db1.toml").touch, folder / "marker")


def test_neighbours_of_a_watched_folder_wake_nobody(watched: Watched, folder: Path) -> None:
    watched.ensure(folder)
    assert watched.silent_after((folder.parent / "other").touch, folder / "marker")


# --- folders that come and go -----------------------------------------------


def test_a_missing_folder_wakes_when_it_is_made_step_by_step(watched: Watched, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "iscsi-ipsec" / "psk.d"
    watched.ensure(folder)
    for step in (folder.parent.parent, folder.parent, folder):
        assert watched.woken_by(step.mkdir), step
        watched.ensure(folder)
    assert watched.woken_by((folder / "db1.toml").touch)


@pytest.mark.parametrize("level", [0, 1])
def test_a_folder_exchanged_by_rename_wakes_and_is_watched_on(
    watched: Watched, folder: Path, level: int
) -> None:
    old = (folder, folder.parent)[level]
    watched.ensure(folder)
    fresh = old.with_name("fresh")
    shutil.copytree(old, fresh)

    def exchange() -> None:
        os.rename(old, old.with_name("away"))
        os.rename(fresh, old)

    assert watched.woken_by(exchange)
    watched.drain()
    watched.ensure(folder)
    assert watched.woken_by((folder / "db1.toml").touch)
    away = old.with_name("away") / folder.relative_to(old)
    assert watched.silent_after((away / "db2.toml").touch, folder / "marker")


def test_a_folder_removed_and_made_again_is_watched_on_even_with_the_same_inode(
    watched: Watched, folder: Path
) -> None:
    for _ in range(3):
        watched.ensure(folder)
        assert watched.woken_by(folder.rmdir)
        folder.mkdir(mode=0o700)
        watched.ensure(folder)
        # that its own watch has died is an event as well, and may come after the one of the folder above
        while watched.wakeups.wait(1.5):
            watched.ensure(folder)
        assert watched.woken_by((folder / "db1.toml").touch)
        (folder / "db1.toml").unlink()


def test_a_watch_whose_folder_was_deleted_is_made_again_whatever_stat_says(
    watched: Watched, folder: Path
) -> None:
    watched.ensure(folder)
    old = watched.watch._watched[str(folder)]
    old.handler.dispatch(
        DirDeletedEvent(str(folder))
    )  # as if a new folder had got the old one's inode at once
    watched.ensure(folder)
    assert watched.watch._watched[str(folder)].handler is not old.handler
    assert watched.woken_by((folder / "db1.toml").touch)


def test_a_link_to_a_folder_is_watched_where_it_leads_and_where_it_lies(
    watched: Watched, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = tmp_path / "psk.d"
    link.symlink_to("one")
    watched.ensure(link)
    assert watched.woken_by((tmp_path / "one" / "db1.toml").touch)

    def repoint() -> None:
        (tmp_path / ".new").symlink_to("two")
        os.rename(tmp_path / ".new", link)

    assert watched.woken_by(repoint)
    watched.ensure(link)
    assert watched.woken_by((tmp_path / "two" / "db1.toml").touch)


def test_a_folder_that_is_no_longer_asked_for_wakes_nobody(
    watched: Watched, folder: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    watched.ensure(folder, kept)
    watched.ensure(kept)
    assert watched.silent_after((folder / "db1.toml").touch, kept / "marker")


def test_ensuring_the_same_again_changes_nothing_and_is_cheap(watched: Watched, folder: Path) -> None:
    watched.ensure(folder)
    before = {path: id(one.watch) for path, one in watched.watch._watched.items()}
    begin = time.process_time()
    for _ in range(100):
        watched.ensure(folder)
    assert time.process_time() - begin < 1
    assert {path: id(one.watch) for path, one in watched.watch._watched.items()} == before


# --- trouble ----------------------------------------------------------------


def test_threads_that_died_are_replaced(watched: Watched, folder: Path) -> None:
    watched.ensure(folder)
    first = watched.watch._observer
    assert first is not None
    watched.drain(0.1)
    first.stop()
    first.join()
    assert watched.wakeups.wait(PATIENCE), "nobody noticed"
    watched.ensure(folder)
    assert watched.woken_by((folder / "db1.toml").touch)


def test_an_emitter_that_died_is_replaced(watched: Watched, folder: Path) -> None:
    watched.ensure(folder)
    observer = watched.watch._observer
    assert observer is not None
    for emitter in list(observer.emitters):
        emitter.stop()
        emitter.join()
    watched.ensure(folder)
    assert watched.woken_by((folder / "db1.toml").touch)


def test_thousands_of_events_wake_and_once_more_after_the_last(watched: Watched, folder: Path) -> None:
    watched.ensure(folder)
    for number in range(2_000):
        (folder / f"k{number}.toml").touch()
    watched.drain(0.3)
    count = watched.count
    assert watched.wakeups.wait(PATIENCE), "nothing came after the burst"
    watched.drain(module._BURST_DELAY * 2)
    assert watched.count - count <= 3, "the burst does not end"
    assert watched.woken_by((folder / "one-more.toml").touch)


def test_a_folder_that_cannot_be_watched_is_a_problem_and_is_tried_again(
    watched: Watched, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = InotifyObserver.schedule

    def full(self: object, handler: object, path: str, **options: object) -> object:
        if path == str(folder):
            raise OSError(28, "inotify watch limit reached")
        return schedule(self, handler, path, **options)  # type: ignore[arg-type]  # passed on as they came

    with monkeypatch.context() as patch:
        patch.setattr(InotifyObserver, "schedule", full)
        watched.ensure(folder)
    (problem,) = watched.watch.problems
    assert (problem.code, problem.file) == ("unwatched", str(folder))
    assert "max_user_watches" in problem.hint
    watched.ensure(folder)
    assert watched.watch.problems == ()
    assert watched.woken_by((folder / "db1.toml").touch)


def test_stop_ends_every_thread_and_may_come_twice_or_first(folder: Path) -> None:
    before = set(threading.enumerate())
    one = Watched()
    one.watch.stop()
    one.ensure(folder)
    assert set(threading.enumerate()) - before
    one.watch.stop()
    one.watch.stop()
    deadline = time.monotonic() + PATIENCE
    while left := {t for t in set(threading.enumerate()) - before if t.is_alive()}:
        assert time.monotonic() < deadline, left
        threading.Event().wait(0.01)


def test_without_an_inotify_instance_the_first_folder_is_named_and_watching_begins_when_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, "inotify instance limit reached")

    with monkeypatch.context() as without:
        without.setattr(module, "InotifyObserver", none_left)
        watch = FileWatch(lambda _: None)
        assert watch.ensure([(str(tmp_path), False)]) is False
        (problem,) = watch.problems
        assert (problem.code, problem.file) == ("unwatched", str(tmp_path))
        assert "max_user_instances" in problem.hint
    try:
        assert watch.ensure([(str(tmp_path), False)]) is True
        assert watch.problems == ()
    finally:
        watch.stop()
