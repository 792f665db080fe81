"""Compares the wanted names with the names that charon lists; the result is a tuple of operations.

Law: pure. Nothing is remembered, so the plan is also right for a charon that somebody wiped or changed. No
operation touches a name without our prefix.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace

from iscsi_ipsec.base.charon_sa import CharonState
from iscsi_ipsec.core.ike.vici_messages import PREFIX, EncodedConnection, EncodedSecret, Message

_SUPERFLUOUS = "nothing asks for it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One VICI command: ``wanted`` is what it loads, ``item`` the name of that or of what it unloads.

    Message and text are made on demand, since a first plan has thousands of commands.
    """

    command: str
    item: str
    wanted: EncodedSecret | EncodedConnection | None = None
    why: str = ""

    @property
    def message(self) -> Message:
        """The command's VICI message."""
        if self.wanted is not None:
            return self.wanted.message
        return {"id" if self.command == "unload-shared" else "name": self.item}

    @property
    def text(self) -> str:
        """The operation and its reason, for people."""
        verb, _, kind = self.command.partition("-")
        what = "secret" if kind == "shared" else "connection"
        owners = f" of {', '.join(self.wanted.owners)}" if isinstance(self.wanted, EncodedSecret) else ""
        return f"{verb} {what} {self.item}{owners}{': ' if self.why else ''}{self.why}"


def plan(
    secrets: Iterable[EncodedSecret], connections: Iterable[EncodedConnection], state: CharonState
) -> tuple[Operation, ...]:
    """The operations that turn ``state`` into what is wanted, in the order in which they must run.

    Secrets come before the connections whose traps may need them at once, and
    a new secret before an old one goes, so that no moment is without a key.
    A secret that takes precedence over another is loaded after it, and again if the
    other was missing: of two that match, charon takes the one loaded last.
    A changed connection is unloaded right before it is loaded: charon does
    not uninstall the trap of a child that only changed its name
    (vici_config.c, replace_children), and its SAs stay in either case.
    Secrets that charon cannot list are left as they are.
    """
    held = state.secrets
    wanted_secrets = {secret.id: secret for secret in secrets} if held is not None else {}
    wanted_conns = {connection.name: connection for connection in connections}
    operations: list[Operation] = []
    for secret_id, secret in wanted_secrets.items():
        if held is not None and secret_id in held and (not secret.above or secret.above in held):
            continue
        operations.append(Operation(command="load-shared", item=secret_id, wanted=secret))
    for name, wanted in wanted_conns.items():
        loaded = state.conns.get(name)
        if loaded == frozenset({wanted.child}):
            continue
        if loaded is not None:
            operations.append(Operation(command="unload-conn", item=name, why="its settings changed"))
        operations.append(Operation(command="load-conn", item=name, wanted=wanted))
    operations += [
        Operation(command="unload-conn", item=name, why=_SUPERFLUOUS)
        for name in sorted(state.conns.keys() - wanted_conns.keys())
        if name.startswith(PREFIX)
    ]
    operations += [
        Operation(command="unload-shared", item=secret_id, why="no key is this")
        for secret_id in sorted((held or frozenset()) - wanted_secrets.keys())
        if secret_id.startswith(PREFIX)
    ]
    return tuple(operations)


PROBE = f"{PREFIX}probe"
"""The name under which charon is asked whether it takes a connection's new settings."""


def probes(operations: Iterable[Operation]) -> tuple[tuple[str, Operation], ...]:
    """For each connection that is to be replaced, its name and an operation that loads its new settings as :data:`PROBE`.

    The old connection must be unloaded first (:func:`plan`), so if charon then refused the new one, nothing
    would be left. The probe has no trap and no address that a packet could have, so no negotiation can use it.
    """
    operations = tuple(operations)
    replaced = {op.item for op in operations if op.command == "unload-conn"}
    return tuple(
        (op.item, replace(op, item=PROBE, wanted=_as_probe(op.wanted)))
        for op in operations
        if op.item in replaced and isinstance(op.wanted, EncodedConnection)
    )


def without_connections(operations: Iterable[Operation], names: Container[str]) -> tuple[Operation, ...]:
    """The operations without those that replace these connections."""
    return tuple(op for op in operations if not (op.command.endswith("-conn") and op.item in names))


def superfluous_connections(operations: Iterable[Operation]) -> frozenset[str]:
    """The connections that are unloaded because nothing asks for them."""
    return frozenset(op.item for op in operations if op.command == "unload-conn" and op.why == _SUPERFLUOUS)


def without_ends(
    operations: tuple[Operation, ...], held: frozenset[str], secrets: frozenset[str] | None
) -> tuple[Operation, ...]:
    """The operations without those that unload these connections and their secrets; None: it is unknown which secrets are theirs."""
    if not held:
        return operations
    return tuple(
        op
        for op in operations
        if not (op.command == "unload-conn" and op.why == _SUPERFLUOUS and op.item in held)
        and not (op.command == "unload-shared" and (secrets is None or op.item in secrets))
    )


def _as_probe(encoded: EncodedConnection) -> EncodedConnection:
    nowhere = ipaddress.ip_address("127.0.0.1" if encoded.connection.local_address.version == 4 else "::1")
    connection = replace(
        encoded.connection, local_address=nowhere, remote_address=nowhere, user_space_esp=True
    )
    return replace(encoded, name=PROBE, connection=connection)
