"""Change the core in thousands of places, and see that a fast test falls each time.

`python -m tests.support.mutants [MODULE...]` (`core.ike.key_rotation`; default: all of base and core) lays a copy of
the tree out in `build/mutants` and lets mutmut try each mutant there against the unit tests that
reach its function. The output is the numbers of each module and, as differences, the
mutants that no test noticed; `--survivors` tries only those again, after tests were added. A mutant that lives but that mypy refuses
would not get past `make lint`; it is counted apart.

Not mutated: decorated functions (properties above all), what stands outside functions, and words
for people (texts with a space in them; tests look at their gist).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[3]
COPY = TOP / "build/mutants"
PACKAGE = "src/iscsi_ipsec"
TESTS = ("tests/unit",)
"""The properties would fall as well, but take a hundred times as long for each mutant that lives."""

SETTINGS = f"""
[tool.mutmut]
source_paths = ["{PACKAGE}"]
only_mutate = ["{PACKAGE}/base/*.py", "{PACKAGE}/core/*/*.py"]
also_copy = ["etc", "docs"]
pytest_add_cli_args_test_selection = {json.dumps(TESTS)}
pytest_add_cli_args = ["-p", "no:cacheprovider", "-p", "tests.support.mutants.afresh"]
timeout_constant = 10.0
timeout_multiplier = 6.0
use_git_change_detection = false
"""

KILLED, TYPES, HUNG, LIVED, NO_TEST = "killed", "types", "hung", "lived", "no test"
STOPPED = (24, 36, -24, 152, 255)
"""How mutmut writes down that a mutant was ended for the time it took."""


def lay_out() -> None:
    """The tree as mutmut wants it, sources in `src`; files that are the same keep their times."""
    for folder, name in (
        ("daemon/iscsi_ipsec", PACKAGE),
        ("tests", "tests"),
        ("etc", "etc"),
        ("docs", "docs"),
    ):
        target = COPY / name
        for path in sorted((TOP / folder).rglob("*")):
            place = target / path.relative_to(TOP / folder)
            if path.is_file() and path.suffix != ".pyc":
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place)
        for place in [*target.rglob("*.py")]:
            if not (TOP / folder / place.relative_to(target)).exists():
                place.unlink()
    shutil.rmtree(COPY / "mutants/tests", ignore_errors=True)  # mutmut adds to it, and takes nothing away
    project = (TOP / "pyproject.toml").read_text().replace('"daemon"', '"src"')
    (COPY / "pyproject.toml").write_text(project + SETTINGS)


def part_of(module: str) -> Any:
    """A module that is there with make mutants only."""
    return importlib.import_module(module)


def mutmut_here(arguments: list[str]) -> None:
    """Run mutmut in this process, without mutants of words for people."""
    text, mutators = part_of("libcst").SimpleString, part_of("mutmut.mutation.mutators")
    real = mutators.operator_string

    def names_only(node: Any) -> Iterator[Any]:
        if not (isinstance(node, text) and " " in node.value):
            yield from real(node)

    mutators.mutation_operators[:] = [
        (kind, names_only if operator is real else operator) for kind, operator in mutators.mutation_operators
    ]
    part_of("mutmut.__main__").cli(arguments)


def show_differences(names: Sequence[str]) -> None:
    difference = part_of("mutmut.mutation.diff_apply").get_diff_for_mutant
    for name in names:
        path = f"{PACKAGE}/{module_of(name).replace('.', '/')}.py"
        print(f"\n{name}\n{difference(name, path=path)}")


def module_of(mutant: str) -> str:
    """The module below the package that a mutant is of."""
    return mutant.removeprefix("iscsi_ipsec.").rpartition(".")[0]


def mutmut(*arguments: str) -> None:
    argv = [sys.executable, "-m", "tests.support.mutants", "--here", *arguments]
    # compiled tests are read again for each mutant
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    code = subprocess.run(argv, cwd=COPY, env=env, check=False).returncode
    if code:
        sys.exit(f"mutmut failed ({code}); build/mutants has its work")


def results() -> dict[str, dict[str, int | None]]:
    """Of each module: its mutants, and the exit code of the tests with each."""
    found = {}
    for path in sorted((COPY / "mutants" / PACKAGE).rglob("*.meta")):
        place = path.relative_to(COPY / "mutants" / PACKAGE).as_posix().removesuffix(".py.meta")
        module = place.replace("/", ".")
        found[module] = json.loads(path.read_text())["exit_code_by_key"]
    return found


def kind(code: int) -> str:
    if code in STOPPED:
        return HUNG
    return {0: LIVED, 5: NO_TEST, 33: NO_TEST}.get(code, KILLED)


def refused_by_mypy(alive: dict[str, list[str]]) -> set[str]:
    """Of the mutants that lived in each module: those to which mypy says more than to the function as it is."""
    files = [f"{PACKAGE}/{module.replace('.', '/')}.py" for module in alive]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--output=json", "--follow-imports=silent", *files],
        cwd=COPY / "mutants", capture_output=True, text=True, check=False,
    )  # fmt: skip
    errors = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    refused = set()
    for (module, names), file in zip(alive.items(), files, strict=True):
        spans = json.loads((COPY / "mutants" / f"{file}.spans").read_text())["spans"]
        said = [(error["line"], error["message"]) for error in errors if error["file"] == file]
        for name in names:
            mutant = name.removeprefix(f"iscsi_ipsec.{module}.")
            original = f"{mutant.partition('__mutmut_')[0]}__mutmut_orig"
            reported, always = (
                {message for line, message in said if spans[function][0] <= line <= spans[function][1]}
                for function in (mutant, original)
            )
            if reported - always:
                refused.add(name)
    return refused


def main(arguments: Sequence[str]) -> int:
    if arguments[:2] == ["--here", "differences"]:
        show_differences(arguments[2:])
        return 0
    if arguments[:1] == ["--here"]:
        mutmut_here(list(arguments[1:]))
        return 0
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.mutants", description="Tests the core's tests."
    )
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help="such as core.ike.key_rotation (default: all)"
    )
    parser.add_argument("--survivors", action="store_true", help="only those that lived, again")
    parser.add_argument("--report", action="store_true", help="run nothing, print the known results")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time")
    options = parser.parse_args(arguments)

    def chosen(module: str) -> bool:
        return not options.modules or module in options.modules

    earlier = {
        name: code
        for module, codes in results().items()
        for name, code in codes.items()
        if chosen(module) and code is not None
    }
    if (options.survivors or options.report) and not earlier:
        parser.exit(2, "no mutant of these was tried yet: run this without --survivors and --report\n")
    lay_out()
    if options.survivors:
        names = [name for name, code in earlier.items() if kind(code) in (LIVED, NO_TEST)]
    else:
        names = [f"iscsi_ipsec.{module}.*" for module in options.modules]
    if not options.report and (names or not options.survivors):
        mutmut("run", "--max-children", str(options.jobs), *names)
    ends = {
        module: {name: kind(code) for name, code in codes.items() if code is not None}
        for module, codes in results().items()
        if chosen(module)
    }
    alive = {module: [name for name, end in found.items() if end == LIVED] for module, found in ends.items()}
    for name in refused_by_mypy({module: names for module, names in alive.items() if names}):
        ends[module_of(name)][name] = TYPES
    kinds = (KILLED, TYPES, HUNG, LIVED, NO_TEST)
    print(f"\n{'module':<32} {'mutants':>7}", *(f"{kind:>7}" for kind in kinds))
    for module, found in ends.items():
        if found:
            count = Counter(found.values())
            print(f"{module:<32} {len(found):>7}", *(f"{count[kind]:>7}" for kind in kinds))
    left = [name for found in ends.values() for name, end in found.items() if end in (LIVED, NO_TEST)]
    if left:
        mutmut("differences", *left)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
