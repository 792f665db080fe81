"""Static analysis finds no fault in the program, and no secret was committed by mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.source import TOP

# keys that pages show their readers, on both ends of a connection; they protect nothing
SAMPLES = {
    "README.md",
    "docs/by-hand.md",
    "docs/howto/linux-target.md",
    "docs/howto/ontap.md",
    "docs/man/iscsi-ipsec.toml.5",
    "docs/rotation.md",
}


def tool(*words: str) -> str:
    """A program of this environment; it fails by what it prints, not by its exit code."""
    beside = Path(sys.executable).parent
    return subprocess.run([beside / words[0], *words[1:]], cwd=TOP, capture_output=True, text=True).stdout


def test_bandit_finds_nothing_that_is_not_explained() -> None:
    said = tool("bandit", "-q", "-c", "pyproject.toml", "-f", "json", "-r", "daemon", "packaging")
    report = json.loads(said)
    assert report["errors"] == []
    assert [
        f"{r['filename']}:{r['line_number']}: {r['test_id']} {r['issue_text']}" for r in report["results"]
    ] == []
    assert report["metrics"]["_totals"]["loc"] > 3000


def test_no_secret_lies_in_the_source() -> None:
    """tests/ are left out: their keys are what they test with, and protect nothing."""
    found = json.loads(
        tool(
            "detect-secrets",
            "scan",
            "--all-files",
            "--exclude-files",
            r"^(tests|build|dist|\.[^/]*)/|\.egg-info/",
        )
    )["results"]
    assert set(found) == SAMPLES


@pytest.mark.parametrize(
    "page", [".github/workflows/ci.yml", "CONTRIBUTING.md", "docs/testing.md", "docs/releasing.md"]
)
def test_every_make_target_that_is_named_exists(page: str) -> None:
    text = (TOP / page).read_text()
    named = {*re.findall(r"\bmake ([a-z][a-z-]*)", re.sub(r"make (?:demo's|that)", "", text))}
    for row in re.findall(r"target: \[(.+)\]", text):
        named |= {*row.split(", ")}
    targets = {
        name
        for names in re.findall(r"^\.PHONY: (.+)$", (TOP / "Makefile").read_text(), re.MULTILINE)
        for name in names.split()
    }
    assert named
    assert named <= targets


def test_hooks_run_before_a_commit_are_the_linters_of_the_environment() -> None:
    """Nothing is downloaded, and a hook cannot be of another version than `make lint`."""
    text = (TOP / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"repo: (\S+)", text)) == {"local"}
    for program in re.findall(r"entry: \.venv/bin/(\S+)", text):
        assert (Path(sys.executable).parent / program).exists()
