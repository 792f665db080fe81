"""A key being rotated: the admin's file with two keys, and a far end whose keys are set by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.admin import FLAGS
from tests.support.ike import TARGET, A, Ike, connection
from tests.support.netlab import Charon, Daemon, Esp, Lab, wait_until

OLD = b"the old key of a.lab, 32 bytes.."
NEW = b"the new key of a.lab, 32 bytes.."
THIRD = b"a key that nobody was ever given"
LONG = timedelta(hours=1)


def staged_file(new: bytes, old: bytes, for_: timedelta, *, ike: Ike = Ike.V2, tunnel: bool = False) -> str:
    """A per-ID key of a.lab with its previous one."""
    until = (datetime.now(UTC) + for_).isoformat(timespec="seconds").replace("+00:00", "Z")
    return plain_file(new, ike=ike, tunnel=tunnel) + (
        f'previous_key = "{old.decode()}"\nprevious_until = {until}\n'
    )


def plain_file(key: bytes, *, ike: Ike = Ike.V2, tunnel: bool = False) -> str:
    flags = FLAGS[ike]
    if tunnel:
        flags = flags.replace("TRANSPORT", "TUNNEL").replace(', "PFS_ENABLED"', "")
    return f'id_type = "ID_FQDN"\nid = "a.lab"\nkey = "{key.decode()}"\nsecurity_flags = {flags}\n'


@dataclass
class Session:
    """The daemon's host with a real SA (ESP by charon itself, in tunnel mode) towards a target kept by hand."""

    lab: Lab
    host: Charon
    target: Charon
    daemon: Daemon
    ike: Ike

    @property
    def portal(self) -> str:
        return self.lab.node("target").at.inner_v4

    @property
    def row_name(self) -> str:
        return f"{self.portal}:3260"

    @classmethod
    @contextmanager
    def in_a_lab(cls, ike: Ike) -> Iterator[Session]:
        """With a lab of its own (policies of a killed charon would take the next one's packets); nothing is set up."""
        with Lab("initiator", "target") as lab:
            host = lab.charon("initiator", esp=Esp.LIBIPSEC)
            target = lab.charon("target", esp=Esp.LIBIPSEC)
            yield cls(lab, host, target, lab.daemon("initiator", host), ike)

    def set_up(self, key: bytes) -> None:
        """The target has this key alone; the host has its policy and no key yet."""
        near, far = self.lab.node("initiator").at, self.lab.node("target").at
        self.lab.node("initiator").route(far.inner_v4, via=far.v4, source=near.inner_v4)
        child = {
            "mode": "tunnel",
            "local_ts": [f"{far.inner_v4}/32[6/3260]"],
            "remote_ts": [f"{near.inner_v4}/32[6]"],
            "esp_proposals": ["aes128-sha256"],
        }
        settings = connection(
            self.ike, local=far.v4, remote=near.v4, local_id=TARGET, remote_id=A, child={"iscsi": child}
        )
        self.target.load_conn("far", settings)
        self.target_has(key)
        self.daemon.put_portal(
            "san",
            f'portals = ["{far.inner_v4}"]\ntunnel_outer_remote = "{far.v4}"\ntarget_id = "target.lab"\n'
            'target_id_type = "ID_FQDN"\nike_proposals = ["aes128-sha256-ecp256"]\n'
            'esp_proposals = ["aes128-sha256"]\n',
        )
        self.daemon.put_settings("guard = false\n")

    def target_has(self, key: bytes) -> None:
        self.target.load_psk("only", key, [A])

    def children(self) -> dict[int, str]:
        """Children that carry packets, by their id."""
        return {
            int(child["uniqueid"]): name
            for _, ike in self.host.sas()
            for child in ike.get("child-sas", {}).values()
            if child["state"] in (b"INSTALLED", b"REKEYING", b"UPDATING")
            for name in [child["name"].decode()]
        }

    @property
    def row(self) -> dict[str, Any]:
        return dict(self.daemon.row(self.row_name))

    @property
    def key_in_use(self) -> str:
        """By which key the SA was authenticated, from status."""
        return str((self.row.get("sa") or {}).get("key"))

    def wait_for_key(self, which: str, *, timeout: float = 15.0) -> None:
        wait_until(
            lambda: self.key_in_use == which and self.children(),
            f"the SA is one of the {which} key",
            timeout=timeout,
            detail=self._detail,
        )

    def wait_until_fallen_back(self) -> None:
        """The new key was tried and refused, and the previous one takes precedence again."""
        wait_until(
            lambda: "presents the previous key" in self.daemon.tail(),
            "the host fell back",
            detail=self._detail,
        )
        self.daemon.settle()
        self.wait_for_key("previous")

    def _detail(self) -> str:
        return f"{self.daemon.tail()}\n-- {self.row.get('sa')}\n-- far end\n{self.target.tail()}"
