"""``tunnel-address``: Windows' SetTunnelModeOuterAddress, as a portal policy of its own.

``set`` writes ``portal.d/tunnel-<portal>.toml``. The most specific policy of
a portal is the only one that counts, so the new file copies the settings of a policy for a network around the
portal. A file that names exactly this portal belongs to the admin: the command names it and does not edit it.
The same holds for a file that ``set`` wrote and the admin changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import sys
from collections.abc import Iterable

from iscsi_ipsec.adapters import files
from iscsi_ipsec.adapters.atomic_write import write_atomic
from iscsi_ipsec.base.addresses import Address, host_address
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.policy import EspMode, PortalPolicy, Role
from iscsi_ipsec.base.portal import Portal, PortalRange, parse_portal
from iscsi_ipsec.cli import confirm
from iscsi_ipsec.cli.daemon_client import CommandError, Exit, Verbs
from iscsi_ipsec.cli.impact import Impact
from iscsi_ipsec.cli.key_folder import make_portal_folder, require_access
from iscsi_ipsec.core.config.portal_file import parse_portal_file
from iscsi_ipsec.core.config.writer import description_of, make_portal_text
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.world import World
from iscsi_ipsec.service.paths import Paths, add_options

MARK = "made by iscsi-ipsec tunnel-address"
"""The ``description`` of a policy that ``set`` wrote."""


def add(subparsers: Verbs) -> None:
    """Describe the verb and what it can do."""
    parser = subparsers.add_parser("tunnel-address", help="the outer address of tunnel mode to a portal")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    setter = actions.add_parser("set", help="reach the portal through a tunnel to another address")
    setter.add_argument("portal", metavar="PORTAL")
    setter.add_argument("outer", metavar="OUTER", help="the far end of the tunnel")
    setter.add_argument("--local", metavar="ADDR", help="this end of the tunnel (default: as routed)")
    setter.set_defaults(run=_set)
    remover = actions.add_parser("remove", help="forget the outer address again")
    remover.add_argument("portal", metavar="PORTAL")
    remover.set_defaults(run=_remove)
    for action in (setter, remover):
        confirm.add_dry_run(action)
        add_options(action, again=True)
    setter.add_argument(
        "--runtime", action="store_true", help="until the next boot only (Windows' Persist = FALSE)"
    )
    remover.add_argument("--runtime", action="store_true", help="the one that was set until the next boot")


def _set(options: argparse.Namespace, paths: Paths) -> Exit:
    portal, outer = _portal(options.portal), _address(options.outer)
    local = _address(options.local) if options.local is not None else None
    if local and local.version != outer.version:
        raise CommandError(Exit.USAGE, f"{outer} and {local} are not of one IP version")
    path = file_of(paths, portal, runtime=options.runtime)
    policies = read_policies(paths)
    _refuse_admins(policies, portal, path)
    base = Lookup(World(policies=tuple(p for p in policies if p.path != path))).policies.policy_for(
        portal, Role.INITIATOR
    )
    if base and base.choice and base.choice.esp is EspMode.TRANSPORT:
        raise CommandError(
            Exit.PROBLEMS, f"{base.path} asks for transport mode, which has no outer address",
            f"write a policy for {portal} with TUNNEL_MODE_PREFERRED and tunnel_outer_remote",
        )  # fmt: skip
    policy = dataclasses.replace(
        base or PortalPolicy(name="", path="", patterns=()),
        patterns=(PortalRange(ipaddress.ip_network(portal.address), portal.port),),
        tunnel_outer_remote=outer,
        tunnel_outer_local=local,
    )
    description = f"{MARK}; the rest is from {base.path}" if base else MARK
    if not confirm.agreed(
        options, _shown(paths, portal, f"{portal} is reached through a tunnel to {outer}"), ask=False
    ):
        return Exit.FINE
    make_portal_folder(os.path.dirname(path))
    write_atomic(path, make_portal_text(policy, description).encode(), 0o644)
    sys.stdout.write(f"wrote {path}\n")
    if base:
        sys.stderr.write(
            f"note: it copies the present settings of {base.path}; later changes there do not reach {portal}\n"
        )
    return Exit.FINE


def _remove(options: argparse.Namespace, paths: Paths) -> Exit:
    portal = _portal(options.portal)
    path = file_of(paths, portal, runtime=options.runtime)
    _refuse_admins(read_policies(paths), portal, path)
    if not os.path.lexists(path):
        raise CommandError(Exit.PROBLEMS, f"{portal} has no outer address: there is no {path}")
    if not confirm.agreed(options, _shown(paths, portal, f"{portal} is reached directly again"), ask=False):
        return Exit.FINE
    os.unlink(path)
    sys.stdout.write(f"removed {path}\n")
    return Exit.FINE


def _shown(paths: Paths, portal: Portal, text: str) -> list[str]:
    """The SAs and sessions at the portal, whose SA is replaced by one with the new addresses."""
    touched = Impact(paths, lambda row: row["portal"] == str(portal))
    return [f"{text}; a new SA replaces the present one:", *touched.lines()] if touched.is_live else []


def file_of(paths: Paths, portal: Portal, *, runtime: bool) -> str:
    """Our file for a portal."""
    folder = paths.portal_folders[1 if runtime else 0]
    return f"{folder}/tunnel-{str(portal.address).replace(':', '-')}-{portal.port}{files.SUFFIX}"


def read_policies(paths: Paths) -> tuple[PortalPolicy, ...]:
    """All policies in force; a broken policy ends the command, since it could be the one that names the portal."""
    for folder in paths.portal_folders:
        require_access(folder, os.R_OK | os.X_OK)
    found = files.find_config(paths.portal_folders)
    if found.unusable:
        raise ConfigError(found.problems)
    return tuple(
        parse_portal_file(
            files.decode_config(files.read_config(file.path, private=False), file.path), file.path, file.name
        )
        for file in found.files
    )


def _refuse_admins(policies: Iterable[PortalPolicy], portal: Portal, path: str) -> None:
    """:class:`CommandError` where a file that we may not rewrite names exactly this portal."""
    for policy in policies:
        names_it = any(isinstance(p, PortalRange) and p.single == portal for p in policy.patterns)
        if policy.role is Role.INITIATOR and names_it and not (policy.path == path and _is_ours(policy)):
            raise CommandError(
                Exit.PROBLEMS, f"{policy.path} already names {portal}; it is not edited",
                "set tunnel_outer_remote (and tunnel_outer_local) in it",
            )  # fmt: skip


def _is_ours(policy: PortalPolicy) -> bool:
    """Whether the file is as ``set`` writes it, to the byte."""
    text = files.decode_config(files.read_config(policy.path, private=False), policy.path)
    description = description_of(text, policy.path)
    return description.startswith(MARK) and text == make_portal_text(policy, description)


def _portal(text: str) -> Portal:
    try:
        return parse_portal(text)
    except ValueError as err:
        raise CommandError(Exit.USAGE, str(err)) from err


def _address(text: str) -> Address:
    try:
        return host_address(text)
    except ValueError as err:
        raise CommandError(Exit.USAGE, f"{text!r} is {err}") from err
