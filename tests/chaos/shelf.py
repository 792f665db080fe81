"""Models which files are in force: those in the folders, and those that the daemon must remember.

Paths are relative: `etc/psk.d/k1.toml`, `run/portal.d/p1.toml`. The rules are the manual's
(iscsi-ipsec.toml(5), "Files"): the stronger folder wins, a link to /dev/null masks, a file that
cannot be used counts with its last good content, and so does a folder that is out of reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tests.chaos.texts import Content, KeyText, PolicyText, SettingsText

FOLDERS = {
    "psk": ("etc/psk.d", "run/psk.d"),
    "portal": ("etc/portal.d", "run/portal.d"),
    "settings": ("etc",),
}
SETTINGS = "etc/iscsi-ipsecd.toml"


@dataclass(frozen=True, slots=True)
class Bad:
    """A file that must be refused; ``content`` is what it would say if it were whole."""

    why: str
    content: Content | None = None


@dataclass(frozen=True, slots=True)
class Mask:
    """A link to /dev/null."""


READABLE = ("unknown-key", "syntax", "cut", "mode", "hard-link", "beside gone", "beside empty", "beside mode")
"""Mistakes that leave lines which can be read; `cut` loses the last one."""

OnDisk = Content | Bad | Mask


def readable(bad: Bad) -> Content | None:
    """The parts of a file with a mistake that can still be read."""
    if bad.why not in READABLE:
        return None
    if bad.why == "mode" and not isinstance(bad.content, KeyText):
        return None  # others may write to it
    last = bad.content.text().splitlines()[-1].partition(" ")[0] if bad.content else ""
    if bad.why == "cut" and isinstance(bad.content, KeyText | PolicyText) and last == "portals":
        return None
    return bad.content


def path_of(folder: str, name: str) -> str:
    return f"{folder}/{name}.toml"


def name_of(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".toml")


def folder_of(path: str) -> str:
    return path.rpartition("/")[0]


@dataclass(slots=True)
class Shelf:
    """``adopt`` is called when the daemon has had the time to look."""

    disk: dict[str, OnDisk] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    """Folders that are missing or that others could write to."""
    known: dict[str, Content] = field(default_factory=dict)
    """Last good contents, as the running daemon must know them."""
    stored: dict[str, Content] = field(default_factory=dict)
    """The same after a restart."""
    disk_full: bool = False
    seen: dict[str, set[str]] = field(default_factory=dict)
    unstored: set[str] = field(default_factory=set)
    """Files whose last good content went with a damaged state.db."""

    # -- the daemon looks, ends, begins ---------------------------------------------------------

    def adopt(self) -> None:
        known: dict[str, Content] = {}
        for path, lies in self._ranked():
            if isinstance(lies, KeyText | PolicyText | SettingsText):
                known[path] = lies
                self.unstored.discard(path)
            elif not isinstance(lies, Mask) and path in self.known:
                known[path] = self.known[path]
        for folders in FOLDERS.values():
            for folder in folders:
                if folder not in self.lost:
                    self.seen[folder] = {name_of(path) for path in self.disk if folder_of(path) == folder}
        self.known = known
        if not self.disk_full:
            self.stored = {
                path: content
                for path, content in known.items()
                if path.startswith("etc/") and path not in self.unstored
            }

    def daemon_ended(self) -> None:
        """Memory is gone: what is known is what was stored, and masks in lost folders are not."""
        self.known = dict(self.stored)
        for folder in self.lost:
            self.seen[folder] = {name_of(path) for path in self.stored if folder_of(path) == folder}

    def state_lost(self, *, running: bool) -> None:
        """Forget files that cannot be read again at the next start, which may be now."""
        self.unstored = {
            path
            for path in self.known
            if path not in self.disk or isinstance(self.disk[path], Bad) or folder_of(path) in self.lost
        }
        if not running:
            self.known.clear()
            self.stored.clear()
            self.daemon_ended()

    # -- what is in force -----------------------------------------------------------------------

    def _ranked(self) -> Iterator[tuple[str, OnDisk | None]]:
        """Every file that no stronger one hides; None where its folder is lost."""
        for folders in FOLDERS.values():
            claimed: set[str] = set()
            for folder in folders:
                if folder in self.lost:
                    here = {path_of(folder, name): None for name in self.seen.get(folder, ())}
                    found: dict[str, OnDisk | None] = dict(here)
                else:
                    found = {p: d for p, d in sorted(self.disk.items()) if folder_of(p) == folder}
                for path, lies in found.items():
                    if name_of(path) not in claimed:
                        claimed.add(name_of(path))
                        yield path, lies

    def states(self) -> dict[str, str]:
        """The state that `status` must give each file. Call after `adopt`."""
        states = {}
        for path, lies in self._ranked():
            if isinstance(lies, Mask):
                states[path] = "masked"
            elif lies is None or isinstance(lies, Bad):
                if path in self.known:
                    states[path] = "last-good"
                elif lies is not None:
                    states[path] = "refused"
            else:
                states[path] = "ok"
        return states

    def broken(self) -> list[tuple[str, Content]]:
        """Names of files with mistakes, and what they say beyond their last good content, as far as it can be read."""
        found: list[tuple[str, Content]] = []
        for path, lies in self._ranked():
            content = readable(lies) if isinstance(lies, Bad) else None
            good = self.known.get(path)
            if isinstance(content, KeyText | PolicyText):
                named = good.portals if isinstance(good, KeyText | PolicyText) else ()
                content = replace(content, portals=tuple(p for p in content.portals if p not in named))
            if content and not (isinstance(content, KeyText | PolicyText) and not content.portals):
                found.append((name_of(path), content))
        return found

    def keys(self) -> dict[str, tuple[str, KeyText]]:
        """Name to path and content of the keys in force."""
        return {name_of(p): (p, c) for p, c in self.known.items() if isinstance(c, KeyText)}

    def policies(self) -> dict[str, PolicyText]:
        return {name_of(p): c for p, c in self.known.items() if isinstance(c, PolicyText)}

    def settings(self) -> SettingsText:
        found = self.known.get(SETTINGS)
        good = found if isinstance(found, SettingsText) else SettingsText()
        # what closes counts in spite of a mistake
        closing = any(isinstance(content, SettingsText) and content.require for _, content in self.broken())
        return replace(good, require=good.require or closing)
