"""Executes on a machine everything that faults do to it.

Faults know no lab. Who wants them on another kind of machine writes another `Hand`: paths are
relative to four folders (`etc`, `run`, `lib`, `iscsi`), commands run as root on the initiator.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
from pathlib import Path
from typing import Protocol

from tests.support.netlab import Charon, Daemon, Node
from tests.support.netlab.process import run

OURS = "iscsi-ipsec"

# renameat2(2): what Python has no name for
AT_FDCWD = -100
RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


class Hand(Protocol):
    """The operations that a machine must offer."""

    def put(self, path: str, data: bytes, mode: int = 0o600) -> None:
        """Write beside and rename into place."""

    def write(self, path: str, data: bytes, mode: int = 0o600, *, halves: bool = False) -> None:
        """Write in place; ``halves``: in two goes, torn in between."""

    def remove(self, path: str) -> None:
        """Remove a file, a link or a whole folder, if it is there."""

    def rename(self, old: str, new: str) -> None: ...
    def exchange(self, path: str, other: str) -> None:
        """Each takes the other's place, in one step."""

    def chmod(self, path: str, mode: int) -> None: ...
    def touch(self, path: str) -> None: ...
    def link(self, target: str, path: str) -> None:
        """Make a symbolic link, or replace one in one step."""

    def mkdir(self, path: str) -> None:
        """Make a folder of mode 700, and those above it."""

    def copy_tree(self, old: str, new: str) -> None: ...
    def hard_link(self, path: str, second: str) -> None: ...
    def names(self, folder: str) -> list[str]: ...
    def leads(self, path: str) -> str:
        """Where a symbolic link leads; empty for anything else."""

    def noise(self, folder: str, events: int) -> None:
        """Make and remove a file that does not belong to the configuration, until there were so many inotify events."""

    def fill(self, path: str) -> None:
        """Write until the disk is full."""

    def at(self, path: str) -> Path:
        """The path on the machine."""

    def run(self, *words: str, text: str | None = None) -> str:
        """Run a command on the initiator's machine and return what it printed; it may fail."""

    def start_charon(self) -> None: ...
    def stop_charon(self, *, clean: bool) -> None: ...
    def start_daemon(self) -> None: ...
    def stop_daemon(self, *, clean: bool) -> None: ...
    def signal_daemon(self, number: int) -> None: ...
    def swanctl(self, *words: str) -> None:
        """Run swanctl on the configuration of somebody else."""

    def loaded(self, kind: str) -> list[str]:
        """Names of our connections (``conn``) or secrets (``shared``) in charon."""

    def unload(self, kind: str, name: str) -> None:
        """Unload one of them over VICI."""

    def restore_foreign_table(self) -> None:
        """Load somebody else's nftables table again, as they would."""

    def note_foreign_table(self) -> None:
        """Another program changes its own table; from then on that must stay unchanged."""


class LabHand:
    """The hand on a node of the lab."""

    def __init__(self, node: Node, charon: Charon, daemon: Daemon) -> None:
        self.node, self.charon, self.daemon = node, charon, daemon
        self._places = {
            "etc": daemon.config,
            "run": daemon.runtime,
            "lib": daemon.state,
            "iscsi": daemon.nodes,
            "beside": daemon.folder / "beside",
        }
        self._places["beside"].mkdir(mode=0o700, exist_ok=True)
        self.foreign_text = ""

    def at(self, path: str) -> Path:
        place, _, rest = path.partition("/")
        return self._places[place] / rest if rest else self._places[place]

    # -- files ----------------------------------------------------------------------------------

    def put(self, path: str, data: bytes, mode: int = 0o600) -> None:
        real = self.at(path)
        fresh = real.with_name(f".{real.name}.new")
        self._create(fresh, data, mode)
        fresh.replace(real)

    def write(self, path: str, data: bytes, mode: int = 0o600, *, halves: bool = False) -> None:
        real = self.at(path)
        middle = len(data) // 2 if halves else len(data)
        with open(os.open(real, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(data[:middle])
            file.flush()
            file.write(data[middle:])
        real.chmod(mode)

    @staticmethod
    def _create(path: Path, data: bytes, mode: int) -> None:
        path.touch(mode=mode)
        path.chmod(mode)
        path.write_bytes(data)

    def remove(self, path: str) -> None:
        real = self.at(path)
        if real.is_dir() and not real.is_symlink():
            shutil.rmtree(real)
        else:
            real.unlink(missing_ok=True)

    def rename(self, old: str, new: str) -> None:
        self.at(old).rename(self.at(new))

    def exchange(self, path: str, other: str) -> None:
        old, new = os.fsencode(self.at(path)), os.fsencode(self.at(other))
        if _libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, RENAME_EXCHANGE):
            raise OSError(ctypes.get_errno(), "renameat2", str(self.at(path)))

    def chmod(self, path: str, mode: int) -> None:
        self.at(path).chmod(mode)

    def touch(self, path: str) -> None:
        os.utime(self.at(path))

    def link(self, target: str, path: str) -> None:
        real = self.at(path)
        fresh = real.with_name(f".{real.name}.link")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(real)

    def mkdir(self, path: str) -> None:
        os.makedirs(self.at(path), mode=0o700, exist_ok=True)

    def copy_tree(self, old: str, new: str) -> None:
        run(["cp", "-a", str(self.at(old)), str(self.at(new))])

    def hard_link(self, path: str, second: str) -> None:
        os.link(self.at(path).resolve(), self.at(second))

    def names(self, folder: str) -> list[str]:
        return sorted(os.listdir(self.at(folder)))

    def leads(self, path: str) -> str:
        real = self.at(path)
        return os.readlink(real) if real.is_symlink() else ""

    def noise(self, folder: str, events: int) -> None:
        path = self.at(folder) / "noise.tmp"
        for _ in range(events // 4 + 1):  # created, modified, closed, deleted
            path.write_bytes(b"x")
            path.unlink()

    def fill(self, path: str) -> None:
        with self.at(path).open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1024))

    def signature(self, path: str) -> str:
        """Which version of a file was read, by status.json."""
        try:
            st = self.at(path).stat()
        except OSError:
            return ""
        return f"{st.st_dev}:{st.st_ino}:{st.st_size}:{st.st_mtime_ns}"

    # -- processes ------------------------------------------------------------------------------

    def run(self, *words: str, text: str | None = None) -> str:
        return self.node.run(words, check=False, text=text).out

    def start_charon(self) -> None:
        self.charon.start()

    def stop_charon(self, *, clean: bool) -> None:
        self.charon.terminate() if clean else self.charon.kill()

    def start_daemon(self) -> None:
        self.daemon.start()

    def stop_daemon(self, *, clean: bool) -> None:
        self.daemon.terminate() if clean else self.daemon.kill()

    def signal_daemon(self, number: int) -> None:
        os.kill(self.daemon.pid, signal.Signals(number))

    def swanctl(self, *words: str) -> None:
        self.charon.swanctl(*words, "--file", str(self.charon.swanctl_dir / "swanctl.conf"), check=False)

    def loaded(self, kind: str) -> list[str]:
        names = self.charon.connections() if kind == "conn" else self.charon.secrets()
        return [name for name in names if name.startswith(OURS)]

    def unload(self, kind: str, name: str) -> None:
        with self.charon.vici() as session:
            if kind == "conn":
                session.unload_conn({"name": name})
            else:
                session.unload_shared({"id": name})

    # -- somebody else --------------------------------------------------------------------------

    def foreign_table(self) -> str:
        return self.run("nft", "list", "table", "inet", "foreign")

    def restore_foreign_table(self) -> None:
        self.run("nft", "-f", "-", text=self.foreign_text)

    def note_foreign_table(self) -> None:
        self.foreign_text = self.foreign_table()
