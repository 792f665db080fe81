"""Reads a key from standard input, a file, a prompt or the kernel's random numbers.

Law: never from the command line, which every user of the machine can read in /proc; and no message repeats a
word of the command line that may be a key by mistake.
"""

from __future__ import annotations

import argparse
import base64
import codecs
import difflib
import getpass
import os
import secrets
import stat
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO, NoReturn

from iscsi_ipsec.base.keys import MAX_KEY_FILE_BYTES
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.cli.command_line import Parser
from iscsi_ipsec.cli.daemon_client import CommandError, Exit
from iscsi_ipsec.core.config.key_file import WEAK_KEY_BYTES

GENERATED_BYTES = 32
_MAX_GENERATED = 1024


class DiscreetParser(Parser):
    """A parser for verbs that take keys: it never repeats an unknown word, and accepts no abbreviated option.

    ``--key X`` would otherwise be read as ``--key-file X``, and a stray X printed.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**(options | {"allow_abbrev": False}))

    def parse_known_args(  # type: ignore[override]  # the overloads of typeshed serve namespaces of other types
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as the original does, but take one free word behind options as NAME, and any other word as an error."""
        known, extra = super().parse_known_args(args, namespace)
        if len(extra) == 1 and not extra[0].startswith("-") and getattr(known, "name", "") is None:
            known.name = extra.pop()
        if extra and extra[0].startswith("--"):
            # an option's name is not a key, but the text behind its = may be one
            option = extra[0].partition("=")[0]
            close = difflib.get_close_matches(option, self._option_string_actions, 1)
            self.error(f"unknown option {option}" + (f" (did you mean {close[0]}?)" if close else ""))
        if extra:
            self.error(
                "a word or option too many (not repeated here, as it may be a key; a key is never taken from the command line)"
            )
        return known, extra


class _Refuse(argparse.Action):
    """An option whose only use is its error, which says what to use instead."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
        values: str | Sequence[Any] | None, option_string: str | None = None,
    ) -> NoReturn:  # fmt: skip
        del namespace, values, option_string
        parser.error("a key is never taken from the command line: use --stdin, --key-file, or the prompt")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say where the key comes from; without any of them it is asked for."""
    group = parser.add_argument_group(
        "the key", "Without any of these it is asked for twice, without echo. It is never taken from the command line."
    ).add_mutually_exclusive_group()  # fmt: skip
    group.add_argument("--stdin", action="store_true", help="standard input, without one line end")
    group.add_argument("--key-file", metavar="PATH", help="the content of a file, without one line end")
    group.add_argument(
        "--generate", nargs="?", type=_size, const=GENERATED_BYTES, metavar="BYTES",
        help=f"random bytes (%(const)s), as base64 text; it is not shown; the output says how to read it (at least {WEAK_KEY_BYTES})",
    )  # fmt: skip
    for wrong in ("--key", "--psk", "--secret", "--password"):
        group.add_argument(wrong, nargs="?", action=_Refuse, help=argparse.SUPPRESS)


def _size(text: str) -> int:
    if text.isascii() and text.isdigit() and WEAK_KEY_BYTES <= int(text[:9]) <= _MAX_GENERATED:
        return int(text)
    # the text is not quoted: it may be a key
    raise argparse.ArgumentTypeError(f"must be a number from {WEAK_KEY_BYTES} to {_MAX_GENERATED}")


def read_key(options: argparse.Namespace) -> Secret:
    """The key from the source that the options name; :class:`CommandError` where it is missing or too large."""
    if options.generate is not None:
        return Secret(base64.b64encode(secrets.token_bytes(options.generate)))
    if options.stdin:
        return _checked(_as_meant(_limited(sys.stdin.buffer)))
    if options.key_file is not None:
        return _checked(_as_meant(_from_file(options.key_file)))
    return _checked(_prompted())


def _as_meant(data: bytes) -> bytes:
    """The key from an editor's file: without one line end and a byte order mark; other oddities are warned about."""
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        text = _text_of(data.removeprefix(mark), encoding) if data.startswith(mark) else ""
        if text:
            _warn("the key was saved as UTF-16: it is used as UTF-8 text")
            data = text.encode()
    if data.startswith(codecs.BOM_UTF8) and _text_of(data, "utf-8"):
        _warn("a byte order mark before the key is left out")
        data = data.removeprefix(codecs.BOM_UTF8)
    data = data.removesuffix(b"\r\n") if data.endswith(b"\r\n") else data.removesuffix(b"\n")
    if b"\0" in data:
        _warn("the key holds a NUL byte, which counts")
    if data != data.strip():
        _warn("the key begins or ends with a blank or a line end, which counts: compare with the other end")
    return data


def _text_of(data: bytes, encoding: str) -> str:
    """The bytes as text, empty where they are not text: a random key may begin with any bytes."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return ""
    return text if text.lstrip("\ufeff").replace("\r\n", "").replace("\n", "").isprintable() else ""


def _warn(text: str) -> None:
    sys.stderr.write(f"warning: {text}\n")


def _checked(data: bytes) -> Secret:
    if not data:
        raise CommandError(Exit.USAGE, "the key is empty")
    if len(data) > MAX_KEY_FILE_BYTES:
        raise CommandError(Exit.USAGE, f"the key is larger than {MAX_KEY_FILE_BYTES} bytes")
    return Secret(data)


def _limited(file: BinaryIO) -> bytes:
    return file.read(MAX_KEY_FILE_BYTES + 2)


def _from_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o044:
                sys.stderr.write(
                    "warning: users other than its owner may read the file given to --key-file\n"
                )
            return _limited(file)
    except (OSError, ValueError) as err:
        # neither path nor cause is shown: it may be a key, if --key-file was mistaken for --key
        why = err.strerror if isinstance(err, OSError) else "not a path"
        if isinstance(err, PermissionError):
            raise CommandError(
                Exit.NOT_PERMITTED, "you may not read the file given to --key-file", "run this as root"
            ) from None
        raise CommandError(Exit.USAGE, f"cannot read the file given to --key-file: {why}") from None


def _prompted() -> bytes:
    if not _has_terminal():
        raise CommandError(
            Exit.USAGE, "there is no terminal to ask for the key", "use --stdin, --key-file or --generate"
        )
    try:
        first, second = getpass.getpass("Key: "), getpass.getpass("Once more: ")
    except (EOFError, KeyboardInterrupt):
        raise CommandError(Exit.PROBLEMS, "no key was given, nothing was changed") from None
    if first != second:
        raise CommandError(Exit.PROBLEMS, "the two keys are not the same, nothing was changed")
    return first.encode(errors="surrogateescape")


def _has_terminal() -> bool:
    return sys.stdin.isatty()
