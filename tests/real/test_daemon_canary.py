"""A key is only in the places where it belongs: in the admin's file, our state, and two processes' memory.

One life of the daemon with everything that can befall a key, and then a search through all that
it, charon and the command left behind, and through what every process was started with.
"""

from __future__ import annotations

import base64
import os
import shlex
import shutil
import stat
import sys
from pathlib import Path

import pytest

from tests.support.admin import ROW, key_file, portal_file, wait_for_connection
from tests.support.netlab import Charon, Daemon, wait_until

CANARY = "canary-5c1f0e7a93b2"
"""The prefix of every key in this test."""
FORMS = tuple(
    form
    for raw in (CANARY.encode(), CANARY.encode("utf-16-le"))
    for form in (
        raw,
        raw.hex().encode(),
        raw.hex().upper().encode(),
        *(base64.b64encode(b"x" * shift + raw)[4 * (shift > 0) : -4] for shift in range(3)),
    )
)
PROGRAMS = ("nft", "systemctl", "systemd-creds")


def key(number: int) -> bytes:
    return f"{CANARY}-{number:04}".encode()


def holds(data: bytes) -> bool:
    return any(form in data for form in FORMS)


def files_holding(*folders: Path) -> set[str]:
    found = set()
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and holds(path.read_bytes()):
                found.add(str(path.relative_to(folder)))
    return found


def memory_holds(pid: int) -> bool:
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            if line.split()[1].startswith("rw"):
                try:
                    memory.seek(start)
                    if holds(memory.read(end - start)):
                        return True
                except (OSError, ValueError):
                    continue  # [vvar] and the like
    return False


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that gets the argument list and the environment of every program the daemon starts."""
    record, tools = tmp_path / "record", tmp_path / "tools"
    record.mkdir()
    tools.mkdir()
    for name in PROGRAMS:
        real = shutil.which(name)
        if real:
            # the text on standard input is part of it: the guard's table
            (tools / name).write_text(
                f'#!/bin/sh\nin={record}/{name}.$$\ncat /proc/$$/cmdline /proc/$$/environ >"$in"\n'
                f'[ "$1" = -f ] && tee "$in.stdin" | exec {shlex.quote(real)} "$@"\nexec {shlex.quote(real)} "$@"\n'
            )
            (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return record


CRASH = """
import sys
from iscsi_ipsec.service import status_report, main
def broken(self, outcome, problems=()):
    keys = outcome.snapshot.config  # a frame that holds every key
    raise RuntimeError("a bug that was planted")
status_report.StatusReporter.write = broken
sys.exit(main.main())
"""


def test_a_key_is_found_where_it_belongs_and_nowhere_else(
    daemon: Daemon, charon: Charon, started: Path, tmp_path: Path
) -> None:
    said: list[str] = []

    def ask(*words: str, text: str | None = None) -> None:
        answer = daemon.cli(*words, text=text)
        said.append(answer.out + answer.err)

    daemon.put_settings('log_level = "debug"\n')
    daemon.put_portal("san", portal_file())
    daemon.put_key("a", key_file("a.lab", key(1)))
    daemon.start()
    wait_for_connection(charon, daemon)

    # loaded in every form, changed, refused, broken, weak, removed
    raw = daemon.psk / "raw.key"
    raw.touch(mode=0o600)
    raw.write_bytes(key(2))
    head = 'id_type = "ID_FQDN"\nid = '
    for name, line in {
        "hex": f'key_hex = "{key(3).hex()}"',
        "base": f'key_base64 = "{base64.b64encode(key(4)).decode()}"',
        "file": 'key_file = "raw.key"',
        "unquoted": f"key = {key(5).decode()}",
        "unclosed": f'key = "{key(6).decode()}',
        "twice": f'key = "{key(7).decode()}"\nkey_hex = "{key(7).hex()}"',
        "badhex": f'key_hex = "{key(8).decode()}"',
        "typo": f'kye = "{key(9).decode()}"',
    }.items():
        daemon.put_key(name, f'{head}"{name}.lab"\n{line}\nportals = ["192.0.2.1"]\n')
    daemon.put_key("group", f'group = true\nkey = "{key(10).decode()}"\n')
    exposed = daemon.put_key("exposed", key_file("e.lab", key(11)))
    exposed.chmod(0o644)
    wait_until(lambda: len(daemon.problems()) >= 5, "the broken files are reported", detail=daemon.tail)
    before = charon.secrets()
    daemon.put_key("a", key_file("a.lab", key(12)))
    wait_until(lambda: charon.secrets() != before, "the changed key is loaded", detail=daemon.tail)
    daemon.put_key("a", key_file("a.lab", key(13)).replace('"VALID"', '"VALD"'))
    wait_until(
        lambda: any("VALD" in p for p in daemon.problems()), "the last good key stays", detail=daemon.tail
    )

    for words in (
        ("status",), ("status", "--json"), ("plan",), ("explain", ROW), ("check",), ("verify",), ("psk", "list"),
        ("psk", "get", "a"), ("wait", "--timeout", "1"), ("clear-cache",),
    ):  # fmt: skip
        ask(*words)
    ask("psk", "set", "fresh", "--id", "fresh.lab", "--stdin", text=key(14).decode())
    assert memory_holds(charon.pid), "the search finds nothing even where there is something"
    assert memory_holds(daemon.pid)
    processes = b"".join(
        Path("/proc", str(pid), what).read_bytes()
        for pid in (daemon.pid, charon.pid)
        for what in ("cmdline", "environ")
    )
    listed = (
        daemon.node.run(["nft", "list", "ruleset"]).out + str(charon.connections()) + str(charon.secrets())
    )

    # a crash with a traceback through frames that hold keys, then one that asks for a core
    daemon.terminate()
    crash = daemon.node.run(
        [sys.executable, "-c", CRASH, *daemon.options, "--log-level", "debug"], check=False, timeout=60
    )
    said.append(crash.out + crash.err)
    assert "a bug that was planted" in crash.err
    daemon.start()
    os.kill(daemon.pid, 11)
    wait_until(lambda: not daemon.running, "it has crashed")
    daemon.start()  # with the last good content, from the state

    belongs = {
        *(f"etc/psk.d/{path.name}" for path in daemon.psk.iterdir()),
        *(f"lib/{path.name}" for path in daemon.state.iterdir() if path.name.startswith("state.db")),
    }
    holding = files_holding(daemon.folder)
    assert "lib/state.db" in holding
    assert holding <= belongs
    for name in holding:
        if name != "etc/psk.d/exposed.toml":
            assert stat.S_IMODE((daemon.folder / name).stat().st_mode) == 0o600, name
    assert files_holding(charon.folder, started) == set()
    assert any(started.iterdir()), "no program was seen being started"
    assert not holds(processes)
    assert not holds(listed.encode())
    assert not [text for text in said if holds(text.encode())]
    assert not [path for path in (*daemon.folder.rglob("core*"), *Path.cwd().glob("core*")) if path.is_file()]


def test_files_that_the_daemon_leaves_for_other_users_hold_no_key(daemon: Daemon, charon: Charon) -> None:
    """Everybody can read the metrics; only root can read the other files."""
    daemon.put_portal("san", portal_file())
    daemon.put_key("a", key_file("a.lab", key(1)))
    daemon.start()
    wait_for_connection(charon, daemon)
    wait_until((daemon.runtime / "metrics.prom").exists, "metrics are written")
    open_to_others = {
        str(path.relative_to(daemon.folder))
        for folder in (daemon.runtime, daemon.state)
        for path in folder.rglob("*")
        # a file that is being written has a name with a dot, and may be gone before we look
        if not path.name.startswith(".") and path.is_file() and path.stat().st_mode & 0o077
    }
    assert open_to_others <= {"run/metrics.prom"}
