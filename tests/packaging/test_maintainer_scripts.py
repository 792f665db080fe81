from __future__ import annotations

import os
import re
import shutil
import subprocess
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
    assert not re.search(r"invoke \S+ strongswan", postinst)


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
    assert used == [
        "deb-systemd-helper purge iscsi-ipsec-guard.service iscsi-ipsecd.service iscsi-ipsec-ike-hold.service"
    ]


def test_purging_unmasks_what_open_all_masked_and_leaves_an_admins_unit(system: System) -> None:
    units = system.root / "etc/systemd/system"
    units.mkdir(parents=True)
    (units / "iscsi-ipsecd.service").symlink_to("/dev/null")
    (units / "iscsi-ipsec-guard.service").write_text("[Service]\n")
    (units / "other.service").symlink_to("/dev/null")
    system.script("postrm", "purge")
    left = {path.name for path in units.iterdir()}
    assert left == {"iscsi-ipsec-guard.service", "other.service"}


def test_purging_twice_is_no_error(system: System) -> None:
    (system.root / "etc/iscsi-ipsec/psk.d").mkdir(parents=True)
    system.script("postrm", "purge")
    assert not (system.root / "etc/iscsi-ipsec").exists()
    system.script("postrm", "purge")


# -- sessions that a removal would open


class Host:
    """A machine with iSCSI connections (a tree of sysfs) and a guard that holds 10.0.0.20 and fd00::20."""

    def __init__(self, folder: Path) -> None:
        self.sysfs, self.runtime, self.lib = folder / "sys", folder / "run", folder / "lib"
        self.runtime.mkdir()
        self.lib.mkdir()
        tools = folder / "tools"
        tools.mkdir()
        nft = tools / "nft"
        nft.write_text(
            '#!/bin/sh\ncase "$*" in\n'
            '"get element inet iscsi_ipsec portals4 { 10.0.0.20 . 3260 }") ;;\n'
            '"get element inet iscsi_ipsec portals6 { fd00::20 . 3261 }") ;;\n'
            '"list set inet iscsi_ipsec served6") echo elements ;;\n'
            '"get element inet iscsi_ipsec served4 { 10.0.0.1 . 3260 }") ;;\n'
            '"get element inet iscsi_ipsec served6 { fd00::1 . 3260 }") ;;\n'
            "*) exit 1 ;;\nesac\n"
        )
        nft.chmod(0o755)
        self._tcp = folder / "tcp"
        self._tcp.write_text("")
        ss = tools / "ss"
        ss.write_text(f"#!/bin/sh\ncat {self._tcp}\n")
        ss.chmod(0o755)
        for name in ("managed-sessions", "apt-hook"):
            shutil.copy(TOP / "packaging" / name, self.lib)
        self._env = {
            "PATH": f"{tools}:{os.defpath}", "SYSFS": str(self.sysfs), "RUNTIME": str(self.runtime),
        }  # fmt: skip

    def connect(self, sid: int, **attributes: str) -> None:
        folder = self.sysfs / f"class/iscsi_connection/connection{sid}:0"
        folder.mkdir(parents=True)
        for name, value in attributes.items():
            (folder / name).write_text(f"{value}\n")

    def serve(self, *connections: str) -> None:
        """Have these TCP connections, each as ss prints it: the local end and the peer's."""
        self._tcp.write_text("".join(f"0      0      {connection}\n" for connection in connections))

    def run(self, name: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.lib / name],
            env=self._env,
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_managed_sessions_names_those_whose_portal_the_guard_holds(host: Host) -> None:
    host.connect(1, address="10.0.0.20", port="3260")
    host.connect(2, address="10.0.0.77", port="3260")
    host.connect(3, persistent_address="fd00::20", persistent_port="3261")
    done = host.run("managed-sessions")
    assert (done.returncode, done.stdout) == (0, "10.0.0.20 port 3260\nfd00::20 port 3261\n")


def test_managed_sessions_names_the_initiators_of_served_portals(host: Host) -> None:
    host.serve(
        "10.0.0.1:3260  10.0.0.9:40000",
        "[::ffff:10.0.0.1]:3260 [::ffff:10.0.0.8]:40001",
        "[fd00::1]:3260 [fd00::9]:40002",
        "10.0.0.1:22  10.0.0.9:40003",
        "10.0.0.1%eth0:22 10.0.0.9:3260",
    )
    done = host.run("managed-sessions")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "10.0.0.1 port 3260, used by 10.0.0.9:40000",
        "10.0.0.1 port 3260, used by 10.0.0.8:40001",
        "fd00::1 port 3260, used by fd00::9:40002",
    ]


def test_managed_sessions_are_none_where_there_are_none_or_the_admin_gave_them_up(host: Host) -> None:
    host.connect(2, address="10.0.0.77", port="3260")
    assert (host.run("managed-sessions").returncode, host.run("managed-sessions").stdout) == (1, "")
    host.connect(1, address="10.0.0.20", port="3260")
    (host.runtime / "remove-with-sessions").touch()
    assert (host.run("managed-sessions").returncode, host.run("managed-sessions").stdout) == (1, "")


TRANSACTION = "VERSION 2\nAPT::Architecture=amd64\nDir::State=x **REMOVE**\n\n{}\n"
REMOVALS = {
    "itself": "iscsi-ipsec 0.1.0 > - **REMOVE**",
    "charon, by what conflicts with it": "libreswan - < 4.10-2 /x/libreswan.deb\ncharon-systemd 5.9.8-5 > - **REMOVE**",
    "with an architecture": "charon-systemd:amd64 5.9.8-5 > - **REMOVE**",
}


@pytest.mark.parametrize("lines", REMOVALS.values(), ids=REMOVALS)
def test_apt_is_refused_a_removal_under_a_managed_session(host: Host, lines: str) -> None:
    text = TRANSACTION.format(lines)
    assert host.run("apt-hook", text).returncode == 0, "no session is up"
    host.connect(1, address="10.0.0.20", port="3260")
    done = host.run("apt-hook", text)
    assert done.returncode == 1
    assert "10.0.0.20 port 3260" in done.stderr
    assert "remove-with-sessions" in done.stderr


@pytest.mark.parametrize(
    "lines",
    [
        "iscsi-ipsec 0.1.0 < 0.2.0 /x/iscsi-ipsec.deb",
        "charon-systemd 5.9.8-5 < 5.9.8-6 **CONFIGURE**",
        "iscsi-ipsec-doc 0.1.0 > - **REMOVE**",
        "",
    ],
)
def test_apt_may_do_anything_else(host: Host, lines: str) -> None:
    host.connect(1, address="10.0.0.20", port="3260")
    assert host.run("apt-hook", TRANSACTION.format(lines)).returncode == 0


def test_a_removal_asks_for_sessions_before_it_stops_anything() -> None:
    prerm = (SCRIPTS / "prerm").read_text()
    assert prerm.index("managed-sessions)") < prerm.index("exit 1") < prerm.index("deb-systemd-invoke stop")


def test_a_removal_that_was_refused_restarts_nothing() -> None:
    postinst = (SCRIPTS / "postinst").read_text()
    assert '[ "$1" != configure ] || [ -z "$2" ] || action=restart' in postinst


def test_apts_hook_is_linked_while_the_package_is_installed(system: System) -> None:
    folder = system.root / "etc/apt/apt.conf.d"
    folder.mkdir(parents=True)
    system.script("postinst", "configure", "")
    assert (folder / "50iscsi-ipsec").readlink() == Path("/usr/lib/iscsi-ipsec/apt.conf")
    system.script("postrm", "remove")
    assert not list(folder.iterdir())
