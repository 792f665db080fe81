"""Each message that an operator acts on has its entry in the catalog, and the catalog says nothing else."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import typing
from pathlib import Path

import pytest

from iscsi_ipsec.service import problems
from tests.docs.test_docs import TOP, codes_in_the_source

CATALOG = TOP / "systemd/iscsi-ipsec.catalog"
NOTES = set(typing.get_args(problems.Note))


def test_the_catalog_matches_the_pages() -> None:
    assert runpy.run_path(str(TOP / "packaging/catalog"))["catalog"]() == CATALOG.read_text(), "make catalog"


def test_every_message_id_has_its_entry_and_every_entry_its_message() -> None:
    ids = re.findall(r"^-- ([0-9a-f]{32})$", CATALOG.read_text(), re.MULTILINE)
    assert len(ids) == len(set(ids))
    assert set(ids) == {problems.message_id(name) for name in codes_in_the_source() | NOTES}


def test_every_note_is_used() -> None:
    source = "".join(path.read_text() for path in (TOP / "daemon").rglob("*.py"))
    used = set(re.findall(r'note="([a-z-]+)"', source)) | set(
        re.findall(r'message_id\("([a-z-]+)"\)', source)
    )
    assert used == NOTES


@pytest.mark.skipif(not shutil.which("journalctl"), reason="needs journalctl")
def test_journald_takes_the_catalog(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/systemd/catalog"
    folder.mkdir(parents=True)
    shutil.copy(CATALOG, folder)

    def journalctl(*words: str) -> str:
        done = subprocess.run(
            ["journalctl", f"--root={tmp_path}", *words], capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return done.stdout

    journalctl("--update-catalog")
    listed = dict(line.split(" ", 1) for line in journalctl("--list-catalog").splitlines())
    assert len(listed) == len(codes_in_the_source() | NOTES)
    assert listed[problems.message_id("wrong-key")].startswith("iscsi-ipsec: wrong-key: The two ends have")
    shown = journalctl("--dump-catalog", problems.message_id("bad-mode"))
    assert "chmod 600" in shown
