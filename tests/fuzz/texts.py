"""Targets that are texts: the admin's files, open-iscsi's records, Windows' settings, identities."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TypeVar

from iscsi_ipsec.adapters.files import decode_config
from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.base.iscsi import NodeRecord
from iscsi_ipsec.base.portal import parse_portal_pattern
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config import key_file, portal_file, security_flags, settings
from iscsi_ipsec.core.config.writer import file_name, make_key_text, make_portal_text, quote, shown_key_text
from iscsi_ipsec.core.ike.ike_failures import classify
from iscsi_ipsec.core.ike.vici_messages import encode_id
from iscsi_ipsec.core.openiscsi.records import (
    IfaceRecord,
    NotForUs,
    Torn,
    canonical_host,
    parse_iface,
    parse_record,
)
from iscsi_ipsec.core.windows import importer, values
from tests.fuzz.target import Target

T = TypeVar("T")

TOP = Path(__file__).resolve().parents[2]
SAMPLES = TOP / "etc/iscsi-ipsec"

TOML = (
    '"""',
    "'''",
    "[[",
    "]]",
    "\\u0000",
    "\\U0010ffff",
    "0x",
    "nan",
    "-inf",
    "true",
    "false",
    "1979-05-27T07:32:00Z",
)
IDS = tuple(chain.from_iterable((kind.name, str(kind.value)) for kind in IdType))
FLAGS = (*security_flags.SecurityFlags.__members__, security_flags.LONG_PREFIX, "0x5B")
HOSTS = (
    "10.0.0.20",
    "[fd00::20]:3260",
    "::ffff:10.0.0.1",
    "fe80::1%eth0",
    "/24",
    "san-a.example.com",
    "admin@example.com",
)


def check_problems(problems: tuple[Problem, ...], text: str) -> None:
    assert problems
    for problem in problems:
        assert problem.code
        assert problem.message
        assert 0 <= problem.line <= text.count("\n") + 1
    assert len(problems) < 200


def parsed(data: bytes, parse: Callable[[str], T]) -> T | None:
    """As the daemon reads a file; what is wrong is a ConfigError whose problems can be shown."""
    text = ""
    try:
        text = decode_config(data, "x.toml")
        return parse(text)
    except ConfigError as err:
        check_problems(err.problems, text or data.decode("latin-1"))
        return None


def run_key_file(data: bytes) -> None:
    draft = parsed(data, lambda text: key_file.parse_key_file(text, "psk.d/x.toml", "x"))
    if draft is None:
        return
    again = key_file.parse_key_file(make_key_text(draft), "psk.d/x.toml", "x")
    assert (again.id, again.source, again.choice, again.portals) == (
        draft.id,
        draft.source,
        draft.choice,
        draft.portals,
    )
    if isinstance(draft.source, Secret) and len(draft.source) > 8:
        shown = shown_key_text(draft) + repr(draft)
        assert draft.source.reveal().decode("latin-1") not in shown.replace(str(draft.id), "")
        draft.with_secret(draft.source)


def run_portal_file(data: bytes) -> None:
    policy = parsed(data, lambda text: portal_file.parse_portal_file(text, "portal.d/x.toml", "x"))
    if policy is not None:
        assert portal_file.parse_portal_file(make_portal_text(policy), "portal.d/x.toml", "x") == policy


def run_settings(data: bytes) -> None:
    found = parsed(data, lambda text: settings.parse_settings(text, "iscsi-ipsecd.toml"))
    if found is not None:
        assert 1 <= found.resync_interval <= 3600
        assert all(quote(device) == f'"{device}"' for device in found.guard_devices)


def run_record(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    record = parse_record(text, "nodes/x")
    match record:
        case NodeRecord():
            assert record.host
            assert record.host.isprintable()
            assert 0 < record.port < 65536
            assert canonical_host(record.host) == record.host or ":" in record.host
        case _:
            assert isinstance(record, Torn | NotForUs)
    assert isinstance(parse_iface(text, "ifaces/x"), IfaceRecord | Torn)


RULES = (
    values.Rules(),
    values.Rules(hex_keys=True, group_nul=True, encoding="cp1252"),
)
FORMATS = (None, *sorted(importer.KINDS))


def run_import(data: bytes) -> None:
    """The first byte says which rules, and which format if it is not to be guessed."""
    choice, text = data[:1], data[1:].decode("utf-8", "replace")
    number = choice[0] if choice else 0
    rules, form = RULES[number & 1], FORMATS[(number >> 1) % len(FORMATS)]
    if form is None:
        harvest = importer.parse(text, "x", rules)
    else:
        harvest = values.Harvest("x")
        importer.KINDS[form](text, rules, harvest)
    for key in harvest.keys:
        assert len(key.secret)
        if key.id is not None:
            run_identity(key.id)
    for problem in harvest.problems:
        assert str(problem).isprintable()


def run_identity(identity: IkeId) -> None:
    """The forms of an identity: its encoding for charon, and a file's name."""
    assert IkeId.parse(identity.type, identity.text) == identity
    assert 0 < len(identity.text) <= 255
    assert not set(identity.text) & set(" *?\"'\\\0\n\x1b")
    assert identity.text.isascii()
    name = file_name(identity)
    assert "/" not in name
    assert not name.startswith(".")
    assert len(f"{name}.toml.tmp".encode()) < 255
    encoded = encode_id(identity)
    # charon gives %any and the like a meaning unless a prefix says that it is a name
    assert encoded.endswith(identity.text)
    assert len(encoded) <= 255
    if encoded == identity.text and not identity.is_address:
        assert "@" in encoded[1:] or (len(encoded) == 255 and ":" not in encoded)
    assert encoded.isprintable()


def run_id(data: bytes) -> None:
    """The first byte says which type; the rest is an identity, a portal, flags, a line of charon's log."""
    kind = list(IdType)[data[0] % len(IdType)] if data else IdType.ID_FQDN
    raw = data[1:]
    text = raw.decode("utf-8", "replace")
    for given in (text, raw):
        try:
            identity = IkeId.parse(kind, given) if isinstance(given, str) else IkeId.from_bytes(kind, given)
        except ValueError:
            continue
        assert identity.type is kind
        run_identity(identity)
    try:
        pattern = parse_portal_pattern(text)
    except ValueError:
        pass
    else:
        assert parse_portal_pattern(str(pattern)) == pattern
        assert "%" not in str(pattern)
    try:
        found = security_flags.interpret(security_flags.parse_flags(text))
    except ValueError:
        pass
    else:
        assert security_flags.interpret(security_flags.encode(found)) == found
    classify(text)


def sample(path: str) -> bytes:
    return (SAMPLES / path).read_bytes()


RECORD = b"""# BEGIN RECORD 2.1.8
node.name = iqn.2026-01.com.example:disk1
node.tpgt = 1
node.startup = automatic
node.leading_login = No
iface.iscsi_ifacename = eth0
iface.net_ifacename = eth0
iface.hwaddress = 02:00:00:00:00:01
iface.transport_name = tcp
node.session.auth.password = secret
node.conn[0].address = 10.0.0.20
node.conn[0].port = 3260
# END RECORD
"""
DISCOVERY = b"""# BEGIN RECORD 2.1.8
discovery.startup = manual
discovery.type = sendtargets
discovery.sendtargets.address = fd00::20
discovery.sendtargets.port = 3260
# END RECORD
"""
SCRIPT = (
    b"rem keys\r\niscsicli PSKey * * 0x37 2 db1 long-enough-a-key *\r\n"
    b'@call C:\\w\\iscsicli.exe GroupKey "a ""b"" \\\\" T > nul & iscsicli TunnelAddr * * 10.0.0.2 10.1.0.2 *\r\n'
    b"iscsicli LoginTarget iqn.x T 10.0.0.9 3260 * * 0x27 0x1 * * * * * u p 1 key^\r\n0123456 0\r\n"
    b"iscsicli AddTargetPortal 10.0.0.9 3260 * * 0x57\r\n"
)
WMI = (
    b'[{"AuthMethod": 1, "Id": [100, 98, 49, 0], "IdType": 2, "SecurityFlags": 39, "Key": {"value": [1, 2, 3]}},\n'
    b' {"TargetPortal": {"Address": "10.0.0.20", "Port": 3260}, "SecurityFlags": "0x27"}]'
)

TEXTS = (
    Target(
        name="keyfile",
        run=run_key_file,
        seeds=(
            sample("psk.d/db1.example.com.toml.example"),
            sample("psk.d/group.toml.example"),
            b'id_type = 3\nid = "a@b.example"\nkey_hex = "0x00ff00ff"\nsecurity_flags = 0x5B\nportals = ["10.0.0.0/24"]\n',
            b'id_type = "ID_IPV6_ADDR"\nid_hex = "fd000000000000000000000000000001"\nkey_base64 = "AAECAwQFBgc="\nauth_method = 1\n',
            b'id_type = "ID_FQDN"\nid = "x"\nkey_file = "x.key"\ndescription = """\nd"""\n',
            b'id_type = "ID_FQDN"\nid = "x"\nkey_credential = "x"\nsecurity_flags = ["VALID", "MAIN_MODE_ENABLED"]\n',
        ),
        words=(*key_file.KNOWN_KEYS, *TOML, *IDS, *FLAGS, *HOSTS),
    ),
    Target(
        name="portalfile",
        run=run_portal_file,
        seeds=(
            sample("portal.d/san-a.toml.example"),
            sample("portal.d/served.toml.example"),
            sample("portal.d/tunnel.toml.example"),
        ),
        words=(*portal_file.KNOWN_KEYS, *TOML, *IDS, *FLAGS, *HOSTS, "target", "ontap", "aes256gcm16-prfsha384-ecp384"),
    ),
    Target(
        name="settings",
        run=run_settings,
        seeds=(
            sample("iscsi-ipsecd.toml"),
            (b'require_ipsec = true\nguard_devices = ["eth0"]\nnodes_dirs = ["/etc/iscsi"]\nlog_level = "debug"\n'
            b'resync_interval = 2.5\nvici_socket = "/run/x"\n[defaults]\nsecurity_flags = 0x33\ndpd_delay = 3\n'),
        ),
        words=(*settings.KNOWN_KEYS, *settings.DEFAULTS_KEYS, *TOML, *FLAGS),
    ),
    Target(
        name="record",
        run=run_record,
        seeds=(RECORD, DISCOVERY, DISCOVERY.replace(b"= sendtargets", b"= isns"), b"# BEGIN RECORD\n# END RECORD\n"),
        words=("# BEGIN RECORD", "# END RECORD", "node.name = ", "<empty>", "discovery.isns.address", *HOSTS,
               "node.conn[0].address = ", "node.conn[0].port = ", "iface.hwaddress = "),
    ),
    Target(
        name="import",
        run=run_import,
        seeds=(
            b"\0" + SCRIPT,
            b"\1" + WMI,
            b'\0Windows Registry Editor Version 5.00\r\n\r\n[HKEY]\r\n"DefaultSecurityBitmap"=dword:00000027\r\n',
            b"\1    DefaultSecurityBitmap    REG_DWORD    0x27\r\n",
            b"\0# rows\n10.0.0.20:3260 0x27\n[fd00::20]:3260, 71\n",
        ),
        words=("PSKey ", "GroupKey ", "TunnelAddr ", "LoginTarget ", "AddConnection ", "PersistentLoginTarget ", "AddTargetPortal ",
               "iscsicli ", '"IdType": ', '"Key": ', '"Id": ', '"TargetPortal": {', '"PortalAddress": ', '"SecurityFlags": ',
               '"value": [', "DefaultSecurityBitmap", "dword:", "%%", "^\n", *IDS, *HOSTS),
        max_len=600,
    ),
    Target(
        name="id",
        run=run_id,
        seeds=(
            b"\0" + b"10.0.0.5",
            b"\0" + bytes([10, 0, 0, 5]),
            b"\1db1.example.com",
            b"\2a@b.example",
            b"\3fd00::1",
            b"\3" + bytes(16),
            b"\1[fd00::/64]:3260",
            b"\1received AUTHENTICATION_FAILED notify error",
            b"\0ISCSI_SECURITY_FLAG_VALID",
        ),
        words=(*HOSTS, *FLAGS, "xn--", "*", "%any", "MAC mismatched", "IDir '' does not match to '"),
        max_len=600,
    ),
)  # fmt: skip
