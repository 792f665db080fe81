"""Reads open-iscsi's database and the kernel's iSCSI sessions; writes neither.

Law: files are read, never locked: a stale ``lock.write`` stalls every
iscsiadm for half a minute, so we never take that lock; ``# END RECORD`` shows whether a record is whole (:mod:`~iscsi_ipsec.core.openiscsi.records`).
Nothing here decides what to protect.

Layout (open-iscsi ``usr/idbm.c``)::

    nodes/<iqn>/<address>,<port>,<tpgt>/<iface>     file
    nodes/<iqn>/<address>,<port>                    file (a record without tpgt)
    send_targets/<address>,<port>/st_config         file; beside it links to node folders
    send_targets/<address>,<port>                   file (before 2008)
    ifaces/<name>                                   file
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.iscsi import IscsiSession, NodeRecord
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.openiscsi.records import (
    IfaceRecord,
    NotForUs,
    Torn,
    canonical_host,
    parse_iface,
    parse_record,
)

_MAX_RECORD = 64 * 1024
"""A real record has 2 to 4 KiB."""
_GRANULARITY_NS = 20_000_000
"""Time stamps move in ticks of up to 10 ms; younger files are read again, as a second write may not show."""

_Parsed = NodeRecord | IfaceRecord | NotForUs | None
_Signature = tuple[int, int, int, int, int]


@dataclass(slots=True)
class _Entry:
    signature: _Signature | None
    """None: read it again next time."""
    parsed: _Parsed
    torn: bool = False


@dataclass(slots=True)
class RecordCache:
    """The records of the last read, by path; make one and pass it to every :func:`read_records`."""

    entries: dict[str, _Entry] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Node and discovery records. ``torn`` files count with their earlier content, if any."""

    records: tuple[NodeRecord, ...] = ()
    problems: tuple[Problem, ...] = ()
    torn: tuple[str, ...] = ()


def read_records(dirs: Sequence[str], cache: RecordCache) -> Records:
    """Read the databases under ``dirs`` (``/etc/iscsi``, ``/var/lib/iscsi``); missing ones are empty.

    A file whose ``stat`` is unchanged is not opened again. Where a folder
    cannot be listed, its known records stay and a problem says so.
    """
    return _Reading(cache).read(dirs)


class _Reading:
    """One pass over the trees."""

    def __init__(self, cache: RecordCache) -> None:
        self._old = cache.entries
        self._cache = cache
        self._new: dict[str, _Entry] = {}
        self._problems: list[Problem] = []
        self._now = time.time_ns()

    def read(self, dirs: Sequence[str]) -> Records:
        records: list[NodeRecord] = []
        seen: set[str] = set()
        for root in dirs:
            real = os.path.realpath(root)
            if real in seen:  # one of them is often a link to the other
                continue
            seen.add(real)
            for path, st in (
                *self._node_files(f"{real}/nodes"),
                *self._discovery_files(f"{real}/send_targets"),
            ):
                parsed = self._parse(path, st, iface=False)
                if isinstance(parsed, NodeRecord):
                    records.append(self._bound(parsed, real))
                elif isinstance(parsed, NotForUs) and parsed.malformed:
                    self._problem("bad-record", path, parsed.reason)
        self._cache.entries = self._new
        torn = tuple(sorted(path for path, entry in self._new.items() if entry.torn))
        return Records(records=tuple(records), problems=tuple(self._problems), torn=torn)

    def _node_files(self, nodes: str) -> Iterator[tuple[str, os.stat_result | None]]:
        return self._walk(nodes, 0, deepest=2, wanted=lambda level, _: level > 0)

    def _discovery_files(self, send_targets: str) -> Iterator[tuple[str, os.stat_result | None]]:
        return self._walk(
            send_targets, 0, deepest=1, wanted=lambda level, name: level == 0 or name == "st_config"
        )

    def _walk(
        self, folder: str, level: int, *, deepest: int, wanted: Callable[[int, str], bool]
    ) -> Iterator[tuple[str, os.stat_result | None]]:
        """Regular files with their stat; links are left out, as those in send_targets lead to nodes.

        When a folder cannot be listed: the files below it that the cache knows, without a stat.
        """
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda e: e.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as err:
            self._problem("unreadable", folder, f"cannot list the folder: {os.strerror(err.errno or 0)}")
            yield from ((path, None) for path in self._old if path.startswith(f"{folder}/"))
            return
        for entry in found:
            try:
                st = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # gone since the listing
            if stat.S_ISDIR(st.st_mode) and level < deepest:
                yield from self._walk(entry.path, level + 1, deepest=deepest, wanted=wanted)
            elif stat.S_ISREG(st.st_mode) and wanted(level, entry.name):
                yield entry.path, st

    def _bound(self, record: NodeRecord, root: str) -> NodeRecord:
        """Complete the interface binding from ``ifaces/<name>`` where the record names only that."""
        name = record.iface
        if (
            record.net_ifacename
            or record.hwaddress
            or not name
            or name == "default"
            or "/" in name
            or name == ".."
        ):
            return record
        path = f"{root}/ifaces/{name}"
        try:
            st = os.lstat(path)
        except OSError:
            return record
        iface = self._parse(path, st, iface=True) if stat.S_ISREG(st.st_mode) else None
        if not isinstance(iface, IfaceRecord):
            return record
        return replace(record, net_ifacename=iface.net_ifacename, hwaddress=iface.hwaddress)

    def _parse(self, path: str, st: os.stat_result | None, *, iface: bool) -> _Parsed:
        if path in self._new:
            return self._new[path].parsed
        old = self._old.get(path)
        if old and (st is None or old.signature == _signature(st)):
            self._new[path] = old
            return old.parsed
        before = old.parsed if old else None
        try:
            text, opened = _read_small(path)
        except FileNotFoundError:
            return None
        except OSError as err:
            self._problem("unreadable", path, f"cannot read the record: {err.strerror or err}")
            self._new[path] = _Entry(None, before)
            return before
        parsed = parse_iface(text, path) if iface else parse_record(text, path)
        if opened is None or isinstance(parsed, Torn):
            self._new[path] = _Entry(None, before, torn=True)
            return before
        settled = not 0 <= self._now - opened.st_mtime_ns < _GRANULARITY_NS
        self._new[path] = _Entry(_signature(opened) if settled else None, parsed)
        return parsed

    def _problem(self, code: str, path: str, message: str) -> None:
        self._problems.append(Problem(code=code, file=path, message=message, severity=Severity.WARNING))


def _signature(st: os.stat_result) -> _Signature:
    return (st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns)


def _read_small(path: str) -> tuple[str, os.stat_result | None]:
    """The text, and the file's stat; None when it changed under our hands."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise OSError("not a regular file")
        data = b""
        while len(data) <= _MAX_RECORD and (chunk := os.read(fd, _MAX_RECORD + 1 - len(data))):
            data += chunk
        after = os.fstat(fd)
    finally:
        os.close(fd)
    if len(data) > _MAX_RECORD:
        raise OSError("too large for a record")
    unchanged = _signature(before) == _signature(after) and len(data) == after.st_size
    return data.decode("utf-8", "replace"), after if unchanged else None


class OpenIscsi:
    """One host's databases and sysfs; remembers what it read, so that unchanged records are not opened again."""

    def __init__(self, sysfs: str) -> None:
        self._sysfs = sysfs
        self._cache = RecordCache()

    def records(self, dirs: Sequence[str]) -> Records:
        """The records of the databases under ``dirs`` (:func:`read_records`)."""
        return read_records(dirs, self._cache)

    def firmware(self) -> tuple[NodeRecord, ...]:
        """The portals that the firmware booted from (:func:`read_firmware`)."""
        return read_firmware(self._sysfs)

    def sessions(self) -> tuple[IscsiSession, ...]:
        """Every iSCSI connection of the kernel's initiator (:func:`read_sessions`)."""
        return read_sessions(self._sysfs)


# --- sysfs ------------------------------------------------------------------


def read_sessions(sysfs: str) -> tuple[IscsiSession, ...]:
    """Every iSCSI connection of the kernel's initiator, by session number.

    While a connection is down the kernel answers ENOTCONN for ``address`` and
    the host's ``ipaddress`` (iscsi_tcp): ``remote`` is then where the session
    will connect to again, and the local end is unknown.
    """
    sessions: list[tuple[tuple[int, int], IscsiSession]] = []
    folder = os.path.join(sysfs, "class/iscsi_connection")
    try:
        names = os.listdir(folder)
    except OSError:
        return ()  # no iSCSI module, or no session yet
    for name in names:
        match = re.fullmatch(r"connection(\d+):(\d+)", name)
        if not match:
            continue
        sid, cid = int(match[1]), int(match[2])
        connection = os.path.join(folder, name)
        persistent = _portal(_attr(connection, "persistent_address"), _attr(connection, "persistent_port"))
        remote = _portal(_attr(connection, "address"), _attr(connection, "port")) or persistent
        if remote is None:
            continue  # being made or torn down: it has no peer
        session = os.path.join(sysfs, f"class/iscsi_session/session{sid}")
        local, host = _attr(connection, "local_port"), _host(session)
        sessions.append(
            (
                (sid, cid),
                IscsiSession(
                    sid=sid,
                    target=_attr(session, "targetname"),
                    state=_attr(session, "state"),
                    iface=_attr(session, "ifacename"),
                    local_address=_address(_attr(os.path.join(sysfs, "class/iscsi_host", host), "ipaddress"))
                    if host
                    else None,
                    local_port=int(local) if local.isascii() and local.isdigit() else 0,
                    remote=remote,
                    persistent=persistent,
                    transport=_attr(os.path.join(sysfs, "class/scsi_host", host), "proc_name")
                    if host
                    else "",
                ),
            )
        )
    return tuple(session for _, session in sorted(sessions, key=lambda pair: pair[0]))


def read_firmware(sysfs: str) -> tuple[NodeRecord, ...]:
    """The portals that the firmware booted from (``/sys/firmware/ibft/target*``).

    Adapters with their own ``iscsi_boot*`` entries run TCP themselves, out of
    the host's reach, and are not listed.
    """
    folder = os.path.join(sysfs, "firmware/ibft")
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return ()
    records = []
    for name in names:
        path = os.path.join(folder, name)
        if not re.fullmatch(r"target\d+", name):
            continue
        portal = _portal(_attr(path, "ip-addr"), _attr(path, "port") or "3260")
        target = _attr(path, "target-name")
        if portal and target and int(portal.address):
            records.append(
                NodeRecord(
                    host=str(portal.address), port=portal.port, target=target, startup="onboot", path=path
                )
            )
    return tuple(records)


def _host(session: str) -> str:
    """The session's SCSI host: ``…/hostN/sessionS/…`` of the device's real path names it."""
    match = re.search(r"/(host\d+)/session\d+(?:/|$)", os.path.realpath(session))
    return match[1] if match else ""


def _portal(address: str, port: str) -> Portal | None:
    ip = _address(address)
    if ip is None or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65535:
        return None
    return Portal(ip, int(port))


def _address(text: str) -> Address | None:
    """None for ``(null)``, names and nothing. Of a link-local one without the link: no portal can name it."""
    try:
        return ipaddress.ip_address(canonical_host(text).partition("%")[0])
    except ValueError:
        return None


def _attr(folder: str, name: str) -> str:
    """A sysfs attribute's text; empty when it is gone or the kernel has no answer."""
    try:
        with open(os.path.join(folder, name), "rb") as file:
            text = file.read(4096).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    return "" if text in ("(null)", "<NULL>") else text
