"""strongSwan's proposals: algorithms are compared, not texts, and none that protects nothing passes."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.errors import ConfigError
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.config.portal_file import parse_portal_file
from iscsi_ipsec.core.config.proposals import (
    ciphers_of,
    has_dh_group,
    has_esn,
    is_offered,
    lacks_integrity,
    unprotected_words,
    weak_words,
    without_dh_groups,
)
from iscsi_ipsec.core.config.settings import parse_settings

GROUPS = ("modp2048", "modp1024s160", "modpnull", "ecp384", "ecp256bp", "curve25519", "x25519", "x448", "mlkem768", "ke1_mlkem768")  # fmt: skip


@pytest.mark.parametrize(
    ("words", "cipher"),
    [
        (("aes", "aes128"), ("AES_CBC", 128)),
        (("aes256",), ("AES_CBC", 256)),
        (("aes256ctr",), ("AES_CTR", 256)),
        (("aes256gcm", "aes256gcm16", "aes256gcm128"), ("AES_GCM_16", 256)),
        (("aes128gcm12", "aes128gcm96"), ("AES_GCM_12", 128)),
        (("aes192ccm8", "aes192ccm64"), ("AES_CCM_8", 192)),
        (("aes256gmac",), ("NULL_AES_GMAC", 256)),
        (("camellia", "camellia128"), ("CAMELLIA_CBC", 128)),
        (("blowfish", "blowfish128"), ("BLOWFISH_CBC", 128)),
        (("cast128",), ("CAST_CBC", 128)),
        (("chacha20poly1305", "chacha20poly1305compat"), ("CHACHA20_POLY1305", 0)),
        (("null",), ("NULL", 0)),
        (("des",), ("DES_CBC", 0)),
        (("3des",), ("3DES_CBC", 0)),
    ],
)
def test_ciphers_of_knows_every_word_of_a_cipher(words: tuple[str, ...], cipher: tuple[str, int]) -> None:
    for word in words:
        assert ciphers_of([f"{word}-sha2_256-prfsha384-modp2048-esn-noesn"]) == frozenset({cipher})
        assert is_offered(*cipher, [word])


def test_is_offered_compares_algorithms() -> None:
    assert is_offered("AES_GCM_16", 256, ["aes256gcm128-ecp384"])
    assert is_offered("CHACHA20_POLY1305", 256, ["chacha20poly1305"])
    assert not is_offered("AES_GCM_16", 128, ["aes256gcm128-ecp384"])
    assert not is_offered("NULL", 0, ["aes256-sha256"])


def test_is_offered_judges_nothing_that_holds_an_unknown_word() -> None:
    assert is_offered("AES_CBC", 256, ["default"])
    assert is_offered("AES_CBC", 256, ["aes128gcm16", "sm4-sha256"])


@pytest.mark.parametrize("word", [*GROUPS, "none", "modpnone", "sha1_160", "sha256_96", "md5_128", "aesxcbc", "aescmac", "camelliaxcbc", "prfaesxcbc"])  # fmt: skip
def test_ciphers_of_takes_no_other_word_for_a_cipher(word: str) -> None:
    assert ciphers_of([word]) == frozenset()


@pytest.mark.parametrize(
    ("proposal", "has"),
    [
        ("aes256gcm16", False),
        ("aes256-sha256", False),
        ("aes256gcm16-esn-noesn", False),
        ("aes256gcm16-modpnone", False),
        *((f"aes256gcm16-{group}", True) for group in GROUPS),
    ],
)
def test_has_dh_group_knows_every_kind_of_group(proposal: str, has: bool) -> None:
    assert has_dh_group(proposal) is has
    assert without_dh_groups(proposal) == (
        proposal.rpartition("-")[0] if has or "none" in proposal else proposal
    )
    assert has_esn(proposal) is ("esn" in proposal.split("-"))


def test_unprotected_words_are_those_without_encryption_or_with_keys_that_anybody_can_compute() -> None:
    assert unprotected_words("null-aes256-aes128gmac-sha256-modpnull") == ("null", "aes128gmac", "modpnull")
    assert unprotected_words("aes256gcm16-ecp384") == ()


@pytest.mark.parametrize(
    ("proposal", "lacks"),
    [
        ("aes256", True),
        ("aes256ctr-ecp384", True),
        ("aes256gcm16-aes128", True),
        ("aes256-prfsha256", True),
        ("aes256-sha256", False),
        ("aes256-aescmac", False),
        ("aes256gcm16", False),
        ("chacha20poly1305-ecp384", False),
    ],
)
def test_lacks_integrity_is_encryption_alone(proposal: str, lacks: bool) -> None:
    assert lacks_integrity(proposal) is lacks


WEAK = (
    "des-3des-blowfish256-cast128-md5-md5_128-sha-sha1-sha1_160-prfmd5-prfsha1"
    "-modp768-modp1024-modp1536-modp1024s160-ecp192"
)
STRONG = "aes128-sha256-sha384-sha512-prfsha256-modp2048-modp2048s256-ecp256-curve25519-aesxcbc"


def test_weak_words_are_short_blocks_old_hashes_and_small_groups() -> None:
    assert weak_words(WEAK) == tuple(WEAK.split("-"))
    assert weak_words(STRONG) == ()


PORTALS = 'portals = ["10.0.0.20"]\n'


@pytest.mark.parametrize("key", ["ike_proposals", "esp_proposals"])
@pytest.mark.parametrize("word", ["null", "aes256gmac"])
def test_a_proposal_without_encryption_is_an_error_at_its_line(key: str, word: str) -> None:
    for text, parse in (
        (
            PORTALS + f'{key} = ["aes256gcm16-ecp384", "{word}-sha256-modp2048"]\n',
            lambda t: parse_portal_file(t, "x", "x"),
        ),
        (
            f'[defaults]\n{key} = ["aes256gcm16-ecp384", "{word}-sha256-modp2048"]\n',
            lambda t: parse_settings(t, "x"),
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            parse(text)
        assert [(p.code, p.line) for p in caught.value.problems] == [("no-encryption", 2)]


def test_an_esp_proposal_without_integrity_is_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_portal_file(PORTALS + 'esp_proposals = ["aes256-ecp384"]\n', "x", "x")
    assert [(p.code, p.line) for p in caught.value.problems] == [("no-integrity", 2)]


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ('ike_proposals = ["3des-md5-modp1024"]', 1),
        ('esp_proposals = ["aes128gcm16", "aes128-sha1"]', 1),
        ('esp_proposals = ["aes128gcm16"]', 0),
        ('preset = "mds"', 2),
        ('preset = "windows"', 0),
        ('preset = "ontap"', 0),
    ],
)
def test_weak_proposals_are_warned_about_at_their_line(line: str, count: int) -> None:
    warnings: list[Problem] = []
    parse_portal_file(PORTALS + line + "\n", "x", "x", warnings)
    assert [(p.code, p.line, p.severity) for p in warnings] == [
        ("weak-proposal", 2, Severity.WARNING)
    ] * count
