"""Parses TOML with line numbers, through typed getters that collect problems.

Law: a wrong value never raises here; it becomes a :class:`Problem` and the
getter returns None, so that all mistakes of a file are reported at once. No value
is ever quoted in a message unless the getter's caller says that it may be.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.config.toml_errors import explain

_KEY_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
_PART = re.compile(r""""([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+)""")
_DOTTED = rf"({_KEY_PART}(?:\s*\.\s*{_KEY_PART})*)"
_TABLE = re.compile(rf"\s*\[{{1,2}}\s*{_DOTTED}\s*\]{{1,2}}\s*(?:#.*)?$")
_KEY = re.compile(rf"\s*{_DOTTED}\s*=")
_TRIPLE = ('"""', "'''")
_TOKEN = re.compile(r"""\"{3}|'{3}|"(?:\\.|[^"\\])*"|'[^']*'|\#.*""", re.VERBOSE)
_QUOTED = re.compile(r"""\s*(['"])(.*)\1""")
_SYNTAX = frozenset(("=", "[", "]", "[[", "]]", "{", "}", ",", "'", '"', "\\"))
MAX_KEY_PARTS = 100
"""tomllib's time grows with the square of the parts: 20 s for 64 KiB of ``a.a.a``."""
# where a key may stand: at a line's start, in a table's head, in an inline table
_DEEP_KEY = re.compile(rf"(?m:^|[\[{{,])[ \t]*+{_KEY_PART}(?:[ \t]*+\.[ \t]*+{_KEY_PART}){{{MAX_KEY_PARTS}}}")
MAX_PROBLEMS = 100
"""Problems that are reported of one file; 64 KiB have room for 10,000 mistakes, and each is kept and shown."""
MAX_LEFT_OUT = 20
"""Lines that :func:`readable_part` leaves out at most."""
_AT_LINE = re.compile(r"\(at line (\d+), column \d+\)")

MEANT = {"flags": "security_flags", "type": "id_type", "portal": "portals", "proposals": "ike_proposals"}
"""Wrong names of keys that people write, with the right names."""
ELSEWHERE = {
    "key": ("key", "keys belong in a file of psk.d; psk names one here"),
    "psk": ("psk", "psk belongs in a policy (portal.d)"),
}
"""Keys that belong in the other kind of file, with what to do."""

_TYPE_NAMES = {
    str: "a text in quotes",
    int: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def key_lines(text: str) -> Mapping[str, int]:
    """Map ``key`` and ``table.key`` to the line where each is first set.

    tomllib keeps no positions. This scan only has to agree with it on texts
    that tomllib accepted, so a few patterns and the state "inside a
    multi-line string" are enough.
    """
    lines: dict[str, int] = {}
    table = ""
    open_quote = ""
    for number, line in enumerate(text.split("\n"), 1):
        if not open_quote:
            if match := _TABLE.match(line):
                table = _joined(match[1]) + "."
                lines.setdefault(table[:-1], number)
            elif match := _KEY.match(line):
                lines.setdefault(table + _joined(match[1]), number)
        open_quote = _left_open(line, open_quote)
    return lines


def _joined(dotted: str) -> str:
    """A dotted key without the quotes and blanks that it may be written with."""
    return ".".join("".join(part) for part in _PART.findall(dotted))


def _left_open(line: str, open_quote: str) -> str:
    """The triple quote that a line leaves open, empty for none."""
    at = 0
    while True:
        if open_quote:
            end = line.find(open_quote, at)
            if end < 0:
                return open_quote
            at = end + len(open_quote)
        token = _TOKEN.search(line, at)
        if token is None:
            return ""
        open_quote, at = token[0] if token[0] in _TRIPLE else "", token.end()


class KeyLines:
    """Where each key of a text stands; the text is scanned on the first question only, since most files have no problem."""

    __slots__ = ("_found", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._found: Mapping[str, int] | None = None

    def line_of(self, key: str) -> int:
        """The line of ``key`` or ``table.key``, 0 where it is absent."""
        if self._found is None:
            self._found = key_lines(self._text)
        dotted = f"{key}."
        return self._found.get(key) or next((n for k, n in self._found.items() if k.startswith(dotted)), 0)


class Source:
    """One table of a TOML file, read by key; ``problems`` grows as it is read."""

    def __init__(
        self,
        data: Mapping[str, object],
        file: str,
        lines: KeyLines,
        prefix: str = "",
        problems: list[Problem] | None = None,
    ) -> None:
        self.data, self.file, self.lines, self._prefix = data, file, lines, prefix
        self.problems: list[Problem] = [] if problems is None else problems

    def line(self, key: str) -> int:
        """The line of ``key``, or of the inline table it stands in; 0 where it is absent."""
        at = self.lines.line_of(self._prefix + key)
        return at or (self.lines.line_of(self._prefix[:-1]) if key in self.data else 0)

    # -- what is wrong

    def problem(
        self, key: str, code: str, message: str, hint: str = "", severity: Severity = Severity.ERROR
    ) -> None:
        """Note a problem at the line of ``key`` (or of the file, where the key is absent)."""
        self.problems.append(
            Problem(
                code=code, message=message, hint=hint, file=self.file, line=self.line(key), severity=severity
            )
        )

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Note every key that is not in ``known``, with the closest that is."""
        known = list(known)
        for key in self.data:
            if key not in known:
                self.problem(
                    key, "unknown-key", f'unknown key "{self._prefix}{key}"', self._hint_for(key, known)
                )

    def _hint_for(self, key: str, known: list[str]) -> str:
        """A hint for an unknown key: the key that was most probably meant."""
        if isinstance(self.data[key], dict):
            return f"the keys stand without a section: remove the line [{self._prefix}{key}]"
        if key in MEANT and MEANT[key] in known:
            return f'did you mean "{MEANT[key]}"?'
        if key in ELSEWHERE and ELSEWHERE[key][0] not in known:
            return ELSEWHERE[key][1]
        close = difflib.get_close_matches(key, known, 1)
        return f'did you mean "{close[0]}"?' if close else "known keys: " + ", ".join(sorted(known))

    def raise_if_wrong(self, warnings: list[Problem] | None = None) -> None:
        """Raise :class:`ConfigError` with the problems noted so far; warnings alone don't raise, but are added to the list."""
        if not any(p.severity is Severity.ERROR for p in self.problems):
            if warnings is not None:
                warnings.extend(self.problems[:MAX_PROBLEMS])
            return
        shown = self.problems[:MAX_PROBLEMS]
        if left := len(self.problems) - len(shown):
            shown.append(
                Problem(
                    code="more-problems",
                    message=f"{left} more problems",
                    hint="fix these first",
                    file=self.file,
                )
            )
        raise ConfigError(tuple(shown))

    # -- typed getters

    def _typed(self, key: str, kind: type) -> object | None:
        value = self.data.get(key)
        if value is None:
            return None
        # bool is an int in Python, and neither is meant where the other is asked for
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.problem(key, "wrong-type", f"{key} must be {_TYPE_NAMES[kind]}, not {_toml_kind(value)}")
            return None
        return value

    def text(self, key: str) -> str | None:
        """A string, or None where absent or wrong."""
        value = self._typed(key, str)
        return value if isinstance(value, str) else None

    def number(self, key: str, low: int, high: int) -> int | None:
        """An integer from ``low`` to ``high``."""
        value = self._typed(key, int)
        if not isinstance(value, int):
            return None
        if not low <= value <= high:
            self.problem(key, "out-of-range", f"{key} must be {low} to {high}")
            return None
        return value

    def real(self, key: str, low: float, high: float) -> float | None:
        """A number, with or without a fraction."""
        value = self.data.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.problem(key, "wrong-type", f"{key} must be a number, not {_toml_kind(value)}")
            return None
        if not low <= value <= high:
            self.problem(key, "out-of-range", f"{key} must be {low} to {high}")
            return None
        return float(value)

    def truth(self, key: str) -> bool | None:
        """True or false."""
        value = self._typed(key, bool)
        return value if isinstance(value, bool) else None

    def moment(self, key: str) -> datetime | None:
        """A date and time with its offset from UTC, which makes it the same moment everywhere."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, datetime):
            self.problem(
                key, "wrong-type", f"{key} must be a date and time, not {_toml_kind(value)}",
                "without quotes, e.g. 2026-12-01T00:00:00Z",
            )  # fmt: skip
            return None
        if value.tzinfo is None:
            self.problem(
                key, "no-time-zone", f"{key} has no time zone",
                "add Z for UTC or an offset: 2026-12-01T00:00:00Z, 2026-12-01T01:00:00+01:00",
            )  # fmt: skip
            return None
        try:
            return value.astimezone(UTC)
        except OverflowError:
            self.problem(key, "out-of-range", f"{key} is outside the supported date range")
            return None

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of strings."""
        value = self._typed(key, list)
        if not isinstance(value, list):
            return None
        for item in value:
            if not isinstance(item, str):
                self.problem(
                    key, "wrong-type", f"{key} must be a list of texts, but holds {_toml_kind(item)}"
                )
                return None
        return tuple(value)

    def table(self, key: str) -> Source:
        """A sub-table (empty where absent); its problems are noted here."""
        value = self._typed(key, dict)
        data = value if isinstance(value, dict) else {}
        return Source(data, self.file, self.lines, f"{self._prefix}{key}.", self.problems)


def readable_part(text: str) -> Mapping[str, object]:
    """Parse a text with mistakes as far as possible: without the lines that are not TOML."""
    if _DEEP_KEY.search(text):
        return {}
    lines = text.split("\n")
    for _ in range(MAX_LEFT_OUT):
        try:
            return tomllib.loads("\n".join(lines))
        except RecursionError:
            return {}
        except ValueError as err:
            at = _AT_LINE.search(str(err))
            number = int(at[1]) if at else max((n for n, line in enumerate(lines, 1) if line), default=0)
            if not number or not lines[number - 1]:
                return {}
            lines[number - 1] = ""
    return {}


def parse_toml(text: str, file: str) -> Source:
    """Parse a whole file; raise :class:`ConfigError` where it is not TOML."""
    if deep := _DEEP_KEY.search(text):
        line = text.count("\n", 0, deep.start()) + 1
        raise _bad_toml(f"a key of more than {MAX_KEY_PARTS} parts", file, line)
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as err:
        if isinstance(err, tomllib.TOMLDecodeError):
            message = str(err)
        else:  # int() refuses numbers of more than 4,300 digits with a ValueError of its own
            message = "a number is too long" if isinstance(err, ValueError) else "nested too deeply"
        at = _AT_LINE.search(message)
        # tomllib's message quotes the text of the error, which may be a piece of a key
        shown = _QUOTED.sub(_unless_key, _AT_LINE.sub("", message)).strip()
        line = int(at[1]) if at else (text.count("\n") + 1 if "end of document" in message else 0)
        what = explain(message, text, line) or f"{shown[:1].lower()}{shown[1:]}"
        raise _bad_toml(what, file, line) from None  # its text may hold a piece of a key
    return Source(data, file, KeyLines(text))


def _bad_toml(what: str, file: str, line: int) -> ConfigError:
    return ConfigError(
        (
            Problem(
                code="bad-toml",
                message=f"not valid TOML: {what}",
                hint="compare with the examples in iscsi-ipsec.toml(5)",
                file=file,
                line=line,
            ),
        )
    )


def _unless_key(quoted: re.Match[str]) -> str:
    """The text that tomllib quotes, if it is TOML's own syntax and cannot be a piece of a key."""
    return quoted[0] if quoted[2] in _SYNTAX else ""


def _toml_kind(value: object) -> str:
    for kind in (bool, str, int, list, dict):
        if isinstance(value, kind):
            return _TYPE_NAMES[kind]
    return "a number with a fraction" if isinstance(value, float) else "a date or time"
