"""Identities: which texts may be one, and the errors for the others."""

from __future__ import annotations

import ipaddress
import re

import pytest

from iscsi_ipsec.base.identity import IdType, IkeId

FQDN, USER_FQDN = IdType.ID_FQDN, IdType.ID_USER_FQDN
V4, V6 = IdType.ID_IPV4_ADDR, IdType.ID_IPV6_ADDR

PREFIXES = (
    "ipv4:", "ipv6:", "ipv4net:", "ipv6net:", "ipv4range:", "ipv6range:", "rfc822:", "email:", "userfqdn:",
    "fqdn:", "FQDN:", "dns:", "asn1dn:", "asn1gn:", "xmppaddr:", "keyid:",
)  # fmt: skip


@pytest.mark.parametrize(
    ("type", "one", "other"), [(FQDN, "DB1.Lab", "db1.lab"), (USER_FQDN, "A@Db1", "a@dB1")]
)
def test_ike_ids_of_names_that_differ_in_case_are_one(type: IdType, one: str, other: str) -> None:
    upper, lower = IkeId.parse(type, one), IkeId.parse(type, other)
    assert upper == lower
    assert len({upper, lower}) == 1
    assert not upper < lower < upper
    assert (upper.text, lower.text) == (one, other)


def test_ike_ids_of_another_type_or_name_are_others() -> None:
    assert IkeId.parse(FQDN, "10.0.0.5") != IkeId.address(ipaddress.ip_address("10.0.0.5"))
    assert IkeId.parse(FQDN, "db1") != IkeId.parse(FQDN, "db2")


@pytest.mark.parametrize(
    ("type", "text"),
    [(FQDN, "SAN-X.lab"), (FQDN, "a" * 255), (FQDN, "a" * 253 + ":"), (USER_FQDN, "X@Y.lab"), (USER_FQDN, f"{'a' * 253}@b")],
)  # fmt: skip
def test_ike_id_keeps_a_name_as_it_is_written(type: IdType, text: str) -> None:
    for identity in (IkeId.parse(type, text), IkeId.from_bytes(type, text.encode()), IkeId(type, text)):
        assert (identity.type, identity.text, str(identity)) == (type, text, text)


@pytest.mark.parametrize(
    ("type", "texts", "reported"),
    [
        (FQDN, [""], "the id is empty"),
        (FQDN, ["a" * 256], "the id is longer than 255 bytes"),
        (FQDN, ["*.lab", "?.lab"], "the id holds a wildcard, which would match other identities too: write the name of one host"),
        (FQDN, ["%", "%any", "%any6", "%ANY", "%defaultroute"], "the id begins with %, which stands for anybody: write the name of one host"),
        (USER_FQDN, ["%any@x"], "the id begins with %, which stands for anybody: write the name of one host"),
        *((FQDN, [f"{p}db1"], f"the id begins with '{p}', which is strongSwan's way to give a type: write the name alone, 'db1'") for p in PREFIXES),
        *((USER_FQDN, [f"{p}a@b"], f"the id begins with '{p}', which is strongSwan's way to give a type: write the name alone, 'a@b'") for p in PREFIXES),
        (FQDN, ["@db1", "@@db1"], "{!r} begins with an @: write the name alone, 'db1'"),
        (FQDN, ["db1.lab.", "db1.lab.."], "the id ends in a dot, which makes it another identity: write 'db1.lab'"),
        (USER_FQDN, ["a@b."], "the id ends in a dot, which makes it another identity: write 'a@b'"),
        (FQDN, [".", ".."], "{!r} is not a name"),
        (FQDN, ["10.0.0.0/24", "10.0.0.5/32", "10.0.0.0/255.255.255.0", "fd00::/64", "10.0.0.1-10.0.0.9", "fd00::1-fd00::9"], "{!r} is a network or range, not the name of one host"),
        *((type, texts, "{!r} stands for any address: write the address of one host") for type, texts in ((FQDN, ["0.0.0.0", "::", "0::0"]), (V4, ["0.0.0.0"]), (V6, ["::", "0::0"]))),  # noqa: S104  # what must be refused
        *((type, texts, "{!r} is a multicast address: write the address of one host") for type, texts in ((FQDN, ["224.0.0.1", "ff02::1"]), (V4, ["224.0.0.1", "239.255.255.255"]), (V6, ["ff02::1"]))),
        *((type, ["255.255.255.255"], "{!r} is the broadcast address: write the address of one host") for type in (FQDN, V4)),
        *((type, ["::ffff:10.0.0.5", "::FFFF:a00:5"], "{!r} is an IPv4 address written as IPv6: write 10.0.0.5") for type in (FQDN, V6)),
        (USER_FQDN, ["root@0.0.0.0"], "'0.0.0.0' stands for any address: write the address of one host"),
        (FQDN, ["a b", "a\n", "\x7f", "é"], "the id holds a character that is not printable ASCII without spaces (write a name in its xn-- form)"),
        (FQDN, [*"\"'\\#{}=,"], "the id holds one of \" ' \\ # { } = , which no name has"),
        (FQDN, ["a@b"], "'a@b' has an @: is it an ID_USER_FQDN?"),
        (FQDN, ["a" * 254 + ":"], "an id of 255 bytes cannot hold a colon"),
        *((USER_FQDN, [text], f"'{text}' is not of the form user@host") for text in ("@", "a", "a@", "@b", "a@b@c", "a@@b")),
        (V4, ["10.0.0.5/24", "10.0.0.5/"], "{!r} has a prefix length, but one host has one address: write 10.0.0.5"),
        (V6, ["fd00::5/64"], "{!r} has a prefix length, but one host has one address: write fd00::5"),
        (V4, ["ipv4:10.0.0.5"], "{!r} begins with 'ipv4:': write the address alone"),
        (V6, ["ipv6:fd00::5"], "{!r} begins with 'ipv6:': write the address alone"),
        (V4, ["x", "fd00::1", "10.0.0.01"], "{!r} is not an IPv4 address"),
        (IdType.ID_IPV6_ADDR, ["x", "10.0.0.1"], "{!r} is not an IPv6 address"),
    ],
)  # fmt: skip
def test_parse_says_why_a_text_is_no_identity_of_its_type(
    type: IdType, texts: list[str], reported: str
) -> None:
    for text in texts:
        with pytest.raises(ValueError, match=r".") as caught:
            IkeId.parse(type, text)
        shown = str(caught.value)
        assert shown in (
            reported.replace("{!r}", repr(text)),
            reported.replace("{!r}", repr(_as_address(text))),
        )


def _as_address(text: str) -> str:
    """How an address is shown, where the text is one."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text


@pytest.mark.parametrize(
    ("type", "data", "reported"),
    [
        (IdType.ID_IPV4_ADDR, bytes(16), "an ID_IPV4_ADDR has 4 bytes, not 16"),
        (IdType.ID_IPV6_ADDR, bytes(4), "an ID_IPV6_ADDR has 16 bytes, not 4"),
        (FQDN, b"\xc3", "the id's bytes are not ASCII"),
    ],
)
def test_from_bytes_says_why_bytes_are_no_identity_of_their_type(
    type: IdType, data: bytes, reported: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reported)}$"):
        IkeId.from_bytes(type, data)
