"""Parses the fields that several kinds of file share: flags, portals, identities, strongSwan settings."""

from __future__ import annotations

import difflib
import ipaddress
import re

from iscsi_ipsec.base.addresses import Address, Network, host_address, parse_literal, why_not_of_one_host
from iscsi_ipsec.base.identity import IdType, IkeId, Peer
from iscsi_ipsec.base.policy import IpsecChoice, Start, Tuning
from iscsi_ipsec.base.portal import PortalPattern, parse_portal_patterns, refuse_misread
from iscsi_ipsec.base.problem import Severity
from iscsi_ipsec.core.config import proposals
from iscsi_ipsec.core.config.security_flags import SecurityFlags, flag_names, interpret, parse_flags
from iscsi_ipsec.core.config.toml_reader import Source

TUNING_KEYS = (
    "ike_proposals", "esp_proposals", "ike_rekey_time", "esp_rekey_time",
    "dpd_delay", "dpd_timeout", "replay_window", "start",
)  # fmt: skip

_ISCSI_NAME = re.compile(r"(?:iqn|eui|naa)\.", re.IGNORECASE)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]*")
_ENDS_IN_NUMBER = re.compile(r"(?:.*[.:@])?(?:[0-9]+|0[xX][0-9A-Fa-f]*)")
"""No top-level domain is a number (RFC 3696, section 2), so the author of such a text meant an address, or added a port."""

_PROPOSAL = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")


def parse_choice(source: Source) -> IpsecChoice | None:
    """``security_flags`` as a list of names or a number; None where not specified (or wrong, which is noted)."""
    value = source.data.get("security_flags")
    if value is None:
        return None
    raw: int | tuple[str, ...] | None
    if isinstance(value, int) and not isinstance(value, bool):
        raw = value
    elif isinstance(value, str):
        raw = (value,)
        if "," in value or re.fullmatch(r"0[xX][0-9A-Fa-f]+|[0-9]+", value.strip()):
            source.problem("security_flags", "bad-flags", "security_flags is one text", _flags_hint(value))
            return None
    elif isinstance(value, list):
        raw = source.texts("security_flags")
    else:
        source.problem(
            "security_flags", "wrong-type", "security_flags must be a number or a list of names",
            'such as 0x37 or ["VALID", "IKE_IPSEC_ENABLED"]',
        )  # fmt: skip
        return None
    if raw is None:
        return None
    try:
        flags = parse_flags(raw)
        choice = interpret(flags)
    except ValueError as err:
        source.problem("security_flags", "bad-flags", str(err), "iscsi-ipsec flags NAME... explains them")
        return None
    _warn_about_flags(source, flags, choice)
    return choice


def _warn_about_flags(source: Source, flags: SecurityFlags, choice: IpsecChoice | None) -> None:
    """Warn about flags without effect: without VALID all are ignored, without IKE_IPSEC_ENABLED there is no IPsec."""
    if choice is None and flags:
        meant = flags | SecurityFlags.VALID
        try:
            interpret(meant)
            hint = f"write security_flags = 0x{meant:02x}, or leave the line out"
        except ValueError as err:
            hint = f"leave the line out; with VALID they would be refused: {err}"
        source.problem(
            "security_flags", "flags-not-valid",
            f"VALID is unset, so the flags {' '.join(flag_names(flags))} are not in force", hint, Severity.WARNING,
        )  # fmt: skip
    elif choice and not choice.required:
        source.problem(
            "security_flags", "clear-allowed",
            "IKE_IPSEC_ENABLED is unset: what these flags apply to is reached unencrypted",
            f"to protect it, write security_flags = 0x{flags | SecurityFlags.IKE_IPSEC_ENABLED:02x}", Severity.WARNING,
        )  # fmt: skip


def _flags_hint(value: str) -> str:
    if "," not in value:
        return f"write {value.strip()} without quotes"
    names = ", ".join(f'"{name.strip()}"' for name in value.split(","))
    return f"write a list: [{names}]"


def parse_portals(source: Source, key: str = "portals") -> tuple[PortalPattern, ...] | None:
    """A list of portals, networks and names; None where absent or wrong."""
    texts = source.texts(key)
    if texts is None:
        return None
    if not texts:
        source.problem(
            key, "empty-list", f"{key} is an empty list", "name at least one portal, or leave the line out"
        )
    patterns: list[PortalPattern] = []
    for text in texts:
        try:
            refuse_misread(text)
            patterns += parse_portal_patterns(text)
        except ValueError as err:
            source.problem(key, "bad-portal", str(err))
    return tuple(patterns)


def parse_id_type(source: Source, key: str) -> IdType | None:
    """An identification type by name or by its number in RFC 2407."""
    value = source.data.get(key)
    if value is None:
        return None
    if isinstance(value, str):
        if value in IdType.__members__:
            return IdType[value]
        close = difflib.get_close_matches(value.upper(), IdType.__members__, 1)
        hint = f'did you mean "{close[0]}"?' if close else "one of " + ", ".join(IdType.__members__)
        source.problem(key, "bad-id-type", f'unknown {key} "{value}"', hint)
    elif isinstance(value, int) and not isinstance(value, bool) and value in set(IdType):
        return IdType(value)
    else:
        source.problem(
            key, "bad-id-type", f"{key} must be one of {', '.join(f'{t.name} ({t.value})' for t in IdType)}"
        )
    return None


def guess_id(text: str) -> IkeId:
    """Guess the identity that a text without a type means; raise :class:`ValueError` where it is not clear.

    A text that is not plainly a name is refused, since a mistyped address would become a name, and a
    key of a name serves all portals.
    """
    if address := parse_literal(text):
        return IkeId.address(address)
    name = IkeId.parse(IdType.ID_USER_FQDN if "@" in text else IdType.ID_FQDN, text)
    if looks_like_address(text):
        raise ValueError(
            f"{text!r} looks like an address, but is not one: write the address alone, or a host name"
        )
    if not _PLAIN_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is neither an address nor a plain host name")
    return name


def looks_like_address(text: str) -> bool:
    """Whether a text is an address or looks like a mistyped one."""
    if parse_literal(text):
        return True
    numeric = text.count(":") > 1 and re.fullmatch(r"\[?[0-9A-Fa-f:.]+\]?(?:[:%].*)?", text)
    return bool(numeric or (_ENDS_IN_NUMBER.fullmatch(text) and not _ISCSI_NAME.match(text)))


def warn_of_address_like(source: Source, key: str, identity: IkeId) -> None:
    """Note that a name looks like an address: it is sent as the name that it is."""
    if identity.type is IdType.ID_FQDN and looks_like_address(identity.text):
        source.problem(
            key, "address-like-id", f'"{identity.text}" looks like an address, but is sent as the name that {key}_type says',
            f'if an address is meant: {key}_type = "ID_IPV4_ADDR" or "ID_IPV6_ADDR"', Severity.WARNING,
        )  # fmt: skip


def parse_identity(source: Source, key: str) -> IkeId | None:
    """``key`` with its optional ``<key>_type``."""
    text = source.text(key)
    kind = parse_id_type(source, f"{key}_type")
    if text is None:
        if f"{key}_type" in source.data and key not in source.data:
            source.problem(f"{key}_type", "no-id", f"{key}_type is set but {key} is not")
        return None
    if kind is None and f"{key}_type" in source.data:
        return None
    try:
        identity = IkeId.parse(kind, text) if kind else guess_id(text)
    except ValueError as err:
        hint = "" if kind else f'a name that looks odd needs its type: {key}_type = "ID_FQDN"'
        source.problem(key, "bad-id", f"{key}{f' does not fit {kind.name}' if kind else ''}: {err}", hint)
        return None
    warn_of_address_like(source, key, identity)
    return identity


def parse_peers(source: Source, key: str) -> tuple[Peer, ...] | None:
    """A list of identities (the type is guessed) and networks of address identities."""
    texts = source.texts(key)
    if texts is None:
        return None
    if not texts:
        source.problem(
            key, "empty-list", f"{key} is an empty list", "name at least one, or leave the line out"
        )
    peers: list[Peer] = []
    for text in texts:
        try:
            if "/" in text and "%" in text:
                raise ValueError(f"{text!r} has a zone, which no network of initiators can have")
            peers.append(_parse_network(text) if "/" in text else guess_id(text))
        except ValueError as err:
            source.problem(key, "bad-id", f"{key}: {err}")
    return tuple(dict.fromkeys(peers))


def _parse_network(text: str) -> Network:
    network = ipaddress.ip_network(text)
    if network.prefixlen == 0 or network.network_address.is_unspecified:
        raise ValueError(f"{text!r} stands for anybody: write the networks that the initiators are in")
    if why := why_not_of_one_host(network.network_address):
        raise ValueError(f"the network {text!r} {why}")
    return network


def parse_address(source: Source, key: str) -> Address | None:
    """One unicast IP address without a zone."""
    text = source.text(key)
    if text is None:
        return None
    try:
        return host_address(text)
    except ValueError as err:
        source.problem(key, "bad-address", f"{key} is {err}")
        return None


def parse_tuning(source: Source) -> Tuning:
    """The strongSwan settings that a policy, a preset or the defaults may set."""
    start = source.text("start")
    if start is not None and start not in set(Start):
        source.problem("start", "bad-start", 'start must be "trap" or "start"')
        start = None
    return Tuning(
        ike_proposals=_parse_proposals(source, "ike_proposals"),
        esp_proposals=_parse_proposals(source, "esp_proposals"),
        ike_rekey_time=source.number("ike_rekey_time", 60, 7 * 86400),
        esp_rekey_time=source.number("esp_rekey_time", 60, 7 * 86400),
        dpd_delay=source.number("dpd_delay", 0, 3600),
        dpd_timeout=source.number("dpd_timeout", 1, 3600),
        replay_window=source.number("replay_window", 0, 4096),
        start=Start(start) if start else None,
    )


def _parse_proposals(source: Source, key: str) -> tuple[str, ...] | None:
    texts = source.texts(key)
    if texts is None:
        return None
    if not texts:
        source.problem(key, "empty-list", f"{key} is an empty list")
    for text in texts:
        if not _PROPOSAL.fullmatch(text) or len(text) > 512:
            source.problem(
                key,
                "bad-proposal",
                f'"{text[:80]}" is not a strongSwan proposal such as aes256gcm16-prfsha384-ecp384',
            )
            continue
        if words := proposals.unprotected_words(text):
            source.problem(
                key, "no-encryption", f'"{text}" offers {", ".join(words)}: anybody on the path could read the data',
                "take it out; for unencrypted traffic on purpose unset IKE_IPSEC_ENABLED",
            )  # fmt: skip
        elif key == "esp_proposals" and proposals.lacks_integrity(text):
            source.problem(
                key, "no-integrity", f'"{text}" encrypts without authenticating: packets could be changed on the path',
                "add an algorithm such as -sha256, or use aes256gcm16",
            )  # fmt: skip
        elif words := proposals.weak_words(text):
            source.problem(
                key, "weak-proposal", f'"{text}" offers {", ".join(words)}, which can be broken',
                "use AES-GCM or AES with SHA-2, and a group of 2048 bits or more or an elliptic curve", Severity.WARNING,
            )  # fmt: skip
    return texts
