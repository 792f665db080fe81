"""Lines of charon's log, and the causes that an admin sees."""

from __future__ import annotations

import re

import pytest

from iscsi_ipsec.base.policy import IkeMode
from iscsi_ipsec.core.ike.ike_failures import (
    AGGRESSIVE_OFF,
    BLOCKED,
    NO_KEY,
    NO_KEY_THERE,
    NO_PROPOSAL,
    REFUSED,
    REFUSED_AGGRESSIVE,
    SELECTORS,
    SILENT,
    UNKNOWN_ID,
    UNREACHABLE,
    WRONG_KEY,
    Cause,
    as_passing,
    classify,
    doubts_key,
    heavier,
    in_mode,
)
from tests.support.hostile_log import IMITATIONS, SLOTS

LINES = [
    ("received AUTHENTICATION_FAILED notify error", REFUSED),
    ("tried 1 shared key for '10.0.0.20' - '10.0.0.1', but MAC mismatched", WRONG_KEY),
    ("tried 2 shared keys for '10.0.0.20' - '10.0.0.1', but MAC mismatched", WRONG_KEY),
    ("invalid ID_V1 payload length, decryption failed?", WRONG_KEY),
    ("could not decrypt payloads", WRONG_KEY),
    ("calculated HASH does not match HASH payload", WRONG_KEY),
    ("no shared key found for '10.0.0.1' - '10.0.0.20'", NO_KEY),
    ("no shared key found for 10.0.0.1 - 10.0.0.20", NO_KEY),
    ("no shared key found for 'a'[10.0.0.1] - 'b'[10.0.0.20]", NO_KEY),
    ("received INVALID_KE_PAYLOAD error notify", NO_KEY_THERE),
    ("no matching peer config found", UNKNOWN_ID),
    ("no peer config found", UNKNOWN_ID),
    ("IDir 'san' does not match to 'san-a.example.com'", UNKNOWN_ID),
    ("constraint check failed: identity 'san-a.example.com' required ", UNKNOWN_ID),
    ("received NO_PROPOSAL_CHOSEN notify error", NO_PROPOSAL),
    ("received NO_PROPOSAL_CHOSEN notify, no CHILD_SA built", NO_PROPOSAL),
    ("no IKE config found for 10.0.0.20...10.0.0.1, sending NO_PROPOSAL_CHOSEN", NO_PROPOSAL),
    ("no matching proposal found, sending NO_PROPOSAL_CHOSEN", NO_PROPOSAL),
    ("received proposals unacceptable", NO_PROPOSAL),
    ("no proposal found", NO_PROPOSAL),
    ("no matching proposal found", NO_PROPOSAL),
    ("no acceptable proposal found", NO_PROPOSAL),
    ("received TS_UNACCEPTABLE notify, no CHILD_SA built", SELECTORS),
    ("received INVALID_ID_INFORMATION error notify", SELECTORS),
    ("no matching CHILD_SA config found for 10.0.0.20/32[tcp] === 10.0.0.1/32[tcp/3260]", SELECTORS),
    ("retransmit 1 of request with message ID 0", SILENT),
    ("giving up after 5 retransmits", SILENT),
    ("peer not responding, trying again (2/3)", SILENT),
    ("establishing IKE_SA failed, peer not responding", SILENT),
    ("Aggressive Mode PSK disabled for security reasons", AGGRESSIVE_OFF),
    ("error writing to socket: Operation not permitted", BLOCKED),
    ("error writing to socket: Network is unreachable", UNREACHABLE),
]


@pytest.mark.parametrize(("line", "cause"), LINES)
def test_a_line_of_charons_log_is_understood(line: str, cause: Cause) -> None:
    assert classify(line) is cause


@pytest.mark.parametrize(
    "line",
    [
        "",
        "IKE_SA iscsi-ipsec-10.0.0.20-3260[1] established between 10.0.0.1[10.0.0.1]...10.0.0.20[10.0.0.20]",
        "CHILD_SA iscsi-ipsec-aa{1} established with SPIs c1_i c2_o and TS 10.0.0.1/32[tcp] === 10.0.0.20/32[tcp/3260]",
        "sending packet: from 10.0.0.1[500] to 10.0.0.20[500] (240 bytes)",
        "no matching proposal found, trying alternative config",
        "initiating IKE_SA iscsi-ipsec-10.0.0.20-3260[1] to 10.0.0.20",
    ],
)
def test_an_ordinary_line_means_nothing(line: str) -> None:
    assert classify(line) is None


def test_of_two_causes_the_one_that_says_more_is_kept_in_either_order_and_of_equals_the_later() -> None:
    assert heavier(SILENT, WRONG_KEY) is heavier(WRONG_KEY, SILENT) is WRONG_KEY
    assert heavier(None, SILENT) is SILENT
    assert heavier(REFUSED, NO_KEY) is NO_KEY
    assert heavier(WRONG_KEY, UNKNOWN_ID) is UNKNOWN_ID
    assert heavier(UNKNOWN_ID, WRONG_KEY) is WRONG_KEY


def test_only_a_refusal_and_only_in_aggressive_mode_means_something_else() -> None:
    for cause in {cause for _, cause in LINES}:
        for ike in IkeMode:
            other = cause is REFUSED and ike is IkeMode.AGGRESSIVE
            assert in_mode(cause, ike) is (REFUSED_AGGRESSIVE if other else cause)


def test_a_young_cause_is_the_same_but_passing() -> None:
    assert as_passing(Cause("c", "what is so", "do this", 4)) == Cause(
        "c", "what is so", "it is tried again; if this stays: do this", 4, passing=True
    )


def test_cause_of_a_wrong_key_in_main_mode_is_found_though_it_ends_in_a_timeout() -> None:
    reported: Cause | None = None
    for line in ("invalid HASH_V1 payload length, decryption failed?", "could not decrypt payloads", "retransmit 1 of request with message ID 0", "giving up after 3 retransmits"):  # fmt: skip
        cause = classify(line)
        assert cause is not None
        reported = heavier(reported, cause)
    assert reported is WRONG_KEY


@pytest.mark.parametrize("slot", SLOTS)
def test_classify_and_doubts_key_take_no_peers_text_for_charons_words(slot: str) -> None:
    for text in IMITATIONS:
        line = slot.format(text)
        assert (classify(line), doubts_key(line)) == (None, False), line


@pytest.mark.parametrize(("line", "cause"), LINES)
def test_classify_gives_the_same_cause_whatever_identities_the_line_holds(line: str, cause: Cause) -> None:
    """Where an identity stands in a line of a cause, it cannot make it another cause."""
    for text in IMITATIONS:
        imitating = re.sub(r"'[^']*'", lambda _: f"'{text}'", line)  # noqa: B023  # called at once
        assert classify(imitating) is cause, imitating
