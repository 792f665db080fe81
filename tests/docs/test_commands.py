"""Every iscsi-ipsec command that the pages and the help show is one that the parser takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ipsec.cli.examples import EXAMPLES
from iscsi_ipsec.cli.main import build_parser
from tests.docs.test_docs import MAN, PAGES, TOP, name_of, plain, sub_parsers, verbs

COMMAND = "iscsi-ipsec "
# what a shell makes of the rest of a line is no part of the command
REST = re.compile(r"\s(?:\|\||&&|\||;|>|2>|#\s).*$")


def in_blocks(text: str) -> Iterator[str]:
    """Commands in blocks of code: behind a root's prompt, in a script, in a playbook, in a pipeline."""
    for block in re.findall(r"^ *```.*?\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            found = re.match(r"^\s*(?:# |\S+: )?(iscsi-ipsec .*)$", line)
            if found:
                yield REST.sub("", found[1])


def in_sentences(text: str) -> Iterator[str]:
    spans = re.findall(r"`(iscsi-ipsec [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    yield from (" ".join(span.split()) for span in spans)


def refused(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The parser's error; empty where it accepts the command."""
    try:
        build_parser().parse_args(shlex.split(command.removeprefix(COMMAND)))
    except SystemExit as end:
        return capsys.readouterr().err.strip().splitlines()[-1] if end.code else ""
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_that_a_page_shows_is_understood(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {command: why for command in in_blocks(page.read_text()) if (why := refused(command, capsys))}
    assert wrong == {}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_in_a_sentence_is_understood_or_only_names_a_verb(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        command: why
        for command in in_sentences(page.read_text())
        if (why := refused(command, capsys))
        and command.removeprefix(COMMAND) not in {*verbs(), "psk", "group-psk"}
    }
    assert wrong == {}


def test_there_are_commands_to_be_understood() -> None:
    assert sum(len(list(in_blocks(page.read_text()))) for page in PAGES) > 30
    assert sum(len(list(in_sentences(page.read_text()))) for page in PAGES) > 30


@pytest.mark.parametrize("page", sorted(MAN.iterdir()), ids=name_of)
def test_every_command_in_the_manuals_examples_is_understood(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = re.findall(r"^# (iscsi-ipsec .*)$", plain(page.name), re.MULTILINE)
    assert [line for line in lines if refused(REST.sub("", line), capsys)] == []


def test_every_verb_has_examples_in_its_help_and_each_is_understood(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert set(EXAMPLES) == set(verbs())
    for name, examples in EXAMPLES.items():
        for command, _ in examples:
            assert command == name or command.startswith(f"{name} ")
            assert refused(COMMAND + command, capsys) == ""
        shown = verbs()[name].format_help()
        assert all(f"  iscsi-ipsec {command}\n" in shown for command, _ in examples), "wrapped"


def test_the_help_of_the_command_leads_to_that_of_the_verbs() -> None:
    helped = build_parser().format_help()
    for name in sub_parsers(build_parser()):
        assert re.search(rf"^    {name} ", helped, re.MULTILINE), name
    assert "VERB --help" in helped


def test_every_how_to_is_found_from_the_readme() -> None:
    readme = (TOP / "README.md").read_text()
    assert [p for p in (TOP / "docs/howto").iterdir() if f"(docs/howto/{p.name})" not in readme] == []
