"""Wakes the loop when a watched folder's content may have changed.

Law: events are hints. Nothing here reads a file or remembers what an event
said; inotify loses events (queue overflow, folders made in a hurry), so the
loop also looks on its own from time to time. Our own reads wake nobody: the
inotify mask has neither OPEN nor CLOSE_NOWRITE.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from watchdog import events as fs
from watchdog.observers.api import BaseObserver, ObservedWatch
from watchdog.observers.inotify import InotifyObserver

from iscsi_ipsec.base.problem import Problem, Severity

_BURST = 200
_BURST_DELAY = 1.0
"""After this many events, wake every so many seconds until none came for as long: the kernel's or
watchdog's queue may have dropped the last of them without a word."""

_VIGIL_PERIOD = 2.0
"""Seconds after which the death of a thread is noticed."""

# DirModifiedEvent is absent: watchdog makes one up for the parent of every change.
# chmod and chown are events of their own since watchdog 7, FileModifiedEvent before.
_FILTER: list[type[fs.FileSystemEvent]] = [
    fs.FileCreatedEvent,
    fs.FileModifiedEvent,
    fs.FileClosedEvent,
    fs.FileMovedEvent,
    fs.FileDeletedEvent,
    fs.DirCreatedEvent,
    fs.DirMovedEvent,
    fs.DirDeletedEvent,
    *(getattr(fs, name) for name in ("FileAttribEvent", "DirAttribEvent") if hasattr(fs, name)),
]

_LOCK_NAMES = frozenset({"lock", "lock.write"})
"""open-iscsi's lock; SUSE keeps it inside the database's folder."""


@dataclass(slots=True)
class _Purpose:
    """The reason why a folder is watched: for its content, or for names of folders on the path to others."""

    content: bool = False
    recursive: bool = False
    names: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Watched:
    identity: tuple[int, int]
    recursive: bool
    handler: _Handler
    watch: ObservedWatch


class FileWatch:
    """Watches folders, and the way to them, with one inotify instance; wakes with :attr:`reason`.

    Call :meth:`ensure` at the start of every pass, before reading: what
    changes after it wakes the loop, what changed before is read.
    """

    reason = "files"

    def __init__(self, wake: Callable[[str], None]) -> None:
        self.problems: tuple[Problem, ...] = ()
        """Folders that could not be watched at the last :meth:`ensure`; they are read all the same."""
        self._wake = wake
        self._observer: InotifyObserver | None = None
        self._watched: dict[str, _Watched] = {}
        self._vigil = _Vigil(wake, self._deaf)

    def ensure(self, paths: Iterable[tuple[str, bool]]) -> bool:
        """Watch exactly these ``(folder, recursive)``, and notice when one appears or is replaced.

        Return whether any watch is new: no event reports changes from before it was made.

        Costs a few ``stat`` per folder when nothing changed. Watches that died
        with their folder or their thread are made again.
        """
        wanted = _purposes(paths)
        problems: list[Problem] = []
        new = False
        if self._observer is not None and not _alive(self._observer):
            self.stop()
        if self._observer is None:
            # watchdog 7 says so whenever a tree is made while it is being walked, and does the right thing
            warnings.filterwarnings("ignore", "Callback with id .* already exists", RuntimeWarning)
            try:
                self._observer = InotifyObserver()
            except OSError as err:  # no instance is left: everything is read at each regular pass
                folders = sorted(path for path, purpose in wanted.items() if purpose.content)
                self.problems = tuple(_problem(path, err) for path in folders[:1])
                return False
            self._observer.start()
        self._vigil.start()
        dead = {emitter.watch.path for emitter in self._observer.emitters if not emitter.is_alive()}
        for path, old in list(self._watched.items()):
            purpose = wanted.get(path)
            keep = (
                purpose is not None
                and path not in dead
                and not old.handler.root_gone
                and old.recursive == purpose.recursive
                and _identity(path) == old.identity
            )
            if keep and purpose is not None:
                old.handler.purpose = purpose
            else:
                self._unwatch(path)
        for path, purpose in wanted.items():
            if path not in self._watched and (identity := _identity(path)) is not None:
                try:
                    self._watch(path, purpose, identity)
                    new = True
                except OSError as err:
                    if _identity(path) is not None and purpose.content:
                        problems.append(_problem(path, err))
        self.problems = tuple(problems)
        return new

    def stop(self) -> None:
        """End the threads. :meth:`ensure` would start anew."""
        observer, self._observer = self._observer, None
        self._watched.clear()
        self._vigil.stop()
        if observer is not None:
            observer.stop()
            with contextlib.suppress(RuntimeError):  # it never started
                observer.join(timeout=5)

    def _deaf(self) -> bool:
        observer = self._observer
        return observer is not None and not _alive(observer)

    def _watch(self, path: str, purpose: _Purpose, identity: tuple[int, int]) -> None:
        assert self._observer is not None
        handler = _Handler(path, purpose, self._wake, self._vigil)
        # one filter for all: watches share an inotify instance, where the last mask set on a folder counts
        watch = self._observer.schedule(handler, path, recursive=purpose.recursive, event_filter=_FILTER)
        self._watched[path] = _Watched(identity, purpose.recursive, handler, watch)

    def _unwatch(self, path: str) -> None:
        assert self._observer is not None
        old = self._watched.pop(path)
        with contextlib.suppress(KeyError, OSError):  # gone with its folder
            self._observer.unschedule(old.watch)


class _Handler(fs.FileSystemEventHandler):
    """Decides in watchdog's thread whether an event concerns us. Must not raise: that ends the thread."""

    def __init__(self, root: str, purpose: _Purpose, wake: Callable[[str], None], vigil: _Vigil) -> None:
        self.purpose = purpose
        self.root_gone = False
        """The folder was deleted: its watch is dead even if a new one got the same inode."""
        self._root = root
        self._prefix = root if root == "/" else root + "/"
        self._wake = wake
        self._vigil = vigil

    def dispatch(self, event: fs.FileSystemEvent) -> None:
        paths = {os.fsdecode(event.src_path), os.fsdecode(event.dest_path)} - {""}
        if self._root in paths and isinstance(event, fs.DirDeletedEvent):
            self.root_gone = True
        if any(self._concerns(path) for path in paths):
            self._wake(FileWatch.reason)
            self._vigil.count()

    def _concerns(self, path: str) -> bool:
        if path == self._root:
            return self.purpose.content or self.root_gone
        if not path.startswith(self._prefix):
            return False
        parts = path[len(self._prefix) :].split("/")
        return parts[0] in self.purpose.names or (self.purpose.content and not _is_noise(parts[-1]))


class _Vigil:
    """Wakes where events alone would not: at the end of a burst, and when a thread of watchdog died."""

    def __init__(self, wake: Callable[[str], None], deaf: Callable[[], bool]) -> None:
        self._wake = wake
        self._deaf = deaf
        self._count = 0
        self._due = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread unless it runs."""
        if self._thread is None or not self._thread.is_alive():
            self._stopped.clear()
            self._thread = threading.Thread(target=self._run, name="watch-vigil", daemon=True)
            self._thread.start()

    def count(self) -> None:
        """One more event."""
        self._count += 1
        if self._count >= _BURST:
            self._due.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None
        self._due.clear()

    def _run(self) -> None:
        while not self._stopped.is_set():
            if not self._due.wait(_VIGIL_PERIOD):
                if self._deaf():
                    self._wake(FileWatch.reason)  # ensure() repairs it
                continue
            before = -1
            while before != self._count:  # until one period passed without an event
                before = self._count
                if self._stopped.wait(_BURST_DELAY):
                    return
                self._wake(FileWatch.reason)
            self._due.clear()
            self._count = 0


def _purposes(paths: Iterable[tuple[str, bool]]) -> dict[str, _Purpose]:
    """By real path: the folders themselves if they exist, and every existing folder on the way to them.

    The way is watched for single names, so that a folder that appears, or is
    replaced by a rename anywhere above, is noticed at once.
    """
    content: dict[str, bool] = {}
    names: defaultdict[str, set[str]] = defaultdict(set)
    for path, recursive in paths:
        real = os.path.realpath(path)
        content[real] = content.get(real, False) or recursive
        for step in {real, os.path.abspath(path)}:  # links on the way may change too
            below = step
            while below != "/":
                above, name = os.path.split(below)
                names[os.path.realpath(above)].add(name)
                below = above
    return {
        path: _Purpose(path in content, content.get(path, False), frozenset(names.get(path, ())))
        for path in content.keys() | names.keys()
    }


def _is_noise(name: str) -> bool:
    """Whether a name is a temp file (ours or an editor's) or open-iscsi's lock. Kubernetes' ``..data`` is none of them."""
    return (name.startswith(".") and not name.startswith("..")) or name in _LOCK_NAMES


def _identity(path: str) -> tuple[int, int] | None:
    try:
        st = os.stat(path)
    except OSError:
        return None
    return (st.st_dev, st.st_ino) if stat.S_ISDIR(st.st_mode) else None


def _alive(observer: BaseObserver) -> bool:
    # since watchdog 7 a further thread reads for all watches; its death would leave them deaf
    reader = getattr(observer, "_inotify_fd", None)
    return observer.is_alive() and (reader is None or bool(reader.is_alive()))


def _problem(path: str, err: OSError) -> Problem:
    limit = "watch limit" in str(err) or "instance limit" in str(err)
    return Problem(
        code="unwatched",
        file=path,
        message=f"changes are noticed only at the next resync: {err.strerror or err}",
        hint="raise fs.inotify.max_user_watches and fs.inotify.max_user_instances" if limit else "",
        severity=Severity.WARNING,
    )
