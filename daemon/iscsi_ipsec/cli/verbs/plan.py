"""``plan``: what the daemon would change in charon now; changes nothing."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from iscsi_ipsec.adapters.block_devices import sessions_below_system
from iscsi_ipsec.adapters.charon import Charon, default_socket
from iscsi_ipsec.adapters.clock import SystemClock
from iscsi_ipsec.adapters.netlink import Routes, kernel
from iscsi_ipsec.adapters.openiscsi import OpenIscsi
from iscsi_ipsec.adapters.resolver import Resolver, resolve_through
from iscsi_ipsec.adapters.state_db import Store
from iscsi_ipsec.base.errors import StateUnavailable
from iscsi_ipsec.base.printable import printable
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs, try_status
from iscsi_ipsec.cli.output import print_json
from iscsi_ipsec.core.ike.charon_diff import plan
from iscsi_ipsec.service.config_files import FileReader
from iscsi_ipsec.service.connection_reqids import ConnectionReqids
from iscsi_ipsec.service.managed_portals import ManagedPortals
from iscsi_ipsec.service.observe import Observer
from iscsi_ipsec.service.paths import Paths
from iscsi_ipsec.service.problems import unlisted_problem


def add(subparsers: Verbs) -> None:
    """Describe the verb."""
    parser = subparsers.add_parser("plan", help="what the daemon would change in charon now")
    parser.add_argument("--json", action="store_true", help="the same for machines")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, paths: Paths) -> Exit:
    """Look as the daemon does and print the operations."""
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
    observer = Observer(
        paths=paths,
        reader=FileReader(paths, store),
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
    if presented_keys := observer.presented_in(
        snapshot, state.secrets or frozenset()
    ):  # the daemon keeps to what charon shows
        snapshot = observer.observe(frozenset(), previously_managed, presented_keys)
    operations = plan(snapshot.secrets, snapshot.connections, state)
    if state.secrets is None:
        sys.stderr.write(f"{unlisted_problem()}\n")
    if options.json:
        print_json([{"command": op.command, "item": op.item, "text": op.text} for op in operations])
    else:
        for operation in operations:
            sys.stdout.write(f"{printable(operation.text)}\n")
        if not operations:
            sys.stdout.write("nothing to do: charon holds what the files say\n")
    return Exit.FINE
