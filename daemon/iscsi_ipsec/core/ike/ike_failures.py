"""Recognises in charon's log lines why an SA does not come up, in words an admin can act on.

``initiate`` says only "failed"; the reason is in charon's log (VICI ``log``
events carry the connection's name). The patterns are the messages of
strongSwan 5.9, each provoked once against a real peer.

Law: pure. An unknown line is ignored. Peers choose their identities, and the log quotes them: every pattern begins where the line begins, and its words are charon's own, before any text of a
peer. No message of charon's begins with such a text, and newlines in it are replaced (identification.c).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from iscsi_ipsec.base.policy import IkeMode


@dataclass(frozen=True, slots=True)
class Cause:
    """A cause with a short stable ``code``; of several causes the one with the highest ``weight`` is shown.

    ``passing``: the failure may end by itself in a moment, so it is reported as a warning.
    """

    code: str
    message: str
    hint: str
    weight: int = 1
    passing: bool = False


WRONG_KEY = Cause(
    "wrong-key", "the peer and this host have different keys",
    "write the same key on both ends: iscsi-ipsec explain PORTAL names the file", 5,
)  # fmt: skip
NO_KEY = Cause(
    "no-key-in-charon",
    "charon found no key for this pair of identities",
    "see charon's log for the identities",
    4,
)
REFUSED = Cause(
    "auth-refused",
    "the peer refused the authentication: wrong key, or an identity, of this host or of its own, that it does not know",
    "compare key, both identities (target_id is its own) and their types with the target's configuration", 3,
)  # fmt: skip
REFUSED_AGGRESSIVE = Cause(
    "auth-refused", "the peer refused aggressive mode: aggressive mode is disabled there, or it does not know this identity",
    "on a strongSwan target charon.i_dont_care_about_security_and_use_aggressive_mode_psk = yes is needed; compare the identities", 3,
)  # fmt: skip
NO_KEY_THERE = Cause(
    "auth-refused", "the peer has no key for this pair of identities",
    "give the target a key for this host's identity (IKEv1 main mode: for its address)", 3,
)  # fmt: skip
UNKNOWN_ID = Cause(
    "unknown-id", "the peer answered with another identity than expected",
    "set target_id in the portal policy to the identity that the target uses", 5,
)  # fmt: skip
NO_PROPOSAL = Cause(
    "no-proposal", "no proposal in common with the peer (or it has no connection for this host, or another IKE version)",
    "compare ike_proposals, esp_proposals, PFS and IKE version with the target's", 4,
)  # fmt: skip
SELECTORS = Cause(
    "selectors", "the peer does not accept this traffic (other ports or addresses, or transport against tunnel mode)",
    "the target must accept TCP from any port to the portal's port, in the same ESP mode", 4,
)  # fmt: skip
AGGRESSIVE_OFF = Cause(
    "aggressive-disabled", "aggressive mode with a pre-shared key is disabled",
    "set charon.i_dont_care_about_security_and_use_aggressive_mode_psk = yes on the responder", 6,
)  # fmt: skip
SILENT = Cause(
    "peer-silent", "the peer does not answer IKE",
    "is it up, does it run IKE, do firewalls pass UDP 500 and 4500 and ESP?", 1,
)  # fmt: skip
UNREACHABLE = Cause(
    "unreachable",
    "the peer does not answer IKE, and the kernel could not send all packets",
    "check routes and links",
    2,
)
BLOCKED = Cause(
    "unreachable",
    "the peer does not answer IKE, and this host's own firewall refuses to let packets of IKE out",
    "let UDP 500 and 4500 and ESP pass to the peer",
    2,
)

PEER_LOST = Cause(
    "peer-lost",
    "the peer does not answer in its SA, and a new one is being negotiated beside it",
    "did the target crash, fail over or pause? if this stays, check the path to it, and that it lets ESP pass",
    2,
)

REFUSED_HINT = "compare the proposals and addresses in the policy with what this charon supports"


def negotiation_failed(line: str) -> Cause:
    """The cause where attempts failed and no line of charon's log is known here; ``line``: its last line."""
    said = f"; charon's last line: {line}" if line else ""
    return Cause(
        "negotiation-failed",
        f"negotiations fail{said}",
        "see charon's log on both ends: journalctl -u strongswan",
        1,
    )


def refused_by_charon(reason: str) -> Cause:
    """The cause that this host's charon refused the connection that the files ask for."""
    return Cause("charon-refused", f"charon refused the connection: {reason}", REFUSED_HINT, 7)


_PATTERNS: tuple[tuple[re.Pattern[str], Cause], ...] = tuple(
    (re.compile(pattern), cause)
    for pattern, cause in (
        (r"Aggressive Mode PSK disabled", AGGRESSIVE_OFF),
        (r"tried \d+ shared keys? for '", WRONG_KEY),
        (r"calculated HASH does not match", WRONG_KEY),
        (r"invalid [A-Z0-9_]+ payload length, decryption failed\?", WRONG_KEY),
        (r"could not decrypt payloads", WRONG_KEY),
        (r"IDir '", UNKNOWN_ID),
        (r"constraint check failed: identity '", UNKNOWN_ID),
        (r"no shared key found", NO_KEY),
        (r"no matching peer config found|no peer config found", UNKNOWN_ID),
        (
            r"received NO_PROPOSAL_CHOSEN|no IKE config found for|received proposals unacceptable|no (acceptable )?proposal found",
            NO_PROPOSAL,
        ),
        (r"no matching proposal found(?!, trying)", NO_PROPOSAL),
        (r"received INVALID_KE_PAYLOAD error notify", NO_KEY_THERE),
        (r"received AUTHENTICATION_FAILED", REFUSED),
        (r"received (TS_UNACCEPTABLE|INVALID_ID_INFORMATION)|no matching CHILD_SA config found", SELECTORS),
        (
            r"(sending )?retransmit \d+ of|giving up after \d+ retransmits|([A-Za-z_ ]+ failed, )?peer not responding",
            SILENT,
        ),
        (r"error writing to socket: Operation not permitted", BLOCKED),
        (r"error writing to socket", UNREACHABLE),
    )
)


def classify(line: str) -> Cause | None:
    """The cause that a line of charon's log shows, or None."""
    for pattern, cause in _PATTERNS:
        if pattern.match(line):
            return cause
    return None


def in_mode(cause: Cause, ike: IkeMode) -> Cause:
    """The cause as it applies to an IKE mode: a peer that refuses aggressive mode sends the same error as for a wrong key."""
    return REFUSED_AGGRESSIVE if cause is REFUSED and ike is IkeMode.AGGRESSIVE else cause


def as_passing(cause: Cause) -> Cause:
    """The cause while it is young: the negotiation is being tried again without anybody's doing."""
    return replace(cause, passing=True, hint=f"it is tried again; if this stays: {cause.hint}")


_DOUBTS = re.compile(
    r"received AUTHENTICATION_FAILED"
    # on a target: the peer refuses the target's proof
    r"|parsed INFORMATIONAL request \d+ \[ N\(AUTH_FAILED\) \]"
    r"|calculated HASH does not match"
    r"|could not decrypt payloads"
    # main mode's third message, aggressive mode's first answer: the first message that depends on the key
    r"|sending retransmit \d+ of request message ID 0, seq 3"
    r"|sending retransmit \d+ of response message ID 0, seq 1"
)


def doubts_key(line: str) -> bool:
    """Whether a line of charon's log may mean that the peer would rather have another key.

    "MAC mismatched" does not: an IKEv2 proof is compared with every key there is.
    """
    return _DOUBTS.match(line) is not None


def heavier(old: Cause | None, new: Cause) -> Cause:
    """Of two causes reported for one attempt, the more specific one."""
    return new if old is None or new.weight >= old.weight else old
