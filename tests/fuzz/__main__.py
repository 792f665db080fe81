"""Fuzz one target, or all: `python -m tests.fuzz [TARGET...] [--runs N] [--jobs N]`.

Each target runs in a process of its own. What it finds lies in `build/fuzz/TARGET/found`; make a
small file of it in `tests/fuzz/findings/TARGET`, see the tests go red, and fix the program.
`--minimise` writes the smallest set of inputs that reaches what the run reached to
`tests/fuzz/corpus/TARGET`.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.target import Target

TOP = Path(__file__).resolve().parents[2]
BUILD = TOP / "build/fuzz"

TIMEOUT_SECONDS = 10
"""One input that takes longer is a hang."""
MEMORY_MB = 768
"""Python, the fuzzer's tables and the program; one that grows with each input passes it soon."""
MAX_CORPUS_BYTES = 1500
"""Larger inputs are left out of what is kept in the source."""


def all_targets() -> dict[str, Target]:
    from tests.fuzz.texts import TEXTS
    from tests.fuzz.wires import WIRES

    return {target.name: target for target in (*TEXTS, *WIRES)}


def fuzz_here(name: str, arguments: list[str]) -> None:
    """In this process, which libFuzzer ends."""
    import atheris

    # before the first import, as what is imported is instrumented on the way
    with atheris.instrument_imports(include=["iscsi_ipsec", "tomllib", "vici"], enable_loader_override=False):
        target = all_targets()[name]
    logging.disable()  # this process is the fuzzer's alone; refusals need not be reported
    # libFuzzer's merge runs its first argument again, by a shell
    atheris.Setup([f"{sys.executable} -m tests.fuzz --here {name}", *arguments], target.run)
    atheris.Fuzz()


def command(name: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "tests.fuzz", "--here", name, *more]


def limits(target: Target, runs: int) -> list[str]:
    return [
        f"-runs={runs}", f"-max_len={target.max_len}", f"-timeout={TIMEOUT_SECONDS}", f"-rss_limit_mb={MEMORY_MB}",
        "-print_final_stats=1", "-reload=0",
    ]  # fmt: skip


def lay_out(target: Target, folder: Path) -> tuple[Path, Path]:
    """The seeds as files, and the words as libFuzzer's dictionary."""
    seeds, words = folder / "seeds", folder / "words"
    seeds.mkdir(parents=True, exist_ok=True)
    for number, (_, data) in enumerate(target.inputs()):
        (seeds / str(number)).write_bytes(data)
    raw = [word.encode() if isinstance(word, str) else word for word in target.words]
    words.write_text("".join('"{}"\n'.format("".join(f"\\x{byte:02x}" for byte in word)) for word in raw))
    return seeds, words


def fuzz(target: Target, runs: int, folder: Path, *, seed: int = 0) -> tuple[int, str]:
    """One run in a process of its own: its exit code and what it said."""
    seeds, words = lay_out(target, folder)
    grown, found = folder / "corpus", folder / "found"
    grown.mkdir(exist_ok=True)
    found.mkdir(exist_ok=True)
    argv = command(
        target.name,
        *limits(target, runs),
        f"-dict={words}",
        f"-artifact_prefix={found}/",
        str(grown),
        str(seeds),
    )
    if seed:
        argv.insert(-2, f"-seed={seed}")
    # without coverage: make coverage does not count this process, and tracing it twice takes minutes
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(argv, capture_output=True, cwd=TOP, env=env, check=False)
    said = (done.stdout + done.stderr).decode(errors="replace")
    (folder / "log").write_text(said)
    return done.returncode, said


def minimise(target: Target) -> None:
    """Replace the corpus in the source by the smallest one that reaches the same."""
    folder = BUILD / target.name
    small = folder / "small"
    shutil.rmtree(small, ignore_errors=True)
    small.mkdir(parents=True)
    sources = [folder / "corpus", folder / "seeds"]
    subprocess.run(
        command(target.name, "-merge=1", f"-max_len={MAX_CORPUS_BYTES}", str(small), *map(str, sources)),
        cwd=TOP, check=True, capture_output=True,
    )  # fmt: skip
    if not any(small.iterdir()):
        raise SystemExit(f"{target.name}: nothing is left; the corpus stays as it was")
    shutil.rmtree(target.corpus, ignore_errors=True)
    target.corpus.mkdir(parents=True)
    seeds = set(target.seeds)
    for path in small.iterdir():
        if path.read_bytes() not in seeds and path.stat().st_size <= MAX_CORPUS_BYTES:
            shutil.copy(path, target.corpus / path.name[:16])


def statistic(said: str, name: str) -> str:
    found = re.findall(rf"stat::{name}:\s+(\d+)", said)
    return found[-1] if found else "?"


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--here"]:
        fuzz_here(arguments[1], list(arguments[2:]))
        return 0
    targets = all_targets()
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Fuzzes what reads foreign input."
    )
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(targets)} (default: all)"
    )
    parser.add_argument(
        "--runs", type=int, default=1_000_000, help="inputs for each target (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument(
        "--minimise", action="store_true", help="make the corpus in the source of the last run's"
    )
    options = parser.parse_args(arguments)
    chosen = [targets[name] for name in options.targets or targets]
    if options.minimise:
        for target in chosen:
            minimise(target)
        return 0

    def one(target: Target) -> bool:
        began = time.monotonic()
        code, said = fuzz(target, options.runs, BUILD / target.name)
        took = time.monotonic() - began
        print(
            f"{target.name:<12} {statistic(said, 'number_of_executed_units'):>9} inputs"
            f" {statistic(said, 'peak_rss_mb'):>5} MB {took:6.0f} s  {'fine' if code == 0 else f'FAILED ({code})'}",
            flush=True,
        )
        if code:
            print(said.partition("INFO: ")[0], said[-1500:], flush=True)
        return code == 0

    with ThreadPoolExecutor(options.jobs) as pool:
        return 0 if all([*pool.map(one, chosen)]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
