"""Scripts are taken apart as cmd.exe and a program's start-up code do it, each command at its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ipsec.core.windows.iscsicli_script import Command, commands

DOUBT = "it holds a variable or a single %, which only cmd.exe could replace: write the value (a % as %%)"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a b  c ", [["a", "b", "c"]]),
        ("aX\tb", [["aX", "b"]]),
        ('a "b c" d', [["a", "b c", "d"]]),
        ('a b"c d"e', [["a", "bc de"]]),
        ('a "" b', [["a", "", "b"]]),
        ('a "b c', [["a", "b c"]]),
        (r'a "say \"x\"" b', [["a", 'say "x"', "b"]]),
        ('a "say ""x""" b', [["a", 'say "x"', "b"]]),
        (r'a "c:\dir\\" b', [["a", "c:\\dir\\", "b"]]),
        (r"a b\\\"c", [["a", 'b\\"c']]),
        (r"a c:\dir\x b", [["a", r"c:\dir\x", "b"]]),
        (r"a \\host\x", [["a", r"\\host\x"]]),
        (r"a x\ b", [["a", "x\\", "b"]]),
        ("a b\u00a0c\u2028d\x0b", [["a", "b\u00a0c\u2028d\x0b"]]),
        ("a b^&c ^^ d", [["a", "b&c", "^", "d"]]),
        ('a "b^&c"', [["a", "b^&c"]]),
        ("a & b && c | d", [["a"], ["b"], ["c"], ["d"]]),
        ('a "b & c | d > e"', [["a", "b & c | d > e"]]),
        ("a b > nul 2>&1 c", [["a", "b", "c"]]),
        ("a & b 2>nul c", [["a"], ["b", "c"]]),
        ("a & b & c >nul", [["a"], ["b"], ["c"]]),
        ("a b2>nul", [["a", "b2"]]),
        ("2>nul a", [["a"]]),
        ("a >&12>nul b", [["a", "b"]]),
        ("a < in >> out b", [["a", "b"]]),
        ('a > "my file" b', [["a", "b"]]),
        ("@a b", [["a", "b"]]),
        ("\t@(a b", [["a", "b"]]),
        ("a 100%% %%", [["a", "100%", "%"]]),
        ("REM a b", []),
        ("rem", []),
        ("@rem a", []),
        (":: a b", []),
        ("remote a", [["remote", "a"]]),
        ("", []),
        (" & ", []),
    ],
)
def test_commands_splits_a_line_as_cmd_does(line: str, expected: list[list[str]]) -> None:
    assert list(commands(line)) == [Command(1, tuple(words)) for words in expected]


def test_commands_keeps_the_line_on_which_each_begins() -> None:
    script = (
        "rem none here\r\n"
        "a ^\r\n"
        " b^\r\n"
        "c\r\n"
        "\x0c\r\n"
        "d ^^\r\n"
        "e ^^^\r\n"
        "f & g\r\n"
        'h "i" ^\r\n'
        "j\r\n"
        'k "l" "m" ^\r\n'
        "n\r\n"
        'o "p ^\r\n'
        'q "r" "s\r\n'
        "t ^\r\n"
        "rem u\r\n"
        "v ^"
    )
    assert list(commands(script)) == [
        Command(2, ("a", "bc")),
        Command(5, ("\x0c",)),
        Command(6, ("d", "^")),
        Command(7, ("e", "^f")),
        Command(7, ("g",)),
        Command(9, ("h", "i", "j")),
        Command(11, ("k", "l", "m", "n")),
        Command(13, ("o", "p ^")),
        Command(14, ("q", "r", "s")),
        Command(15, ("t", "rem", "u")),
        Command(17, ("v",)),
    ]


@pytest.mark.parametrize("word", ["%KEY%", "100%", "%1", "%%%"])
def test_commands_doubts_what_only_cmd_could_replace(word: str) -> None:
    assert list(commands(f"a {word} & b\nc")) == [
        Command(1, ("a", word.replace("%%", "%")), DOUBT),
        Command(1, ("b",), DOUBT),
        Command(2, ("c",)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("piece", ["a", "a b ", "a>b", "2>&1 ", '"', '" "', "\\", "^", "%%", "a&"])
def test_commands_takes_a_line_of_200_000_characters_apart_in_linear_time(piece: str) -> None:
    """A file may have 64 MiB; in time by the square of its length this line alone takes two minutes, which is the limit of a test."""
    count = 200_000 // len(piece)
    short = sum(1 for command in commands(piece * 12) for _ in command.words)
    long = sum(1 for command in commands(piece * 12 * (count // 12)) for _ in command.words)
    assert long >= short


@given(st.text(alphabet='ab "\\^&|<>%@(:\n0', max_size=60))
def test_commands_takes_any_line_apart(text: str) -> None:
    assert all(command.words for command in commands(text))
