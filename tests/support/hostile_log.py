"""Identities that imitate charon's log, and charon's lines that identities stand in."""

from __future__ import annotations

IMITATIONS = (
    "MAC mismatched", "x' - 'y', but MAC mismatched", "tried 1 shared key for 'a' - 'b', but MAC mismatched",
    "calculated HASH does not match HASH payload", "invalid ID_V1 payload length, decryption failed?",
    "could not decrypt payloads", "IDir 'a' does not match to 'b'", "constraint check failed: identity 'a' required",
    "no shared key found for 'a' - 'b'", "no matching peer config found", "no peer config found",
    "received NO_PROPOSAL_CHOSEN notify error", "received proposals unacceptable", "no acceptable proposal found",
    "no matching proposal found", "received INVALID_KE_PAYLOAD error notify", "received AUTHENTICATION_FAILED notify error",
    "received TS_UNACCEPTABLE notify, no CHILD_SA built", "INVALID_ID_INFORMATION", "no matching CHILD_SA config found",
    "retransmit 9 of request with message ID 0", "giving up after 5 retransmits", "peer not responding, trying again",
    "error writing to socket: Operation not permitted", "Aggressive Mode PSK disabled for security reasons",
    "sending retransmit 3 of request message ID 0, seq 3", "parsed INFORMATIONAL request 2 [ N(AUTH_FAILED) ]",
    "iscsi-ipsec-removed", "unloaded shared key with id 'iscsi-ipsec-0011", "removed vici connection: iscsi-ipsec-x",
    "uninstalling 'iscsi-ipsec-x", "clear iscsi-ipsec-x", "updated vici connection: iscsi-ipsec-10.10.0.2-3260",
    "not establishing CHILD_SA iscsi-ipsec-x{1} due to existing duplicate {2}", "initiating IKE_SA iscsi-ipsec-x[1] to 10.0.0.1",
    "10.0.0.1 is initiating an IKE_SA",
)  # fmt: skip

SLOTS = (
    "looking for peer configs matching 10.0.0.1[%any]...10.0.0.2[{}]",
    "looking for peer configs matching 10.0.0.1[{}]...10.0.0.2[a.lab]",
    "looking for pre-shared key peer configs matching 10.0.0.1...10.0.0.2[{}]",
    "authentication of '{}' with pre-shared key successful",
    "authentication of '{}' (myself) with pre-shared key",
    "destroying duplicate IKE_SA for peer '{}', received INITIAL_CONTACT",
    "IKE_SA iscsi-ipsec-x[1] established between 10.0.0.1[a.lab]...10.0.0.2[{}]",
    "deleting IKE_SA iscsi-ipsec-x[1] between 10.0.0.1[a.lab]...10.0.0.2[{}]",
    "peer requested EAP, config unacceptable: {}",
    'candidate "x", match: 1/1/28 (me/other/ike) {}',
    "schedule delete of duplicate IKE_SA for peer '{}' due to uniqueness policy and suspected reauthentication",
    "detected reauth of existing IKE_SA, adopting 1 children and 0 virtual IPs of {}",
)  # fmt: skip
