"""Problems and journal fields that several parts of a pass tell in the same words."""

from __future__ import annotations

from typing import Any

from iscsi_ipsec.base.model import Problem


def kernel_problem(err: Exception) -> Problem:
    """Something of the kernel cannot be asked."""
    return Problem(
        code="kernel-unavailable", message=str(err), hint="is this program root with CAP_NET_ADMIN?"
    )


def state_problem(err: Exception) -> Problem:
    """The state folder cannot be written."""
    return Problem(
        code="state-unsaved",
        message=f"state cannot be kept for a restart: {err}",
        hint="check space and rights of the state folder",
    )


def fields(portal: str = "", item: str = "") -> dict[str, Any]:
    """``extra`` for a log call: what the record is about, as journal fields."""
    about = {"ISCSI_PORTAL": portal, "IPSEC_CONNECTION": item}
    return {"fields": {name: value for name, value in about.items() if value}}
