"""Where the files of the source are, and how its scripts are run."""

from __future__ import annotations

import subprocess
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"


def run(*argv: str | Path, env: dict[str, str] | None = None, cwd: Path = TOP) -> str:
    """Run a command that must succeed and return what it printed, both streams."""
    done = subprocess.run(
        [str(arg) for arg in argv],
        env=env,
        cwd=cwd,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{argv} exited {done.returncode}:\n{done.stdout}"
    return done.stdout


def only_plain_files(folder: Path) -> list[Path]:
    """Every regular file below ``folder``, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
