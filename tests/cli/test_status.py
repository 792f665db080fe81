"""``status``: what fits in 80 columns, which problem comes first, and what an unencrypted portal looks like."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import reported
from tests.support.fake_charon import FakeCharon
from tests.support.reported import (
    FINE,
    NO_CHARON,
    ORPHANED,
    PROBLEMS,
    Instance,
    write_session,
)
from tests.support.values import (
    derived,
    managed,
    per_id,
    record,
    session,
)

charon, instance, running = (
    reported.charon,
    reported.instance,
    reported.running,
)  # fixtures, found by their names here
LONG = "a-rather-long-name-of-a-host.example.com"
FAR = "2001:db8:1234:5678:9abc:def0:1234:5678"


def problem(code: str, severity: str = "error", **more: Any) -> dict[str, Any]:
    row = {"code": code, "severity": severity, "file": None, "line": None, "portal": None}
    return row | {"message": f"about {code}", "hint": f"fix {code}"} | more


def table(out: str) -> list[str]:
    return out.split("\n\n", 1)[0].splitlines()


def test_status_shows_the_portal_and_its_state_first(running: Instance, charon: FakeCharon) -> None:
    answer = running.call("status")
    assert (answer.code, answer.err) == (FINE, "")
    head, row = table(answer.out)
    assert head.split() == ["PORTAL", "STATE", "KEY", "IDENTITY", "CIPHER", "AGE", "BYTES", "SESS"]
    assert row.split()[:2] == ["10.0.0.20:3260", "protected"]


def test_no_line_of_the_table_is_longer_than_80_columns(running: Instance, charon: FakeCharon) -> None:
    running.report(managed(per_id(LONG), record(), record(FAR), session()))
    lines = table(running.call("status").out)
    assert max(map(len, lines)) <= 80
    assert f"[{FAR}]:3260" in lines[2]
    assert LONG in running.call("status", "--wide").out


def test_the_columns_of_the_table_are_aligned(running: Instance, charon: FakeCharon) -> None:
    running.report(derived(per_id(LONG), record(), record("fd00::20"), session()))
    head, *rows = table(running.call("status", "--wide").out)
    assert len(rows) == 2
    for title in ("STATE", "KEY", "IDENTITY", "ROLE", "MODE"):
        column = head.index(title)
        for row in rows:
            assert row[column - 2 : column] == "  "
            assert row[column] != " "


def test_a_portal_is_named_once_in_its_problem_and_the_hint_is_a_line_of_its_own(
    running: Instance, charon: FakeCharon
) -> None:
    running.report(ORPHANED)
    answer = running.call("status")
    assert answer.code == PROBLEMS
    line, hint = (text for text in answer.out.splitlines() if "no file covers" in text or "release" in text)
    assert line.count("10.0.0.20:3260") == 1
    assert hint.startswith(" ")
    assert "iscsi-ipsec release 10.0.0.20:3260" in hint


def test_errors_stand_before_warnings_and_the_hosts_before_the_portals(
    running: Instance, charon: FakeCharon
) -> None:
    rows = [
        problem("weak", "warning", file="psk.d/a.toml", line=3),
        problem("no-route", portal="10.0.0.20:3260"),
        problem("charon-unreachable"),
    ]
    running.report(problems=rows)
    out = running.call("status").out
    assert sorted(("weak", "no-route", "charon-unreachable"), key=lambda c: out.index(f"about {c}")) == [
        "charon-unreachable",
        "no-route",
        "weak",
    ]
    assert "psk.d/a.toml:3: about weak" in out
    assert "2 errors, 1 warning" in out


def test_many_portals_with_one_problem_take_one_line_unless_wide(
    running: Instance, charon: FakeCharon
) -> None:
    running.report(problems=[problem("no-route", portal=f"10.0.0.{n}:3260") for n in range(1, 21)])
    out = running.call("status").out
    assert out.count("about no-route") == 1
    assert "20 portals no-route: 10.0.0.1:3260, 10.0.0.2:3260, 10.0.0.3:3260 and 17 more" in out
    assert running.call("status", "--wide").out.count("about no-route") == 20


def test_a_session_whose_data_is_unencrypted_stands_out_and_has_an_exit_code(
    running: Instance, charon: FakeCharon
) -> None:
    running.report(derived(record()))
    assert running.call("status").code == FINE
    write_session(running.root / "sys", 1, "10.0.0.20", 3260)
    answer = running.call("status")
    assert answer.code == PROBLEMS
    assert table(answer.out)[1].split()[:2] == ["10.0.0.20:3260", "UNENCRYPTED"]
    assert "error: 10.0.0.20:3260: the data of 1 session crosses the network unencrypted" in answer.out
    assert "echo 'portals = [\"10.0.0.20\"]' > /etc/iscsi-ipsec/portal.d/10.0.0.20.toml" in answer.out


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colour_is_shown_to_who_wants_none(
    running: Instance, charon: FakeCharon, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    running.report(ORPHANED)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\x1b[31m" in running.call("status").out
    monkeypatch.setenv(name, value)
    assert "\x1b" not in running.call("status").out


def test_a_protected_row_is_green(
    running: Instance, charon: FakeCharon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\x1b[32m10.0.0.20:3260" in running.call("status").out


def test_status_without_portals_says_what_to_type(running: Instance, charon: FakeCharon) -> None:
    running.report(derived())
    assert "iscsiadm -m discovery" in running.call("status").out


def test_status_has_no_colour_where_there_is_no_terminal(running: Instance, charon: FakeCharon) -> None:
    running.report(ORPHANED)
    for words in (["status"], ["explain", "10.0.0.20"], ["flags", "0x57"]):
        answer = running.call(*words)
        assert "\x1b" not in answer.out + answer.err


def test_status_colours_errors_on_a_terminal(
    running: Instance, charon: FakeCharon, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.report(ORPHANED)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\x1b[31m" in running.call("status").out


def test_status_of_an_unreachable_charon_is_exit_code_4(running: Instance) -> None:
    answer = running.call("status")
    assert answer.code == NO_CHARON
    assert "unreachable" in answer.out


def test_status_as_json_is_the_daemons_document(running: Instance, charon: FakeCharon) -> None:
    reported = running.report()
    document = json.loads(running.call("status", "--json").out)
    assert document.keys() == reported.keys()
    (row,) = document["portals"]
    assert (row["portal"], row["protected"], row["problem"]) == ("10.0.0.20:3260", True, None)


def test_status_without_portals_says_why(running: Instance, charon: FakeCharon) -> None:
    running.report(derived())
    answer = running.call("status")
    assert answer.code == FINE
    assert "no portals yet" in answer.out
