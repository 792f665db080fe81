"""An admin's files, and what is ours in charon."""

from __future__ import annotations

import re

from tests.support.ike import Ike
from tests.support.netlab import Charon, Daemon, Lab, wait_until

PREFIX = "iscsi-ipsec"
PORTAL = "10.10.0.2"
ROW = "10.10.0.2:3260"
CONNECTION = "iscsi-ipsec-10.10.0.2-3260"
FLAGS = {
    Ike.V2: '["VALID", "IKE_IPSEC_ENABLED", "TRANSPORT_MODE_PREFERRED", "PFS_ENABLED"]',
    Ike.MAIN: '["VALID", "IKE_IPSEC_ENABLED", "MAIN_MODE_ENABLED", "TRANSPORT_MODE_PREFERRED", "PFS_ENABLED"]',
    Ike.AGGRESSIVE: '["VALID", "IKE_IPSEC_ENABLED", "AGGRESSIVE_MODE_ENABLED", "TRANSPORT_MODE_PREFERRED"]',
}


def key_file(ident: str, key: bytes, *, ike: Ike = Ike.V2) -> str:
    return f'id_type = "ID_FQDN"\nid = "{ident}"\nkey = "{key.decode()}"\nsecurity_flags = {FLAGS[ike]}\n'


def group_file(key: bytes) -> str:
    return f'group = true\nkey = "{key.decode()}"\n'


def portal_file(portal: str = PORTAL, *, psk: str = "", more: str = "") -> str:
    return (
        f'portals = ["{portal}"]\ntarget_id = "target.lab"\ntarget_id_type = "ID_FQDN"\n'
        f'ike_proposals = ["aes128-sha256-ecp256"]\n' + (f'psk = "{psk}"\n' if psk else "") + more
    )


def our_secrets(charon: Charon) -> frozenset[str]:
    return frozenset(ident for ident in charon.secrets() if ident.startswith(PREFIX))


def our_connections(charon: Charon) -> frozenset[str]:
    return frozenset(name for name in charon.connections() if name.startswith(PREFIX))


def wait_for_connection(
    charon: Charon, daemon: Daemon, name: str = CONNECTION, *, timeout: float = 5.0
) -> None:
    """Key and connection are loaded, which is all that an IKE SA needs."""
    wait_until(
        lambda: name in our_connections(charon) and our_secrets(charon),
        f"{name} and a secret are in charon",
        timeout=timeout,
        detail=daemon.tail,
    )


CHANGES = re.compile(
    r"(?:un)?loaded (?:IKE |EAP )?shared key|(?:added|updated|replaced|removed) vici connection|uninstalling|closing"
)


def changes_in(log: str) -> list[str]:
    """Lines of charon's log that say that something was loaded or unloaded."""
    return [line for line in log.splitlines() if CHANGES.search(line)]


def known_to_open_iscsi(daemon: Daemon, address: str = PORTAL) -> None:
    path = daemon.nodes / "nodes" / "iqn.2026-01.lab:disk" / f"{address},3260,1" / "default"
    path.parent.mkdir(parents=True)
    path.write_text(
        "# BEGIN RECORD 2.1.8\nnode.name = iqn.2026-01.lab:disk\niface.iscsi_ifacename = default\n"
        f"node.conn[0].address = {address}\nnode.conn[0].port = 3260\n# END RECORD\n"
    )


SYN = ["bash", "-c", f"timeout 1 bash -c '</dev/tcp/{PORTAL}/3260'"]


def knock(lab: Lab) -> int:
    """Try to open a TCP connection to the portal; the frames of it that reached the wire."""
    mark = lab.wire.mark()
    lab.node("initiator").run(SYN, check=False)
    return len(lab.wire.tcp(since=mark))
