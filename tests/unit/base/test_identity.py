"""Identities: what may be one, and what is told of what may not."""

from __future__ import annotations

import re

import pytest

from iscsi_ipsec.base.identity import IdType, IkeId

FQDN, USER_FQDN = IdType.ID_FQDN, IdType.ID_USER_FQDN


@pytest.mark.parametrize(
    ("type", "text"),
    [(FQDN, "SAN-X.lab"), (FQDN, "a" * 255), (FQDN, "a" * 253 + ":"), (USER_FQDN, "X@Y.lab"), (USER_FQDN, f"{'a' * 253}@b")],
)  # fmt: skip
def test_ike_id_keeps_a_name_as_it_is_written(type: IdType, text: str) -> None:
    assert IkeId.parse(type, text) == IkeId.from_bytes(type, text.encode()) == IkeId(type, text)


@pytest.mark.parametrize(
    ("type", "texts", "reported"),
    [
        (FQDN, [""], "the id is empty"),
        (FQDN, ["a" * 256], "the id is longer than 255 bytes"),
        (FQDN, ["*.lab", "?.lab"], "the id holds a wildcard, which would match other identities too"),
        (FQDN, ["a b", "a\n", "\x7f", "é"], "the id holds a character that is not printable ASCII without spaces (write a name in its xn-- form)"),
        (FQDN, [*"\"'\\#{}=,"], "the id holds one of \" ' \\ # { } = , which no name has"),
        (FQDN, ["a@b"], "'a@b' has an @: is it an ID_USER_FQDN?"),
        (FQDN, ["a" * 254 + ":"], "an id of 255 bytes cannot hold a colon"),
        *((USER_FQDN, [text], f"'{text}' is not of the form user@host") for text in ("@", "a", "a@", "@b", "a@b@c", "a@@b")),
        (IdType.ID_IPV4_ADDR, ["x", "fd00::1", "10.0.0.01"], "{!r} is not an IPv4 address"),
        (IdType.ID_IPV6_ADDR, ["x", "10.0.0.1"], "{!r} is not an IPv6 address"),
    ],
)  # fmt: skip
def test_parse_says_why_a_text_is_no_identity_of_its_type(
    type: IdType, texts: list[str], reported: str
) -> None:
    for text in texts:
        with pytest.raises(ValueError, match=r".") as caught:
            IkeId.parse(type, text)
        assert str(caught.value) == reported.replace("{!r}", repr(text))


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
