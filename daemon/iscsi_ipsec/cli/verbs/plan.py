"""``plan``: shows what the daemon would change in charon now; changes nothing."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict, replace
from functools import partial

from iscsi_ipsec.adapters.block_devices import sessions_below_system
from iscsi_ipsec.adapters.charon import Charon, default_socket
from iscsi_ipsec.adapters.clock import SystemClock
from iscsi_ipsec.adapters.netlink import Routes, kernel
from iscsi_ipsec.adapters.openiscsi import OpenIscsi
from iscsi_ipsec.adapters.resolver import Resolver, resolve_through
from iscsi_ipsec.adapters.state_db import Store
from iscsi_ipsec.base.errors import ConfigError, StateUnavailable
from iscsi_ipsec.base.keys import GroupKey, Key, PerIdKey
from iscsi_ipsec.base.policy import PortalPolicy
from iscsi_ipsec.base.printable import printable
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs, try_status
from iscsi_ipsec.cli.file_check import FileCheck
from iscsi_ipsec.cli.impact import Impact
from iscsi_ipsec.cli.output import print_json
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.ike.charon_diff import plan
from iscsi_ipsec.core.report.portal_changes import Change, portal_changes
from iscsi_ipsec.service.config_files import ConfigFiles, FileReader
from iscsi_ipsec.service.connection_reqids import ConnectionReqids
from iscsi_ipsec.service.managed_portals import ManagedPortals
from iscsi_ipsec.service.observe import Observer
from iscsi_ipsec.service.paths import Paths
from iscsi_ipsec.service.problems import unlisted_problem


class _ReaderWith(FileReader):
    """The admin's files as they are, and with other files put in place by their names."""

    def __init__(self, paths: Paths, store: Store) -> None:
        super().__init__(paths, store)
        self.added: tuple[Settings | PortalPolicy | Key, ...] = ()

    def read(self, *, all_files: bool = True) -> ConfigFiles:
        """The content that would be in force."""
        now = super().read(all_files=all_files)
        if not self.added:
            return now
        keys = tuple(value for value in self.added if isinstance(value, PerIdKey | GroupKey))
        policies = tuple(value for value in self.added if isinstance(value, PortalPolicy))
        paths = {value.path for value in (*keys, *policies)}
        names = ({key.name for key in keys}, {policy.name for policy in policies})
        return replace(
            now,
            generation=now.generation + 1,
            settings=next((value for value in self.added if isinstance(value, Settings)), now.settings),
            keys=(*(key for key in now.keys if key.name not in names[0]), *keys),
            policies=(*(policy for policy in now.policies if policy.name not in names[1]), *policies),
            broken=tuple(file for file in now.broken if file.path not in paths),
        )


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser(
        "plan", help="what the daemon would change in charon now, or with files that are not in place yet",
        description="Shows what the daemon would change in charon now; with other files, what these would close, cut and"
        " negotiate again, with the sessions that this touches. Changes nothing.",
    )  # fmt: skip
    parser.add_argument(
        "--with", dest="added", nargs="+", default=[], metavar="FILE",
        help="as if these files were in psk.d or portal.d (or the settings), under their names",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Observe as the daemon does, and print the operations."""
    added = _added(options.added, paths)
    document = try_status(paths) or {}
    socket_path = paths.vici_socket or document.get("charon", {}).get("socket") or default_socket()
    charon = Charon(socket_path)
    state = charon.observe()
    try:
        store = Store(paths.store_file, read_only=True)
        names = store.names()
    except StateUnavailable as err:
        raise CommandError(
            Exit.NOT_PERMITTED, str(err), "has the daemon run once, and are you root?"
        ) from err
    reader = _ReaderWith(paths, store)
    observer = Observer(
        paths=paths,
        reader=reader,
        store=store,
        routes=Routes(),
        resolver=Resolver(
            lambda _: None, resolve=partial(resolve_through, paths.names_socket), remembered=names
        ),
        open_iscsi=OpenIscsi(paths.sysfs_dir),
        system_disks=partial(sessions_below_system, paths.sysfs_dir),
        reqids=ConnectionReqids(store, kernel.Xfrm()),
        fast_aes=kernel.has_aes_instructions(),
        plugins=state.plugins,
        algorithms=state.algorithms,
    )
    previously_managed = ManagedPortals(paths, store, SystemClock()).previously_managed([])
    snapshot = observer.observe(frozenset({"start"}), previously_managed)
    presented_keys = observer.presented_in(snapshot, state.secrets or frozenset())
    if presented_keys:  # the daemon keeps the order that charon has
        snapshot = observer.observe(frozenset(), previously_managed, presented_keys)
    if state.secrets is None:
        sys.stderr.write(f"{unlisted_problem()}\n")
    changes: tuple[Change, ...] = ()
    if added:
        reader.added = added
        new = observer.observe(frozenset(), previously_managed, presented_keys)
        changes = portal_changes(
            snapshot.desired, new.desired,
            {c.name: c.child for c in snapshot.connections}, {c.name: c.child for c in new.connections},
        )  # fmt: skip
        snapshot = new
    operations = plan(snapshot.secrets, snapshot.connections, state)
    rows = [{"command": op.command, "item": op.item, "text": op.text} for op in operations]
    if not options.json:
        _print(changes, [op.text for op in operations], paths)
    elif added:
        print_json({"portals": [asdict(change) for change in changes], "operations": rows})
    else:
        print_json(rows)
    return Exit.FINE


def _added(named: list[str], paths: Paths) -> tuple[Settings | PortalPolicy | Key, ...]:
    """The files' content, as if they lay where the daemon reads; :class:`ConfigError` where one has a mistake."""
    checker = FileCheck(paths)
    values: list[Settings | PortalPolicy | Key] = []
    for path in named:
        if not os.path.exists(path):
            raise CommandError(Exit.USAGE, f"there is no {path}")
        judged = checker.judge(path)
        if judged.value is None:
            raise ConfigError(judged.problems)
        match judged.value:
            case Settings() as settings:
                values.append(settings)
            case PortalPolicy() as policy:
                values.append(replace(policy, path=f"{paths.portal_folders[0]}/{os.path.basename(path)}"))
            case PerIdKey() | GroupKey() as key:
                values.append(replace(key, path=f"{paths.psk_folders[0]}/{os.path.basename(path)}"))
    return tuple(values)


def _print(changes: tuple[Change, ...], operations: list[str], paths: Paths) -> None:
    out = sys.stdout.write
    portals = dict.fromkeys(change.portal for change in changes)
    for portal in portals:
        for change in changes:
            if change.portal == portal:
                out(f"{portal} {printable(change.text)}\n")
        touched = Impact(paths, lambda row, portal=portal: row["portal"] == portal)  # type: ignore[misc]  # mypy knows no defaults
        for line in touched.lines() if touched.is_live else ():
            out(f"{line}\n")
    if changes:
        out("\nin charon:\n" if operations else "")
    for text in operations:
        out(f"{printable(text)}\n")
    if not operations:
        out("nothing to do: charon holds what the files say\n")
