"""Decrypts credentials in threads beside the loop, and caches their content.

Law: a thread for each decryption, a few at once; it calls one callback when it is done. A credential is
identified by its place and its file's ``stat``: the same file is decrypted only once, unless that failed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from iscsi_ipsec.adapters.credentials import decrypt_credential
from iscsi_ipsec.adapters.files import FileStat
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.base.secret import Secret

AT_ONCE = 4
"""Decryptions under way; a TPM does one after the other anyway."""

FIRST_DELAY, LAST_DELAY = 10.0, 600.0
"""Seconds until a credential that could not be decrypted is tried again, doubling from the first to the last."""

PENDING = "decrypting"
"""The code of the problem that a credential is still being decrypted."""


@dataclass(slots=True)
class _Credential:
    stat: FileStat | None
    settled: bool
    under_way: bool = True
    result: Secret | ConfigError | None = None
    failures: int = 0
    due: float = 0.0


class Decryption:
    """Callable in place of :func:`decrypt_credential`; :class:`ConfigError` with the code :data:`PENDING` until it is done."""

    def __init__(
        self,
        done: Callable[[], None],
        *,
        decrypt: Callable[[str, str, str], Secret] = decrypt_credential,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._done, self._decrypt, self._clock, self._now = done, decrypt, clock, now
        self._lock = threading.Lock()
        self._free = threading.Semaphore(AT_ONCE)
        self._known: dict[tuple[str, str], _Credential] = {}

    def __call__(self, name: str, path: str, stat: FileStat | None, asked_by: str) -> Secret:
        """The credential's bytes; :class:`ConfigError` where they are not known yet, or cannot be had."""
        settled = stat is None or stat.settled(self._now())
        with self._lock:
            known = self._known.get((name, path))
            if known is None or known.stat != stat or (not known.settled and settled and not known.under_way):
                known = self._known[name, path] = _Credential(stat, settled)
                self._begin(name, path, asked_by, known)
            elif isinstance(known.result, ConfigError) and not known.under_way and self._clock() >= known.due:
                known.under_way = True
                self._begin(name, path, asked_by, known)
            result = known.result
        if isinstance(result, Secret):
            return result
        raise result or ConfigError((_pending(name, asked_by),))

    def try_failed_again(self) -> None:
        """Try failed credentials again at once: somebody asked to read everything again."""
        with self._lock:
            for known in self._known.values():
                known.due = 0.0

    def _begin(self, name: str, path: str, asked_by: str, credential: _Credential) -> None:
        arguments = (name, path, asked_by, credential)
        threading.Thread(target=self._work, args=arguments, name="decryption", daemon=True).start()

    def _work(self, name: str, path: str, asked_by: str, credential: _Credential) -> None:
        result: Secret | ConfigError
        with self._free:
            try:
                result = self._decrypt(name, path, asked_by)
            except ConfigError as err:
                result = err
        with self._lock:
            credential.under_way, credential.result = False, result
            if isinstance(result, ConfigError):
                credential.failures += 1
                delay = min(FIRST_DELAY * 2 ** (credential.failures - 1), LAST_DELAY)
                credential.due = self._clock() + delay
        self._done()


def _pending(name: str, asked_by: str) -> Problem:
    return Problem(
        code="decrypting",
        message=f"credential {name} is being decrypted: until then the content in force stays",
        hint="wait; a TPM takes a second for each",
        file=asked_by,
        severity=Severity.WARNING,
    )
