"""ISCSI_SECURITY_FLAGS: names, numbers and meaning for IKE and ESP.

The bits are those of Windows' iscsidsc.h, which took them from the iSNS
Portal Security Bitmap (RFC 4171, section 6.3.9). RFC 4174, section 2.4, says
that of <main, aggressive> and <transport, tunnel> at most one may be set.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable, Sequence

from iscsi_ipsec.base.policy import EspMode, IkeMode, IpsecChoice

LONG_PREFIX = "ISCSI_SECURITY_FLAG_"


class SecurityFlags(enum.IntFlag):
    """One bit each; the long names are these behind ``ISCSI_SECURITY_FLAG_``."""

    VALID = 0x01
    IKE_IPSEC_ENABLED = 0x02
    MAIN_MODE_ENABLED = 0x04
    AGGRESSIVE_MODE_ENABLED = 0x08
    PFS_ENABLED = 0x10
    TRANSPORT_MODE_PREFERRED = 0x20
    TUNNEL_MODE_PREFERRED = 0x40


KNOWN_BITS = sum(SecurityFlags)
MAX_BITS = 64
"""The flags are a ULONGLONG in iscsidsc.h."""

DEFAULT_FLAGS = (
    SecurityFlags.VALID
    | SecurityFlags.IKE_IPSEC_ENABLED
    | SecurityFlags.TRANSPORT_MODE_PREFERRED
    | SecurityFlags.PFS_ENABLED
)
"""The flags where nobody specified any: IKEv2, transport mode, PFS."""


def parse_flags(value: int | str | Iterable[str]) -> SecurityFlags:
    """Make flags of a number, a number's text (``"0x5B"``) or names, short or long.

    Raises :class:`ValueError` naming every bit or name that does not exist.
    """
    if isinstance(value, str):
        text = value.strip()
        if text[:1].isdigit():
            try:
                value = int(text, 0)
            except ValueError:
                raise ValueError(f"{text!r} is not a number") from None
        else:
            value = [text]
    if isinstance(value, int):
        if value < 0:
            raise ValueError("flags cannot be negative")
        unknown_bits = value & ~KNOWN_BITS
        if unknown_bits.bit_length() > MAX_BITS:
            raise ValueError("unknown flag bits beyond 64 (known: 0x01 to 0x40)")
        if unknown_bits:
            bits = ", ".join(hex(1 << n) for n in range(unknown_bits.bit_length()) if unknown_bits >> n & 1)
            raise ValueError(f"unknown flag bits {bits} (known: 0x01 to 0x40)")
        return SecurityFlags(value)
    flags = SecurityFlags(0)
    unknown = []
    for name in value:
        short = name.strip().upper().removeprefix(LONG_PREFIX)
        if short in SecurityFlags.__members__:
            flags |= SecurityFlags[short]
        else:
            if "," in name:
                unknown.append(f'"{name}" (each flag has quotes of its own)')
                continue
            if name[:1].isdigit():
                unknown.append(f'"{name}" (a number stands alone, without brackets and quotes)')
                continue
            close = difflib.get_close_matches(short, SecurityFlags.__members__, 1)
            close = (
                close
                or [known for known in SecurityFlags.__members__ if short and known.startswith(short)][:1]
            )
            unknown.append(f'"{name}"' + (f' (did you mean "{close[0]}"?)' if close else ""))
    if unknown:
        raise ValueError("unknown flag " + ", ".join(unknown))
    return flags


def flag_names(flags: SecurityFlags) -> Sequence[str]:
    """Short names of the bits that are set, lowest bit first."""
    return [flag.name for flag in SecurityFlags if flag in flags and flag.name]


def interpret(flags: SecurityFlags) -> IpsecChoice | None:
    """Say what the flags ask for; None where VALID is unset, which means "not specified".

    Raises :class:`ValueError` where both of a pair are set.
    """
    if SecurityFlags.VALID not in flags:
        return None
    main = SecurityFlags.MAIN_MODE_ENABLED in flags
    aggressive = SecurityFlags.AGGRESSIVE_MODE_ENABLED in flags
    transport = SecurityFlags.TRANSPORT_MODE_PREFERRED in flags
    tunnel = SecurityFlags.TUNNEL_MODE_PREFERRED in flags
    if main and aggressive:
        raise ValueError("MAIN_MODE_ENABLED and AGGRESSIVE_MODE_ENABLED exclude each other (RFC 4174, 2.4)")
    if transport and tunnel:
        raise ValueError(
            "TRANSPORT_MODE_PREFERRED and TUNNEL_MODE_PREFERRED exclude each other (RFC 4174, 2.4)"
        )
    return IpsecChoice(
        required=SecurityFlags.IKE_IPSEC_ENABLED in flags,
        ike=IkeMode.MAIN if main else IkeMode.AGGRESSIVE if aggressive else IkeMode.V2,
        esp=EspMode.TRANSPORT if transport else EspMode.TUNNEL if tunnel else None,
        pfs=SecurityFlags.PFS_ENABLED in flags,
    )


def encode(choice: IpsecChoice | None) -> SecurityFlags:
    """The flags that :func:`interpret` turns into ``choice``."""
    if choice is None:
        return SecurityFlags(0)
    flags = SecurityFlags.VALID
    if choice.required:
        flags |= SecurityFlags.IKE_IPSEC_ENABLED
    if choice.ike is IkeMode.MAIN:
        flags |= SecurityFlags.MAIN_MODE_ENABLED
    if choice.ike is IkeMode.AGGRESSIVE:
        flags |= SecurityFlags.AGGRESSIVE_MODE_ENABLED
    if choice.pfs:
        flags |= SecurityFlags.PFS_ENABLED
    if choice.esp is EspMode.TRANSPORT:
        flags |= SecurityFlags.TRANSPORT_MODE_PREFERRED
    if choice.esp is EspMode.TUNNEL:
        flags |= SecurityFlags.TUNNEL_MODE_PREFERRED
    return flags


def default_choice() -> IpsecChoice:
    """The choice of :data:`DEFAULT_FLAGS`."""
    choice = interpret(DEFAULT_FLAGS)
    assert choice is not None  # VALID is set above
    return choice
