"""Starts and stops the daemon: connects the loop with the adapters and with the threads that wake it.

Law: the main thread owns all state and the command session. Other threads
only call :meth:`Wakeups.wake` (and leave causes in :class:`IkeFailureLog`). Stopping never removes a policy,
an SA or the guard: a stopped daemon must not mean unencrypted traffic.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from iscsi_ipsec import __version__
from iscsi_ipsec.adapters import systemd
from iscsi_ipsec.adapters.block_devices import sessions_below_system
from iscsi_ipsec.adapters.charon import Charon, CharonEvents
from iscsi_ipsec.adapters.clock import SystemClock
from iscsi_ipsec.adapters.guest_bridges import guest_bridges
from iscsi_ipsec.adapters.inotify import FileWatch
from iscsi_ipsec.adapters.netlink import GuardMonitor, PolicyMonitor, RouteMonitor, Routes, kernel
from iscsi_ipsec.adapters.nft import Guard
from iscsi_ipsec.adapters.openiscsi import OpenIscsi
from iscsi_ipsec.adapters.process import forbid_dumps
from iscsi_ipsec.adapters.resolver import Resolver, resolve_through
from iscsi_ipsec.adapters.state_db import Store
from iscsi_ipsec.base.errors import ConfigError, StateUnavailable
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.base.wakeups import Wakeups
from iscsi_ipsec.core.config.settings import LOG_LEVELS
from iscsi_ipsec.service.bridged_guests import BridgedGuests
from iscsi_ipsec.service.config_files import ConfigFiles, FileReader
from iscsi_ipsec.service.connection_reqids import ConnectionReqids
from iscsi_ipsec.service.credential_decryption import Decryption
from iscsi_ipsec.service.guard import GuardReconciler
from iscsi_ipsec.service.ike_failure_log import IkeFailureLog
from iscsi_ipsec.service.loop import Loop
from iscsi_ipsec.service.managed_portals import ManagedPortals
from iscsi_ipsec.service.observe import Observer
from iscsi_ipsec.service.pass_schedule import RELOAD
from iscsi_ipsec.service.paths import RELOAD_REQUEST, Paths, add_options, paths_of
from iscsi_ipsec.service.preexisting_sessions import PreexistingSessions
from iscsi_ipsec.service.problems import fields
from iscsi_ipsec.service.reconciler import Outcome, Reconciler
from iscsi_ipsec.service.status_report import StatusReporter
from iscsi_ipsec.service.unload import unload_all

_log = logging.getLogger(__name__)

EXIT_FINE, EXIT_FAILED, EXIT_USAGE, EXIT_NOT_PERMITTED = 0, 1, 2, 5

LOCK_PATIENCE = 1.0
"""Seconds for which a lock that another process has is tried again: a command holds it for an instant."""


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
        help="remove everything that this program loaded from charon and the kernel, and exit (used when uninstalling)",
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    # threads inherit the mask, so that only the signal thread gets them
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    forbid_dumps()  # a core would hold keys
    os.umask(0o077)
    systemd.set_up_logging(options.log_level or "info")
    paths = paths_of(options)
    with contextlib.ExitStack() as stack:
        # only what happens before the first pass is "cannot start": an error of a later one is a bug, with its traceback
        about = fields(note="cannot-start")
        try:
            _make_folders(paths)
            stack.enter_context(_only_instance(paths))
            store = Store(paths.store_file, or_memory=True)
            daemon = None if options.unload_all else _Daemon(paths, store, options.log_level)
        except PermissionError as err:
            _log.error("cannot start: %s: %s (run it as root)", err.filename, err.strerror, extra=about)
            return EXIT_NOT_PERMITTED
        except BlockingIOError:
            _log.error("cannot start: another instance runs on %s", paths.runtime_dir, extra=about)
            return EXIT_FAILED
        except (OSError, StateUnavailable, ConfigError) as err:
            _log.error("cannot start: %s", err, extra=about)
            return EXIT_FAILED
        return daemon.run(signals) if daemon else _unload(paths)


def _unload(paths: Paths) -> int:
    """Remove everything that this program loaded from charon and nftables; what could not be removed is logged."""
    socket = FileReader(paths, None).read_settings().vici_socket
    paths = _with_socket(paths, socket)
    left = unload_all(paths, Charon(paths.vici_socket), Guard())
    for text in left:
        _log.error("%s", text)
    _log.info("every portal is open; iSCSI sessions go on unencrypted")
    return EXIT_FAILED if left else EXIT_FINE


class _Daemon:
    """One running instance."""

    def __init__(self, paths: Paths, store: Store, log_level: str) -> None:
        self._wakeups = Wakeups()
        wake = self._wakeups.wake
        reader = FileReader(paths, store, decryption=Decryption(lambda: wake(FileWatch.reason)))
        settings = reader.read_settings()
        self._log_level = log_level
        self._set_level(settings.log_level)
        self._paths = paths = _with_socket(paths, settings.vici_socket)
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
        xfrm, clock = kernel.Xfrm(), SystemClock()
        self._observer = Observer(
            paths=paths,
            reader=reader,
            store=store,
            routes=self._routes,
            resolver=self._resolver,
            open_iscsi=OpenIscsi(paths.sysfs_dir),
            system_disks=partial(sessions_below_system, paths.sysfs_dir),
            reqids=ConnectionReqids(store, xfrm),
            fast_aes=kernel.has_aes_instructions(),
        )
        self._reconciler = Reconciler(
            observer=self._observer,
            reader=reader,
            managed=ManagedPortals(paths, store, clock),
            guard=GuardReconciler(Guard(), paths.guard_file),
            earlier=PreexistingSessions(paths.earlier_file),
            bridged=BridgedGuests(self._routes, partial(guest_bridges, paths.sysfs_dir)),
            charon=self._charon,
            failure_log=self._failure_log,
            charon_log=events,
            service_manager=systemd,
            xfrm=xfrm,
            clock=clock,
        )
        self._reporter = StatusReporter(paths, xfrm, clock)
        self._reloads: tuple[str, ...] = ()
        self._loop = Loop(
            run_pass=self._run_pass,
            report=self._report,
            watched=self._folders,
            set_log_level=self._set_level,
            watch=self._watch,
            wakeups=self._wakeups,
            service_manager=systemd,
            clock=clock,
        )

    def run(self, signals: Sequence[signal.Signals]) -> int:
        """Loop until a signal ends it."""
        threading.Thread(target=self._await_signals, args=(signals,), name="signals", daemon=True).start()
        for producer in self._producers:
            producer.start()
        _log.info("iscsi-ipsecd %s started", __version__)
        self._loop.run(self._stopping.is_set)
        self._end()
        return EXIT_FINE

    def _run_pass(self, reasons: frozenset[str]) -> Outcome:
        """Run a pass, after noting which requests to read everything are older than it."""
        self._reloads = _reload_requests(self._paths) if RELOAD in reasons else ()
        return self._reconciler.run(reasons)

    def _report(self, outcome: Outcome, more: tuple[Problem, ...] = ()) -> dict[str, Any]:
        """Write the status, and delete the requests that this pass answered."""
        status = self._reporter.write(outcome, more)
        for request in self._reloads:
            with contextlib.suppress(OSError):
                os.unlink(request)
        return status

    def _folders(self, config: ConfigFiles) -> frozenset[tuple[str, bool]]:
        """The folders to watch, and whether all below them is watched too."""
        trees = {
            (f"{base}/{tree}", True)
            for base in self._observer.nodes_dirs(config)
            for tree in ("nodes", "send_targets", "ifaces")
        }
        flat = {(folder, False) for folder in (*config.watched, self._paths.requests_dir)}
        return frozenset(trees | flat)

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


def _reload_requests(paths: Paths) -> tuple[str, ...]:
    try:
        names = os.listdir(paths.requests_dir)
    except OSError:
        return ()
    return tuple(os.path.join(paths.requests_dir, name) for name in names if name.startswith(RELOAD_REQUEST))


def _with_socket(paths: Paths, from_settings: str) -> Paths:
    return replace(paths, vici_socket=paths.vici_socket or from_settings)


def _make_folders(paths: Paths) -> None:
    for folder in (paths.runtime_dir, paths.requests_dir):
        os.makedirs(folder, mode=0o700 if folder != paths.runtime_dir else 0o755, exist_ok=True)
    with contextlib.suppress(OSError):  # the store works in memory then, and says so
        os.makedirs(paths.state_dir, mode=0o700, exist_ok=True)


@contextlib.contextmanager
def _only_instance(paths: Paths) -> Iterator[None]:
    """Hold the lock by which the command sees that we run; :class:`BlockingIOError` if another has it."""
    # opened without truncating: whoever does not get the lock must not empty the file of who has it
    fd = os.open(paths.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(fd, "r+", encoding="ascii") as lock:
        end = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.02)
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


if __name__ == "__main__":
    sys.exit(main())
