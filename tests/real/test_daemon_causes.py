"""Why an SA does not come up: each cause provoked at a real far end, and reported in words with what to do.

The far end decides about keys, identities, proposals, selectors and modes before it installs
anything, so that a kernel without ESP will do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tests.support.admin import FLAGS, PORTAL, ROW, key_file, our_connections
from tests.support.ike import KEY_A, KEY_B, TARGET, A, B, Ike, connection
from tests.support.netlab import Daemon, wait_until
from tests.support.pair import Pair

INITIATOR = "10.10.0.1"


@dataclass(frozen=True)
class FarEnd:
    """A target's configuration, right unless something is said."""

    key: bytes | None = KEY_A
    key_of: str = A
    local_id: str = TARGET
    remote_id: str = A
    ike: Ike | None = None
    proposal: str = "aes128-sha256-ecp256"
    esp: str = "aes128-sha256-ecp256"
    selector: str = "dynamic[6/3260]"
    mode: str = "transport"

    def load(self, pair: Pair, ike: Ike) -> None:
        settings = connection(
            self.ike or ike, local=PORTAL, remote=INITIATOR, local_id=self.local_id, remote_id=self.remote_id,
            child={
                "iscsi": {
                    "mode": self.mode, "local_ts": [self.selector], "remote_ts": ["dynamic[6]"],
                    "esp_proposals": [self.esp],
                }
            },
        )  # fmt: skip
        pair.target.load_conn("far", settings | {"proposals": [self.proposal]})
        if self.key is not None:
            pair.target.load_psk("far", self.key, [self.key_of])


def policy(ike: Ike, more: str = "") -> str:
    """It negotiates by itself, as traffic would make it."""
    esp = "aes128-sha256" + ("" if ike is Ike.AGGRESSIVE else "-ecp256")
    return (
        f'portals = ["{PORTAL}"]\ntarget_id = "target.lab"\ntarget_id_type = "ID_FQDN"\nstart = "start"\n'
        f'ike_proposals = ["aes128-sha256-ecp256"]\nesp_proposals = ["{esp}"]\nsecurity_flags = {FLAGS[ike]}\n{more}'
    )


@dataclass(frozen=True)
class Case:
    far: FarEnd
    code: str
    says: str
    advises: str
    ikes: tuple[Ike, ...] = tuple(Ike)


CASES = {
    "another key": Case(FarEnd(key=KEY_B), "wrong-key", "different keys", "same key", (Ike.MAIN, Ike.AGGRESSIVE)),
    "another key, which only the peer knows": Case(
        FarEnd(key=KEY_B), "auth-refused", "wrong key", "compare key", (Ike.V2,)
    ),
    "no key there": Case(FarEnd(key=None), "auth-refused", "refused", "compare key", (Ike.V2,)),
    "no key there, as IKEv1 says it": Case(
        FarEnd(key=None), "auth-refused", "has no key", "give the target a key", (Ike.MAIN, Ike.AGGRESSIVE)
    ),
    "an identity that it does not know": Case(
        FarEnd(remote_id=B, key_of=B), "auth-refused", "identity", "identities", (Ike.V2, Ike.AGGRESSIVE)
    ),
    "another name than expected": Case(
        FarEnd(local_id="fqdn:other.lab"), "unknown-id", "another identity", "target_id", (Ike.MAIN, Ike.AGGRESSIVE)
    ),
    "another name than expected, which only the peer knows": Case(
        FarEnd(local_id="fqdn:other.lab"), "auth-refused", "of its own", "target_id", (Ike.V2,)
    ),
    "no IKE proposal in common": Case(
        FarEnd(proposal="aes256-sha512-modp4096"), "no-proposal", "no proposal", "ike_proposals", (Ike.V2, Ike.MAIN)
    ),
    "another IKE version": Case(FarEnd(ike=Ike.V2), "no-proposal", "version", "IKE version", (Ike.MAIN,)),
    "no ESP proposal in common": Case(
        FarEnd(esp="aes256gcm16-modp4096"), "no-proposal", "no proposal", "esp_proposals", (Ike.V2, Ike.MAIN)
    ),
    "another port": Case(FarEnd(selector="dynamic[6/860]"), "selectors", "other ports", "portal's port", (Ike.V2, Ike.MAIN)),
    "the other ESP mode": Case(
        FarEnd(mode="tunnel"), "selectors", "tunnel mode", "ESP mode", (Ike.MAIN,)
    ),
}  # fmt: skip
RUNS = [pytest.param(case, ike, id=f"{name}-{ike.name}") for name, case in CASES.items() for ike in case.ikes]


def reported(daemon: Daemon, code: str, *, timeout: float = 20.0) -> str:
    """Wait until status has the code for the portal; return what the command prints of it."""

    def shown() -> bool:
        problem = daemon.row(ROW).get("problem")
        return problem is not None and bool(problem["code"] == code)

    wait_until(
        shown,
        f"{code} is reported",
        timeout=timeout,
        detail=lambda: f"{daemon.row(ROW).get('problem')}\n{daemon.tail()}",
    )
    answer = daemon.cli("status")
    assert answer.rc == 1
    return printed(answer.out, f"error: {ROW}")


def printed(out: str, words: str) -> str:
    """The line of ``status`` that has these words, with the line below it that says what to do."""
    lines = out.splitlines()
    (at,) = [number for number, line in enumerate(lines) if words in line]
    below = lines[at + 1] if at + 1 < len(lines) and lines[at + 1].startswith(" ") else ""
    return f"{lines[at]} ({below.strip()})"


@pytest.mark.parametrize(("case", "ike"), RUNS)
def test_each_cause_at_the_far_end_is_reported_with_what_to_do(
    pair: Pair, daemon: Daemon, case: Case, ike: Ike
) -> None:
    far = (
        case.far if ike is not Ike.AGGRESSIVE else replace(case.far, esp=case.far.esp.replace("-ecp256", ""))
    )
    far.load(pair, ike)
    daemon.put_key("a", key_file("a.lab", KEY_A, ike=ike))
    daemon.put_portal("san", policy(ike))
    daemon.start()
    line = reported(daemon, case.code)
    problem = daemon.row(ROW)["problem"]
    assert case.says in problem["message"]
    assert case.advises in problem["hint"]
    assert line == f"error: {ROW}: {problem['message']} ({problem['hint']})"


def test_aggressive_mode_that_the_far_end_has_disabled_is_named_with_its_option(
    pair: Pair, daemon: Daemon
) -> None:
    pair.target.kill()
    pair.target.set_option("aggressive_psk", "no")
    pair.target.start()
    FarEnd(esp="aes128-sha256").load(pair, Ike.AGGRESSIVE)
    daemon.put_key("a", key_file("a.lab", KEY_A, ike=Ike.AGGRESSIVE))
    daemon.put_portal("san", policy(Ike.AGGRESSIVE))
    daemon.start()
    line = reported(daemon, "auth-refused")
    assert "Aggressive Mode PSK disabled" in pair.target.log_text(), "for another reason"
    assert "aggressive mode is disabled" in line
    assert "i_dont_care_about_security_and_use_aggressive_mode_psk" in line


def test_on_the_target_role_disabled_aggressive_mode_is_named_with_its_option(
    pair: Pair, daemon: Daemon
) -> None:
    """The daemon is the far end here: it hears its own charon's word."""
    pair.initiator.kill()
    pair.initiator.set_option("aggressive_psk", "no")
    pair.initiator.start()
    daemon.put_key("b", key_file("b.lab", KEY_B, ike=Ike.AGGRESSIVE))
    daemon.put_portal(
        "own",
        f'portals = ["{INITIATOR}"]\nrole = "target"\ntarget_id = "target.lab"\ntarget_id_type = "ID_FQDN"\n'
        'ike_proposals = ["aes128-sha256-ecp256"]\n',
    )
    daemon.start()
    wait_until(lambda: our_connections(pair.initiator), "the portal is served", detail=daemon.tail)
    pair.target.load_conn(
        "c", connection(Ike.AGGRESSIVE, local=PORTAL, remote=INITIATOR, local_id=B, remote_id=TARGET)
    )
    pair.target.load_psk("k", KEY_B, [B, TARGET])
    assert not pair.target.initiate(ike="c")
    served = f"{INITIATOR}:3260"
    wait_until(lambda: "disabled" in problem_of(daemon, served), "it is reported", detail=daemon.tail)
    answer = daemon.cli("status")
    assert "i_dont_care_about_security_and_use_aggressive_mode_psk = yes" in answer.out


@pytest.mark.parametrize("ike", [Ike.V2, Ike.MAIN])
def test_on_the_target_role_a_peer_with_another_esp_proposal_is_reported(
    pair: Pair, daemon: Daemon, ike: Ike
) -> None:
    """The daemon is the far end here; the IKE SA comes up and its child does not."""
    daemon.put_key("b", key_file("b.lab", KEY_B, ike=ike))
    daemon.put_portal(
        "own",
        f'portals = ["{INITIATOR}"]\nrole = "target"\ntarget_id = "target.lab"\ntarget_id_type = "ID_FQDN"\n'
        'ike_proposals = ["aes128-sha256-ecp256"]\nesp_proposals = ["aes256gcm16-ecp384"]\n',
    )
    daemon.start()
    wait_until(lambda: our_connections(pair.initiator), "the portal is served", detail=daemon.tail)
    child = {
        "mode": "transport", "local_ts": ["dynamic[6]"], "remote_ts": ["dynamic[6/3260]"],
        "esp_proposals": ["aes128-sha256-ecp256"],
    }  # fmt: skip
    settings = connection(
        ike, local=PORTAL, remote=INITIATOR, local_id=B, remote_id=TARGET, child={"iscsi": child}
    )
    pair.target.load_conn("c", settings | {"proposals": ["aes128-sha256-ecp256"]})
    pair.target.load_psk("k", KEY_B, [B, TARGET])
    assert not pair.target.initiate(ike="c", child="iscsi")
    served = f"{INITIATOR}:3260"
    wait_until(
        lambda: problem_of(daemon, served).startswith("no-proposal"),
        "it is reported",
        detail=lambda: f"{daemon.tail()}\n{pair.initiator.tail()}",
    )


def problem_of(daemon: Daemon, portal: str = ROW) -> str:
    problem = daemon.row(portal).get("problem")
    return f"{problem['code']}: {problem['message']} ({problem['hint']})" if problem else ""


def test_a_silent_peer_is_first_a_warning_and_then_an_error(pair: Pair, daemon: Daemon) -> None:
    pair.target.kill()
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", policy(Ike.V2))
    daemon.start()

    def severity() -> str:
        problem = daemon.row(ROW).get("problem")
        return str(problem["severity"]) if problem and problem["code"] == "peer-silent" else ""

    wait_until(lambda: severity() == "warning", "a slow answer is no error yet", detail=daemon.tail)
    assert "is tried again" in problem_of(daemon)
    assert daemon.cli("status").rc == 0
    wait_until(lambda: severity() == "error", "silence that lasts is one", timeout=30, detail=daemon.tail)
    line = reported(daemon, "peer-silent")
    assert "does not answer IKE" in line
    assert "firewalls" in line
    assert f"ERROR {ROW}: the peer does not answer IKE" in daemon.tail()


def test_a_firewall_of_this_host_is_distinguished_from_a_silent_peer(pair: Pair, daemon: Daemon) -> None:
    node = pair.lab.node("initiator")
    node.run(["nft", "add table inet host"])
    node.run(["nft", "add chain inet host out { type filter hook output priority 0; }"])
    node.run(["nft", "add rule inet host out udp dport { 500, 4500 } drop"])
    try:
        daemon.put_key("a", key_file("a.lab", KEY_A))
        daemon.put_portal("san", policy(Ike.V2))
        daemon.start()
        wait_until(lambda: "unreachable" in problem_of(daemon), "it is reported", detail=daemon.tail)
        assert "firewall" in problem_of(daemon)
    finally:
        node.run(["nft", "delete table inet host"])


def test_a_portal_without_a_route_says_so(pair: Pair, daemon: Daemon) -> None:
    daemon.put_key("a", 'id_type = 1\nid = "10.10.0.1"\nkey = "a key of sixteen or more"\n')
    daemon.put_portal("san", 'portals = ["198.51.100.1"]\n')
    daemon.start()
    row = "198.51.100.1:3260"
    wait_until(lambda: "no-route" in problem_of(daemon, row), "it is reported", detail=daemon.tail)
    assert "ip route get" in problem_of(daemon, row)


def test_a_name_that_does_not_resolve_says_so(pair: Pair, daemon: Daemon) -> None:
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", 'portals = ["san.invalid"]\n')
    daemon.start()

    def line() -> str:
        out = daemon.cli("status").out
        return printed(out, "san.invalid") if "san.invalid" in out else ""

    wait_until(line, "it is reported", timeout=30, detail=daemon.tail)
    assert "DNS" in line()


def test_an_sa_that_the_kernel_asked_for_once_is_retried_long_before_its_next_request(
    pair: Pair, daemon: Daemon
) -> None:
    """A trap's acquire leaves a larval state for 165 s, in which the kernel does not ask again."""
    node = pair.lab.node("initiator")
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", policy(Ike.V2).replace('start = "start"\n', ""))
    daemon.start()
    # charon sets it by its retransmissions: 165 s by default, and almost nothing in this lab
    node.run(["sysctl", "-q", "-w", "net.core.xfrm_acq_expires=165"])
    wait_until(
        lambda: "3260" in node.ip("xfrm", "policy").out, "the trap is in the kernel", detail=daemon.tail
    )
    assert not pair.target.log_text().count("IKE_SA_INIT")
    node.run(["timeout", "1", "bash", "-c", f"exec 3<>/dev/tcp/{PORTAL}/3260"], check=False)
    # the far end knows nobody, so the first attempt fails at once
    reported(daemon, "no-proposal")
    assert "spi 0x00000000" in node.ip("xfrm", "state").out, "no larval state: nothing to test"
    mark = pair.target.log_mark()
    FarEnd().load(pair, Ike.V2)
    wait_until(
        lambda: "selected proposal: ESP" in pair.target.log_text(mark), "a later attempt succeeds", timeout=30,
        detail=daemon.tail,
    )  # fmt: skip
