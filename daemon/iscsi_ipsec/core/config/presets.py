"""The settings that known products need, and the built-in proposals.

Each preset names its source. A proposal is strongSwan's syntax; several
algorithms of one kind in a proposal are alternatives in that order, in IKEv2.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from iscsi_ipsec.base.policy import EspMode, IkeMode, IpsecChoice, Tuning

# RFC 7146 asks for DH groups of 2048 bits or more; the elliptic curves are
# faster at the same strength.
_V2_GROUPS = "curve25519-ecp384-ecp256-modp3072-modp2048"

# IKEv1 sends its key exchange payload with the first proposal (aggressive and
# quick mode), so only one group can be offered. Group 14 is the one that
# every implementation of the last twenty years has.
_V1_GROUP = "modp2048"

# One algorithm of a kind in each: for IKEv1 charon sends only the first of
# several (proposal_substructure.c, set_from_proposal_v1_ike).
_V1_IKE_SUITES = ("aes256-sha256", "aes128-sha256", "aes256-sha384", "aes256-sha512")
_V1_ESP_SUITES = (
    "aes256gcm16",
    "aes128gcm16",
    "aes256-sha256",
    "aes128-sha256",
    "aes256-sha384",
    "aes256-sha512",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Settings that a product needs. ``choice`` None: the flags are left to the other sources."""

    source: str
    choice: IpsecChoice | None = None
    tuning: Tuning = Tuning()


def _choice(ike: IkeMode, esp: EspMode, *, pfs: bool) -> IpsecChoice:
    return IpsecChoice(required=True, ike=ike, esp=esp, pfs=pfs)


PRESETS: dict[str, Preset] = {
    "rfc7146": Preset(
        source="RFC 7146, sections 3.1 to 3.3: AES-GCM and AES-CBC, SHA-2, DH groups of 2048 bits or more, IKEv2",
        choice=_choice(IkeMode.V2, EspMode.TRANSPORT, pfs=True),
    ),
    "rfc3723": Preset(
        source="RFC 3723, section 2.3, without its 3DES: IKEv1 main mode, AES-CBC-128 with HMAC-SHA1, group 14",
        choice=_choice(IkeMode.MAIN, EspMode.TUNNEL, pfs=True),
        tuning=Tuning(ike_proposals=("aes128-sha1-modp2048",), esp_proposals=("aes128-sha1-modp2048",)),
    ),
    "ontap": Preset(
        # the first of each is what LabNetApp's template for Linux hosts ran with; RFC 6379 leaves a group in
        # rekeys to the initiator, and that template has none there: so both are offered
        source="NetApp ONTAP 9 'Configure IP security over the wire': IKEv2 with a PSK, transport mode, "
        "suites SUITEB_GCM256 (its IKE is AES-CBC-256) and SUITE_AESCBC (RFC 6379)",
        choice=_choice(IkeMode.V2, EspMode.TRANSPORT, pfs=True),
        tuning=Tuning(
            ike_proposals=(
                "aes256-sha384-ecp384",
                "aes256gcm16-prfsha384-ecp384",
                "aes256-sha512-prfsha512-ecp384",
            ),
            esp_proposals=(
                "aes256gcm16-ecp384-none",
                "aes256-sha512-ecp384-none",
                "aes256-sha384-ecp384-none",
            ),
        ),
    ),
    "windows": Preset(
        source="New-NetIPsecRule: a preshared key needs IKEv1, main mode; transport is the default; "
        "quick mode lasts 60 minutes",
        choice=_choice(IkeMode.MAIN, EspMode.TRANSPORT, pfs=False),
        tuning=Tuning(
            ike_proposals=(
                "aes256-sha384-ecp384",
                "aes256-sha256-modp2048",
                "aes128-sha256-modp2048",
                "aes128-sha1-modp2048",
            ),
            esp_proposals=("aes256gcm16", "aes128gcm16", "aes256-sha256", "aes128-sha256", "aes128-sha1"),
            esp_rekey_time=3300,
        ),
    ),
    "equallogic": Preset(
        source="Dell EqualLogic administrator's guide, IPsec: AES-CBC with SHA-1 or SHA-2, DH groups 14 and 24",
        choice=_choice(IkeMode.MAIN, EspMode.TRANSPORT, pfs=False),
        tuning=Tuning(
            ike_proposals=("aes256-sha256-modp2048", "aes128-sha256-modp2048", "aes128-sha1-modp2048"),
            esp_proposals=("aes256-sha256", "aes128-sha256", "aes128-sha1"),
        ),
    ),
    "mds": Preset(
        source="Cisco MDS 9000 IP services guide, IPsec: tunnel mode only, AES-128 with SHA-1, DH group 5 at most",
        choice=_choice(IkeMode.MAIN, EspMode.TUNNEL, pfs=False),
        tuning=Tuning(ike_proposals=("aes128-sha1-modp1536",), esp_proposals=("aes128-sha1",)),
    ),
}


@functools.cache
def default_ike_proposals(ike: IkeMode, *, fast_aes: bool) -> tuple[str, ...]:
    """The default proposals of phase 1.

    ``fast_aes``: whether the CPU has AES instructions; without them
    ChaCha20-Poly1305 comes first.
    """
    if ike is not IkeMode.V2:  # no AEAD in IKEv1's phase 1
        return tuple(f"{suite}-{_V1_GROUP}" for suite in _V1_IKE_SUITES)
    gcm = f"aes256gcm16-aes128gcm16-prfsha384-prfsha256-{_V2_GROUPS}"
    chacha = f"chacha20poly1305-prfsha384-prfsha256-{_V2_GROUPS}"
    cbc = f"aes256-aes128-sha256-sha384-{_V2_GROUPS}"
    return (gcm, cbc) if fast_aes else (chacha, gcm, cbc)


@functools.cache
def default_esp_proposals(ike: IkeMode, *, pfs: bool, fast_aes: bool, esn: bool) -> tuple[str, ...]:
    """The default proposals of ESP; the groups are those of phase 1, so PFS is never weaker than it.

    ``esn``: whether extended sequence numbers may be offered (RFC 7146 asks
    for them at 1 Gbit/s and above; user-space ESP has none).
    """
    if ike is not IkeMode.V2:
        group = f"-{_V1_GROUP}" if pfs else ""
        return tuple(f"{suite}{group}" for suite in _V1_ESP_SUITES)
    tail = (f"-{_V2_GROUPS}" if pfs else "") + ("-esn-noesn" if esn else "")
    gcm, chacha = f"aes256gcm16-aes128gcm16{tail}", f"chacha20poly1305{tail}"
    cbc = f"aes256-aes128-sha256-sha384{tail}"
    return (gcm, cbc) if fast_aes else (chacha, gcm, cbc)
