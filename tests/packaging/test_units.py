from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support.source import TOP, run

SERVICES = sorted((TOP / "systemd").glob("*.service"))
UNITS = [*SERVICES, *sorted((TOP / "systemd").glob("*.socket"))]
MAX_EXPOSURE = 2.0
needs_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")


def directives(path: Path) -> list[str]:
    return re.findall(r"^([A-Z]\w+)=", path.read_text(), re.MULTILINE)


@needs_analyze
def test_systemd_understands_every_line(unpacked: Path, tmp_path: Path) -> None:
    # the programs stand elsewhere in an unpacked package; manual pages need man
    units = []
    installed = [path for path in (unpacked / "usr/lib/systemd/system").iterdir() if path.is_file()]
    assert {path.name for path in installed} == {path.name for path in UNITS}
    for unit in installed:
        text = re.sub("=(/usr/(?:sbin|lib)/iscsi-ipsec)", rf"={unpacked}\1", unit.read_text())
        copy = tmp_path / unit.name
        copy.write_text(re.sub("^Documentation=.*\n", "", text, flags=re.MULTILINE))
        units.append(copy)
    assert run("systemd-analyze", "verify", "--recursive-errors=no", *units) == ""


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_every_line_has_its_reason_in_the_readme(unit: Path) -> None:
    readme = (TOP / "systemd/README.md").read_text()
    plain = {
        "Description",
        "Documentation",
        "ExecStart",
        "StandardInput",
        "WantedBy",
        "SystemCallArchitectures",
    }
    assert not [name for name in directives(unit) if name not in plain and f"{name}=" not in readme]


@needs_analyze
@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.name)
def test_a_service_is_exposed_to_little(unit: Path) -> None:
    said = run("systemd-analyze", "security", "--offline=true", "--no-pager", unit)
    found = re.search(r"Overall exposure level for .*: ([0-9.]+) ", said)
    assert found, said
    assert float(found[1]) <= MAX_EXPOSURE, said


def test_only_the_unit_that_looks_names_up_may_use_the_network() -> None:
    allowed = {
        unit.name: set(
            re.findall(
                r"AF_\w+", re.findall("^RestrictAddressFamilies=(.*)$", unit.read_text(), re.MULTILINE)[0]
            )
        )
        for unit in SERVICES
    }
    inet = {"AF_INET", "AF_INET6"}
    assert allowed.pop("iscsi-ipsec-names.service") == {"AF_UNIX", "AF_NETLINK"} | inet
    assert all(families <= {"AF_UNIX", "AF_NETLINK"} for families in allowed.values())


def test_the_unit_that_talks_to_the_network_has_no_rights_and_sees_no_key() -> None:
    text = (TOP / "systemd/iscsi-ipsec-names.service").read_text()
    assert "\nDynamicUser=yes\n" in text
    assert "\nCapabilityBoundingSet=\n" in text
    hidden = re.findall("^InaccessiblePaths=(.*)$", text, re.MULTILINE)[0].split()
    assert {"-/etc/iscsi-ipsec", "-/etc/iscsi", "-/var/lib/iscsi-ipsec"} <= set(hidden)


IKE_HOLD = TOP / "systemd/iscsi-ipsec-ike-hold.service"
"""Stops with strongSwan, and only ever closes something more."""


def test_no_unit_opens_the_guard_when_it_stops() -> None:
    for unit in UNITS:
        if unit == IKE_HOLD:
            assert "\nExecStop=/usr/lib/iscsi-ipsec/hold-ike\n" in unit.read_text()
            continue
        assert not {"ExecStop", "ExecStopPost"} & set(directives(unit)), unit


def test_the_hold_of_ike_stops_with_strongswan_and_before_it() -> None:
    text = IKE_HOLD.read_text()
    for line in ("PartOf", "After", "WantedBy"):
        assert f"\n{line}=strongswan.service strongswan-starter.service\n" in text
    assert "\nRemainAfterExit=yes\n" in text


def test_no_unit_takes_another_down() -> None:
    for unit in UNITS:
        if unit == IKE_HOLD:
            continue
        assert not {"Requires", "BindsTo", "PartOf", "Requisite"} & set(directives(unit)), unit


def test_the_daemon_may_write_its_two_folders_only() -> None:
    text = (TOP / "systemd/iscsi-ipsecd.service").read_text()
    assert "ProtectSystem=strict\n" in text
    assert "ReadWritePaths=" not in text
    assert "StateDirectoryMode=0700\n" in text
    assert "LimitCORE=0\n" in text
