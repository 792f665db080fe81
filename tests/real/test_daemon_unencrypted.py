"""ESP that encrypts nothing is an error wherever it comes from, and is never called protected."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import pytest

from tests.support.ike import KEY_A, TARGET, A
from tests.support.netlab import Charon, Daemon, Esp, Lab, available_esp, wait_until

pytestmark = pytest.mark.skipif(
    available_esp() is Esp.NONE, reason="neither kernel nor charon can do ESP here"
)

GOOD, NULL = "aes128gcm16-ecp256", "null-sha256-modp2048"


@pytest.fixture
def ends(lab: Lab) -> Iterator[tuple[Daemon, Charon, Charon]]:
    """The daemon with its charon, and the far charon; both do ESP, in tunnel mode between inner addresses."""
    here, there = lab.node("initiator"), lab.node("target")
    here.route(there.at.inner_v4, via=there.at.v4, source=here.at.inner_v4)
    there.route(here.at.inner_v4, via=here.at.v4, source=there.at.inner_v4)
    ours, far = lab.charon("initiator"), lab.charon("target")
    daemon = lab.daemon("initiator", ours)
    daemon.put_settings('guard_devices = ["ipsec0"]\n')
    daemon.put_key("a", f'id_type = "ID_FQDN"\nid = "a.lab"\nkey = "{KEY_A.decode()}"\n')
    yield daemon, ours, far
    daemon.close()
    here.run(["nft", "delete", "table", "inet", "iscsi_ipsec"], check=False)
    for charon in (ours, far):
        charon.kill()


def far_end(far: Charon, daemon: Daemon, *esp: str) -> None:
    """The array's admin allows these."""
    here, there = daemon.node, far.node
    child = {
        "mode": "tunnel", "local_ts": [f"{there.at.inner_v4}/32[6/3260]"], "remote_ts": [f"{here.at.inner_v4}/32[6]"],
        "esp_proposals": list(esp),
    }  # fmt: skip
    far.load_conn(
        "c",
        {
            "version": "2", "local_addrs": [there.at.v4], "remote_addrs": [here.at.v4],
            "proposals": ["aes128-sha256-ecp256"], "local": {"auth": "psk", "id": TARGET},
            "remote": {"auth": "psk", "id": A}, "children": {"c": child},
        },
    )  # fmt: skip
    far.load_psk("k", KEY_A, [A])


def put_policy(daemon: Daemon, far: Charon, *esp: str) -> None:
    listed = ", ".join(f'"{proposal}"' for proposal in esp)
    daemon.put_portal(
        "san",
        f'portals = ["{far.node.at.inner_v4}"]\ntunnel_outer_remote = "{far.node.at.v4}"\ntarget_id = "target.lab"\n'
        'security_flags = ["VALID", "IKE_IPSEC_ENABLED", "TUNNEL_MODE_PREFERRED", "PFS_ENABLED"]\nstart = "start"\n'
        f'ike_proposals = ["aes128-sha256-ecp256"]\nesp_proposals = [{listed}]\n',
    )


def row_of(daemon: Daemon, far: Charon) -> Mapping[str, Any]:
    return daemon.row(f"{far.node.at.inner_v4}:3260")


def refused(daemon: Daemon) -> dict[str, Any]:
    found = [p for p in daemon.status().get("problems", []) if p["code"] == "no-encryption"]
    return found[0] if found else {}


@pytest.mark.parametrize("esp", [(NULL,), (GOOD, NULL), ("aes128gmac-modp2048",)], ids="+".join)
def test_a_policy_that_offers_null_is_an_error_and_nothing_is_negotiated_by_it(
    ends: tuple[Daemon, Charon, Charon], esp: tuple[str, ...]
) -> None:
    daemon, ours, far = ends
    far_end(far, daemon, *esp)
    put_policy(daemon, far, *esp)
    daemon.start()
    problem = wait_until(lambda: refused(daemon), "the policy is refused", detail=daemon.tail)
    assert (problem["severity"], problem["line"], problem["file"]) == (
        "error",
        7,
        str(daemon.portal / "san.toml"),
    )
    daemon.settle()
    row = row_of(daemon, far)
    assert (row["closed"], row["protected"], row["ready"], row["sa"]) == (True, False, False, None)
    assert not ours.sas()
    shown = daemon.cli("status")
    assert (shown.rc, shown.out.splitlines()[1].split()[:2]) == (
        1,
        [f"{far.node.at.inner_v4}:3260", "broken-file"],
    )
    assert "0 protected" in shown.out
    said = daemon.cli("check")
    assert said.rc == 1
    assert "san.toml:7:" in said.out + said.err
    assert "anybody on the path could read the data" in said.out + said.err


def test_a_running_policy_that_is_changed_to_null_keeps_its_last_good_content(
    ends: tuple[Daemon, Charon, Charon],
) -> None:
    daemon, _, far = ends
    far_end(far, daemon, GOOD, NULL)
    put_policy(daemon, far, GOOD)
    daemon.start()
    wait_until(lambda: row_of(daemon, far).get("protected"), "the SA is up", detail=daemon.tail)
    put_policy(daemon, far, NULL)
    wait_until(lambda: refused(daemon), "the policy is refused", detail=daemon.tail)
    daemon.settle()
    row = row_of(daemon, far)
    assert (row["protected"], row["sa"]["cipher"]) == (True, "AES_GCM_16-128")
    assert daemon.cli("status").rc == 1


def test_an_sa_without_encryption_that_another_hand_made_is_not_protected_and_not_proven(
    ends: tuple[Daemon, Charon, Charon],
) -> None:
    """Under our connection's and child's names, so that the daemon takes it for its own."""
    daemon, ours, far = ends
    far_end(far, daemon, GOOD, NULL)
    put_policy(daemon, far, GOOD)
    daemon.start()
    row = wait_until(
        lambda: row if (row := row_of(daemon, far)).get("protected") else {},
        "the SA is up",
        detail=daemon.tail,
    )
    daemon.settle()
    assert daemon.cli("status").rc == 0
    name, child = row["connection"], row["child"]
    daemon.terminate()
    here, there = daemon.node, far.node
    ours.forget_sas()
    ours.load_conn(
        name,
        {
            "version": "2", "local_addrs": [here.at.v4], "remote_addrs": [there.at.v4], "proposals": ["aes128-sha256-ecp256"],
            "local": {"auth": "psk", "id": A}, "remote": {"auth": "psk", "id": TARGET},
            "children": {
                child: {
                    "mode": "tunnel", "local_ts": [f"{here.at.inner_v4}/32[6]"], "reqid": str(row["reqid"]),
                    "remote_ts": [f"{there.at.inner_v4}/32[6/3260]"], "esp_proposals": [NULL],
                }
            },
        },
    )  # fmt: skip
    assert ours.initiate(ike=name, child=child), ours.tail()
    daemon.start()
    shown = wait_until(
        lambda: now if (now := row_of(daemon, far)).get("sa") else {}, "the SA is seen", detail=daemon.tail
    )
    assert shown["sa"]["cipher"] == "NULL/HMAC_SHA2_256_128"
    assert (shown["protected"], shown["problem"]["code"], shown["problem"]["severity"]) == (
        False,
        "no-encryption",
        "error",
    )
    answer = daemon.cli("status")
    assert answer.rc == 1
    assert "protected" not in answer.out.split("\n")[1]
    cause = "missing: charon's SA uses NULL/HMAC_SHA2_256_128: packets are not encrypted"
    verify = daemon.cli("verify")
    assert (verify.rc, verify.out.splitlines()[0]) == (1, f"NOT PROVEN: portal {there.at.inner_v4}:3260")
    assert cause in verify.out
    address = (there.at.inner_v4, 3260)
    listener = there.inside(lambda: socket.create_server(address))
    with closing(listener), closing(here.inside(lambda: socket.create_connection(address, 5))):
        verify = daemon.cli("verify")
    assert (verify.rc, verify.out.partition(":")[0]) == (1, "NOT PROVEN")
    assert f"to {there.at.inner_v4}:3260" in verify.out.splitlines()[0]
    assert cause in verify.out


@pytest.mark.parametrize(
    ("esp", "cipher", "warned"),
    [
        ("aes256gcm128-ecp256", "AES_GCM_16-256", ""),
        ("aes-sha256-ecp256", "AES_CBC-128/HMAC_SHA2_256_128", ""),
        ("aes256-sha2_256-x25519", "AES_CBC-256/HMAC_SHA2_256_128", ""),
        ("3des-sha1-modp1024", "3DES_CBC/HMAC_SHA1_96", "3des, sha1, modp1024"),
        ("aes128-md5-modp1536", "AES_CBC-128/HMAC_MD5_96", "md5, modp1536"),
    ],
)
def test_an_alias_is_the_cipher_that_was_offered_and_what_can_be_broken_is_warned_about(
    ends: tuple[Daemon, Charon, Charon], esp: str, cipher: str, warned: str
) -> None:
    daemon, _, far = ends
    far_end(far, daemon, esp)
    put_policy(daemon, far, esp)
    daemon.start()
    wait_until(lambda: row_of(daemon, far).get("protected"), "the SA is up", detail=daemon.tail)
    row = row_of(daemon, far)
    assert (row["sa"]["cipher"], row["problem"]) == (cipher, None)
    weak = [p for p in daemon.status()["problems"] if p["code"] == "weak-proposal"]
    assert [(p["severity"], p["line"]) for p in weak] == ([("warning", 7)] if warned else [])
    said = daemon.cli("check")
    assert said.rc == 0
    assert (f"offers {warned}, which can be broken" in said.out + said.err) is bool(warned)
