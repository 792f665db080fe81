"""A key appears in no output, no argument list and no exception of any verb, whatever goes wrong."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ipsec.adapters import credentials
from iscsi_ipsec.cli import main
from iscsi_ipsec.cli.daemon_client import Exit
from tests.cli.conftest import Instance

CANARY = "canary-key-0123456789"
FORMS = (CANARY, CANARY.encode().hex(), "Y2FuYXJ5LWtleS0wMTIzNDU2Nzg5")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The text of every exception that reaches the command's end, and of every process started."""
    seen: list[str] = []
    original = main._fail

    def fail(code: Exit, message: str, hint: str) -> int:
        seen.append("".join(traceback.format_exception(*sys.exc_info())))
        # with what hangs on it: causes and contexts carry their arguments
        error: BaseException | None = sys.exc_info()[1]
        while error is not None:
            seen.append(repr(error.args) + repr(vars(error)))
            error = error.__cause__ or error.__context__
        return original(code, message, hint)

    monkeypatch.setattr(main, "_fail", fail)
    here = True
    sys.addaudithook(
        lambda event, args: seen.append(repr(args)) if here and event == "subprocess.Popen" else None
    )
    yield seen
    here = False


def assert_silent(*texts: str) -> None:
    for text in texts:
        assert not [form for form in FORMS if form in text]


SETS = [
    ("psk", "set", "--id", "db1", "--stdin"),
    ("psk", "set", "--id", "db1", "--stdin", "--portal", "nonsense/99"),
    ("psk", "set", "--id", "db1", "--stdin", "--flags", "0x6F"),
    ("psk", "set", "--id", "db1", "--stdin", "--wait", "--timeout", "0"),
    ("psk", "set", "--id", "db1", "--stdin", "--encrypt"),
    ("psk", "set", "other", "--stdin"),
    ("psk", "set", "broken", "--id", "db9", "--stdin"),
    ("psk", "set", "--id", "bad id", "--stdin"),
    ("group-psk", "set", "--stdin"),
    ("group-psk", "set", "--stdin", "--wait", "--timeout", "0"),
]
ON_THE_COMMAND_LINE = [
    ("psk", "set", "--id", "db1", "--key", CANARY),
    ("psk", "set", "--id", "db1", f"--key={CANARY}"),
    ("psk", "set", "--id", "db1", "--psk", CANARY),
    ("psk", "set", "db1", CANARY),
    ("psk", "set", "--id", "db1", "--stdin", "name", CANARY),
    ("psk", "set", "--id", "db1", f"--secret-key={CANARY}"),
    ("psk", "set", "--id", "db1", "--key-file", CANARY),
    ("psk", "set", "--id", "db1", "--generate", CANARY),
    ("group-psk", "set", CANARY),
    ("group-psk", "set", "--key", CANARY),
]
READS = [
    ("psk", "list"), ("psk", "list", "--json"), ("psk", "get", "db1"), ("psk", "get", "db1", "--json"),
    ("psk", "get", "hex"), ("psk", "get", "nobody"), ("check",), ("check", "--json"), ("status",), ("plan",),
    ("verify",), ("wait", "--timeout", "0"), ("explain", "10.0.0.20"), ("clear-cache",),
    ("tunnel-address", "set", "10.0.0.20", "203.0.113.1"), ("tunnel-address", "remove", "10.0.0.20"),
    ("psk", "remove", "db1"), ("psk", "remove", "--name", "broken"), ("psk", "remove", "nobody"),
    ("group-psk", "remove"), ("release", "10.0.0.20"), ("flags", "0x37"),
]  # fmt: skip


@pytest.fixture
def filled(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> Instance:
    """Keys in every form, good and broken ones."""
    monkeypatch.setattr(
        credentials, "ENCRYPTED_STORES", (f"{instance.root}/store", f"{instance.root}/store2")
    )
    head = 'id_type = "ID_FQDN"\nid = '
    for name, text in {
        "db1": f'{head}"db1"\nkey = "{CANARY}"\n',
        "hex": f'{head}"hex"\nkey_hex = "{FORMS[1]}"\n',
        "base": f'{head}"base"\nkey_base64 = "{FORMS[2]}"\n',
        "broken": f'{head}"db9"\nkey = "{CANARY}\n',
        "broken2": f'{head}"db8"\nkey_hex = "{CANARY}"\n',
        "broken3": f'{head}"db7"\nkey = {CANARY}\n',
        "twice": f'{head}"db6"\nkey = "{CANARY}"\nkey = "{CANARY}"\n',
        "group": f'group = true\nkey = "{CANARY}"\n',
    }.items():
        instance.put(instance.psk / f"{name}.toml", text)
    return instance


@pytest.mark.parametrize("words", SETS, ids=" ".join)
def test_psk_set_shows_no_key(filled: Instance, watched: list[str], words: tuple[str, ...]) -> None:
    answer = filled.run(*words, stdin=CANARY.encode())
    assert_silent(answer.all, *watched)


@pytest.mark.parametrize("words", ON_THE_COMMAND_LINE, ids=range(len(ON_THE_COMMAND_LINE)))
def test_a_key_on_the_command_line_is_refused_and_not_repeated(
    instance: Instance, watched: list[str], words: tuple[str, ...]
) -> None:
    answer = instance.run(*words, stdin=b"another key of some length")
    assert answer.code == 2
    assert instance.files() == set()
    assert_silent(answer.all, *watched)


@pytest.mark.parametrize("words", READS, ids=" ".join)
def test_no_verb_shows_a_key_that_is_in_a_file(
    filled: Instance, watched: list[str], words: tuple[str, ...]
) -> None:
    answer = filled.run(*words)
    assert_silent(answer.all, *watched)


@pytest.mark.parametrize(
    "script", ["#!/bin/sh\ncat\ncat >&2\nexit 1\n", "#!/nonexistent\n", "#!/bin/sh\nexit 0\n"]
)
def test_a_systemd_creds_that_fails_gives_no_key_away(
    filled: Instance, watched: list[str], monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    tool = filled.put(filled.root / "bin/systemd-creds", script, 0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    before = filled.key("db1")
    answer = filled.run("psk", "set", "db1", "--encrypt", "--stdin", stdin=CANARY.encode())
    assert answer.code == 1
    assert filled.key("db1") == before
    assert_silent(answer.all, *watched)


def test_a_disk_that_is_full_gives_no_key_away(
    filled: Instance, watched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    before = filled.key("db1")
    with monkeypatch.context() as here:
        here.setattr(os, "write", full)
        answer = filled.run("psk", "set", "db1", "--stdin", stdin=b"another key of some length")
    assert answer.code == 1
    assert filled.key("db1") == before
    assert not [path for path in filled.files() if path.endswith(".tmp")]
    assert_silent(answer.all, *watched)


@pytest.mark.parametrize("more", [(), ("--apply",), ("--json",), ("--apply", "--force", "--hex-keys")])
@pytest.mark.parametrize(
    "text",
    [
        f"PSKey * * 0x37 2 db1 {CANARY} *\nPSKey * * 0x6F 2 db2 {CANARY} *\nGroupKey {CANARY} *\n",
        f"PSKey * * {CANARY} {CANARY} {CANARY} {CANARY} {CANARY}\nGroupKey {CANARY}\nPSKey {CANARY} %{CANARY}%\n",
        f"LoginTarget x T {CANARY} {CANARY} * * 0x27 {CANARY}\nLoginTarget x T 10.0.0.9 1 * * 0x27 0 * * * * * u {CANARY} 1 {CANARY} 0\n",
        '{"IdType": "%s", "Id": "%s", "Key": "%s", "SecurityFlags": "%s"}' % ((CANARY,) * 4),
        '{"IdType": 1, "Id": "x", "Key": "%s", "AuthMethod": "%s"}' % ((CANARY,) * 2),
        f'{{"IdType": 2, "Key": "{CANARY}',
        f'[HKEY]\n"DefaultSecurityBitmap"={CANARY}\n',
        f"10.0.0.20 {CANARY}\n",
    ],
)  # fmt: skip
def test_an_import_gives_no_key_away(
    filled: Instance, watched: list[str], text: str, more: tuple[str, ...]
) -> None:
    path = filled.put(filled.root / "in/x", text)
    answer = filled.run("import", str(path), *more)
    assert_silent(answer.all, *watched)


def test_a_key_is_in_no_file_but_the_key_file(instance: Instance, tmp_path: Path) -> None:
    instance.run("psk", "set", "--id", "db1", "--stdin", "--wait", "--timeout", "0", stdin=CANARY.encode())
    holding = {path for path in instance.files() if CANARY.encode() in (instance.root / path).read_bytes()}
    assert holding == {"etc/psk.d/db1.toml"}
