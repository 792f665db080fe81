"""Cuts proposals down to the algorithms that this host's charon has.

Law: pure. A charon that lacks one algorithm of a proposal fails, whatever else is offered: without X25519 (a
build option, FIPS) it cannot even begin. The kernel does the ciphers of ESP, so of ESP proposals only the
groups depend on charon.
"""

from __future__ import annotations

import re

_GROUPS = {
    "curve25519": "CURVE_25519", "x25519": "CURVE_25519", "curve448": "CURVE_448", "x448": "CURVE_448",
    "ecp192": "ECP_192", "ecp224": "ECP_224", "ecp256": "ECP_256", "ecp384": "ECP_384", "ecp521": "ECP_521",
    **{f"modp{bits}": f"MODP_{bits}" for bits in (768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)},
}  # fmt: skip
_INTEGRITY = {
    "sha1": "HMAC_SHA1_96", "sha256": "HMAC_SHA2_256_128", "sha384": "HMAC_SHA2_384_192", "sha512": "HMAC_SHA2_512_256",
}  # fmt: skip
_PRFS = {
    "prfsha1": "PRF_HMAC_SHA1", "prfsha256": "PRF_HMAC_SHA2_256", "prfsha384": "PRF_HMAC_SHA2_384",
    "prfsha512": "PRF_HMAC_SHA2_512", "prfaesxcbc": "PRF_AES128_XCBC", "prfaescmac": "PRF_AES128_CMAC",
}  # fmt: skip
_CIPHERS = (
    (re.compile(r"aes(128|192|256)gcm(16|128)"), "AES_GCM_16"),
    (re.compile(r"aes(128|192|256)?"), "AES_CBC"),
    (re.compile(r"aes(128|192|256)ctr"), "AES_CTR"),
    (re.compile(r"chacha20poly1305(compat)?"), "CHACHA20_POLY1305"),
)


def lacking(proposal: str, algorithms: frozenset[str], *, groups_only: bool) -> tuple[str, ...]:
    """The parts of a proposal that charon has no algorithm for; empty where charon did not list its algorithms."""
    if not algorithms:
        return ()
    return tuple(
        part
        for part in proposal.split("-")
        if (name := _name_of(part, groups_only=groups_only)) and name not in algorithms
    )


def cut(
    proposals: tuple[str, ...], algorithms: frozenset[str], *, groups_only: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The proposals without the parts that charon lacks, and these parts; a proposal that lacks a whole kind of algorithm is dropped."""
    kept: list[str] = []
    lost: list[str] = []
    for proposal in proposals:
        missing = lacking(proposal, algorithms, groups_only=groups_only)
        lost += missing
        left = [part for part in proposal.split("-") if part not in missing]
        if {_kind_of(part) for part in missing} <= {_kind_of(part) for part in left}:
            kept.append("-".join(left))
    return tuple(kept), tuple(dict.fromkeys(lost))


def _name_of(part: str, *, groups_only: bool) -> str:
    """Charon's name of a part's algorithm; empty for an unknown part."""
    if part in _GROUPS:
        return _GROUPS[part]
    if groups_only:
        return ""
    if part in _INTEGRITY or part in _PRFS:
        return _INTEGRITY.get(part) or _PRFS[part]
    return next((name for pattern, name in _CIPHERS if pattern.fullmatch(part)), "")


def _kind_of(part: str) -> str:
    if part in _GROUPS:
        return "group"
    if part in _INTEGRITY:
        return "integrity"
    return "prf" if part in _PRFS else "cipher"
