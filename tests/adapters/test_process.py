"""The daemon and the command leave no core, show their memory to nobody but root, and give back what they do not need."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from iscsi_ipsec.adapters import process

NOBODY = 65534
PR_GET_DUMPABLE = 3
PROGRAMS = {
    "daemon": "from iscsi_ipsec.service.main import main\nmain(['--config-dir', '/nonexistent', '--runtime-dir', '/dev/null/x'])",
    "command": "from iscsi_ipsec.cli.main import main\nmain(['flags', '0x37'])",
}
REPORT = f"""
import ctypes, os, resource
print("dumpable", ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}, 0, 0, 0, 0), "core", resource.getrlimit(resource.RLIMIT_CORE))
"""


@pytest.mark.parametrize("program", ["daemon", "command"])
def test_a_program_that_holds_keys_cannot_be_dumped(program: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", PROGRAMS[program] + REPORT], capture_output=True, text=True, check=True
    )
    assert "dumpable 0 core (0, 0)" in said.stdout


def test_a_program_that_crashes_leaves_no_core(tmp_path: Path) -> None:
    """Shown to be able to: the same process without the call leaves one, where the kernel writes files."""
    crash = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    close = "from iscsi_ipsec.adapters.process import forbid_dumps\nforbid_dumps()\n"
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]

    def run(code: str) -> list[str]:
        folder = tmp_path / str(len(code))
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard, hard)),  # no threads here
        )  # fmt: skip
        assert done.returncode == -signal.SIGSEGV
        return os.listdir(folder)

    assert run(close + crash) == []
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    if hard == 0 or pattern.startswith(("|", "/")):
        pytest.skip("this kernel's core_pattern, or the limit, leaves no core here in any case")
    assert run(crash) != []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_process_of_the_same_user_cannot_read_its_memory_or_environment() -> None:
    """Of a user without rights: root may read all. That user may not reach the checkout, so it is given the module's text."""
    module = Path(process.__file__).read_text()

    def readable(call: str) -> list[str]:
        holder = f"{module}\nimport sys\n{call}print('up', flush=True)\nsys.stdin.read()\n"
        with subprocess.Popen(
            ["setpriv", "--reuid", str(NOBODY), "--clear-groups", "/usr/bin/python3", "-c", holder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as held:  # fmt: skip
            assert held.stdout is not None
            assert held.stdout.readline() == "up\n"
            look = (
                "import sys\nfor name in ('mem', 'environ', 'maps'):\n"
                f"    try: open('/proc/{held.pid}/' + name, 'rb').read(0 if name == 'mem' else 1); print(name)\n"
                "    except OSError: pass\n"
            )
            asked = subprocess.run(
                ["setpriv", "--reuid", str(NOBODY), "--clear-groups", "/usr/bin/python3", "-c", look],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            held.communicate("")
        return asked.stdout.split()

    assert readable("") == ["mem", "environ", "maps"]
    assert readable("forbid_dumps(); ") == []
