"""PFS that the peer does not want shows in IKEv2 only when the SA is renewed: it is reported then, not ignored."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ike import KEY_A, TARGET, A
from tests.support.netlab import Charon, Daemon, Esp, Lab, available_esp, wait_until

pytestmark = pytest.mark.skipif(
    available_esp() is Esp.NONE, reason="neither kernel nor charon can do ESP here"
)


@pytest.fixture
def ends(lab: Lab) -> Iterator[tuple[Daemon, Charon, Charon]]:
    """The daemon with its charon, and the far charon; both do ESP, in tunnel mode between inner addresses."""
    here, there = lab.node("initiator"), lab.node("target")
    here.route(there.at.inner_v4, via=there.at.v4, source=here.at.inner_v4)
    there.route(here.at.inner_v4, via=here.at.v4, source=there.at.inner_v4)
    ours, far = lab.charon("initiator"), lab.charon("target")
    daemon = lab.daemon("initiator", ours)
    yield daemon, ours, far
    daemon.close()
    here.run(["nft", "delete", "table", "inet", "iscsi_ipsec"], check=False)
    for charon in (ours, far):
        charon.kill()


def far_end(far: Charon, daemon: Daemon, esp: str) -> None:
    here, there = daemon.node, far.node
    child = {
        "mode": "tunnel",
        "local_ts": [f"{there.at.inner_v4}/32[6/3260]"],
        "remote_ts": [f"{here.at.inner_v4}/32[6]"],
        "esp_proposals": [esp],
    }
    far.load_conn(
        "c",
        {
            "version": "2",
            "local_addrs": [there.at.v4],
            "remote_addrs": [here.at.v4],
            "proposals": ["aes128-sha256-ecp256"],
            "local": {"auth": "psk", "id": TARGET},
            "remote": {"auth": "psk", "id": A},
            "children": {"c": child},
        },
    )
    far.load_psk("k", KEY_A, [A])


def protected(daemon: Daemon) -> dict[str, object]:
    (row,) = daemon.status()["portals"] or [{}]
    return dict(row) if row.get("protected") else {}


@pytest.mark.parametrize(("esp", "reported"), [("aes128gcm16", True), ("aes128gcm16-ecp256", False)])
def test_a_peer_without_pfs_is_a_problem_as_soon_as_the_sa_is_renewed(
    ends: tuple[Daemon, Charon, Charon], esp: str, reported: bool
) -> None:
    daemon, ours, far = ends
    far_end(far, daemon, esp)
    portal = far.node.at.inner_v4
    daemon.put_settings('guard_devices = ["ipsec0"]\n')
    daemon.put_key("a", f'id_type = "ID_FQDN"\nid = "a.lab"\nkey = "{KEY_A.decode()}"\n')
    daemon.put_portal(
        "san",
        f'portals = ["{portal}"]\ntunnel_outer_remote = "{far.node.at.v4}"\ntarget_id = "target.lab"\n'
        'security_flags = ["VALID", "IKE_IPSEC_ENABLED", "TUNNEL_MODE_PREFERRED", "PFS_ENABLED"]\nstart = "start"\n'
        'ike_proposals = ["aes128-sha256-ecp256"]\nesp_proposals = ["aes128gcm16-ecp256"]\n',
    )
    daemon.start()
    row = wait_until(lambda: protected(daemon), "the SA is up", detail=daemon.tail)
    assert row["problem"] is None  # the first SA has no exchange of its own: nobody could know
    mark = ours.log_mark()
    with ours.vici() as session:
        session.rekey({"child": row["child"]})

    def problem() -> object:
        (now,) = daemon.status()["portals"]
        return now["problem"]

    if reported:
        said = wait_until(problem, "it is reported", detail=ours.tail)
        assert isinstance(said, dict)
        assert said["code"] == "no-proposal"
        assert "renewing it fails" in said["message"]
    else:
        wait_until(
            lambda: "closed" in ours.log_text(mark) and protected(daemon),
            "the SA is renewed",
            detail=ours.tail,
        )
        assert problem() is None
