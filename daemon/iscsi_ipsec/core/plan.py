"""What must be done to charon so that it holds what is wanted: a value, not an action.

Law: pure. A plan is the difference between the names that are wanted and the
names that charon lists; nothing is remembered, so a wiped or meddled charon
gives the right plan as well. No operation touches a name without our prefix.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from iscsi_ipsec.base.sa import CharonState
from iscsi_ipsec.core.messages import PREFIX, Message, SpelledConnection, SpelledSecret


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One VICI command. ``text`` says for people what it does and why."""

    command: str
    item: str
    message: Message
    text: str


def plan(
    secrets: Iterable[SpelledSecret], connections: Iterable[SpelledConnection], state: CharonState
) -> tuple[Operation, ...]:
    """The operations that turn ``state`` into what is wanted, in the order in which they must run.

    Secrets come before the connections whose traps may need them at once, and
    a new secret before an old one goes, so that no moment is without a key.
    A secret that stands above another is loaded after it, and again if the
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
        operations.append(
            Operation(
                command="load-shared", item=secret_id, message=secret.message,
                text=f"load secret {secret_id} of {', '.join(secret.owners)}",
            )
        )  # fmt: skip
    for name, wanted in wanted_conns.items():
        loaded = state.conns.get(name)
        if loaded == frozenset({wanted.child}):
            continue
        if loaded is not None:
            operations.append(
                _unload("unload-conn", "name", name, f"unload connection {name}: its settings changed")
            )
        operations.append(
            Operation(command="load-conn", item=name, message=wanted.message, text=f"load connection {name}")
        )
    operations += [
        _unload("unload-conn", "name", name, f"unload connection {name}: nothing asks for it")
        for name in sorted(state.conns.keys() - wanted_conns.keys())
        if name.startswith(PREFIX)
    ]
    operations += [
        _unload("unload-shared", "id", secret_id, f"unload secret {secret_id}: no key is this")
        for secret_id in sorted((held or frozenset()) - wanted_secrets.keys())
        if secret_id.startswith(PREFIX)
    ]
    return tuple(operations)


def _unload(command: str, field: str, item: str, text: str) -> Operation:
    return Operation(command=command, item=item, message={field: item}, text=text)
