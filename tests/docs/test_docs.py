"""Everything that the documentation names exists, and everything that exists is documented."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ipsec.cli.main import build_parser
from iscsi_ipsec.core.config import key_file, portal_file, presets, settings
from iscsi_ipsec.core.config.key_file import parse_key_file
from iscsi_ipsec.core.config.portal_file import parse_portal_file
from iscsi_ipsec.core.config.security_flags import SecurityFlags
from iscsi_ipsec.core.config.settings import parse_settings
from iscsi_ipsec.service import main

TOP = Path(__file__).resolve().parents[2]
DOCS = TOP / "docs"
MAN = DOCS / "man"
PAGES = sorted(
    [
        TOP / "README.md",
        TOP / "SECURITY.md",
        TOP / "CONTRIBUTING.md",
        TOP / "CHANGELOG.md",
        TOP / "systemd/README.md",
        *DOCS.rglob("*.md"),
    ]
)
LAYERS = ("base", "core", "adapters", "service", "cli")
FOLDERS = ("daemon", "docs", "etc", "packaging", "systemd", "tests")


def name_of(path: Path) -> str:
    return str(path.relative_to(TOP))


def code_spans(text: str) -> list[str]:
    """The texts in single backticks outside code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


# --- names and paths ----------------------------------------------------------------------------


def resolve(dotted: str) -> object:
    """The module, class, function or method of that name below the package."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(["iscsi_ipsec", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AttributeError(dotted)


@pytest.mark.parametrize(
    ("page", "least"), [("docs/architecture.md", 60), ("docs/decisions.md", 25), ("CONTRIBUTING.md", 20)]
)
def test_every_dotted_name_of_the_map_exists(page: str, least: int) -> None:
    spans = code_spans((TOP / page).read_text())
    names = [s for s in spans if re.fullmatch(rf"(?:{'|'.join(LAYERS)})(?:\.\w+)+", s)]
    assert len(names) > least, "the pattern finds them no more"
    missing = []
    for name in names:
        try:
            resolve(name)
        except AttributeError:
            missing.append(name)
    assert missing == []


def test_each_rule_of_the_decisions_names_the_function_that_holds_it() -> None:
    rows = re.findall(r"^\| (?!rule |---)(.+) \| (.+) \|$", (DOCS / "decisions.md").read_text(), re.MULTILINE)
    assert len(rows) > 25
    for rule, holders in rows:
        held = [resolve(name) for name in re.findall(r"`([\w.]+)`", holders)]
        assert held, rule
        assert all(callable(holder) for holder in held), rule


def test_every_module_of_the_program_has_its_place_in_the_architecture() -> None:
    named = set(code_spans((DOCS / "architecture.md").read_text()))
    modules = {
        ".".join(path.relative_to(TOP / "daemon/iscsi_ipsec").with_suffix("").parts)
        for path in (TOP / "daemon/iscsi_ipsec").rglob("*.py")
        if path.stem != "__init__"
    }
    # a package that is one thing to its users is named as a whole
    whole = ("adapters.charon", "adapters.netlink", "cli.verbs")
    unnamed = {m for m in modules if m not in named and not m.startswith(tuple(f"{w}." for w in whole))}
    assert sorted(unnamed) == []
    assert set(whole) <= named


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_of_the_source_that_is_named_exists(page: Path) -> None:
    paths = [s for s in code_spans(page.read_text()) if s.partition("/")[0] in FOLDERS and "/" in s]
    missing = []
    for span in paths:
        path, _, test = span.partition("::")
        file = TOP / path
        if not file.exists() or (test and f"def {test}(" not in file.read_text()):
            missing.append(span)
    assert missing == []


def test_every_failure_has_its_proof() -> None:
    """A row of failure-modes.md says by which test or run it is shown."""
    rows = [
        line for line in (DOCS / "failure-modes.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| event")
    ]  # fmt: skip
    assert len(rows) > 20
    assert [row for row in rows if "`tests/" not in row and "`make demo`" not in row] == []


# --- links --------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    """The fragment that a heading gets where Markdown is shown."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return {anchor(heading.strip()) for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_relative_link_is_broken(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (fragment and fragment not in anchors(file)):
            broken.append(target)
    assert broken == []


# --- the manual ---------------------------------------------------------------------------------


def plain(page: str) -> str:
    r"""A manual page's source with roff's escapes and font macros taken out."""
    text = (MAN / page).read_text()
    text = re.sub(r"\\f[BIRP]", "", text).replace("\\-", "-").replace("\\ ", " ")
    # quotes only hold a macro's arguments together there
    lines = (
        re.sub(r"^\.(?:B|I|BR|BI|RB|RI|IR) ", "", line.replace('"', "")) if line.startswith(".") else line
        for line in text.splitlines()
    )
    return "\n".join(lines) + "\n"


def verbs() -> dict[str, argparse.ArgumentParser]:
    """The verbs, with their second word where they have one."""
    found: dict[str, argparse.ArgumentParser] = {}
    for name, parser in sub_parsers(build_parser()).items():
        actions = sub_parsers(parser)
        found |= {f"{name} {action}": below for action, below in actions.items()} or {name: parser}
    return found


def sub_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {name: below for action in found for name, below in action.choices.items()}


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Long options; those that exist only to be refused are not for the manual."""
    shown = (a for a in parser._actions if a.help != argparse.SUPPRESS)
    return {o for action in shown for o in action.option_strings if o.startswith("--")}


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", text))


def section(page: str, name: str) -> str:
    found = re.search(rf"^\.SH {name}\n(.*?)(?=^\.SH |\Z)", plain(page), flags=re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no section {name}"
    return found[1]


def test_the_manual_has_every_verb_with_its_options_and_no_other() -> None:
    entries = re.split(r"^\.TP\n", section("iscsi-ipsec.1", "VERBS"), flags=re.MULTILINE)
    heads = [entry.split("\n")[0].strip() for entry in entries[1:]]
    common = {"--help"}
    reported = {}
    for verb, parser in verbs().items():
        mine = [head for head in heads if head == verb or head.startswith(f"{verb} ")]
        assert len(mine) == 1, verb
        assert options_in(mine[0]) == options_of(parser) - common, verb
        reported[mine[0]] = verb
    states = {"protected", "ready", "not ready", "not managed", "UNENCRYPTED", "a problem's code"}
    assert {head for head in heads if head not in reported} == states


def test_the_manual_has_every_option_of_the_command_and_no_other() -> None:
    assert options_in(section("iscsi-ipsec.1", "OPTIONS")) == options_of(build_parser())


def test_the_manual_has_every_option_of_the_daemon_and_no_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main.main(["--help"])
    helped = options_in(capsys.readouterr().out)
    assert options_in(section("iscsi-ipsecd.8", "OPTIONS")) == helped | {"--help"}


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("KEY FILES", key_file.KNOWN_KEYS),
        ("PORTAL POLICIES", tuple(k for k in portal_file.KNOWN_KEYS if k not in settings.DEFAULTS_KEYS[1:])),
        ("SETTINGS", settings.KNOWN_KEYS),
        ("SETTINGS OF STRONGSWAN", settings.DEFAULTS_KEYS[1:]),
    ],
)
def test_the_manual_has_every_key_of_the_files_and_no_other(name: str, known: tuple[str, ...]) -> None:
    reported = re.findall(
        r"^\.TP\n([a-z0-9_]+)\s+\(", section("iscsi-ipsec.toml.5", name), flags=re.MULTILINE
    )
    assert sorted(reported) == sorted(known)


def test_the_manual_has_every_flag_with_its_bit() -> None:
    reported = re.findall(
        r"^\.TP\n([A-Z_]+)\s+\((0x\w+)\)", section("iscsi-ipsec.toml.5", "SECURITY FLAGS"), re.MULTILINE
    )
    assert dict(reported) == {flag.name: f"0x{flag.value:02x}" for flag in SecurityFlags}


def test_the_manual_has_every_preset() -> None:
    text = section("iscsi-ipsec.toml.5", "PORTAL POLICIES")
    assert [name for name in presets.PRESETS if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("page", sorted(MAN.iterdir()), ids=name_of)
def test_a_manual_page_is_clean(page: Path) -> None:
    if mandoc := shutil.which("mandoc"):
        command = [mandoc, "-T", "lint", "-W", "warning", str(page)]
    elif man := shutil.which("man"):
        command = [man, "--warnings", "-E", "UTF-8", "-Tutf8", "-Z", "-l", str(page)]
    else:
        pytest.skip("neither mandoc nor man is installed")
    environ = {**os.environ, "LC_ALL": "C.UTF-8", "MANPAGER": "cat"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


# --- problem codes ------------------------------------------------------------------------------

_FIRST_ARGUMENT = {"Refused", "Cause", "refuse", "problem_of"}
_CODE = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")


def text_of(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def codes_in(tree: ast.Module) -> Iterator[str]:
    """Codes of problems: by keyword, by position in the functions that make them, or returned in a triple."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in {"Problem", "_Row"}:  # _Row: core.config.lint
                yield from (text_of(k.value) for k in node.keywords if k.arg == "code")
            elif name in _FIRST_ARGUMENT and node.args:
                yield text_of(node.args[0])
            elif name == "problem" and len(node.args) > 2:  # Source.problem(key, code, message, ...)
                yield text_of(node.args[1])
            elif name == "_problem" and len(node.args) == 3:
                first = text_of(node.args[0])
                yield first if _CODE.fullmatch(first) else ""
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 3:
            yield text_of(node.value.elts[0])


def codes_in_the_source() -> set[str]:
    found: set[str] = set()
    for path in (TOP / "daemon").rglob("*.py"):
        found |= set(codes_in(ast.parse(path.read_text())))
    return found - {""}


def test_every_problem_code_is_explained_and_no_other() -> None:
    explained = re.findall(r"^### (\S+)$", (DOCS / "problems.md").read_text(), flags=re.MULTILINE)
    assert sorted(explained) == sorted(set(explained)), "explained twice"
    assert sorted(explained) == sorted(codes_in_the_source())


def test_a_code_looks_like_one() -> None:
    assert [code for code in codes_in_the_source() if not _CODE.fullmatch(code)] == []


# --- examples -----------------------------------------------------------------------------------


def examples() -> Iterator[tuple[str, str]]:
    """TOML that the pages show: in blocks, in what a shell writes, and in the manual."""
    for page in PAGES:
        text = page.read_text()
        for number, block in enumerate(re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)):
            yield f"{name_of(page)}:{number}", block
        for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
            for path, body in re.findall(r"^# cat > (\S+\.toml)\n((?:[^#].*\n)+)", block, flags=re.MULTILINE):
                yield f"{name_of(page)}:{path}", f"# {path}\n{body}"
    for name in ("KEY FILES", "PORTAL POLICIES", "SETTINGS"):
        for block in re.findall(
            r"^\.EX\n(.*?)^\.EE", section("iscsi-ipsec.toml.5", name), re.MULTILINE | re.DOTALL
        ):
            yield f"iscsi-ipsec.toml.5:{name}", f"# {name}\n{block}"


@pytest.mark.parametrize(("where", "text"), list(examples()))
def test_an_example_parses(where: str, text: str) -> None:
    first = text.partition("\n")[0]
    if "psk.d/" in first or "KEY FILES" in first:
        parse_key_file(text, where, "example")
    elif "portal.d/" in first or "PORTAL POLICIES" in first:
        parse_portal_file(text, where, "example")
    else:
        assert "iscsi-ipsecd.toml" in first or "SETTINGS" in first, "the first line says which file it is"
        parse_settings(text, where)


def test_there_are_examples_of_each_kind() -> None:
    assert len(list(examples())) >= 7
