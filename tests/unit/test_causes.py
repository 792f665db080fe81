"""charon's words, and what an admin is told about them."""

from __future__ import annotations

import pytest

from iscsi_ipsec.core.causes import NO_KEY, REFUSED, SILENT, WRONG_KEY, Cause, classify, heavier

LINES = [
    ("received AUTHENTICATION_FAILED notify error", "auth-refused"),
    ("tried 1 shared key for '10.0.0.20' - '10.0.0.1', but MAC mismatched", "wrong-key"),
    ("invalid ID_V1 payload length, decryption failed?", "wrong-key"),
    ("could not decrypt payloads", "wrong-key"),
    ("calculated HASH does not match HASH payload", "wrong-key"),
    ("no shared key found for '10.0.0.1' - '10.0.0.20'", "no-key-in-charon"),
    ("no shared key found for 10.0.0.1 - 10.0.0.20", "no-key-in-charon"),
    ("received INVALID_KE_PAYLOAD error notify", "auth-refused"),
    ("no matching peer config found", "unknown-id"),
    ("IDir 'san' does not match to 'san-a.example.com'", "unknown-id"),
    ("received NO_PROPOSAL_CHOSEN notify error", "no-proposal"),
    ("received NO_PROPOSAL_CHOSEN notify, no CHILD_SA built", "no-proposal"),
    ("received proposals unacceptable", "no-proposal"),
    ("received TS_UNACCEPTABLE notify, no CHILD_SA built", "selectors"),
    ("received INVALID_ID_INFORMATION error notify", "selectors"),
    ("retransmit 1 of request with message ID 0", "peer-silent"),
    ("giving up after 5 retransmits", "peer-silent"),
    ("Aggressive Mode PSK disabled for security reasons", "aggressive-disabled"),
    ("error writing to socket: Network is unreachable", "unreachable"),
]


@pytest.mark.parametrize(("line", "code"), LINES)
def test_a_line_of_charons_log_is_understood(line: str, code: str) -> None:
    cause = classify(line)
    assert cause is not None
    assert cause.code == code
    assert cause.message
    assert cause.hint


@pytest.mark.parametrize(
    "line",
    [
        "",
        "IKE_SA iscsi-ipsec-10.0.0.20-3260[1] established between 10.0.0.1[10.0.0.1]...10.0.0.20[10.0.0.20]",
        "CHILD_SA iscsi-ipsec-aa{1} established with SPIs c1_i c2_o and TS 10.0.0.1/32[tcp] === 10.0.0.20/32[tcp/3260]",
        "sending packet: from 10.0.0.1[500] to 10.0.0.20[500] (240 bytes)",
        "initiating IKE_SA iscsi-ipsec-10.0.0.20-3260[1] to 10.0.0.20",
    ],
)
def test_an_ordinary_line_means_nothing(line: str) -> None:
    assert classify(line) is None


def test_of_two_causes_the_one_that_says_more_is_kept_in_either_order() -> None:
    assert heavier(SILENT, WRONG_KEY) is heavier(WRONG_KEY, SILENT) is WRONG_KEY
    assert heavier(None, SILENT) is SILENT
    assert heavier(REFUSED, NO_KEY) is NO_KEY


def test_main_modes_wrong_key_is_told_though_it_ends_in_a_timeout() -> None:
    told: Cause | None = None
    for line in ("invalid HASH_V1 payload length, decryption failed?", "could not decrypt payloads", "retransmit 1 of request with message ID 0", "giving up after 3 retransmits"):  # fmt: skip
        cause = classify(line)
        assert cause is not None
        told = heavier(told, cause)
    assert told is WRONG_KEY
