"""The error tree, divided by who must act.

* :class:`ConfigError`: the admin; carries :class:`~iscsi_ipsec.base.problem.Problem` rows.
* :class:`CharonRefused`: charon read our message and refused it; retrying alone does not help.
* :class:`Unavailable`: something we need cannot be reached (charon, netlink); retrying helps.
* :class:`NotPermitted`: the caller lacks a right.

Any other exception is a bug in this program: traceback, exit, restart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iscsi_ipsec.base.problem import Problem


class IscsiIpsecError(Exception):
    """Root of all errors that this program raises on purpose."""


class ConfigError(IscsiIpsecError):
    """One or more mistakes in what the admin wrote."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(str(p) for p in problems))
        self.problems = problems


class CharonRefused(IscsiIpsecError):
    """charon answered ``success = no``.

    ``command`` is the VICI command, ``item`` the connection or secret id it
    was about, ``reason`` charon's ``errmsg``.
    """

    def __init__(self, command: str, item: str, reason: str) -> None:
        super().__init__(f"charon refused {command} of {item}: {reason}")
        self.command, self.item, self.reason = command, item, reason


class Unavailable(IscsiIpsecError):
    """A service that we depend on cannot be reached now."""


class CharonUnavailable(Unavailable):
    """The VICI socket is gone, refused us, or did not answer in time.

    The session that raised this is closed: VICI has no request ids, so a
    later call on it could read the answer of an earlier one.
    """

    def __init__(self, socket_path: str, reason: str) -> None:
        super().__init__(f"charon unreachable at {socket_path}: {reason}")
        self.socket_path, self.reason = socket_path, reason


class KernelUnavailable(Unavailable):
    """A netlink or nftables operation failed as a whole."""


class NotPermitted(IscsiIpsecError):
    """The caller is not root or lacks a capability."""


class StateUnavailable(Unavailable):
    """A file of this program could not be written or read now: disk full, read-only, I/O error, locked.

    Its previous content is still there.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot keep {path}: {reason}")
        self.path, self.reason = path, reason
