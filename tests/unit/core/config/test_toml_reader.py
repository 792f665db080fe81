"""The TOML reader: correct line numbers, getters that collect problems, and no value of a file in a message."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.config.toml_reader import MAX_KEY_PARTS, MAX_PROBLEMS, Source, key_lines, parse_toml


def source(text: str) -> Source:
    return parse_toml(text, "x.toml")


@pytest.mark.parametrize(
    "text",
    [
        "\n\nwanted = 1",
        "# a comment\n\nwanted=1",
        'a = """\n" wanted = 0\n"""\nwanted = 1',
        "a = '''\nwanted = 0\n'''\nwanted = 1",
        'a = """one line"""\n\nwanted = 1',
        "a = [\n 1, 2,\n]\nwanted = 1",
        '"wanted" = 1',
        "  'wanted' = 1",
        "a = 1\r\nwanted = 1\r\n",
        "a = \"it is ''' so\"\nwanted = 1",
        '# nothing begins here: """\nwanted = 1',
        "# nor here: '''\n\nwanted = 1",
        'a = "next\u2028line"\nwanted = 1',
        'a = "next\u0085line"\nwanted = 1',
        'a = \'it is """ so\'\nwanted = 1',
        'a = """\n\'\'\'\n"""\nwanted = 1',
        'a = ["""\n""", """\nwanted = 0\n"""]\nwanted = 1',
    ],
    ids=repr,
)
def test_a_keys_line_is_found(text: str) -> None:
    expected = next(n for n, line in enumerate(text.split("\n"), 1) if line.strip(" '\"").startswith("wanted") and "= 0" not in line)  # fmt: skip
    assert source(text).line("wanted") == expected


def test_an_absent_keys_line_is_the_whole_file_and_so_is_one_deep_in_a_line() -> None:
    assert source("a = 1").line("b") == 0
    assert source("a = { b = { c = 1 } }").table("a").table("b").line("c") == 0


def test_quotes_and_blanks_are_no_part_of_a_keys_name() -> None:
    lines = key_lines('a = 1\n\'b\' = 2\n"c" = 3\n"" = 4\n[ \'d\' . "e" ]\nf = 6\n[[g\t]]\n["h"]\n')
    assert lines == {"a": 1, "b": 2, "c": 3, "": 4, "d.e": 5, "d.e.f": 6, "g": 7, "h": 8}
    assert key_lines("defaults . a = 1\n'b c'.\t\"d\" = 2\n") == {"defaults.a": 1, "b c.d": 2}


def test_a_tables_keys_have_their_own_lines() -> None:
    lines = key_lines("a = 1\n[defaults]\na = 2\n\n[ other ] # here\nb = 3\n")
    assert lines == {"a": 1, "defaults": 2, "defaults.a": 3, "other": 5, "other.b": 6}


@pytest.mark.parametrize(
    "text", ["[defaults]\na = 1", "defaults.a = 1", "defaults . a = 1", "\ndefaults = { a = 1 }"]
)
def test_source_reports_a_mistake_in_a_table_at_its_line_however_the_table_is_written(text: str) -> None:
    whole = source(text)
    whole.table("defaults").text("a")
    (problem,) = whole.problems
    assert problem.line == (2 if "\n" in text else 1)


def test_every_mistake_is_collected_with_its_line() -> None:
    read = source('a = 1\nb = "x"\nc = [1]\nd = "x"\n')
    assert (read.text("a"), read.number("b", 0, 9), read.texts("c"), read.truth("d")) == (
        None,
        None,
        None,
        None,
    )
    assert [(p.line, p.code) for p in read.problems] == [(n, "wrong-type") for n in (1, 2, 3, 4)]
    with pytest.raises(ConfigError) as caught:
        read.raise_if_wrong()
    assert len(caught.value.problems) == 4
    assert str(caught.value).startswith("x.toml:1: a must be a text in quotes, not a number")


def test_warnings_alone_do_not_raise() -> None:
    read = source("a = 1")
    read.problem("a", "odd", "a is odd", severity=Severity.WARNING)
    read.raise_if_wrong()
    assert [p.severity for p in read.problems] == [Severity.WARNING]


def test_a_boolean_is_no_number_and_a_number_no_boolean() -> None:
    read = source("a = true\nb = 1\nc = true")
    assert read.number("a", 0, 9) is None
    assert read.truth("b") is None
    assert read.real("c", 0, 9) is None
    assert [p.line for p in read.problems] == [1, 2, 3]


@pytest.mark.parametrize("value", ["-1", "11", "99999999999999999999"])
def test_number_out_of_range_is_refused_with_the_range(value: str) -> None:
    read = source(f"a = {value}")
    assert read.number("a", 0, 10) is None
    assert "0 to 10" in read.problems[0].message


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "10.1"])
def test_a_fraction_out_of_range_is_refused(value: str) -> None:
    read = source(f"a = {value}")
    assert read.real("a", 0, 10) is None
    assert read.problems[0].code == "out-of-range"


def test_source_reports_an_unknown_key_with_a_suggestion_or_the_known_ones() -> None:
    read = source("gruop = true\nzzz = 1\n")
    read.refuse_unknown(["group", "id"])
    assert [(p.line, p.hint) for p in read.problems] == [
        (1, 'did you mean "group"?'),
        (2, "known keys: group, id"),
    ]


CANARY = "canary7f3a"


@pytest.mark.parametrize(
    "text",
    [
        f"key = {CANARY}",
        f"key = '{CANARY}",
        f'key = "{CANARY}',
        f'key = """{CANARY}',
        f'key = "{CANARY}" {CANARY}',
        f'key = "{CANARY}"\nkey = "{CANARY}"',
        f"{CANARY}",
        f"{CANARY} =",
        f"[{CANARY}]\n[{CANARY}]",
        f"a.{CANARY} = 1\na = 1",
        f'key = "{CANARY}\\q"',
        f'key = "{CANARY}\0"',
        f"a = {{ {CANARY} = 1, {CANARY} = 2 }}",
        "x = " + "1" * 5000,
    ],
)
def test_source_reports_garbage_by_line_without_a_word_of_it(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        source(text)
    (problem,) = caught.value.problems
    assert CANARY not in repr(problem) + str(caught.value)
    assert "1111" not in str(caught.value)
    assert 0 <= problem.line <= text.count("\n") + 1
    assert problem.file == "x.toml"


def test_garbages_line_is_the_one_where_it_stands() -> None:
    with pytest.raises(ConfigError) as caught:
        source("a = 1\nb = = 2\nc = 3\n")
    assert caught.value.problems[0].line == 2


def test_source_reports_an_unfinished_text_at_its_end() -> None:
    with pytest.raises(ConfigError) as caught:
        source('a = 1\nb = """\nc\nd')
    assert caught.value.problems[0].line == 4


@pytest.mark.parametrize(
    ("text", "line", "reported"),
    [
        ("a = 1\nb\nc = 2", 2, "expected '=' after a key in a key/value pair"),
        ("a = 1\na = 2\n", 2, '"a" is set twice, in lines 1 and 2'),
        ("a = 1\nb = canary\n", 2, "a text needs quotes"),
        ('a = "x\0"', 1, "illegal character"),
        ("x = " + "1" * 5000, 0, "a number is too long"),
        ("\n\n" + ".".join("a" * (MAX_KEY_PARTS + 1)) + " = 1\n", 3, "a key of more than 100 parts"),
    ],
)  # fmt: skip
def test_source_reports_invalid_toml_in_the_parsers_words_without_the_files(
    text: str, line: int, reported: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        source(text)
    assert caught.value.problems == (
        Problem(
            code="bad-toml", message=f"not valid TOML: {reported}",
            hint="compare with the examples in iscsi-ipsec.toml(5)", file="x.toml", line=line,
        ),
    )  # fmt: skip


WITHOUT_QUOTES = "without quotes, e.g. 2026-12-01T00:00:00Z"
ADD_A_ZONE = "add Z for UTC or an offset: 2026-12-01T00:00:00Z, 2026-12-01T01:00:00+01:00"


@pytest.mark.parametrize(
    ("value", "getter", "code", "reported", "hint"),
    [
        ("'x'", lambda s: s.real("a", 0, 1), "wrong-type", "be a number, not a text in quotes", ""),
        ("1.5", lambda s: s.number("a", 0, 1), "wrong-type", "be a number, not a number with a fraction", ""),
        ("2026-12-01", lambda s: s.number("a", 0, 1), "wrong-type", "be a number, not a date or time", ""),
        ("[]", lambda s: s.moment("a"), "wrong-type", "be a date and time, not a list", WITHOUT_QUOTES),
        ("['x', {}]", lambda s: s.texts("a"), "wrong-type", "be a list of texts, but holds a table", ""),
        ("2", lambda s: s.number("a", 0, 1), "out-of-range", "be 0 to 1", ""),
        ("2.0", lambda s: s.real("a", 0, 1), "out-of-range", "be 0 to 1", ""),
    ],
)
def test_source_reports_a_wrong_value_with_its_type_and_the_right_one(
    value: str, getter: Callable[[Source], object], code: str, reported: str, hint: str
) -> None:
    read = source(f"\na = {value}")
    assert getter(read) is None
    assert read.problems == [
        Problem(code=code, message=f"a must {reported}", hint=hint, file="x.toml", line=2)
    ]


def test_a_key_that_is_absent_has_no_line_in_an_inline_table_either() -> None:
    read = source("\na = { b = 1 }").table("a")
    assert (read.line("b"), read.line("c")) == (2, 0)


@pytest.mark.parametrize(
    ("text", "reported"),
    [("a = " + "[" * 100_000, "nested too deeply"), ("a = " + "1" * 5000, "a number is too long")],
)
def test_source_reports_what_python_cannot_read_as_a_mistake_of_the_file(text: str, reported: str) -> None:
    with pytest.raises(ConfigError) as caught:
        source(text)
    assert [problem.message for problem in caught.value.problems] == [f"not valid TOML: {reported}"]


def test_moment_without_a_zone_is_refused_with_how_to_write_one() -> None:
    read = source("a = 2026-12-01T00:00:00")
    assert read.moment("a") is None
    assert read.problems == [
        Problem(code="no-time-zone", message="a has no time zone", hint=ADD_A_ZONE, file="x.toml", line=1)
    ]


def test_a_moment_is_reckoned_in_utc_whatever_the_hosts_zone_is() -> None:
    moment = source("a = 2026-12-01T01:00:00+01:00").moment("a")
    assert moment == datetime(2026, 12, 1, tzinfo=UTC)
    assert moment.tzinfo is UTC


def test_the_ends_of_a_range_are_in_it() -> None:
    read = source("a = 1\nb = 3")
    assert (read.number("a", 1, 3), read.number("b", 1, 3)) == (1, 3)
    assert (read.real("a", 1, 3), read.real("b", 1, 3)) == (1.0, 3.0)
    assert read.problems == []


def test_source_reports_the_first_of_countless_mistakes_and_their_number() -> None:
    read = source("".join(f"a{n} = 1\n" for n in range(MAX_PROBLEMS + 3)))
    read.refuse_unknown([])
    with pytest.raises(ConfigError) as caught:
        read.raise_if_wrong()
    assert caught.value.problems == (
        *read.problems[:MAX_PROBLEMS],
        Problem(code="more-problems", message="3 more problems", hint="fix these first", file="x.toml"),
    )
