"""VICI messages for IKE SAs of each kind, as small as they can be."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from tests.support.netlab import Charon

KEY_A = b"the key of identity A, 32 bytes."
KEY_B = b"the key of identity B, 32 bytes."
KEY_GROUP = b"the key of the whole group, 34 b.."
A, B, C, TARGET = "fqdn:a.lab", "fqdn:b.lab", "fqdn:c.lab", "fqdn:target.lab"


class Ike(Enum):
    """IKE version and mode."""

    V2 = ("2", "no")
    MAIN = ("1", "no")
    AGGRESSIVE = ("1", "yes")


def connection(
    ike: Ike,
    *,
    local: str,
    remote: str,
    local_id: str,
    remote_id: str,
    child: dict[str, object] | None = None,
) -> dict[str, object]:
    """Both ids pinned: what is tested is the choice of the key."""
    version, aggressive = ike.value
    settings: dict[str, object] = {
        "version": version,
        "aggressive": aggressive,
        "local_addrs": [local],
        "remote_addrs": [remote],
        "proposals": ["aes128-sha256-ecp256"],
        "local": {"auth": "psk", "id": local_id},
        "remote": {"auth": "psk", "id": remote_id},
        "children": child or {},
    }
    return settings


Secret = tuple[str, bytes, Sequence[str]]  # id, data, owners


def load_in_order(charon: Charon, secrets: Sequence[Secret]) -> None:
    for ident, data, owners in secrets:
        charon.load_psk(ident, data, owners)
