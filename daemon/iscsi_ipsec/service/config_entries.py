"""The reader's knowledge about each file and each kind of files, kept between two passes.

Law: values and their properties; nothing is read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from iscsi_ipsec.adapters import files
from iscsi_ipsec.adapters.files import FoundFile
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.config.invalid_files import BrokenFile, BrokenSettings
from iscsi_ipsec.service.config_content import KeyOrigin


class FileRow(Protocol):
    """A file as ``status`` lists it; ``state``: ok, last-good, refused or masked. A row whose content differs is another object."""

    @property
    def path(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def signature(self) -> str:
        """Differs when the content does; empty for a masked file."""
        ...


class MaskedFile(NamedTuple):
    path: str
    kind: str
    state: str = "masked"
    signature: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """Attributes that few files have. ``origins``: the other files that its keys came from; ``previous_line``: where it names a previous key."""

    problems: tuple[Problem, ...] = ()
    origins: tuple[KeyOrigin, ...] = ()
    previous_line: int = 0
    broken: tuple[BrokenFile, ...] = ()
    settings: BrokenSettings | None = None

    @property
    def closing(self) -> tuple[object, ...]:
        """The parts of a file with a mistake that close portals."""
        return (self.broken, self.settings)


NO_DETAILS = Details()


@dataclass(slots=True, eq=False)
class Entry:
    """The knowledge about one file.

    ``value`` None: no good content was ever read. It is the file's status row too, so the attributes of the
    row never change.
    """

    file: FoundFile
    kind: str
    value: object | None
    settled: bool
    state: str
    more: Details = NO_DETAILS

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def signature(self) -> str:
        return self.file.stat.signature

    @property
    def at_rest(self) -> bool:
        """Whether only a changed ``stat`` can mean that the file must be read again."""
        return self.state == "ok" and self.settled and not self.more.origins


@dataclass(slots=True)
class Kind:
    """The files of one kind.

    ``restless`` are those that are read although their ``stat`` is unchanged; ``hiding``
    masks and refused files: nothing of them is in force, and nothing of weaker ones of their
    name; ``remembered`` for each folder the names that it had; ``devices`` the file systems on
    which folders lay: an empty one in place of another is only the mount point.
    """

    name: str
    folders: Sequence[str]
    entries: dict[str, Entry] = field(default_factory=dict)
    found: files.Found | None = None
    restless: tuple[FoundFile, ...] = ()
    hiding: tuple[str, ...] = ()
    remembered: dict[str, list[str]] = field(default_factory=dict)
    devices: dict[str, int] = field(default_factory=dict)
    rows: tuple[FileRow, ...] = ()
    problems: tuple[Problem, ...] = ()
