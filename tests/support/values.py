"""Short ways to make the core's values; every argument has a harmless default."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.charon_sa import CharonState, ChildSa, IkeSa
from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.iscsi import IscsiSession, NodeRecord
from iscsi_ipsec.base.keys import GroupKey, Key, PerIdKey, PreviousKey
from iscsi_ipsec.base.policy import EspMode, IkeMode, IpsecChoice, PortalPolicy, Role
from iscsi_ipsec.base.portal import Portal, PortalPattern, parse_portal, parse_portal_patterns
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.base.xfrm import KernelPolicy, KernelState
from iscsi_ipsec.core.config.invalid_files import BrokenFile
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.derive import derive
from iscsi_ipsec.core.decide.desired import Connection, Desired, PortalView
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.world import World
from iscsi_ipsec.core.ike.vici_messages import (
    EncodedConnection,
    EncodedSecret,
    encode_connection,
    encode_secret,
)

DIGEST_KEY = bytes(range(32))
SOURCE = "10.0.0.1"
TARGET = "10.0.0.20"


def address(text: str) -> Address:
    return ipaddress.ip_address(text)


def portal(text: str = TARGET) -> Portal:
    return parse_portal(text)


def patterns(portals: Iterable[str]) -> tuple[PortalPattern, ...]:
    """The entries of a ``portals`` list."""
    return tuple(pattern for text in portals for pattern in parse_portal_patterns(text))


def choice(
    ike: IkeMode = IkeMode.V2, esp: EspMode | None = None, *, pfs: bool = True, required: bool = True
) -> IpsecChoice:
    return IpsecChoice(required=required, ike=ike, esp=esp, pfs=pfs)


CLEAR = choice(required=False)


def identity(text: str) -> IkeId:
    """An address where the text is one, else a name."""
    try:
        return IkeId.address(address(text))
    except ValueError:
        return IkeId.parse(IdType.ID_USER_FQDN if "@" in text else IdType.ID_FQDN, text)


def per_id(
    id: str | IkeId,
    name: str = "",
    *,
    secret: bytes = b"",
    portals: Iterable[str] = (),
    flags: IpsecChoice | None = None,
    previous: PreviousKey | None = None,
) -> PerIdKey:
    """A per-ID key; its bytes differ from those of keys of other names."""
    id = identity(id) if isinstance(id, str) else id
    name = name or id.text
    return PerIdKey(
        name=name,
        path=f"psk.d/{name}.toml",
        id=id,
        secret=Secret(secret or f"the key of {name}".encode()),
        choice=flags,
        portals=patterns(portals),
        previous=previous,
    )


def group(
    name: str = "group", *, portals: Iterable[str] = (), flags: IpsecChoice | None = None, secret: bytes = b"",
    previous: PreviousKey | None = None,
) -> GroupKey:  # fmt: skip
    return GroupKey(
        name=name,
        path=f"psk.d/{name}.toml",
        secret=Secret(secret or f"the key of {name}".encode()),
        choice=flags,
        portals=patterns(portals),
        previous=previous,
    )


def previous(secret: bytes = b"the key before this one", until: datetime | None = None) -> PreviousKey:
    return PreviousKey(secret=Secret(secret), until=until or datetime(2030, 1, 1, tzinfo=UTC))


def policy(
    *portals: str,
    name: str = "san",
    role: Role = Role.INITIATOR,
    flags: IpsecChoice | None = None,
    **more: Any,
) -> PortalPolicy:
    return PortalPolicy(
        name=name,
        path=f"portal.d/{name}.toml",
        patterns=patterns(portals or (TARGET,)),
        role=role,
        choice=flags,
        **more,
    )


def serves(*portals: str, name: str = "serves", **more: Any) -> PortalPolicy:
    return policy(*(portals or (SOURCE,)), name=name, role=Role.TARGET, **more)


def record(host: str = TARGET, port: int = 3260, **more: Any) -> NodeRecord:
    more.setdefault("target", "iqn.2024-01.com.example:a")
    return NodeRecord(host=host, port=port, path=f"nodes/{host},{port}", **more)


def discovery(host: str = TARGET, port: int = 3260) -> NodeRecord:
    return NodeRecord(host=host, port=port, path=f"send_targets/{host},{port}")


def session(
    remote: str = TARGET, sid: int = 1, persistent: str = "", transport: str = "iscsi_tcp"
) -> IscsiSession:
    return IscsiSession(
        sid=sid,
        target="iqn.2024-01.com.example:a",
        state="LOGGED_IN",
        iface="default",
        local_address=address(SOURCE),
        local_port=40000 + sid,
        remote=portal(remote),
        persistent=portal(persistent) if persistent else None,
        transport=transport,
    )


class _EverywhereFrom(dict[tuple[Address, str], Address | None]):
    """Routes of a host that reaches everything from one address of each version."""

    def __init__(self, four: str, six: str) -> None:
        super().__init__()
        self._by_version = {4: address(four), 6: address(six)}

    def get(self, key: tuple[Address, str], default: Any = None) -> Any:
        return super().get(key, self._by_version[key[0].version])


def routes(
    known: Mapping[str | tuple[str, str], str | None] | None = None, *, source: str = SOURCE
) -> Mapping[tuple[Address, str], Address | None]:
    """Sources by destination or (destination, oif); what is not named is reached from ``source`` or fd00::1."""
    table = _EverywhereFrom(source, "fd00::1")
    for key, value in (known or {}).items():
        to, oif = key if isinstance(key, tuple) else (key, "")
        table[address(to), oif] = address(value) if value else None
    return table


def world(
    *parts: Key | PortalPolicy | NodeRecord | IscsiSession,
    sources: Mapping[str | tuple[str, str], str | None] | None = None,
    previously_managed: Iterable[str | tuple[str, Role]] = (),
    names: Mapping[str, Iterable[str]] | None = None,
    local: Iterable[str] = (SOURCE,),
    settings: Settings | None = None,
    **more: Any,
) -> World:
    """A world of these parts, in their order."""
    return World(
        settings=settings or Settings(),
        keys=tuple(p for p in parts if isinstance(p, PerIdKey | GroupKey)),
        policies=tuple(p for p in parts if isinstance(p, PortalPolicy)),
        records=tuple(p for p in parts if isinstance(p, NodeRecord)),
        sessions=tuple(p for p in parts if isinstance(p, IscsiSession)),
        sources=routes(sources),
        previously_managed=frozenset(
            (portal(h), Role.INITIATOR) if isinstance(h, str) else (portal(h[0]), h[1])
            for h in previously_managed
        ),
        names={host: tuple(address(a) for a in found) for host, found in (names or {}).items()},
        local_addresses=frozenset(address(a) for a in local),
        **more,
    )


def derived(*parts: Key | PortalPolicy | NodeRecord | IscsiSession, **more: Any) -> Desired:
    return derive(Lookup(world(*parts, **more)))


def managed(*parts: Key | PortalPolicy | NodeRecord | IscsiSession, **more: Any) -> Desired:
    """As :func:`derived`, on a host that has all portals managed: a policy with ``portals = ["any"]``."""
    return derived(*parts, policy("any", name="any"), **more)


def view_of(desired: Desired, of: str = TARGET, oif: str = "") -> PortalView:
    """The only view of a portal (through one interface)."""
    (view,) = [v for v in desired.portals if v.binding.portal == portal(of) and v.binding.oif == oif]
    return view


def refused(view: PortalView, code: str, message: str, hint: str, *, file: str = "portal.d/san.toml") -> None:
    """The portal is closed, and the problem names the file, the matter and the remedy."""
    assert (view.closed, view.connection) == (True, None)
    assert view.problem is not None
    assert (view.problem.code, view.problem.file) == (code, file)
    assert re.search(message, view.problem.message)
    assert hint in view.problem.hint


def connection_of(desired: Desired, of: str = TARGET, oif: str = "") -> Connection:
    view = view_of(desired, of, oif)
    assert view.connection, view.problem
    return view.connection


def connection(*parts: Key | PortalPolicy | NodeRecord, **more: Any) -> Connection:
    """The connection of a world that has one portal; with no parts an ordinary one."""
    found = managed(*(parts or (per_id(SOURCE), record())), **more).connections
    assert len(found) == 1
    return found[0]


def encoded(
    desired: Desired, digest_key: bytes = DIGEST_KEY
) -> tuple[tuple[EncodedSecret, ...], tuple[EncodedConnection, ...]]:
    staged = {c.name: rotation for rotation in desired.rotations for c in rotation.connections}
    return (
        tuple(encode_secret(entry, digest_key) for entry in desired.secrets),
        tuple(
            encode_connection(c, desired.reqids[c.name], digest_key, staged.get(c.name))
            for c in desired.connections
        ),
    )


def charon_state(
    secrets: Iterable[str] = (), conns: Mapping[str, Iterable[str]] | None = None
) -> CharonState:
    return CharonState(
        version="5.9.8",
        plugins=frozenset(),
        secrets=frozenset(secrets),
        conns={name: frozenset(children) for name, children in (conns or {}).items()},
        foreign_conns=0,
    )


def child_sa(name: str, unique_id: int = 1, conn: str = "c", **more: Any) -> ChildSa:
    fields: dict[str, Any] = {
        "state": "INSTALLED", "mode": "TRANSPORT", "reqid": 7, "spi_in": "c0000001", "spi_out": "c0000002",
        "encr": "AES_GCM_16", "encr_keysize": 256, "integ": "", "dh_group": "", "bytes_in": 1, "bytes_out": 2,
        "packets_in": 1, "packets_out": 1, "age": 10, "rekey_in": 3000, "life_in": 3600, "local_ts": (), "remote_ts": (),
    }  # fmt: skip
    return ChildSa(conn=conn, child_name=name, unique_id=unique_id, **{**fields, **more})


def ike_sa(*children: ChildSa, unique_id: int = 1, conn: str = "c", **more: Any) -> IkeSa:
    fields: dict[str, Any] = {
        "version": 2, "state": "ESTABLISHED", "initiator": True, "local_host": SOURCE, "remote_host": TARGET,
        "local_id": SOURCE, "remote_id": TARGET, "encr": "AES_GCM_16", "encr_keysize": 256, "integ": "",
        "prf": "PRF_HMAC_SHA2_384", "dh_group": "ECP_384", "age": 10, "rekey_in": 10000,
    }  # fmt: skip
    return IkeSa(conn=conn, unique_id=unique_id, children=children, **{**fields, **more})


def broken(*portals: str, is_policy: bool = True, role: Role = Role.INITIATOR) -> tuple[BrokenFile, ...]:
    return (BrokenFile(path="the/file.toml", role=role, is_policy=is_policy, patterns=patterns(portals)),)


def kernel_policy(source: Address, to: Portal, reqid: int = 7, **more: Any) -> KernelPolicy:
    """The policy that charon's trap towards a portal installs."""
    fields: dict[str, Any] = {
        "direction": "out", "src": ipaddress.ip_network(source), "dst": ipaddress.ip_network(to.address),
        "proto": 6, "sport": 0, "sport_mask": 0, "dport": to.port, "dport_mask": 0xFFFF, "action": "allow",
        "priority": 1, "index": 1, "reqid": reqid, "mode": "transport", "tmpl_proto": 50, "tmpl_src": None,
        "tmpl_dst": None, "restricted": False,
    }  # fmt: skip
    return KernelPolicy(**{**fields, **more})


def kernel_state(spi: str, reqid: int = 7, **more: Any) -> KernelState:
    """A state of the SAD, by its SPI in hex; "00000000" is a larval one."""
    fields: dict[str, Any] = {
        "src": address(SOURCE), "dst": address(TARGET), "spi": int(spi, 16), "proto": 50, "reqid": reqid,
        "mode": "transport", "bytes": 0, "packets": 0, "age": 10, "sel": None,
        "cipher": "rfc4106(gcm(aes))",
    }  # fmt: skip
    return KernelState(**{**fields, **more})
