"""Problems that are shown to the admin.

Law: values only; no key is ever in one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from iscsi_ipsec.base.printable import printable


class Severity(enum.StrEnum):
    """How much a problem matters: an error keeps something from working, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing an admin should know: where, what is wrong, what to do.

    ``code`` is stable and short (``bad-id``, ``wrong-key``); ``line`` counts
    from 1, 0 means the whole file; ``portal`` names the portal it concerns.
    No text in it ever holds a key or a terminal's control characters, although it may quote names that others chose.
    """

    code: str
    message: str
    hint: str = ""
    file: str = ""
    line: int = 0
    portal: str = ""
    severity: Severity = Severity.ERROR

    def __post_init__(self) -> None:
        for name in ("message", "hint", "file", "portal"):
            object.__setattr__(self, name, printable(getattr(self, name)))

    def __str__(self) -> str:
        where = (
            f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        )
        if not where and self.portal:
            where = f"{self.portal}: "
        return f"{where}{self.message}" + (f" ({self.hint})" if self.hint else "")
