"""Fixtures of the VM suite; `tests/vm/run` raises the machines and says where they are."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import farend, openiscsi
from tests.vm.machine import Machine
from tests.vm.stream import MEASURED
from tests.vm.wire import Wire

NETWORK = "iscsi-ipsec-data"

# Rows of the tables that end the run, by title: pytest shows nothing that a passing test prints.
Tables = dict[str, list[str]]
TABLES = pytest.StashKey[Tables]()


# An installation takes minutes on an emulated CPU: first what needs none, then what needs a fresh one.
FIRST = ("test_control.py", "test_first_session.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the modules in an order that installs the package once on each machine; the rest as they come."""
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def tables(pytestconfig: pytest.Config) -> Tables:
    """The lines that `pytest_terminal_summary` prints when all tests have run."""
    return pytestconfig.stash.setdefault(TABLES, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the tables, and how long I/O stood still."""
    for title, rows in config.stash.get(TABLES, {}).items():
        terminalreporter.section(f"{title}: {len(rows)}")
        for row in rows:
            terminalreporter.write_line(row)
    if MEASURED:
        terminalreporter.section("longest time without I/O, in seconds")
        for row in MEASURED:
            terminalreporter.write_line(row)


@pytest.fixture(scope="session")
def ssh_config() -> Path:
    """How to reach the machines."""
    if not (path := os.environ.get("VM_SSH_CONFIG")):
        pytest.skip("needs the VMs: make test-vm")
    return Path(path)


@pytest.fixture(scope="session")
def wire(ssh_config: Path) -> Iterator[Wire]:
    """The record of all frames between the machines, kept beside the VMs' disks."""
    shown = subprocess.run(
        ["virsh", "-c", "qemu:///system", "net-info", NETWORK], capture_output=True, text=True
    ).stdout
    bridge = next(line.split()[1] for line in shown.splitlines() if line.startswith("Bridge:"))
    wire = Wire(bridge, ssh_config.parent / "wire.pcap")
    wire.start()
    yield wire
    wire.stop()


@pytest.fixture(scope="session")
def target(ssh_config: Path, wire: Wire) -> Iterator[Machine]:
    """The far end, serving a disk; nothing on it is the product's."""
    machine = Machine("target", "10.32.60.20", "fd00:3260::20", ssh_config)
    farend.serve_disk(machine)
    yield machine
    machine.close()


@pytest.fixture(scope="session")
def initiator(ssh_config: Path, wire: Wire) -> Iterator[Machine]:
    """The machine under test; `plain` or `installed` says in which state a module wants it."""
    machine = Machine("initiator", "10.32.60.10", "fd00:3260::10", ssh_config)
    openiscsi.configure(machine)
    openiscsi.forget_everything(machine)
    yield machine
    machine.close()


@pytest.fixture(scope="module")
def plain(initiator: Machine) -> Machine:
    """The initiator without the product, whatever ran before."""
    purge(initiator)
    return initiator


@pytest.fixture(scope="session")
def package(ssh_config: Path) -> Path:
    """The Debian package under test."""
    return Path(os.environ["VM_DEB"])


@pytest.fixture(scope="module")
def installed(initiator: Machine, package: Path) -> Machine:
    """The initiator, just after the package was installed with nothing but the machine itself."""
    purge(initiator)
    install(initiator, package)
    return initiator


@pytest.fixture(scope="module")
def ready(initiator: Machine, package: Path) -> Iterator[Machine]:
    """The initiator with the package, installed anew only if it must be; no session, no file, nothing held."""
    if not holds(initiator, package):
        purge(initiator)
        install(initiator, package)
    forget_files(initiator)
    yield initiator
    forget_files(initiator)


def install(machine: Machine, package: Path) -> None:
    """Install the package with nothing but the machine itself."""
    machine.put(package, f"/root/{package.name}")
    machine.run(f"dpkg -i /root/{package.name}", timeout=400, check=True)


def holds(machine: Machine, package: Path) -> bool:
    """Whether the machine has this very package, and no earlier build of it."""
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    there = machine.run(f"dpkg -s iscsi-ipsec >/dev/null && sha256sum /root/{package.name}")
    return there.rc == 0 and there.out.startswith(digest)


# The daemon hears of a removed file a moment later; until then the portal is not held but covered.
FORGET_FILES = """
rm -f /etc/iscsi-ipsec/*.d/*.toml
systemctl start strongswan iscsi-ipsecd
for n in $(seq 50); do
    iscsi-ipsec status --json >/root/status
    grep -q '"policy": "/' /root/status || break
    sleep 0.2
done
for portal in $(grep -oP '"portal": "\\K[^"]+' /root/status | sort -u); do
    iscsi-ipsec release --yes "$portal"
done
"""


def forget_files(machine: Machine) -> None:
    """End all sessions, remove what an admin wrote, and open the portals that stay closed for lack of it."""
    openiscsi.forget_everything(machine)
    machine.run(FORGET_FILES, timeout=90)
    end_orphans(machine)


def end_orphans(machine: Machine) -> None:
    """End what a charon that a test has killed left in the kernel."""
    machine.run("ip xfrm state flush", check=True)


def purge(machine: Machine) -> None:
    """Remove the product, which is there when the VMs were kept or another module ran."""
    if machine.run("dpkg -s iscsi-ipsec >/dev/null 2>&1").rc == 0:
        openiscsi.forget_everything(machine)
        # a served portal may have connections of an initiator that was rebooted: they would block the removal
        machine.run("touch /run/iscsi-ipsec/remove-with-sessions", check=True)
        machine.run("dpkg --purge iscsi-ipsec", timeout=180, check=True)
        machine.run("rm -rf /etc/iscsi-ipsec")  # what an admin wrote is the admin's to remove
        end_orphans(machine)
