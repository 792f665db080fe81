"""Reads strongSwan's proposals: the algorithms that they name, and which of these are weak or protect nothing.

The words are those of proposal_keywords_static.txt, the names of ciphers those that charon
lists (encryption_algorithm_names in crypter.c); both are the same in strongSwan 5.9 and 6.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Cipher = tuple[str, int]
"""A cipher by charon's name, and the bits of its key (0 where it has only one size)."""

_SINGLE = {
    "null": "NULL", "des": "DES_CBC", "3des": "3DES_CBC",
    "chacha20poly1305": "CHACHA20_POLY1305", "chacha20poly1305compat": "CHACHA20_POLY1305",
}  # fmt: skip
_SIZED = re.compile(
    r"(?P<name>aes|camellia|blowfish|serpent|twofish|cast)(?P<bits>128|192|256)?"
    r"(?:(?P<mode>ctr|gmac)|(?P<aead>ccm|gcm)(?P<icv>8|64|12|96|16|128)?)?"
)
_TAG_BYTES = {None: 16, "8": 8, "64": 8, "12": 12, "96": 12, "16": 16, "128": 16}
"""The length of the tag is written in bytes or in bits."""

_INTEGRITY = re.compile(r"(?:sha(?:1|2_\d+|256|384|512)?|md5)(?:_\d+)?|(?:aes|camellia)(?:xcbc|cmac)")
_PRF = re.compile(r"prf[a-z0-9]+")
_GROUP = re.compile(r"(?:ke[1-7]_)?(?:modp|ecp|curve|x|ntru|newhope|mlkem|gost)[0-9][0-9a-z]*")
_NO_GROUP = frozenset({"none", "modpnone"})
_SEQUENCE = frozenset({"esn", "noesn"})

UNENCRYPTED = frozenset({"NULL", "NULL_AES_GMAC"})
"""Ciphers by charon's names that leave the data as it is."""

_WEAK = re.compile(
    r"3?des|blowfish\d*|cast128"  # blocks of 64 bits or less (RFC 8221, section 5)
    r"|(?:prf)?(?:md5|sha1?)(?:_\d+)?"
    r"|(?:ke[1-7]_)?(?:modp(?:768|1024|1536)(?:s\d+)?|ecp192)"  # RFC 8247, section 2.4
)


def ciphers_of(proposals: Iterable[str]) -> frozenset[Cipher] | None:
    """All ciphers that these proposals offer; None where a word is unknown and may be one more."""
    words = {word for proposal in proposals for word in proposal.split("-")}
    found = {word: _cipher(word) for word in words}
    if any(cipher is None and not _is_other(word) for word, cipher in found.items()):
        return None
    return frozenset(filter(None, found.values()))


def _cipher(word: str) -> Cipher | None:
    if word in _SINGLE:
        return _SINGLE[word], 0
    if not (match := _SIZED.fullmatch(word)):
        return None
    name, bits = match["name"].upper(), int(match["bits"] or 128)
    if match["aead"]:
        return f"{name}_{match['aead'].upper()}_{_TAG_BYTES[match['icv']]}", bits
    if match["mode"] == "gmac":
        return f"NULL_{name}_GMAC", bits
    return f"{name}_{(match['mode'] or 'cbc').upper()}", bits


def _is_other(word: str) -> bool:
    """Whether a word is known and no cipher."""
    shapes = (_INTEGRITY, _PRF, _GROUP)
    return word in _NO_GROUP | _SEQUENCE | {"modpnull"} or any(shape.fullmatch(word) for shape in shapes)


def is_offered(name: str, bits: int, proposals: Iterable[str]) -> bool:
    """Whether an SA's cipher is one of the proposals'; true as well where that cannot be known."""
    offered = ciphers_of(proposals)
    return offered is None or bool({(name, bits), (name, 0)} & offered)


def encrypts(cipher: str) -> bool:
    """Whether an SA's cipher, as ``status`` shows it (``NULL/HMAC_SHA2_256_128``), hides the data."""
    return re.split("[-/]", cipher, maxsplit=1)[0] not in UNENCRYPTED


def unprotected_words(proposal: str) -> tuple[str, ...]:
    """The words of algorithms that leave the data readable to anybody on the path."""
    return tuple(
        word
        for word in proposal.split("-")
        if word == "modpnull" or ((cipher := _cipher(word)) and cipher[0] in UNENCRYPTED)
    )


def lacks_integrity(proposal: str) -> bool:
    """Whether an ESP proposal encrypts without authenticating (RFC 8221, section 4: MUST NOT)."""
    words = proposal.split("-")
    names = [cipher[0] for word in words if (cipher := _cipher(word))]
    plain = [name for name in names if not re.search("_CCM_|_GCM_|POLY1305|NULL", name)]
    return bool(plain) and not any(_INTEGRITY.fullmatch(word) for word in words)


def weak_words(proposal: str) -> tuple[str, ...]:
    """The words of algorithms that RFC 8221 and RFC 8247 advise against: short blocks, MD5, SHA-1, groups below 2048 bits."""
    return tuple(word for word in proposal.split("-") if _WEAK.fullmatch(word))


def has_dh_group(proposal: str) -> bool:
    """Whether an ESP proposal names a DH group, which is what makes PFS."""
    return any(_is_group(word) for word in proposal.split("-"))


def without_dh_groups(proposal: str) -> str:
    """The ESP proposal without its DH groups."""
    words = (word for word in proposal.split("-") if not _is_group(word) and word not in _NO_GROUP)
    return "-".join(words)


def has_esn(proposal: str) -> bool:
    """Whether an ESP proposal offers extended sequence numbers."""
    return "esn" in proposal.split("-")


def _is_group(word: str) -> bool:
    return word == "modpnull" or _GROUP.fullmatch(word) is not None
