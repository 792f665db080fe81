"""ISCSI_SECURITY_FLAGS: every value, every name, and what they ask for."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.policy import EspMode, IkeMode
from iscsi_ipsec.core.config.security_flags import (
    LONG_PREFIX,
    SecurityFlags,
    default_choice,
    encode,
    flag_names,
    interpret,
    parse_flags,
)

BITS = {
    "VALID": 0x01,
    "IKE_IPSEC_ENABLED": 0x02,
    "MAIN_MODE_ENABLED": 0x04,
    "AGGRESSIVE_MODE_ENABLED": 0x08,
    "PFS_ENABLED": 0x10,
    "TRANSPORT_MODE_PREFERRED": 0x20,
    "TUNNEL_MODE_PREFERRED": 0x40,
}


def test_the_bits_are_those_of_windows() -> None:
    assert {flag.name: flag.value for flag in SecurityFlags} == BITS


@pytest.mark.parametrize("value", range(128))
def test_every_value_means_what_its_bits_say(value: int) -> None:
    flags = parse_flags(value)
    if not value & 0x01:
        assert interpret(flags) is None
        return
    if value & 0x0C == 0x0C or value & 0x60 == 0x60:
        with pytest.raises(ValueError, match="exclude each other"):
            interpret(flags)
        return
    choice = interpret(flags)
    assert choice is not None
    assert choice.required is bool(value & 0x02)
    assert choice.ike is {0: IkeMode.V2, 4: IkeMode.MAIN, 8: IkeMode.AGGRESSIVE}[value & 0x0C]
    assert choice.pfs is bool(value & 0x10)
    assert choice.esp is {0: None, 0x20: EspMode.TRANSPORT, 0x40: EspMode.TUNNEL}[value & 0x60]
    assert int(encode(choice)) == value


@pytest.mark.parametrize("value", range(128))
def test_every_value_comes_back_from_its_names_short_or_long_and_from_its_text(value: int) -> None:
    names = flag_names(SecurityFlags(value))
    assert [BITS[name] for name in names] == [bit for bit in BITS.values() if value & bit]
    assert parse_flags(names) == value
    assert parse_flags([LONG_PREFIX + name for name in names]) == value
    assert parse_flags(hex(value)) == parse_flags(str(value)) == value


@pytest.mark.parametrize(
    "name", ["VALID", " valid ", "ISCSI_SECURITY_FLAG_VALID", "iscsi_security_flag_valid"]
)
def test_one_name_alone_is_a_text(name: str) -> None:
    assert parse_flags(name) is SecurityFlags.VALID


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (0x80, "0x80"),
        (0x181, "0x80, 0x100"),
        (0x281, "0x80, 0x200"),
        (1 << 31, "0x80000000"),
        (1 << 63, "0x8000000000000000"),
        ("0x1FF", "0x80, 0x100"),
    ],
)
def test_unknown_bits_are_named_and_no_others(value: int | str, bits: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown flag bits {bits} [(]known"):
        parse_flags(value)


def test_unknown_names_are_all_named_with_what_was_meant() -> None:
    with pytest.raises(ValueError, match="unknown flag") as caught:
        parse_flags(["VALID", "PSF_ENABLED", "NONSENSE"])
    assert '"PSF_ENABLED" (did you mean "PFS_ENABLED"?)' in str(caught.value)
    assert str(caught.value).endswith(', "NONSENSE"')
    assert '"VALID"' not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("0xZZ", "'0xZZ' is not a number"),
        ("1x", "not a number"),
        ("", "flag"),
        (-1, "negative"),
        ("-1", "flag"),
        (1 << 64, "beyond 64"),
    ],
)
def test_what_is_no_flag_is_refused(value: int | str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_flags(value)


def test_a_number_of_thousands_of_bits_is_refused_briefly() -> None:
    with pytest.raises(ValueError, match="unknown flag bits") as caught:
        parse_flags((1 << 5000) - 1)
    assert len(str(caught.value)) < 2000


def test_the_defaults_are_ikev2_transport_and_pfs() -> None:
    choice = default_choice()
    assert (choice.required, choice.ike, choice.esp, choice.pfs) == (
        True,
        IkeMode.V2,
        EspMode.TRANSPORT,
        True,
    )


def test_unspecified_flags_encode_as_nothing() -> None:
    assert encode(None) == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("0x37", '"0x37" (a number stands alone, without brackets and quotes)'),
        ("VALID,PFS_ENABLED", '"VALID,PFS_ENABLED" (each flag has quotes of its own)'),
    ],
)
def test_parse_flags_says_how_a_number_or_several_names_are_written(name: str, said: str) -> None:
    with pytest.raises(ValueError, match="unknown flag") as caught:
        parse_flags([name])
    assert str(caught.value) == f"unknown flag {said}"
