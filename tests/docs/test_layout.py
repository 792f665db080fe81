"""The tests' folders against the package: whoever opens a module finds its tests by its name, and the other way round."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.source import TOP

PACKAGE = TOP / "daemon/iscsi_ipsec"
TESTS = TOP / "tests"
LAYERS = ("base", "core", "service", "cli")

ELSEWHERE = {
    # needs a process of its own and a socket: with the adapter that asks it
    "service.name_helper": "adapters/test_name_helper.py",
    # Protocols only; the fakes that keep to them are type-checked, and the real ones are in tests/adapters
    "service.ports": "support/fakes.py",
    # applies plans to charon and keeps what charon accepted: with the loop that owns both
    "service.charon_contents": "unit/service/test_reconciler.py",
    "service.accepted_connections": "unit/service/test_last_good.py",
    "core.ike.kept_connections": "unit/service/test_last_good.py",
    # parts of verbs: an admin sees them through the verb only
    "cli.command_line": "cli/test_main.py",
    "cli.confirm": "cli/test_undo.py",
    "cli.daemon_client": "cli/test_wait.py",
    "cli.impact": "cli/test_undo.py",
    "cli.imported_files": "cli/test_import_windows.py",
    "cli.key_change": "cli/test_psk.py",
    "cli.key_credential": "cli/test_psk.py",
    "cli.key_folder": "cli/test_psk.py",
    "cli.key_input": "cli/test_psk.py",
    "cli.output": "cli/test_main.py",
    "cli.progress": "cli/test_terminal.py",
    "cli.replaced_keys": "cli/test_undo.py",
    "cli.status_view": "cli/test_status.py",
    "cli.verbs.group_psk": "cli/test_psk.py",
    "cli.waiting": "cli/test_wait.py",
    # plan's
    "core.report.portal_changes": "cli/test_plan.py",
    # its scripts are read through the importer's choice of a format
    "core.windows.powershell_script": "unit/core/windows/test_wrapped_calls.py",
    # check's
    "cli.file_check": "cli/test_check_mistakes.py",
    "core.config.lint": "cli/test_check_mistakes.py",
    "core.config.toml_errors": "cli/test_check_mistakes.py",
    "core.decide.file_conflicts": "cli/test_check_mistakes.py",
    # every example is parsed against the manual
    "cli.examples": "docs/test_commands.py",
    # show what a real charon or the kernel says
    "cli.verbs.verify": "real/test_verify_kernel.py",
}
"""Modules without a test file of their name: the file below tests/ that has their tests."""

ACROSS = {
    "unit/service/test_loop.py",
    "unit/service/test_last_good.py",
    "unit/core/decide/test_spellings.py",  # one identity in every spelling, through all decisions
}
"""Unit tests that put several modules together, by purpose."""


def modules() -> dict[str, Path]:
    """Modules with any function of their own, by their dotted name below the package."""
    found = {}
    for layer in LAYERS:
        for path in sorted((PACKAGE / layer).rglob("*.py")):
            functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
            if path.name != "__init__.py" and functions:
                found[".".join(path.relative_to(PACKAGE).with_suffix("").parts)] = path
    return found


def own_file(module: str) -> Path:
    """Where a reader looks first: tests/unit mirrors the package, tests/cli names verbs and modules."""
    *folders, name = module.split(".")
    if folders[0] == "cli":
        return TESTS / "cli" / f"test_{name}.py"
    return TESTS.joinpath("unit", *folders, f"test_{name}.py")


def test_every_module_has_a_test_file_of_its_name() -> None:
    missing = {module for module in modules() if not own_file(module).exists()} - ELSEWHERE.keys()
    assert not missing, "write tests/unit/..., or name in ELSEWHERE the file that has its tests, and why"


@pytest.mark.parametrize("module", ELSEWHERE)
def test_every_exception_is_needed_and_leads_to_a_file(module: str) -> None:
    assert module in modules(), "no such module"
    assert (TESTS / ELSEWHERE[module]).exists()
    assert not own_file(module).exists(), "it has a file of its own now: take it out of ELSEWHERE"


def test_every_unit_test_is_named_after_a_module() -> None:
    known = {own_file(module) for module in modules()}
    strays = [
        path
        for path in sorted((TESTS / "unit").rglob("test_*.py"))
        if path.relative_to(TESTS).as_posix() not in ACROSS
        # a module that reads several formats has a file for each: test_importer_wmi.py
        and not any(
            path == own or (path.parent == own.parent and path.stem.startswith(f"{own.stem}_"))
            for own in known
        )
    ]
    assert strays == []


def test_code_that_several_test_folders_share_is_in_support() -> None:
    borrowed = {
        f"{path.relative_to(TESTS)}: {found}"
        for path in sorted(TESTS.rglob("*.py"))
        for found in re.findall(r"^(?:from|import) tests\.([\w.]+)", path.read_text(), re.MULTILINE)
        if found.split(".")[0] not in {"support", path.relative_to(TESTS).parts[0]}
        or found.startswith("unit.")
    }
    assert borrowed == set()
