"""The type of a fuzzing target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`run` takes any bytes and raises only if the program is wrong.

    `words` help the fuzzer to get past a grammar; `seeds` are where it begins. In `corpus/`
    lie the inputs that reach code which no seed reaches, in `findings/` those that once
    made the program fail.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[str | bytes, ...] = ()
    max_len: int = 4096

    @property
    def corpus(self) -> Path:
        return HERE / "corpus" / self.name

    @property
    def findings(self) -> Path:
        return HERE / "findings" / self.name

    def inputs(self) -> Iterator[tuple[str, bytes]]:
        """Seeds, corpus and findings, each with a name."""
        for number, seed in enumerate(self.seeds):
            yield f"seed {number}", seed
        for folder in (self.corpus, self.findings):
            for path in sorted(folder.glob("*")):
                yield f"{folder.parent.name}/{self.name}/{path.name}", path.read_bytes()
