"""The argument parser of every verb: a usage error is one line, and a line that names the help."""

from __future__ import annotations

import argparse
from typing import NoReturn

from iscsi_ipsec.cli.daemon_client import Exit


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and a line that names the help."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(Exit.USAGE, f"{self.prog}: {message}\n  see: {self.prog} --help\n")
