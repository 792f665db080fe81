"""Contents of the admin's files and of open-iscsi's records: as values, as text, and spoiled."""

from __future__ import annotations

import random
from dataclasses import dataclass

MARK = "Zq7chaos"
"""Every key begins with it: where it is found, a key has leaked."""

GUARD_FILE_MODE = 0o600


def new_key(rng: random.Random) -> str:
    return f"{MARK}{rng.getrandbits(128):032x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyText:
    """A key file. ``ident`` empty: a group key. ``portals`` empty: for all of them."""

    ident: str
    key: str
    portals: tuple[str, ...] = ()
    wants_ipsec: bool = True
    beside: bool = False

    @property
    def is_address(self) -> bool:
        return bool(self.ident) and (":" in self.ident or self.ident.replace(".", "").isdigit())

    def text(self, beside_name: str = "") -> str:
        lines = (
            ["group = true"]
            if not self.ident
            else [f"id_type = {quoted(self._id_type)}", f"id = {quoted(self.ident)}"]
        )
        lines.append(f"key_file = {quoted(beside_name)}" if self.beside else f"key = {quoted(self.key)}")
        if self.portals:
            lines.append(f"portals = {listed(self.portals)}")
        if not self.wants_ipsec:
            lines.append('security_flags = ["VALID"]')
        return "\n".join([*lines, ""])

    @property
    def _id_type(self) -> str:
        if not self.is_address:
            return "ID_FQDN"
        return "ID_IPV6_ADDR" if ":" in self.ident else "ID_IPV4_ADDR"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyText:
    """A portal policy. ``flags`` empty: not specified; else ``clear`` or IKE version and ESP mode."""

    portals: tuple[str, ...]
    psk: str = ""
    target_id: str = ""
    flags: str = ""

    def text(self) -> str:
        lines = [f"portals = {listed(self.portals)}"]
        if self.psk:
            lines.append(f"psk = {quoted(self.psk)}")
        if self.target_id:
            lines += [f"target_id = {quoted(self.target_id)}", 'target_id_type = "ID_FQDN"']
        if self.flags:
            lines.append(f"security_flags = {listed(FLAGS[self.flags])}")
        return "\n".join([*lines, ""])


FLAGS = {
    "clear": ("VALID",),
    "v2 transport": ("VALID", "IKE_IPSEC_ENABLED", "TRANSPORT_MODE_PREFERRED", "PFS_ENABLED"),
    "v2 tunnel": ("VALID", "IKE_IPSEC_ENABLED", "TUNNEL_MODE_PREFERRED", "PFS_ENABLED"),
    "main transport": ("VALID", "IKE_IPSEC_ENABLED", "MAIN_MODE_ENABLED", "TRANSPORT_MODE_PREFERRED"),
    "aggressive tunnel": ("VALID", "IKE_IPSEC_ENABLED", "AGGRESSIVE_MODE_ENABLED", "TUNNEL_MODE_PREFERRED"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsText:
    require: bool = False
    log_level: str = "info"

    def text(self) -> str:
        return f"require_ipsec = {str(self.require).lower()}\nlog_level = {quoted(self.log_level)}\n"


Content = KeyText | PolicyText | SettingsText

SPOILS = ("syntax", "unknown-key", "cut", "binary", "large", "empty")
"""Ways in which a file's text can be wrong. An empty settings file is no mistake, so it is not spoiled so."""


def spoiled(content: Content, how: str) -> bytes:
    """A text that no rule of the manual accepts."""
    text = content.text().encode()
    match how:
        case "syntax":
            return text + b"= = =\n"
        case "unknown-key":
            return b"nonsense = 1\n" + text
        case "cut":
            return text.rstrip()[:-1] + b"\n[["
        case "binary":
            return text + b"# \xff\xfe\x00\n"
        case "large":
            return text + b"#" * 70_000
        case _:
            return b""


def record(address: str, name: str = "iqn.2026-01.lab:chaos") -> str:
    return (
        "# BEGIN RECORD 2.1.8\n"
        f"node.name = {name}\nnode.tpgt = 1\nnode.startup = automatic\n"
        "iface.iscsi_ifacename = default\niface.transport_name = tcp\n"
        "node.session.auth.password = never to be seen\n"
        f"node.conn[0].address = {address}\nnode.conn[0].port = 3260\n"
        "# END RECORD\n"
    )


def discovery(address: str) -> str:
    return (
        "# BEGIN RECORD 2.1.8\ndiscovery.startup = manual\ndiscovery.type = sendtargets\n"
        f"discovery.sendtargets.address = {address}\ndiscovery.sendtargets.port = 3260\n# END RECORD\n"
    )


def quoted(text: str) -> str:
    return f'"{text}"'


def listed(texts: tuple[str, ...]) -> str:
    return "[" + ", ".join(map(quoted, texts)) + "]"
