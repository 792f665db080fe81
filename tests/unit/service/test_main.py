"""The daemon's beginning: who may start, and what counts as "cannot start"."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from iscsi_ipsec.service import main as module
from iscsi_ipsec.service.main import EXIT_FAILED, EXIT_NOT_PERMITTED, main
from iscsi_ipsec.service.paths import Paths


@pytest.fixture
def folders(tmp_path: Path) -> Paths:
    paths = Paths(
        config_dir=str(tmp_path / "config"), runtime_dir=str(tmp_path / "runtime"),
        vendor_dir=str(tmp_path / "vendor"), state_dir=str(tmp_path / "state"),
    )  # fmt: skip
    os.makedirs(paths.runtime_dir)
    return paths


@pytest.fixture(autouse=True)
def process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``main`` changes what belongs to the process: signals, umask, logging, dumps."""
    monkeypatch.setattr("iscsi_ipsec.adapters.systemd.set_up_logging", lambda level: None)
    monkeypatch.setattr(module, "forbid_dumps", lambda: None)
    umask = os.umask(0o077)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.umask(umask)


def options(paths: Paths) -> list[str]:
    return [
        "--config-dir", paths.config_dir, "--runtime-dir", paths.runtime_dir,
        "--vendor-dir", paths.vendor_dir, "--state-dir", paths.state_dir,
    ]  # fmt: skip


def test_a_second_instance_leaves_the_pid_of_the_first_in_the_lock_file(
    folders: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_PATIENCE", 0.0)
    with module._only_instance(folders):
        with pytest.raises(BlockingIOError), module._only_instance(folders):
            pass
        assert Path(folders.lock_file).read_text() == f"{os.getpid()}\n"


def test_a_longer_pid_of_an_earlier_instance_leaves_no_digit_behind(folders: Paths) -> None:
    Path(folders.lock_file).write_text("4194304999\n")
    with module._only_instance(folders):
        assert Path(folders.lock_file).read_text() == f"{os.getpid()}\n"


def test_a_command_that_looks_at_the_lock_does_not_keep_the_daemon_from_starting(folders: Paths) -> None:
    Path(folders.lock_file).touch()
    with open(folders.lock_file, encoding="ascii") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        release = threading.Timer(0.2, fcntl.flock, (looking, fcntl.LOCK_UN))
        release.start()
        began = time.monotonic()
        with module._only_instance(folders):
            assert time.monotonic() - began < module.LOCK_PATIENCE
        release.join()


@pytest.mark.parametrize(
    ("error", "code"),
    [(PermissionError(1, "Operation not permitted", "/x"), EXIT_NOT_PERMITTED), (OSError(28, "No space"), EXIT_FAILED)],
)  # fmt: skip
def test_what_fails_before_the_first_pass_is_cannot_start(
    folders: Paths,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: OSError,
    code: int,
) -> None:
    def store(path: str, *, or_memory: bool) -> None:
        raise error

    monkeypatch.setattr(module, "Store", store)
    assert main(options(folders)) == code
    assert "cannot start" in caplog.text


def test_a_state_folder_that_others_may_write_is_cannot_start_and_not_a_traceback(
    folders: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    os.makedirs(folders.state_dir)
    os.chmod(folders.state_dir, 0o777)  # noqa: S103  # what is refused
    assert main(options(folders)) == EXIT_FAILED
    assert "other users may write to the state folder" in caplog.text


@pytest.mark.parametrize(
    "error", [PermissionError(13, "denied"), OSError(5, "Input/output error"), BlockingIOError()]
)
def test_an_error_of_a_later_pass_is_a_bug_and_keeps_its_traceback(
    folders: Paths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: OSError
) -> None:
    class Daemon:
        def __init__(self, *arguments: object) -> None:
            pass

        def run(self, signals: Sequence[signal.Signals]) -> int:
            raise error

    monkeypatch.setattr(module, "_Daemon", Daemon)
    with pytest.raises(type(error)):
        main(options(folders))
    assert "cannot start" not in caplog.text
