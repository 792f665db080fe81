from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.packaging.source import TOP, run

UNITS = sorted((TOP / "systemd").glob("*.service"))


def directives(path: Path) -> list[str]:
    return re.findall(r"^([A-Z]\w+)=", path.read_text(), re.MULTILINE)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_understands_every_line(unpacked: Path, tmp_path: Path) -> None:
    # the programs stand elsewhere in an unpacked package; manual pages need man
    units = []
    for unit in sorted((unpacked / "usr/lib/systemd/system").glob("*.service")):
        text = unit.read_text().replace("=/usr/sbin/iscsi-ipsecd", f"={unpacked}/usr/sbin/iscsi-ipsecd")
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


def test_no_unit_opens_the_guard_when_it_stops() -> None:
    for unit in UNITS:
        assert not {"ExecStop", "ExecStopPost"} & set(directives(unit)), unit


def test_no_unit_takes_another_down() -> None:
    for unit in UNITS:
        assert not {"Requires", "BindsTo", "PartOf", "Requisite"} & set(directives(unit)), unit


def test_the_daemon_may_write_its_two_folders_only() -> None:
    text = (TOP / "systemd/iscsi-ipsecd.service").read_text()
    assert "ProtectSystem=strict\n" in text
    assert "ReadWritePaths=" not in text
    assert "StateDirectoryMode=0700\n" in text
    assert "LimitCORE=0\n" in text
