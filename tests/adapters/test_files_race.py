"""An attacker who may write in a folder beside ours exchanges what we are about to open, as fast as they can."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ipsec.adapters.files import find_config, read_config, read_key_file
from iscsi_ipsec.base.errors import ConfigError
from tests.support.netlab.waiting import wait_until

NOBODY = 65534
READS = 300
SECRET = b"root's own secret, not for keys"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")

# In turn, in place of the same name: a folder of theirs, a link to root's folder, a link to a folder of
# links, a file, a FIFO, nothing. What is in their folder is exchanged as well.
ATTACKER = """
import itertools, os, sys
place, victim = sys.argv[1], sys.argv[2]
def away():
    for act in (os.unlink, os.rmdir):
        try: act(place)
        except OSError: pass
    try: os.rename(place, place + ".old" + str(next(count)))
    except OSError: pass
def folder(fill):
    os.mkdir(place, 0o700)
    fill(place + "/db1.toml")
def file(path):
    with open(path, "w") as new: new.write("theirs")
    os.chmod(path, 0o600)
count = itertools.count()
acts = (
    lambda: folder(file),
    lambda: folder(lambda path: os.symlink(victim + "/db1.toml", path)),
    lambda: folder(lambda path: os.mkfifo(path, 0o600)),
    lambda: os.symlink(victim, place),
    lambda: os.symlink("../" + os.path.basename(victim), place),
    lambda: file(place),
    lambda: os.mkfifo(place, 0o600),
    lambda: None,
)
print("up", flush=True)
os.set_blocking(1, False)
for act in itertools.cycle(acts):
    away()
    try: act()
    except OSError: pass
    try: os.write(1, b".")
    except BlockingIOError: pass  # nobody has read for long
"""


@pytest.fixture
def attacked(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, Path, subprocess.Popen[bytes]]]:
    """A sticky folder as /tmp is, root's folder with a file in it, and who is at work in the former."""
    base = tmp_path_factory.mktemp("race")
    for above in (base, *base.parents):
        if above.stat().st_mode & 0o001 == 0:
            above.chmod(above.stat().st_mode | 0o011)
    shared, victim = base / "shared", base / "victim"
    shared.mkdir()
    shared.chmod(0o1777)
    victim.mkdir(mode=0o755)
    (victim / "db1.toml").touch(mode=0o600)
    (victim / "db1.toml").write_bytes(SECRET)
    process = subprocess.Popen(
        ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups",
         "/usr/bin/python3", "-c", ATTACKER, str(shared / "psk.d"), str(victim)],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    try:
        yield shared / "psk.d", victim, process
    finally:
        process.kill()
        process.communicate()


def read(number: int, place: Path) -> bytes:
    """Each way in which the daemon and the command read what a name leads to."""
    match number:
        case 0:
            return read_config(f"{place}/db1.toml", private=True)
        case 1:
            return read_config(f"{place}/db1.toml", private=False)
        case 2:
            return read_key_file("db1.toml", str(place)).reveal()
        case _:
            return read_config(str(place), private=True)


def test_a_file_that_an_attacker_exchanges_during_the_read_is_never_read(
    attacked: tuple[Path, Path, subprocess.Popen[bytes]],
) -> None:
    place, victim, process = attacked
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    reported: set[str] = set()
    swaps = b""
    rounds = itertools.count()
    # on a busy machine the attacker gets along more slowly
    while next(rounds) < READS or len(swaps) <= 50 or not {"bad-owner", "bad-folder"} <= reported:
        for number in range(4):
            try:
                got = read(number, place)
            except ConfigError as err:
                reported |= {problem.code for problem in err.problems}
            else:
                raise AssertionError(f"read {got!r}")
        assert find_config([str(place)]).files == ()
        assert process.poll() is None
        with contextlib.suppress(BlockingIOError):
            swaps += os.read(process.stdout.fileno(), 1 << 20)
    # it was indeed exchanged meanwhile, and seen in several of its forms
    assert len(swaps) > 50
    assert {"bad-owner", "bad-folder"} <= reported
    # and what is root's, by a way that is root's alone, is read
    assert read_config(f"{victim}/db1.toml", private=True) == SECRET


def test_a_trusted_file_that_is_replaced_while_it_is_read_is_one_or_the_other(tmp_path: Path) -> None:
    """No attacker, but an admin's script that renames fresh files into place: never half of each."""
    path = tmp_path / "db1.toml"
    texts = [bytes([letter]) * size for letter, size in ((65, 60_000), (66, 50_000))]
    writer = (
        "import itertools, os, sys\n"
        "for text in itertools.cycle([b'A' * 60000, b'B' * 50000]):\n"
        "    fd = os.open(sys.argv[1] + '.new', os.O_CREAT | os.O_WRONLY, 0o600)\n"
        "    os.write(fd, text); os.close(fd); os.rename(sys.argv[1] + '.new', sys.argv[1])\n"
    )
    with subprocess.Popen([sys.executable, "-c", writer, str(path)]) as process:
        try:
            wait_until(path.exists, "the first file is there")
            seen = {read_config(str(path), private=True)[:1] for _ in itertools.repeat(None, 200)}
            assert read_config(str(path), private=True) in texts
        finally:
            process.kill()
    assert seen <= {b"A", b"B"}


def test_a_file_that_is_replaced_after_it_was_opened_is_read_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often: the old one is whole, and that there is a new one brings the next reading."""
    path = tmp_path / "db1.toml"
    path.touch(mode=0o600)
    path.write_bytes(b"old")
    read = os.read

    def replaced_meanwhile(fd: int, size: int) -> bytes:
        data = read(fd, size)
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_bytes(b"new")
        while fresh.stat().st_ctime_ns == os.fstat(fd).st_ctime_ns:
            fresh.touch()  # in the same tick of the clock the rename would leave no trace
        fresh.rename(path)
        return data

    monkeypatch.setattr(os, "read", replaced_meanwhile)
    assert read_config(str(path), private=True) == b"old"
