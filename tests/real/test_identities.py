"""Whatever we accept as an identity, a real charon takes as exactly that identity, and as no other."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterator
from contextlib import suppress

import pytest

from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.core.config.fields import guess_id
from iscsi_ipsec.core.ike.vici_messages import encode_id
from tests.support import strongswan_ids
from tests.support.netlab import Charon

NAMES = (IdType.ID_FQDN, IdType.ID_USER_FQDN)
ANYBODY = (
    "0.0.0.0", "::", "0::0", "%any", "%any4", "%any6", "*", "", "0.0.0.0/0", "::/0", "%defaultroute",  # noqa: S104  # what must be refused
    "fqdn:", "fqdn:*", "fqdn:%any", "keyid:x", "ipv4:0.0.0.0", "email:*", "@", "@@", "@#00", "{1}:00000000", "{2}:x",
    "*.lab", "x.*", "::ffff:0.0.0.0", "255.255.255.255", "224.0.0.1", "ff02::1", "10.0.0.0/24", "10.0.0.1-10.0.0.9",
)  # fmt: skip
TAILS = ("", ".lab", "@x.lab", ".lab" + "x" * 246, "w" * 243 + "@x.lab", "w" * 248 + "@x.lab", "y" * 254)


def of_bytes(kind: IdType, data: bytes) -> Iterator[IkeId]:
    """The identities made of these bytes (``id_hex``, Windows) and of their text; none where that is refused."""
    with suppress(ValueError):
        yield IkeId.from_bytes(kind, data)
    if kind in NAMES:
        yield from of_text(kind, data.decode("latin-1"))


def of_text(kind: IdType, text: str) -> Iterator[IkeId]:
    """The identities made of a text with its type (``id``) and without (``target_id``, ``initiators``, ``psk set``)."""
    with suppress(ValueError):
        yield IkeId.parse(kind, text)
    with suppress(ValueError):
        yield guess_id(text)


def all_bytes() -> Iterator[tuple[IdType, bytes]]:
    """Every byte at the front, inside and at the end of names of many lengths, and in every byte of an address."""
    for byte in map(bytes, zip(range(256), strict=False)):
        for tail in map(str.encode, TAILS):
            for data in (byte + tail, b"a" + byte + tail, tail + byte, byte * 2 + tail):
                yield from ((kind, data) for kind in NAMES)
        for at in range(16):
            if at < 4:
                yield IdType.ID_IPV4_ADDR, b"\x0a\0\0\5"[:at] + byte + b"\x0a\0\0\5"[at + 1 :]
                yield IdType.ID_IPV4_ADDR, bytes(at) + byte + bytes(3 - at)
            yield IdType.ID_IPV6_ADDR, bytes(at) + byte + bytes(15 - at)
            yield IdType.ID_IPV6_ADDR, b"\xfd"[:at] + bytes(max(at - 1, 0)) + byte + bytes(15 - at)


def at_random(seed: int, count: int) -> Iterator[tuple[IdType, bytes]]:
    """Bytes that look like something to one parser or another."""
    rng = random.Random(seed)  # noqa: S311  # no secret
    pieces = (
        *ANYBODY, "fqdn:", "userfqdn:", "dns:", "rfc822:", "ipv4:", "asn1dn:", "@", "@@", "@#", "#", "{2}:", "%", "=", "CN=",
        "a", "db1", "who@", "@lab", ".", "..", "-", ":", "/", "/24", "10.0.0.5", "fd00::5", "\x00", "\xff", " ", "\n", "~", "x" * 120, "x" * 250,
    )  # fmt: skip
    for _ in range(count):
        kind = rng.choice((*NAMES, *NAMES, *IdType))
        text = "".join(rng.choices(pieces, k=rng.randint(1, 4)))[:260]
        yield (
            kind,
            rng.randbytes(4 if kind is IdType.ID_IPV4_ADDR else 16)
            if kind not in NAMES
            else text.encode("latin-1"),
        )


@pytest.fixture(scope="module")
def accepted() -> list[IkeId]:
    """Each spelling once; equal identities in another case are sent as they are written."""
    given = (
        *all_bytes(),
        *at_random(20261130, 8_000),
        *((kind, t.encode()) for t in ANYBODY for kind in NAMES),
    )
    found = {(id.type, id.text): id for kind, data in given for id in of_bytes(kind, data)}
    kinds = {kind: sum(id.type is kind for id in found.values()) for kind in IdType}
    assert min(kinds.values()) > 300, kinds
    return list(found.values())


def test_every_accepted_identity_is_parsed_by_strongswan_as_its_type_and_bytes(accepted: list[IkeId]) -> None:
    if not strongswan_ids.LIBRARY.exists():
        pytest.skip(f"no {strongswan_ids.LIBRARY}")
    for id, parsed in zip(accepted, strongswan_ids.parse([encode_id(id) for id in accepted]), strict=True):
        data = ipaddress.ip_address(id.text).packed if id.is_address else id.text.encode()
        assert (parsed.type, parsed.data, parsed.wildcards) == (id.type.value, data, False), id


def test_every_accepted_identity_is_listed_by_charon_as_itself(charon: Charon, accepted: list[IkeId]) -> None:
    """As an end of a connection, in both places; and no connection is for anybody."""
    with charon.vici() as session:
        for number, id in enumerate(accepted):
            ends = {"auth": "psk", "id": encode_id(id)}
            session.load_conn({f"c{number}": {"version": "2", "local": ends, "remote": ends}})
    listed = charon.connections()
    for number, id in enumerate(accepted):
        for end in ("local-1", "remote-1"):
            shown = listed[f"c{number}"][end]["id"].decode()
            same = (
                ipaddress.ip_address(shown) == ipaddress.ip_address(id.text)
                if id.is_address
                else shown == id.text
            )
            assert same, (id, shown)


def test_what_means_anybody_is_refused_in_every_spelling() -> None:
    for text in ANYBODY:
        for kind in IdType:
            assert not list(of_text(kind, text)), (kind, text)
    for kind, data in (
        (IdType.ID_IPV4_ADDR, bytes(4)), (IdType.ID_IPV6_ADDR, bytes(16)), (IdType.ID_IPV4_ADDR, b"\xff" * 4),
        (IdType.ID_IPV4_ADDR, b"\xe0\0\0\1"), (IdType.ID_IPV6_ADDR, b"\xff\2" + bytes(13) + b"\1"),
        (IdType.ID_IPV6_ADDR, bytes(10) + b"\xff\xff\x0a\0\0\5"),
    ):  # fmt: skip
        assert not list(of_bytes(kind, data)), (kind, data)
