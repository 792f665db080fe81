from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.support.source import TOP, run

SCRIPTS = TOP / "packaging/deb"
RECORDED = (
    "deb-systemd-helper", "deb-systemd-invoke", "iscsi-ipsecd", "nft",
    "py3clean", "py3compile", "systemctl", "systemd-tmpfiles",
)  # fmt: skip


class System:
    """A machine that systemd did not boot: commands are written down, DPKG_ROOT is the root."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.root.mkdir()
        self._log = folder / "log"
        tools = folder / "tools"
        tools.mkdir()
        for name in RECORDED:
            (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"{self._log}"\n')
            (tools / name).chmod(0o755)
        self._env = {"PATH": f"{tools}:{os.defpath}", "DPKG_ROOT": str(self.root)}

    def file(self, path: str) -> Path:
        found = self.root / path
        found.parent.mkdir(parents=True, exist_ok=True)
        found.write_text("x")
        return found

    def script(self, name: str, *arguments: str) -> list[str]:
        """Run a maintainer script; return the commands that it used."""
        self._log.write_text("")
        run("/bin/sh", "-e", SCRIPTS / name, *arguments, env=self._env)
        return self._log.read_text().splitlines()


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_every_shell_script_of_the_source_is_clean() -> None:
    found = run(TOP / "packaging/shell-scripts").split()
    for script in ("postinst", "prerm", "postrm", "build"):
        assert f"./packaging/deb/{script}" in found
    run("shellcheck", *found)


def test_installing_where_systemd_does_not_run_enables_and_starts_nothing(system: System) -> None:
    used = system.script("postinst", "configure", "")
    assert "deb-systemd-helper enable iscsi-ipsec-guard.service" in used
    assert "deb-systemd-helper enable iscsi-ipsecd.service" in used
    assert not [line for line in used if line.startswith(("deb-systemd-invoke", "systemctl", "nft"))]


def test_an_upgrade_restarts_the_daemon_and_stops_nothing() -> None:
    postinst, prerm = ((SCRIPTS / name).read_text() for name in ("postinst", "prerm"))
    assert "action=restart" in postinst
    assert not re.search(r"(stop|restart) .*guard", postinst)
    # all that stops or unloads is under the test for a removal
    removal = prerm.split('if [ "$1" = remove ]')[1].split("\nfi\n")[0]
    for dangerous in ("deb-systemd-invoke stop", "--unload-all"):
        assert dangerous in removal
        assert prerm.count(dangerous) == 1
    assert "strongswan" not in postinst


def test_an_upgrade_removes_no_state(system: System) -> None:
    state = system.file("var/lib/iscsi-ipsec/state.db")
    for arguments in (("upgrade", "0.2.0"), ("failed-upgrade", "0.1.0"), ("abort-upgrade", "0.1.0")):
        assert not [line for line in system.script("postrm", *arguments) if "purge" in line or "nft" in line]
    assert state.exists()


def test_removing_keeps_state_so_that_a_new_installation_closes_the_portals_again(system: System) -> None:
    state = system.file("var/lib/iscsi-ipsec/state.db")
    system.script("postrm", "remove")
    assert state.exists()


def test_removing_in_a_chroot_leaves_the_guard_of_the_machine_around_it(system: System) -> None:
    assert system.script("prerm", "remove") == ["py3clean -p iscsi-ipsec /usr/lib/iscsi-ipsec/python"]
    assert system.script("postrm", "remove") == []


def test_purging_removes_state_and_never_a_key_of_the_admin(system: System) -> None:
    state = system.file("var/lib/iscsi-ipsec/state.db")
    runtime = system.file("run/iscsi-ipsec/status.json")
    key = system.file("etc/iscsi-ipsec/psk.d/db1.toml")
    neighbour = system.file("var/lib/other/file")
    (system.root / "etc/iscsi-ipsec/portal.d").mkdir()

    used = system.script("postrm", "purge")

    assert not state.parent.exists()
    assert not runtime.parent.exists()
    assert key.exists()
    assert neighbour.exists()
    assert not (system.root / "etc/iscsi-ipsec/portal.d").exists(), "empty, and ours"
    assert used == ["deb-systemd-helper purge iscsi-ipsec-guard.service iscsi-ipsecd.service"]


def test_purging_twice_is_no_error(system: System) -> None:
    (system.root / "etc/iscsi-ipsec/psk.d").mkdir(parents=True)
    system.script("postrm", "purge")
    assert not (system.root / "etc/iscsi-ipsec").exists()
    system.script("postrm", "purge")
