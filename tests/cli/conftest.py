"""One instance's folders, and the command run on them in this process."""

from __future__ import annotations

import fcntl
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from iscsi_ipsec.cli.main import main
from tests.support.pair import charon, daemon, lab, managed, pair  # noqa: F401  # fixtures, found by their names here


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err


class Instance:
    """Folders of one instance; ``run`` is the command, with these bytes on its standard input."""

    def __init__(
        self, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.root, self._capsys, self._monkeypatch = root, capsys, monkeypatch
        self.psk, self.portal = root / "etc/psk.d", root / "etc/portal.d"
        self.runtime_psk = root / "run/psk.d"
        self._lock: IO[str] | None = None

    @property
    def options(self) -> list[str]:
        return [
            f"--config-dir={self.root}/etc", f"--runtime-dir={self.root}/run", f"--state-dir={self.root}/lib",
            f"--vendor-dir={self.root}/usr",
        ]  # fmt: skip

    def run(self, *words: str, stdin: bytes | None = None) -> Answer:
        # without input there is no terminal either: nothing must ever wait for a person here
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin or b"")))
        self._capsys.readouterr()
        try:
            code = main([*words, *self.options])
        except SystemExit as err:
            code = int(err.code or 0)
        said = self._capsys.readouterr()
        return Answer(code, said.out, said.err)

    def fine(self, *words: str, stdin: bytes | None = None) -> Answer:
        answer = self.run(*words, stdin=stdin)
        assert answer.code == 0, answer.err
        return answer

    def json(self, *words: str) -> Any:
        return json.loads(self.fine(*words, "--json").out)

    def put(self, path: Path, text: str, mode: int = 0o600) -> Path:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def key(self, name: str) -> str:
        return (self.psk / f"{name}.toml").read_text()

    def files(self) -> set[str]:
        """All but the copies of replaced keys."""
        found = (path for path in self.root.rglob("*") if path.is_file() and path.parent.name != "replaced")
        return {str(path.relative_to(self.root)) for path in found}

    def copies(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.glob("*/replaced/*")}

    def pretend_daemon(self, status: Mapping[str, Any] | None = None, *, pid: int | None = None) -> None:
        """Hold the lock as a daemon does, with this status."""
        folder = self.root / "run"
        (folder / "requests").mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "daemon.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._lock.write(f"{pid or os.getpid()}\n")
        self._lock.flush()
        if status is not None:
            (folder / "status.json").write_text(json.dumps(status))

    def close(self) -> None:
        if self._lock:
            self._lock.close()


@pytest.fixture
def instance(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    # not pytest's folders: another user's folder above would be refused, and rightly so
    with tempfile.TemporaryDirectory(prefix="verbs-") as root:
        made = Instance(Path(root), capsys, monkeypatch)
        yield made
        made.close()
