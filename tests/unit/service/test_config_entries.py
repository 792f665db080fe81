"""What is known of one file: its row in the status, and whether it must be read again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iscsi_ipsec.adapters.files import FileStat, FoundFile
from iscsi_ipsec.core.config.invalid_files import BrokenSettings
from iscsi_ipsec.core.config.key_file import KeyFileRef
from iscsi_ipsec.service.config_content import KeyOrigin
from iscsi_ipsec.service.config_entries import Details, Entry

STAT = FileStat(dev=1, ino=2, size=3, mtime_ns=4, ctime_ns=5, mode=0o100600, uid=0, gid=0)
ORIGIN = KeyOrigin(KeyFileRef("db1.key"), "/etc/psk.d", "/etc/psk.d/db1.key", STAT)


def entry(*, settled: bool = True, state: str = "ok", details: Details | None = None) -> Entry:
    file = FoundFile("/etc/psk.d/db1.toml", "db1", STAT)
    return Entry(file, "psk", object(), settled, state, details or Details())


def test_an_entry_is_the_files_row_in_the_status() -> None:
    row = entry()
    assert (row.path, row.kind, row.state, row.signature) == ("/etc/psk.d/db1.toml", "psk", "ok", "1:2:3:4")


@pytest.mark.parametrize(
    ("changes", "at_rest"),
    [
        ({}, True),
        ({"settled": False}, False),
        ({"state": "last-good"}, False),
        ({"details": Details(origins=(ORIGIN,))}, False),
    ],
    ids=["good", "just written", "broken", "its key is in another file"],
)
def test_only_a_good_settled_file_without_other_files_is_at_rest(
    changes: dict[str, object], at_rest: bool
) -> None:
    assert entry(**changes).at_rest is at_rest  # type: ignore[arg-type]  # the cases name the arguments


def test_what_closes_portals_differs_by_nothing_else() -> None:
    plain = Details()
    assert replace(plain, previous_line=3, origins=(ORIGIN,)).closing == plain.closing
    assert replace(plain, settings=BrokenSettings()).closing != plain.closing
