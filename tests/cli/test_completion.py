"""Completion in real shells offers the words of the parser, and this machine's portals and keys."""

from __future__ import annotations

import argparse
import runpy
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ipsec.cli.main import build_parser
from iscsi_ipsec.core.config.security_flags import SecurityFlags
from tests.support.netlab import Terminal, wait_until

TOP = Path(__file__).resolve().parents[2]
SCRIPTS = TOP / "etc/completion"
ALL_MATCHES, DUMP = "\x1b*", "\x0f"
"""Keys: put every match into the line; write the line to a file."""

BASH = r"""
bind 'set enable-bracketed-paste off'
. /usr/share/bash-completion/bash_completion
. {script}
dump() {{ printf '%s\n' "$READLINE_LINE" >{out}.new; mv {out}.new {out}; }}
bind -x '"\C-o": dump'
bind '"\e*": insert-completions'
dump
"""
ZSH = r"""
fpath=({folder} $fpath)
autoload -Uz compinit && compinit -u -D
compadd() {{
    # -O, -A and -D ask what would match; the rest offers it
    if [[ ${{@[1,(i)(-|--)]}} == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return; fi
    local -a hits
    builtin compadd -A hits "$@"
    offered+=($hits)
    builtin compadd "$@"
}}
collect() {{ typeset -ga offered=(); _main_complete; compstate[insert]= compstate[list]= }}
zle -C collect list-choices collect
dump() {{ print -r -- "$BUFFER"$'\x1f'"$offered" >{out}.new; mv {out}.new {out} }}
zle -N dump
bindkey '^O' dump
bindkey '\e*' collect
dump
"""


class Shell:
    """An interactive shell on a terminal of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self._out = folder / name
        script = SCRIPTS / "iscsi-ipsec.bash"
        setup = folder / f"{name}.rc"
        text = (BASH if name == "bash" else ZSH).format(script=script, folder=SCRIPTS, out=self._out)
        setup.write_text(text)
        argv = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}[name]
        env = {"HOME": str(folder), "TERM": "dumb", "LC_ALL": "C.UTF-8", "HISTFILE": ""}
        self._terminal = Terminal(argv, env=env, cwd=folder)
        self._terminal.press(f". {shlex.quote(str(setup))}\n")
        self._answer()

    def _answer(self) -> str:
        wait_until(self._out.exists, "the shell answers", timeout=30)
        text = self._out.read_text()
        self._out.unlink()
        return text

    def offers(self, line: str) -> set[str]:
        """The words that could stand where the line ends."""
        self._terminal.press("\x15" + line + ALL_MATCHES + DUMP)
        inserted, separator, listed = self._answer().partition("\x1f")
        before = line.rpartition(" ")[0] + " "
        assert inserted.startswith(before), inserted
        return set(shlex.split(listed if separator else inserted.removeprefix(before)))

    def close(self) -> None:
        self._terminal.close()


@pytest.fixture(scope="module", params=["bash", "zsh"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    if not shutil.which(request.param) or not Path("/usr/share/bash-completion").exists():
        pytest.skip("needs bash-completion and zsh")
    folder = tmp_path_factory.mktemp("home")
    (folder / "etc/psk.d").mkdir(parents=True)
    (folder / "run/psk.d").mkdir(parents=True)
    (folder / "etc/psk.d/db1.toml").write_text(
        'id_type = "ID_FQDN"\nid      = "db1.example.com"\nkey = "canary"\n'
    )
    (folder / "run/psk.d/boot.toml").write_text('id = "10.0.0.7"\nid_type = 1\nkey = "canary"\n')
    (folder / "run/status.json").write_text(
        '{"portals": [{"portal": "10.0.0.20:3260", "key": null}, {"portal": "[fd00::20]:3260"}]}\n'
    )
    shell = Shell(request.param, folder)
    yield shell
    shell.close()


PLACES = "--config-dir etc --runtime-dir run"


def sub_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {name: below for action in found for name, below in action.choices.items()}


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {o for a in parser._actions if a.help != argparse.SUPPRESS for o in a.option_strings}


def test_shipped_completion_matches_the_parser(tmp_path: Path) -> None:
    runpy.run_path(str(TOP / "packaging/completion"))["main"](tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert path.read_text() == (SCRIPTS / path.name).read_text(), "make completion"


def test_every_verb_and_every_action_is_offered(shell: Shell) -> None:
    verbs = sub_parsers(build_parser())
    assert shell.offers("iscsi-ipsec ") == set(verbs)
    assert shell.offers("iscsi-ipsec st") == {"status"}
    for name, parser in verbs.items():
        if actions := sub_parsers(parser):
            assert shell.offers(f"iscsi-ipsec {name} ") == set(actions)


def test_every_option_of_every_verb_is_offered_and_no_other(shell: Shell) -> None:
    for name, parser in sub_parsers(build_parser()).items():
        for action, below in (sub_parsers(parser) or {"": parser}).items():
            reported = shell.offers(f"iscsi-ipsec {name} {action} --".replace("  ", " "))
            assert reported == {o for o in options_of(below) if o.startswith("--")}, f"{name} {action}"


@pytest.mark.parametrize("verb", ["explain", "release", "wait", "tunnel-address set", "psk set db1 --portal"])
def test_portals_come_from_the_daemons_status(shell: Shell, verb: str) -> None:
    line = f"iscsi-ipsec {PLACES} {verb} "
    assert {"10.0.0.20:3260", "[fd00::20]:3260"} == shell.offers(line)
    # readline takes the colon for the end of a word, and must not say the first half twice
    assert shell.offers(line + "10.0.0.20:3") == {"10.0.0.20:3260"}


def test_keys_are_offered_by_file_and_by_identity(shell: Shell) -> None:
    assert shell.offers(f"iscsi-ipsec {PLACES} psk set ") == {"boot", "db1"}
    assert shell.offers(f"iscsi-ipsec {PLACES} psk remove --name ") == {"boot", "db1"}
    for action in ("get", "remove"):
        assert shell.offers(f"iscsi-ipsec {PLACES} psk {action} ") == {"db1.example.com", "10.0.0.7"}


def test_where_there_is_no_daemon_nothing_is_offered_and_nothing_said(shell: Shell) -> None:
    assert shell.offers("iscsi-ipsec --runtime-dir nowhere explain ") == set()


def test_flags_types_and_formats_are_offered_by_name(shell: Shell) -> None:
    flags = {str(flag.name) for flag in SecurityFlags}
    assert shell.offers("iscsi-ipsec flags ") == flags
    assert shell.offers("iscsi-ipsec psk set x --flags ") == flags
    assert shell.offers("iscsi-ipsec psk set x --flags VALID MAIN") == {"MAIN_MODE_ENABLED"}
    assert shell.offers("iscsi-ipsec psk get --id-type ID_F") == {"ID_FQDN"}
    assert shell.offers("iscsi-ipsec import --format ") == {"powershell", "iscsicli", "isns", "json", "reg"}
