"""The daemon's own wiring, called pass by pass, to see what a pass costs and what it touches.

A process from outside shows its start and its end, not the part of charon in between, and
not which files were opened. Run in a node's namespace:
``python -m tests.bench.inside MESSAGES CHANGED [options of the daemon]``.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

from iscsi_ipsec.adapters import systemd
from iscsi_ipsec.adapters.charon import Charon
from iscsi_ipsec.adapters.state_db import Store
from iscsi_ipsec.base.errors import CharonRefused
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.ike.charon_diff import Operation
from iscsi_ipsec.service import main as service
from iscsi_ipsec.service.paths import add_options, paths_of
from iscsi_ipsec.service.reconciler import Outcome
from tests.bench.shape import ROUND, Messages, key_text, save

PASSES = 5
SETTLED = 0.05  # a file that is younger than a tick of its time stamp is opened twice, on purpose


class TimedCharon(Charon):
    """Takes the time from the first VICI write to the last answer."""

    seconds = 0.0

    def apply(
        self, messages: Iterable[tuple[str, Mapping[str, Any]]], progress: Callable[[], None] = lambda: None
    ) -> tuple[CharonRefused | None, ...]:
        began = time.perf_counter()
        try:
            return super().apply(messages, progress)
        finally:
            TimedCharon.seconds = time.perf_counter() - began


class Opened:
    """Counts every opening of a configuration file in this process, whoever opens it."""

    def __init__(self) -> None:
        self.count = 0
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(args[0]).endswith(".toml"):
            self.count += 1


def _cpu_seconds() -> float:
    """CPU time of this process and of the programs that it ran."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Passes:
    """One daemon, whose passes are made by hand."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        paths = paths_of(arguments)
        service._make_folders(paths)
        began = time.perf_counter()
        with mock.patch.object(service, "Charon", TimedCharon):
            self._daemon = service._Daemon(paths, Store(paths.store_file), "")
        self.building = time.perf_counter() - began
        for producer in self._daemon._producers:
            producer.start()  # charon sends them every line of its log, which costs time that a daemon has to spend

    @property
    def writes(self) -> int:
        return self._daemon._reconciler.counters.vici_writes

    def run(self, reason: str) -> tuple[Outcome, dict[str, float]]:
        """A pass as the loop makes it, and how long its two parts took."""
        began, used = time.perf_counter(), _cpu_seconds()
        outcome = self._daemon._reconciler.run(frozenset({reason}))
        decided = time.perf_counter()
        self._daemon._reporter.write(outcome)
        reported = time.perf_counter()
        return outcome, {"pass": decided - began, "report": reported - decided, "cpu": _cpu_seconds() - used}

    def end(self) -> None:
        self._daemon._end()


def revealed(operations: tuple[Operation, ...]) -> Messages:
    """The messages as a bare client sends them."""

    def plain(value: Any) -> Any:
        if isinstance(value, Secret):
            return value.reveal().decode()
        if isinstance(value, Mapping):
            return {name: plain(inner) for name, inner in value.items()}
        return list(value) if isinstance(value, (list, tuple)) else value

    return [(operation.command, plain(operation.message)) for operation in operations]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("messages", type=Path)
    parser.add_argument("changed", type=Path, help="a key file that is rewritten at the end")
    add_options(parser)
    arguments = parser.parse_args(words)
    systemd.set_up_logging("info")
    passes = Passes(arguments)
    first, took = passes.run("start")
    result: dict[str, Any] = {
        "building": passes.building,
        "first": {**took, "apply": TimedCharon.seconds, "writes": passes.writes},
    }
    save(revealed(first.operations), arguments.messages)
    for reason in ("files", "sa"):
        passes.run(
            reason
        )  # charon's plugins are known now, sources are cached: as in the daemon's second pass
        result[reason] = [passes.run(reason)[1] for _ in range(PASSES)]
    # with many files one part after the other has its turn, and only all of them together mean something
    regular = [passes.run("resync")[1] for _ in range(ROUND)]
    result["resync"] = [{name: mean(took[name] for took in regular) for name in regular[0]}]
    # counted apart from the timing: an audit hook slows everything down and cannot be taken away
    opened, before = Opened(), passes.writes
    for reason in ("files", "sa", *(ROUND * ["resync"])):
        passes.run(reason)
    result["unchanged"] = {"opened": opened.count, "writes": passes.writes - before}
    fresh = arguments.changed.with_name(f".{arguments.changed.name}.new")
    fresh.touch(mode=0o600)
    fresh.write_text(key_text(int(arguments.changed.stem[1:]), 1))
    time.sleep(SETTLED)
    fresh.replace(arguments.changed)
    opened.count = 0
    outcome, took = passes.run("files")
    result["changed"] = {
        **took,
        "opened": opened.count,
        "commands": [op.command for op in outcome.operations],
    }
    passes.end()
    sys.stdout.write(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
