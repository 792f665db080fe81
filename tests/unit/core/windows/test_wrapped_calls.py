"""Calls of iscsicli inside what scripts wrap them in: every one is taken over, or listed with its line."""

from __future__ import annotations

import pytest

from iscsi_ipsec.core.windows.importer import kind_of, parse
from iscsi_ipsec.core.windows.values import Harvest, Rules

CANARY = "canary-key-0123456789"
CALL = f"iscsicli PSKey * * 0x27 2 db1.example.com {CANARY} *"


def harvest(text: str) -> Harvest:
    return parse(text, "x.cmd", Rules())


@pytest.mark.parametrize(
    "line",
    [
        CALL,
        f"start /wait {CALL}",
        f'start "the initiator" /b /wait {CALL}',
        f"call {CALL}",
        f"cmd /c {CALL}",
        f'cmd.exe /c "{CALL}"',
        f"if exist x.txt {CALL}",
        f"if not errorlevel 1 ({CALL})",
        f"psexec \\\\host -s {CALL}",
        f"({CALL})",
        f"@({CALL}) > nul",
        f"for %%p in (x) do {CALL}",
        f"& iscsicli.exe PSKey '*' '*' 0x27 2 db1.example.com '{CANARY}' '*'",
        f"Start-Process iscsicli -ArgumentList 'PSKey * * 0x27 2 db1.example.com {CANARY} *' -Wait",
        f"Start-Process iscsicli.exe -ArgumentList @('PSKey', '*', '*', '0x27', '2', 'db1.example.com', '{CANARY}', '*')",
        f"& 'C:\\Windows\\System32\\iscsicli.exe' PSKey `\n  * * 0x27 2 db1.example.com \"{CANARY}\" *",
    ],
)
def test_a_wrapped_call_is_taken_over_as_the_bare_one_is(line: str) -> None:
    found = harvest(f"{line}\n")
    (key,) = found.keys
    assert (str(key.id), key.secret.reveal(), key.persistent) == ("db1.example.com", CANARY.encode(), True)
    assert all(problem.severity == "warning" for problem in found.problems)


def test_a_loop_is_run_for_each_of_its_values() -> None:
    found = harvest("for %%p in (10.0.0.20, 10.0.0.21) do iscsicli TunnelAddr * * %%p 203.0.113.1 *\n")
    assert [str(portal.portal) for portal in found.portals] == ["10.0.0.20:3260", "10.0.0.21:3260"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("for /f %%p in (portals.txt) do iscsicli TunnelAddr * * %%p 203.0.113.1 *", "values of this loop"),
        (f'forfiles /c "x" iscsicli PSKey * * 0x27 2 db1 {CANARY} *', "not understood"),
        (f"iscsicli PSKey * * 0x27 2 db1 {CANARY} *)", "holds a bracket"),
        (f"& iscsicli PSKey '*' '*' 0x27 2 $name '{CANARY}' '*'", "only PowerShell could replace"),
        (f"iscsicli PSKey * * 0x27 2 db1 {CANARY}", "expected 7 arguments"),
    ],
)  # fmt: skip
def test_what_is_not_taken_over_is_listed_with_its_line(line: str, said: str) -> None:
    found = harvest(f"echo begin\n\n{line}\n")
    assert (found.keys, found.portals) == ([], [])
    (problem,) = found.problems
    assert problem.line == 3
    assert said in problem.message
    assert CANARY not in problem.message


def test_conditions_and_other_machines_are_warned_about() -> None:
    for word in ("if exist x", "psexec \\\\host"):
        (problem,) = harvest(f"{word} {CALL}\n").problems
        assert problem.severity == "warning"


def test_what_only_speaks_of_iscsicli_is_no_call() -> None:
    found = harvest(f"echo {CALL}\nrem {CALL}\nset x={CALL}\n")
    assert (found.keys, found.problems) == ([], [])


def test_a_script_of_powershell_is_recognised() -> None:
    assert kind_of("# setup\n& iscsicli.exe GroupKey 'x' '*'\n") == "powershell"
    assert kind_of(f"@echo off\r\n{CALL}\r\n") == "iscsicli"
