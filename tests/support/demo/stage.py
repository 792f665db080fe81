"""The two machines of the story, and the far end's configuration written by hand.

The storage array is not ours: plain strongSwan with a swanctl.conf and two nft rules, as its
admin would write them. Where the kernel has ESP the story plays in transport mode; elsewhere
charon does ESP itself over a TUN device, which can only do tunnel mode between inner addresses.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.netlab import Charon, Daemon, Esp, Initiator, Lab, Target, Wire, available_esp, portal_text

TUN = "ipsec0"  # kernel-libipsec's device
ARRAY_ID = "array.example.com"
HOST_ID = "db1.example.com"
IKE_PROPOSALS = "aes256gcm16-prfsha384-ecp384, aes128gcm16-prfsha256-ecp256, aes256-sha256-modp2048"
ESP_PROPOSALS = (
    "aes256gcm16-ecp384-esn-noesn, aes128gcm16-ecp256-esn-noesn, aes256gcm16-ecp384, "
    "aes128gcm16-ecp256, aes256-sha256-modp2048"
)

SWANCTL_CONF = """\
connections {{
  storage {{
    version = 2
    local_addrs  = {array}
    remote_addrs = {host}
    proposals = {ike}
    local {{
      auth = psk
      id = {array_id}
    }}
    remote {{
      auth = psk
      id = %any
    }}
    children {{
      iscsi {{
        mode = {mode}
        local_ts  = {local_ts}
        remote_ts = {remote_ts}
        esp_proposals = {esp}
      }}
    }}
  }}
}}
secrets {{
  ike-initiators {{
    {owner}secret = "{secret}"
  }}
}}
"""

ARRAY_GUARD = """\
table inet array {{
  chain output {{
    type filter hook output priority filter;
    tcp sport 3260 {missing} drop
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything the story needs to know and to touch."""

    lab: Lab
    esp: Esp
    host: Initiator
    host_charon: Charon
    array: Target
    array_charon: Charon
    daemon: Daemon
    portal: str  # address of the iSCSI portal
    source: str  # address iSCSI comes from

    @property
    def wire(self) -> Wire:
        return self.lab.wire

    @property
    def portal_name(self) -> str:
        return portal_text(self.portal)

    @property
    def tunnelled(self) -> bool:
        return self.esp is Esp.LIBIPSEC

    def settings(self) -> str:
        """iscsi-ipsecd.toml; there is nothing to set where the kernel does ESP."""
        return f'guard_devices = ["{TUN}"]\n' if self.tunnelled else ""

    def portal_file(self) -> str:
        lines = [f'portals   = ["{self.portal}"]', f'target_id = "{ARRAY_ID}"', 'target_id_type = "ID_FQDN"']
        mode = "TUNNEL" if self.tunnelled else "TRANSPORT"
        lines.append(
            f'security_flags = ["VALID", "IKE_IPSEC_ENABLED", "{mode}_MODE_PREFERRED", "PFS_ENABLED"]'
        )
        if self.tunnelled:
            lines.append(f'tunnel_outer_remote = "{self.array.node.at.v4}"')
        return "\n".join(lines) + "\n"

    def configure_array(self, secret: str, owner: str = "") -> str:
        """The array's admin edits swanctl.conf and loads it with his own tool."""
        text = SWANCTL_CONF.format(
            array=self.array.node.at.v4,
            host=self.host.node.at.v4,
            array_id=ARRAY_ID,
            ike=IKE_PROPOSALS,
            esp=ESP_PROPOSALS,
            mode="tunnel" if self.tunnelled else "transport",
            local_ts=f"{self.portal}/32[6/3260]" if self.tunnelled else "dynamic[6/3260]",
            remote_ts=f"{self.source}/32[6]" if self.tunnelled else "dynamic[6]",
            owner=f"id = {owner}\n    " if owner else "",
            secret=secret,
        )
        self.array_charon.load_all(text)
        return text

    def guard_array(self) -> str:
        """The array never answers unencrypted iSCSI; the rules are its own, not the guard."""
        missing = f'oifname != "{TUN}"' if self.tunnelled else "rt ipsec missing"
        text = ARRAY_GUARD.format(missing=missing)
        self.array.node.run(["nft", "-f", "-"], text=text)
        return text

    def open_array(self) -> None:
        """The array's admin gives IPsec up: no rules, no connection, no SA (whose policy would demand ESP)."""
        self.array.node.run(["nft", "delete", "table", "inet", "array"])
        self.array_charon.load_all("")
        self.array_charon.forget_sas()


def set_stage(lab: Lab) -> Stage:
    esp = available_esp()
    host, array = lab.node("host"), lab.node("array")
    portal, source = (array.at.v4, host.at.v4)
    if esp is Esp.LIBIPSEC:
        portal, source = array.at.inner_v4, host.at.inner_v4
        host.route(portal, via=array.at.v4, source=source)
        array.route(source, via=host.at.v4, source=portal)
    host_charon = lab.charon("host", esp=esp)
    return Stage(
        lab=lab,
        esp=esp,
        host=lab.initiator("host"),
        host_charon=host_charon,
        array=lab.target("array", portal),
        array_charon=lab.charon("array", esp=esp),
        daemon=lab.daemon("host", host_charon),
        portal=portal,
        source=source,
    )
