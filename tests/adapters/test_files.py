"""Safe reads: every refusal, and everything that must not be refused."""

from __future__ import annotations

import gc
import json
import os
import socket
import stat
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iscsi_ipsec.adapters import files
from iscsi_ipsec.adapters.files import (
    FileStat,
    decode_config,
    find_config,
    read_config,
    read_key_file,
    reading,
)
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.keys import MAX_KEY_FILE_BYTES
from iscsi_ipsec.base.problem import Problem

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")


def put(path: Path, data: bytes = b'key = "x"\n', mode: int = 0o600) -> str:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


def refusal(path: str | Path, *, private: bool = True) -> Problem:
    with pytest.raises(ConfigError) as caught:
        read_config(str(path), private=private)
    (problem,) = caught.value.problems
    return problem


def as_nobody(work: Callable[[], str]) -> str:
    """Run ``work`` in a child without any right, and return what it returns."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # 3.12 warns of fork beside threads; the child makes none
        pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            answer = {"value": work()}
        except BaseException:  # noqa: BLE001  # a child of pytest must not go on
            answer = {"error": traceback.format_exc()}
        os.write(write_end, json.dumps(answer).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        reported = json.loads(pipe.read())
    os.waitpid(pid, 0)
    assert "error" not in reported, reported.get("error")
    return str(reported["value"])


def code_of(path: str, *, private: bool = True) -> str:
    try:
        read_config(path, private=private)
    except ConfigError as err:
        return err.problems[0].code
    return "read"


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of nobody's that nobody can reach (tmp_path is closed to others)."""
    folder = Path(f"/tmp/iscsi-ipsec-test-{os.getpid()}-{time.monotonic_ns()}")
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


# --- what is read -----------------------------------------------------------


def test_a_private_file_is_read_as_it_is(tmp_path: Path) -> None:
    assert read_config(put(tmp_path / "db1.toml", b"a\0\xff\n"), private=True) == b"a\0\xff\n"


def test_a_portal_file_may_be_readable_by_everyone(tmp_path: Path) -> None:
    assert read_config(put(tmp_path / "a.toml", mode=0o644), private=False)


def test_a_file_of_exactly_64_kib_is_read(tmp_path: Path) -> None:
    path = put(tmp_path / "db1.toml", b"#" * MAX_KEY_FILE_BYTES)
    assert len(read_config(path, private=True)) == MAX_KEY_FILE_BYTES


def test_a_relative_path_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "db1.toml", b"x")
    monkeypatch.chdir(tmp_path)
    assert read_config("db1.toml", private=True) == b"x"


def test_a_folder_below_a_sticky_one_is_fine_when_its_owner_closed_it(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    assert read_config(put(shared / "mine" / "db1.toml"), private=True)


def test_a_link_among_the_folders_is_followed_when_it_is_ours(tmp_path: Path) -> None:
    put(tmp_path / "real" / "psk.d" / "db1.toml", b"x")
    (tmp_path / "conf").symlink_to("real")
    assert read_config(f"{tmp_path}/conf/psk.d/db1.toml", private=True) == b"x"


def test_a_loop_of_links_among_the_folders_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert refusal(tmp_path / "a" / "db1.toml").code == "unreadable"


# --- refusals ---------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602])
def test_a_private_file_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = put(tmp_path / "db1.toml", mode=mode)
    problem = refusal(path)
    assert (problem.code, problem.file, problem.hint) == ("bad-mode", path, f"chmod 600 {path}")


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_portal_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = put(tmp_path / "a.toml", mode=mode)
    problem = refusal(path, private=False)
    assert (problem.code, problem.hint) == ("bad-mode", f"chmod 644 {path}")


@needs_root
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "it is mine.toml")
    os.chown(path, NOBODY, NOBODY)
    problem = refusal(path)
    assert (problem.code, problem.hint) == ("bad-owner", f"chown root: '{path}'")


def test_a_hard_link_to_a_private_file_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "db1.toml")
    os.link(path, tmp_path / "other-name")
    assert refusal(path).code == "hard-link"
    assert read_config(path, private=False)


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "db1.toml", 0o600)
    assert refusal(tmp_path / "db1.toml").code == "not-regular"


def test_a_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "db1.toml"))
        os.chmod(tmp_path / "db1.toml", 0o600)
        assert refusal(tmp_path / "db1.toml").code == "not-regular"


@needs_root
def test_a_device_is_refused(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "db1.toml", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("may not make device nodes here")
    assert refusal(tmp_path / "db1.toml").code in {
        "not-regular",
        "unreadable",
    }  # a nodev mount forbids the open


def test_a_folder_with_a_files_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db1.toml").mkdir(mode=0o700)
    assert refusal(tmp_path / "db1.toml").code == "not-regular"


def test_a_file_over_64_kib_is_refused(tmp_path: Path) -> None:
    assert refusal(put(tmp_path / "db1.toml", b"#" * (MAX_KEY_FILE_BYTES + 1))).code == "too-large"


def test_an_endless_file_is_read_no_further_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "db1.toml", b"x")
    got: list[int] = []

    def endless(fd: int, count: int) -> bytes:
        got.append(min(count, 4096))
        return b"x" * got[-1]

    monkeypatch.setattr(os, "read", endless)
    assert refusal(path).code == "too-large"
    assert sum(got) == MAX_KEY_FILE_BYTES + 1


def test_a_missing_file_is_distinguished_from_an_unreadable_one(tmp_path: Path) -> None:
    assert refusal(tmp_path / "db1.toml").code == "missing"
    assert refusal(tmp_path / "no-folder" / "db1.toml").code == "missing"
    put(tmp_path / "file")
    assert refusal(tmp_path / "file" / "db1.toml").code == "bad-folder"


def test_a_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    assert refusal(f"{tmp_path}/db1\0.toml").code == "bad-name"


@pytest.mark.parametrize("depth", [0, 1])
def test_a_folder_that_others_may_write_is_refused_at_every_level(tmp_path: Path, depth: int) -> None:
    path = put(tmp_path / "outer" / "psk.d" / "db1.toml")
    folder = Path(path).parents[depth]
    folder.chmod(0o770)
    problem = refusal(path)
    assert (problem.code, problem.file, problem.hint) == ("bad-folder", str(folder), f"chmod go-w {folder}")


def test_a_sticky_folder_cannot_hold_keys_itself(tmp_path: Path) -> None:
    path = put(tmp_path / "psk.d" / "db1.toml")
    Path(path).parent.chmod(0o1777)
    assert refusal(path).code == "bad-folder"


@needs_root
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "psk.d" / "db1.toml")
    os.chown(tmp_path / "psk.d", NOBODY, NOBODY)
    problem = refusal(path)
    assert (problem.code, problem.hint) == ("bad-folder", f"chown root: {tmp_path}/psk.d")


@needs_root
def test_a_link_of_another_user_among_the_folders_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "real" / "db1.toml")
    (tmp_path / "conf").symlink_to("real")
    os.chown(tmp_path / "conf", NOBODY, NOBODY, follow_symlinks=False)
    problem = refusal(f"{tmp_path}/conf/db1.toml")
    assert (problem.code, problem.hint) == ("bad-owner", f"chown -h root: {tmp_path}/conf")


@pytest.mark.parametrize(
    "target", ["../elsewhere/db1.toml", "/etc/hostname", "sub/../../elsewhere/db1.toml", "."]
)
def test_a_link_that_leads_out_of_its_folder_is_refused(tmp_path: Path, target: str) -> None:
    put(tmp_path / "elsewhere" / "db1.toml")
    (tmp_path / "psk.d").mkdir(mode=0o700)
    (tmp_path / "psk.d" / "db1.toml").symlink_to(target)
    assert refusal(tmp_path / "psk.d" / "db1.toml").code == "symlink"


@needs_root
def test_a_link_of_another_user_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "real.toml")
    (tmp_path / "db1.toml").symlink_to("real.toml")
    os.chown(tmp_path / "db1.toml", NOBODY, NOBODY, follow_symlinks=False)
    assert refusal(tmp_path / "db1.toml").code == "bad-owner"


def test_a_link_to_nothing_and_a_loop_of_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "db1.toml").symlink_to("gone.toml")
    (tmp_path / "a.toml").symlink_to("b.toml")
    (tmp_path / "b.toml").symlink_to("a.toml")
    assert refusal(tmp_path / "db1.toml").code == "missing"
    assert refusal(tmp_path / "a.toml").code == "unreadable"


def test_half_a_file_is_never_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "db1.toml", b"whole")
    monkeypatch.setattr(reading, "_read_all", lambda fd: b"who")
    assert refusal(path).code == "unstable"


@pytest.mark.parametrize("private", [True, False])
def test_a_link_put_in_the_files_place_after_the_check_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    victim, path = put(tmp_path / "victim"), tmp_path / "db1.toml"
    monkeypatch.setattr(reading, "final_path", lambda path, _: path)
    path.symlink_to(victim)
    assert refusal(path, private=private).code == "unreadable"
    path.unlink()
    os.mkfifo(path, 0o600)
    assert refusal(path, private=private).code == "not-regular"


def test_a_file_that_never_rests_is_refused_and_one_that_changed_once_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "db1.toml", b"old")
    whole, changes = reading._read_all, iter([b"new text"])

    def changes_once(fd: int) -> bytes:
        data = whole(fd)
        if text := next(changes, None):
            Path(path).write_bytes(text)
        return data

    monkeypatch.setattr(reading, "_read_all", changes_once)
    assert read_config(path, private=True) == b"new text"
    changes = iter([b"x" * n for n in range(1, 100)])
    assert refusal(path).code == "unstable"


# --- as a user without rights -----------------------------------------------


@needs_root
def test_an_unprivileged_daemon_reads_its_own_files_and_roots_but_no_others(open_folder: Path) -> None:
    mine = put(open_folder / "mine.toml")
    others = put(open_folder / "others.toml", mode=0o644)
    roots = put(open_folder / "roots.toml", mode=0o644)
    closed = put(open_folder / "closed.toml")
    os.chown(mine, NOBODY, NOBODY)
    os.chown(others, 1234, 1234)
    assert as_nobody(lambda: code_of(mine)) == "read"
    assert as_nobody(lambda: code_of(others, private=False)) == "bad-owner"
    assert as_nobody(lambda: code_of(roots, private=False)) == "read"
    assert as_nobody(lambda: code_of(closed)) == "unreadable"


@needs_root
def test_a_folder_that_may_not_be_listed_is_unusable_and_not_empty(open_folder: Path) -> None:
    (open_folder / "psk.d").mkdir(mode=0o700)  # root's
    reported = as_nobody(lambda: repr(find_config([f"{open_folder}/psk.d"])))
    assert f"unusable=('{open_folder}/psk.d',)" in reported
    assert "code='unreadable'" in reported


@needs_root
def test_an_unprivileged_daemon_trusts_no_folder_of_a_third_user(open_folder: Path) -> None:
    path = put(open_folder / "psk.d" / "db1.toml", mode=0o644)
    os.chown(open_folder / "psk.d", 1234, 1234)
    (open_folder / "psk.d").chmod(0o755)
    assert as_nobody(lambda: code_of(path, private=False)) == "bad-folder"


# --- the search path --------------------------------------------------------


def test_of_files_with_one_name_the_first_folder_wins(tmp_path: Path) -> None:
    high, low = tmp_path / "etc", tmp_path / "usr"
    first, second, third = put(high / "a.toml"), put(low / "b.toml"), put(high / "c.toml")
    put(low / "a.toml")
    found = find_config([str(high), str(low)])
    assert [(f.name, f.path) for f in found.files] == [("a", first), ("b", second), ("c", third)]
    assert not found.problems


def test_a_link_to_dev_null_masks_files_of_weaker_folders(tmp_path: Path) -> None:
    put(tmp_path / "usr" / "a.toml")
    (tmp_path / "etc").mkdir(mode=0o700)
    (tmp_path / "etc" / "a.toml").symlink_to("/dev/null")
    found = find_config([f"{tmp_path}/etc", f"{tmp_path}/usr"])
    assert (found.files, found.masked) == ((), (f"{tmp_path}/etc/a.toml",))


@needs_root
def test_a_mask_of_another_user_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.toml").symlink_to("/dev/null")
    os.chown(tmp_path / "a.toml", NOBODY, NOBODY, follow_symlinks=False)
    found = find_config([str(tmp_path)])
    assert [f.name for f in found.files] == ["a"]
    assert refusal(found.files[0].path).code == "bad-owner"


def test_a_name_that_is_not_a_regular_file_hides_the_file_of_a_weaker_folder(tmp_path: Path) -> None:
    put(tmp_path / "usr" / "a.toml")
    (tmp_path / "etc").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "etc" / "a.toml")
    (found,) = find_config([f"{tmp_path}/etc", f"{tmp_path}/usr"]).files
    assert found.path == f"{tmp_path}/etc/a.toml"


@pytest.mark.parametrize(
    "name", [".a.toml.swp", ".a.toml", ".#a.toml", "a.toml~", "#a.toml#", "a.toml.dpkg-new", ".toml", "a"]
)
def test_editors_and_package_managers_leftovers_are_no_configuration(tmp_path: Path, name: str) -> None:
    put(tmp_path / name)
    assert find_config([str(tmp_path)]).files == ()


def test_a_missing_folder_an_empty_one_and_one_that_is_open_to_others_are_distinguished(
    tmp_path: Path,
) -> None:
    missing, empty, exposed = tmp_path / "missing", tmp_path / "empty", tmp_path / "exposed"
    empty.mkdir(mode=0o700)
    put(exposed / "db1.toml")
    exposed.chmod(0o777)
    found = find_config([str(missing), str(empty), str(exposed)])
    assert (found.missing, found.unusable, found.files) == ((str(missing),), (str(exposed),), ())
    assert [p.code for p in found.problems] == ["bad-folder"]


def test_a_file_in_the_folders_place_makes_it_unusable(tmp_path: Path) -> None:
    put(tmp_path / "psk.d")
    assert find_config([f"{tmp_path}/psk.d"]).unusable == (f"{tmp_path}/psk.d",)


@pytest.mark.parametrize("name", [b"a\xff.toml", b"a\n.toml", b"a\x1b[2J.toml"])
def test_a_name_that_cannot_be_printed_is_a_problem_that_can(tmp_path: Path, name: bytes) -> None:
    with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
        pass
    found = find_config([str(tmp_path)])
    assert [p.code for p in found.problems] == ["bad-name"]
    assert str(found.problems[0]).isprintable()
    assert found.files == ()


def test_ten_thousand_files_are_listed_fast_and_without_opening_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10_000):
        os.close(os.open(f"{tmp_path}/k{number}.toml", os.O_CREAT | os.O_WRONLY, 0o600))
    really = os.open

    def folders_only(path: str, flags: int, *more: int, **which: int) -> int:
        assert flags & os.O_DIRECTORY, f"{path} was opened"
        return really(path, flags, *more, **which)

    monkeypatch.setattr(os, "open", folders_only)
    begin = time.process_time()
    assert len(find_config([str(tmp_path)]).files) == 10_000
    assert time.process_time() - begin < 2


def test_a_search_finds_the_very_same_until_something_differs(tmp_path: Path) -> None:
    high, low = tmp_path / "etc", tmp_path / "usr"
    put(high / "a.toml")
    put(low / "a.toml")
    put(low / "b.toml")
    (tmp_path / "other").symlink_to("/dev/zero")
    search = files.ConfigSearch([str(high), str(low), str(tmp_path / "run")])
    found = search.find()
    assert search.find() is found
    for change in (
        lambda: put(low / "a.toml", b"hidden, and yet"),
        lambda: (high / "a.toml").chmod(0o640),
        lambda: (high / "b.toml").symlink_to("/dev/null"),
        lambda: (tmp_path / "other").rename(high / "b.toml"),
        (high / "b.toml").unlink,
        (tmp_path / "run").mkdir,
        (low / "b.toml").unlink,
        lambda: high.chmod(0o777),
        lambda: high.chmod(0o755),
    ):
        change()
        now = search.find()
        assert now is not found
        assert now == find_config([str(high), str(low), str(tmp_path / "run")])
        found = now
    assert search.find() is found


def test_a_folder_that_is_missing_keeps_nothing_of_the_pass_that_missed_it(tmp_path: Path) -> None:
    class Caller:
        """Stands for what the callers of a search hold."""

    def observe(search: files.ConfigSearch) -> weakref.ref[Caller]:
        caller = Caller()
        search.find()
        return weakref.ref(caller)

    search = files.ConfigSearch([str(tmp_path / "missing")])
    held = observe(search)
    gc.collect()
    assert held() is None


def test_a_kubernetes_secret_is_read_and_its_exchange_changes_the_signature(tmp_path: Path) -> None:
    """kubelet: ``db1.toml -> ..data/db1.toml``, ``..data -> ..<time>``, in a sticky folder."""
    mount = tmp_path / "psk.d"
    put(mount / "..1" / "db1.toml", b"old", 0o400)
    put(mount / "..2" / "db1.toml", b"new", 0o400)
    (mount / "..1").chmod(0o755)
    (mount / "..2").chmod(0o755)
    (mount / "..data").symlink_to("..1")
    (mount / "db1.toml").symlink_to("..data/db1.toml")
    mount.chmod(0o1777)
    (before,) = find_config([str(mount)]).files
    assert read_config(before.path, private=True) == b"old"
    (mount / "..new").symlink_to("..2")
    os.rename(mount / "..new", mount / "..data")
    (after,) = find_config([str(mount)]).files
    assert read_config(after.path, private=True) == b"new"
    assert after.stat.signature != before.stat.signature


@pytest.mark.parametrize("exposed", ["..1", "..1/sub"])
def test_a_kubernetes_folder_that_others_may_write_is_refused(tmp_path: Path, exposed: str) -> None:
    put(tmp_path / "..1" / "sub" / "db1.toml")
    (tmp_path / exposed).chmod(0o777)
    (tmp_path / "db1.toml").symlink_to("..1/sub/db1.toml")
    assert refusal(tmp_path / "db1.toml").code == "bad-folder"


def test_a_stat_has_its_fields_whatever_their_size() -> None:
    """An os.stat_result of a file on an odd file system: large numbers, times before 1970."""
    mtime, ctime = -5, 2**62
    fields = [stat.S_IFREG | 0o600, 2**64 - 1, 2**63, 1, 2**32 - 2, 2**32 - 2, 2**62, 0, 0, 0]
    st = os.stat_result(fields, {"st_mtime_ns": mtime, "st_ctime_ns": ctime})
    seen = FileStat.from_stat(st)
    assert (seen.mode, seen.mtime_ns, seen.ctime_ns) == (stat.S_IFREG | 0o600, mtime, ctime)
    assert seen.signature == f"{2**63}:{2**64 - 1}:{2**62}:{mtime}"
    assert seen != FileStat.none()


@pytest.mark.parametrize("field", range(8))
def test_every_field_that_differs_makes_another_stat(field: int) -> None:
    fields = [stat.S_IFREG, 2, 3, 1, 4, 5, 6, 0, 0, 0]
    times = {"st_mtime_ns": 7, "st_ctime_ns": 8}

    def seen() -> FileStat:
        return FileStat.from_stat(os.stat_result(fields, times))

    before = seen()
    assert seen() == before
    if field < 6:
        fields[(0, 1, 2, 4, 5, 6)[field]] += 1
    else:
        times[("st_mtime_ns", "st_ctime_ns")[field - 6]] += 1
    assert seen() != before


def test_a_file_that_was_just_written_is_not_settled(tmp_path: Path) -> None:
    put(tmp_path / "db1.toml")
    (found,) = find_config([str(tmp_path)]).files
    assert not found.stat.settled(found.stat.ctime_ns + 1_000_000)
    assert found.stat.settled(found.stat.ctime_ns + 1_000_000_000)
    assert found.stat.settled(found.stat.ctime_ns - 1)  # from the future: waiting would not help


# --- text and keys ----------------------------------------------------------


def test_bytes_that_are_not_utf8_are_reported_by_line_and_never_shown() -> None:
    data = b'# one\nkey = "top\xffsecret"\n'
    with pytest.raises(ConfigError) as caught:
        decode_config(data, "psk.d/db1.toml")
    (problem,) = caught.value.problems
    assert (problem.code, problem.file, problem.line) == ("not-utf8", "psk.d/db1.toml", 2)
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


def test_a_byte_order_mark_is_dropped() -> None:
    assert decode_config(b"\xef\xbb\xbfkey = 1", "a") == "key = 1"


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (b"k", b"k"),
        (b"k\n", b"k"),
        (b"k\n\n", b"k\n"),
        (b"k\r\n", b"k\r"),
        (b"\0\xff\n", b"\0\xff"),
        (b"", b""),
    ],
)
def test_a_key_file_is_taken_as_it_is_less_one_newline(tmp_path: Path, data: bytes, key: bytes) -> None:
    put(tmp_path / "db1.key", data)
    naming = put(tmp_path / "db1.toml")
    assert read_key_file("db1.key", naming).reveal() == key
    assert read_key_file("db1.key", str(tmp_path)).reveal() == key
    assert read_key_file(f"{tmp_path}/db1.key", "/elsewhere/db1.toml").reveal() == key


def test_a_key_file_that_others_may_read_is_refused_by_its_own_name(tmp_path: Path) -> None:
    path = put(tmp_path / "db1.key", mode=0o644)
    with pytest.raises(ConfigError) as caught:
        read_key_file("db1.key", f"{tmp_path}/db1.toml")
    assert caught.value.problems[0].file == path
