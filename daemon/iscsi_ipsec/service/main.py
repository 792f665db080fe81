"""The daemon: threads that wake, one loop that works, and its beginning and end.

Law: the main thread owns all state and the command session. Other threads
only call :meth:`Wakeups.wake` (and leave causes in :class:`IkeFailureLog`). Ending
never takes away a policy, an SA or the guard: stopping the daemon must not
mean clear text.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from iscsi_ipsec import __version__
from iscsi_ipsec.adapters import systemd
from iscsi_ipsec.adapters.charon import Charon, CharonEvents
from iscsi_ipsec.adapters.inotify import FileWatch
from iscsi_ipsec.adapters.netlink import GuardMonitor, PolicyMonitor, RouteMonitor, Routes, kernel
from iscsi_ipsec.adapters.nft import Guard
from iscsi_ipsec.adapters.process import forbid_dumps, return_free_memory, return_large_blocks
from iscsi_ipsec.adapters.resolver import Resolver, resolve_through
from iscsi_ipsec.adapters.state_db import Store
from iscsi_ipsec.base.errors import CharonUnavailable, KernelUnavailable, StateUnavailable
from iscsi_ipsec.base.wakeups import Wakeups
from iscsi_ipsec.core.config.settings import LOG_LEVELS, Settings
from iscsi_ipsec.core.ike.charon_diff import plan
from iscsi_ipsec.service.config_files import ConfigFiles, FileReader
from iscsi_ipsec.service.guard import GuardReconciler
from iscsi_ipsec.service.ike_failure_log import IkeFailureLog
from iscsi_ipsec.service.managed_portals import ManagedPortals
from iscsi_ipsec.service.observe import Observer
from iscsi_ipsec.service.paths import Paths, add_options, paths_of
from iscsi_ipsec.service.preexisting_sessions import PreexistingSessions
from iscsi_ipsec.service.problems import fields, unlisted_problem
from iscsi_ipsec.service.reconciler import Reconciler
from iscsi_ipsec.service.resync_schedule import RELOAD, RESYNC, START
from iscsi_ipsec.service.status_report import StatusReporter, summary

_log = logging.getLogger(__name__)

EXIT_FINE, EXIT_FAILED, EXIT_USAGE, EXIT_NOT_PERMITTED = 0, 1, 2, 5

MAX_SETTLING = 20
"""A burst of changes is gathered for at most this many settle times."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``iscsi-ipsecd``; the process' exit code."""
    parser = argparse.ArgumentParser(
        prog="iscsi-ipsecd",
        description="Keeps open-iscsi sessions inside IPsec: pushes the keys and policies of /etc/iscsi-ipsec into strongSwan.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, default="", help="default: the settings file's, else info"
    )
    parser.add_argument(
        "--unload-all",
        action="store_true",
        help="take everything of ours out of charon and the kernel, and end (used when uninstalling)",
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    # threads inherit the mask, so that only the signal thread gets them
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    forbid_dumps()  # a core would hold keys
    return_large_blocks()
    os.umask(0o077)
    systemd.set_up_logging(options.log_level or "info")
    paths = paths_of(options)
    try:
        _make_folders(paths)
        with _only_instance(paths):
            store = Store(paths.store_file)
            if options.unload_all:
                return _unload_all(_with_socket(paths, ""))
            return _Daemon(paths, store, options.log_level).run(signals)
    except PermissionError as err:
        about = fields(note="cannot-start")
        _log.error("cannot start: %s: %s (run it as root)", err.filename, err.strerror, extra=about)
        return EXIT_NOT_PERMITTED
    except BlockingIOError:
        about = fields(note="cannot-start")
        _log.error("cannot start: another instance runs on %s", paths.runtime_dir, extra=about)
        return EXIT_FAILED
    except (OSError, StateUnavailable) as err:
        _log.error("cannot start: %s", err, extra=fields(note="cannot-start"))
        return EXIT_FAILED


class _Daemon:
    """One running instance."""

    def __init__(self, paths: Paths, store: Store, log_level: str) -> None:
        reader = FileReader(paths, store)
        settings = reader.read_settings()
        self._log_level = log_level
        self._set_level(settings.log_level)
        self._paths = paths = _with_socket(paths, settings.vici_socket)
        self._wakeups = Wakeups()
        wake = self._wakeups.wake
        self._stopping = threading.Event()
        self._failure_log = IkeFailureLog(wake)
        self._charon = Charon(paths.vici_socket)
        self._routes = Routes()
        self._resolver = Resolver(
            wake, resolve=partial(resolve_through, paths.names_socket), remembered=store.names()
        )
        self._watch = FileWatch(wake)
        events = CharonEvents(
            paths.vici_socket,
            self._failure_log.on_event,
            lambda: wake("charon-up"),
            lambda: wake("charon-down"),
        )
        self._producers = (
            events,
            RouteMonitor(wake),
            GuardMonitor(wake),
            PolicyMonitor(wake),
        )
        policies = kernel.Policies().read
        self._observer = Observer(
            paths=paths,
            reader=reader,
            store=store,
            routes=self._routes,
            resolver=self._resolver,
            fast_aes=kernel.has_aes_instructions(),
        )
        self._reconciler = Reconciler(
            observer=self._observer,
            reader=reader,
            managed=ManagedPortals(paths, store),
            guard=GuardReconciler(Guard(), paths.guard_file),
            earlier=PreexistingSessions(paths.earlier_file),
            charon=self._charon,
            failure_log=self._failure_log,
            without_log=events.without_log,
            charon_settled=systemd.charon_settled,
            policies=policies,
            progress=systemd.watchdog,
        )
        self._reporter = StatusReporter(paths, policies)

    def run(self, signals: Sequence[signal.Signals]) -> int:
        """Loop until a signal ends it."""
        threading.Thread(target=self._await_signals, args=(signals,), name="signals", daemon=True).start()
        for producer in self._producers:
            producer.start()
        _log.info("iscsi-ipsecd %s started", __version__)
        reasons = frozenset({START})
        ready, line, regular = False, "", 0.0
        folders: frozenset[tuple[str, bool]] = frozenset()
        while not self._stopping.is_set():
            _log.debug("pass for: %s", ", ".join(sorted(reasons)))
            # watched before it is read: what changes meanwhile wakes the next pass
            if self._watch.ensure(folders) or (self._watch.problems and RESYNC in reasons):
                reasons |= {FileWatch.reason}
            if reasons & {START, RESYNC}:
                regular = time.monotonic()
            outcome = self._reconciler.run(reasons)
            status = self._reporter.write(outcome, self._watch.problems)
            config = outcome.snapshot.config
            folders, watched = self._folders(config), folders
            self._set_level(config.settings.log_level)
            if (
                not ready
                and outcome.settled
                and (status["guard"]["installed"] or not status["guard"]["wanted"])
            ):
                ready, line = True, summary(status)
                systemd.ready(line)
                # what was made so far stays: with 10,000 keys each full search for garbage in it takes 50 ms
                gc.collect()
                gc.freeze()
            elif ready and line != summary(status):
                line = summary(status)
                systemd.status(line)
            return_free_memory()
            if folders != watched:
                reasons = frozenset({FileWatch.reason})
            else:
                reasons = self._wait(outcome.recheck_in, regular, config.settings)
        self._end()
        return EXIT_FINE

    def _folders(self, config: ConfigFiles) -> frozenset[tuple[str, bool]]:
        """What to watch, and whether with all that is below."""
        trees = {
            (f"{base}/{tree}", True)
            for base in self._observer.nodes_dirs(config)
            for tree in ("nodes", "send_targets", "ifaces")
        }
        flat = {(folder, False) for folder in (*config.watched, self._paths.requests_dir)}
        return frozenset(trees | flat)

    def _wait(self, recheck_in: float, regular: float, settings: Settings) -> frozenset[str]:
        """Sleep until there is something to do, petting systemd's watchdog; gather what comes in a burst.

        ``recheck_in`` is in seconds from now, ``regular`` when the last regular pass began.
        """
        interval = systemd.watchdog_interval()
        due = regular + settings.resync_interval
        end = min(time.monotonic() + recheck_in, due)
        while not self._stopping.is_set():
            if interval:
                systemd.watchdog()
            left = end - time.monotonic()
            if left <= 0:
                return frozenset({RESYNC if time.monotonic() >= due else "due"})
            reasons = self._wakeups.wait(min(left, interval or left))
            if reasons & GuardMonitor.reasons:
                return reasons  # a portal may be open
            if reasons:
                return self._gather(reasons, settings.settle_time)
        return frozenset()

    def _gather(self, reasons: frozenset[str], settle_time: float) -> frozenset[str]:
        """Wait until nothing new came for the settle time, but not for ever."""
        for _ in range(MAX_SETTLING):
            more = self._wakeups.wait(settle_time) if settle_time else frozenset()
            if not more or self._stopping.is_set():
                break
            reasons |= more
        return reasons

    def _await_signals(self, signals: Sequence[signal.Signals]) -> None:
        while True:
            if signal.sigwait(signals) == signal.SIGHUP:
                self._wakeups.wake(RELOAD)
            else:
                self._stopping.set()
                self._wakeups.wake("stop")
                return

    def _set_level(self, from_settings: str) -> None:
        systemd.set_log_level(self._log_level or from_settings)

    def _end(self) -> None:
        systemd.stopping("policies, SAs and guard stay")
        self._watch.stop()
        self._resolver.stop()
        for producer in self._producers:
            producer.stop()
        self._charon.close()
        self._routes.close()
        _log.info("stopped; policies, SAs and guard stay in place", extra=fields(note="stopped"))


def _with_socket(paths: Paths, from_settings: str) -> Paths:
    return replace(paths, vici_socket=paths.vici_socket or from_settings)


def _make_folders(paths: Paths) -> None:
    for folder in (paths.state_dir, paths.runtime_dir, paths.requests_dir):
        os.makedirs(folder, mode=0o700 if folder != paths.runtime_dir else 0o755, exist_ok=True)


@contextlib.contextmanager
def _only_instance(paths: Paths) -> Iterator[None]:
    """Hold the lock that tells the command that we run; :class:`BlockingIOError` if another has it."""
    with open(paths.lock_file, "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _unload_all(paths: Paths) -> int:
    """Take everything of ours out of charon and nftables, and what says that portals are closed."""
    code = EXIT_FINE
    charon = Charon(paths.vici_socket)
    try:
        state = charon.observe()
        operations = plan((), (), state)
        sas = charon.sas()
        if state.secrets is None:
            _log.error("%s", unlisted_problem())
            code = EXIT_FAILED
        for refused in charon.apply((op.command, op.message) for op in operations):
            if refused:
                _log.error("%s", refused)
                code = EXIT_FAILED
        for ike in sas:
            charon.terminate(ike_id=ike.unique_id)
    except CharonUnavailable as err:
        _log.info("nothing to unload: %s", err)
    try:
        Guard().delete()
    except KernelUnavailable as err:
        _log.error("%s", err)
        code = EXIT_FAILED
    for status in (paths.guard_file, paths.earlier_file):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(status)
    return code


if __name__ == "__main__":
    sys.exit(main())
