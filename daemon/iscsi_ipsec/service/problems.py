"""Problems and journal fields that several parts of a pass report in the same words."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any, Literal, TypeAlias

from iscsi_ipsec.base.problem import Problem, Severity

MESSAGES = uuid.UUID("237140c4-159d-48a9-b86d-159e326711c5")
"""Journal MESSAGE_IDs are drawn from this and a problem's code or a note's name, so they never change."""

Note: TypeAlias = Literal[
    "solved",
    "released",
    "guard-changed",
    "guard-removed",
    "sa-ended",
    "cannot-start",
    "stopped",
    "policies-gone",
]
"""Messages that an operator acts on and that are no problems; docs/journal.md explains each."""


def message_id(name: str) -> str:
    """The MESSAGE_ID of a problem's code or of a note, as the journal has it."""
    return uuid.uuid5(MESSAGES, name).hex


def kernel_problem(err: Exception) -> Problem:
    """The problem that the kernel does not answer a question."""
    return Problem(
        code="kernel-unavailable", message=str(err), hint="is this program root with CAP_NET_ADMIN?"
    )


def state_problem(err: Exception) -> Problem:
    """The problem that the state folder cannot be written."""
    return Problem(
        code="state-unsaved",
        message=f"state cannot be kept for a restart: {err}",
        hint="check space and rights of the state folder",
    )


def held_back_problems(held: Collection[str]) -> list[Problem]:
    """The warning that SAs in use are kept although nothing asks for them."""
    if not held:
        return []
    some = ", ".join(sorted(held)[:3])
    more = f" and {len(held) - 3} more" if len(held) > 3 else ""
    return [
        Problem(
            code="held-back",
            message=f"sessions use {some}{more}, which nothing asks for any more, although no file, record or command"
            " ended it: kept as it is",
            hint="fix what fails (a route, an address, a name, settings that contradict each other); to end it all the same: iscsi-ipsec clear-cache",
            severity=Severity.WARNING,
        )
    ]


def fields(portal: str = "", item: str = "", note: Note | None = None) -> dict[str, Any]:
    """``extra`` for a log call: what the record is about, as journal fields."""
    about = {
        "ISCSI_PORTAL": portal, "IPSEC_CONNECTION": item, "MESSAGE_ID": message_id(note) if note else ""
    }  # fmt: skip
    return {"fields": {name: value for name, value in about.items() if value}}


def unlisted_problem() -> Problem:
    """The warning that charon cannot list the secrets that it holds."""
    return Problem(
        code="secrets-unlisted",
        message="charon holds more secrets than it can list (about 16,000 in all): if others unload a secret of this program, that is"
        " noticed by charon's log alone, and a secret that was to be unloaded while the daemon was down may still be there",
        hint="use fewer keys, or shorter names for the secrets in swanctl.conf; a restart of strongSwan drops what is left over",
        severity=Severity.WARNING,
    )
