"""Atomic writes: a reader sees the old file or the new one, and never a readable key in between."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import iscsi_ipsec
from iscsi_ipsec.adapters.atomic_write import write_atomic, write_private
from iscsi_ipsec.base.errors import NotPermitted, StateUnavailable

PACKAGES = str(Path(iscsi_ipsec.__file__).parents[1])
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs another user or a mount")


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_new_file_has_its_content_and_mode_whatever_the_umask(tmp_path: Path) -> None:
    for umask in (0, 0o777):
        old = os.umask(umask)
        try:
            write_private(f"{tmp_path}/key", b"k")
            write_atomic(f"{tmp_path}/status", b"s", 0o644)
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "status").stat().st_mode) == 0o644
    assert (tmp_path / "key").read_bytes() == b"k"
    assert names(tmp_path) == ["key", "status"]


def test_the_temp_file_is_hidden_and_closed_before_it_holds_a_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    write = os.write

    def spy(fd: int, data: bytes) -> int:
        (name,) = names(tmp_path)
        seen.append((name, stat.S_IMODE(os.fstat(fd).st_mode)))
        return write(fd, data)

    monkeypatch.setattr(os, "write", spy)
    write_atomic(f"{tmp_path}/db1.toml", b"k", 0o644)
    ((name, mode),) = seen
    assert name.startswith(".")
    assert not name.endswith(".toml")
    assert mode == 0o600


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:3])))
    write_private(f"{tmp_path}/f", b"0123456789")
    assert (tmp_path / "f").read_bytes() == b"0123456789"


def test_file_and_folder_reach_the_disk_in_that_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def spy(fd: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        synced.append(f"folder {names(tmp_path)}" if is_folder else "file")

    monkeypatch.setattr(os, "fsync", spy)
    write_private(f"{tmp_path}/f", b"x")
    assert synced == ["file", "folder ['f']"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"untouched")
    (tmp_path / "f").symlink_to("victim")
    write_private(f"{tmp_path}/f", b"x")
    assert (tmp_path / "victim").read_bytes() == b"untouched"
    assert not (tmp_path / "f").is_symlink()


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    write_private(f"{tmp_path}/{'n' * 255}", b"x")
    assert names(tmp_path) == ["n" * 255]


def test_any_failure_leaves_the_old_file_and_no_temp_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"old")

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StateUnavailable, match="Input/output error"):
        write_private(f"{tmp_path}/f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


def test_a_missing_folder_is_reported_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(StateUnavailable):
        write_private(f"{tmp_path}/none/f", b"x")
    assert names(tmp_path) == []


WRITE = """
import os, sys
from iscsi_ipsec.adapters.atomic_write import write_private
from iscsi_ipsec.base.errors import NotPermitted, StateUnavailable
try:
    write_private(sys.argv[1], b"n" * 300_000)
except (NotPermitted, StateUnavailable) as err:
    print(type(err).__name__, err)
"""


def run_write(path: str, *before: str, **options: object) -> str:
    done = subprocess.run(
        [*before, sys.executable, "-c", WRITE, path],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": PACKAGES},
        **options,  # type: ignore[call-overload]  # preexec_fn alone
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_a_file_size_limit_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    assert run_write(f"{tmp_path}/f", preexec_fn=limit).startswith("StateUnavailable")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


@needs_root
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    script = (
        'mount -t tmpfs -o size=128k tmpfs "$1" || exit 77; printf old >"$1/f"; '
        '"$2" -c "$3" "$1/f" || exit 1; cat "$1/f"; ls -A "$1"'
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), sys.executable, WRITE],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": PACKAGES},
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("may not mount here")
    assert done.returncode == 0, done.stderr
    assert "StateUnavailable" in done.stdout
    assert "No space left" in done.stdout
    assert done.stdout.endswith("oldf\n")


@needs_root
def test_a_folder_that_is_not_ours_to_write_is_not_permitted(tmp_path: Path) -> None:
    # in a child whose code is loaded before it gives up its rights
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(tmp_path)
            os.setresuid(65534, 65534, 65534)
            write_private("f", b"x")
        except NotPermitted:
            os._exit(3)
        except BaseException:  # noqa: BLE001  # a child of pytest must not go on
            os._exit(4)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
