"""Everything that fuzzing found stays fixed, and each target gets a short run of the fuzzer."""

from __future__ import annotations

import importlib.util
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.core.config.key_file import parse_key_file
from iscsi_ipsec.core.config.settings import parse_settings
from iscsi_ipsec.core.config.toml_reader import MAX_KEY_PARTS, MAX_PROBLEMS
from tests.fuzz.__main__ import all_targets, fuzz
from tests.fuzz.target import HERE

TARGETS = all_targets()
SHORT_RUN = 1000
ATHERIS_HAS_NO_WHEEL_FOR = (3, 15)

each_target = pytest.mark.parametrize("name", TARGETS)


@each_target
def test_seeds_corpus_and_findings_are_taken(name: str) -> None:
    target = TARGETS[name]
    for what, data in target.inputs():
        try:
            target.run(data)
        except BaseException as err:
            err.add_note(what)
            raise


@pytest.fixture(scope="module")
def short_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit code and words of a run of each target, as many at a time as there are processors."""
    if sys.version_info >= ATHERIS_HAS_NO_WHEEL_FOR and not importlib.util.find_spec("atheris"):
        pytest.skip("PyPI has no atheris for this Python")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {
            name: pool.submit(fuzz, target, SHORT_RUN, tmp_path_factory.mktemp(name), seed=7)
            for name, target in TARGETS.items()
        }
    return {name: run.result() for name, run in runs.items()}


@each_target
def test_a_short_run_of_the_fuzzer_finds_nothing(short_runs: dict[str, tuple[int, str]], name: str) -> None:
    code, said = short_runs[name]
    assert code == 0, said.partition("INFO: ")[0] + said[-2000:]
    assert f"stat::number_of_executed_units: {SHORT_RUN}" in said


def test_every_kept_input_belongs_to_a_target() -> None:
    kept = {path.name for kind in ("corpus", "findings") for path in (HERE / kind).glob("*")}
    assert kept <= set(TARGETS)


# --- what is too large to lie here as a file ------------------------------------------------------

SIZE = 65_000  # a file may have 64 KiB


@pytest.mark.parametrize(
    "text",
    [
        ".".join(["a"] * (SIZE // 2)) + " = 1",
        " . ".join(["a"] * (SIZE // 4)) + " = 1",
        "[" + ".".join(["a"] * (SIZE // 2)) + "]",
        "[[ " + ".".join(['"a"'] * (SIZE // 4)) + "]]",
        "x = 1\n\ty = {" + ".".join(["a"] * (SIZE // 2)) + " = 1}",
        "y = {b = 1, " + ".".join(["'a'"] * (SIZE // 4)) + " = 1}",
    ],
    ids=["bare", "spaced", "table", "tables", "inline", "inline quoted"],
)
def test_a_key_of_thousands_of_parts_is_refused_before_it_takes_seconds(text: str) -> None:
    with pytest.raises(ConfigError, match=f"a key of more than {MAX_KEY_PARTS} parts") as caught:
        parse_settings(text, "x.toml")
    (problem,) = caught.value.problems
    assert (problem.code, problem.line) == ("bad-toml", text.count("\n") + 1)


def test_a_value_may_have_as_many_dots_as_it_likes() -> None:
    key = "a." * 20_000
    draft = parse_key_file(f"group = true\nkey = \"{key}\"\ndescription = '{key}'\n", "x.toml", "x")
    assert draft.key_line == 2


def test_ten_thousand_mistakes_in_one_file_are_reported_as_a_hundred() -> None:
    text = "".join(f"k{number} = 1\n" for number in range(10_000))
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, "x.toml")
    *reported, last = caught.value.problems
    assert len(reported) == MAX_PROBLEMS
    assert (last.code, last.message) == ("more-problems", f"{10_000 - MAX_PROBLEMS} more problems")
