from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from tests.support.source import TOP, run

COMMANDS = ["usr/sbin/iscsi-ipsecd", "usr/bin/iscsi-ipsec"]

needs_systemd_python = pytest.mark.skipif(
    subprocess.run(["/usr/bin/python3", "-Ic", "import systemd.daemon"], capture_output=True).returncode != 0,
    reason="needs python3-systemd",
)


@needs_systemd_python
@pytest.mark.parametrize("command", COMMANDS)
def test_an_unpacked_command_runs_on_its_own(
    command: str, unpacked: Path, hostile_env: dict[str, str]
) -> None:
    # started in a folder whose modules would break it, too
    trap = Path(hostile_env["PYTHONPATH"])
    reported = run(unpacked / command, "--help", env=hostile_env, cwd=trap)
    assert Path(command).name in reported


@pytest.mark.parametrize("command", COMMANDS)
def test_only_the_package_and_debian_are_on_the_import_path(
    command: str, unpacked: Path, tmp_path: Path, hostile_env: dict[str, str]
) -> None:
    # the launcher as it is, with a program that prints what it sees
    for name in ("service", "cli"):
        package = tmp_path / "lib/iscsi-ipsec/python/iscsi_ipsec" / name
        package.mkdir(parents=True)
        (package / "main.py").write_text("import sys\ndef main(): print(sys.path, sys.flags)\n")
    launcher = tmp_path / "bin" / Path(command).name
    launcher.parent.mkdir()
    launcher.write_text((unpacked / command).read_text())
    launcher.chmod(0o755)

    reported = run(launcher, env=hostile_env)
    path, _, flags = reported.partition("] ")
    folders = ast.literal_eval(path + "]")

    assert folders[0] == str(tmp_path / "lib/iscsi-ipsec/python")
    assert not [folder for folder in folders if "/local/" in folder or str(TOP) in folder or "trap" in folder]
    assert "isolated=1" in flags
    assert "no_site=1" in flags
    assert not list(tmp_path.rglob("__pycache__")), "byte code is written at installation only"
