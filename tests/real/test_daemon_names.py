"""A host name that answers otherwise than before (round robin, split views) takes nothing from sessions that use its old address."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.test_daemon_unencrypted import GOOD, ends, far_end  # noqa: F401  # a fixture, found by its name here
from tests.support.admin import known_to_open_iscsi
from tests.support.netlab import Charon, Daemon, wait_until

ELSEWHERE = "10.10.0.99"


def answer(hosts: Path, *addresses: str) -> None:
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} san.lab\n" for address in addresses))


@pytest.mark.parametrize("used", [True, False], ids=["used", "unused"])
def test_an_address_that_a_name_no_longer_has_keeps_policy_key_and_sa_while_a_record_uses_it(
    ends: tuple[Daemon, Charon, Charon],  # noqa: F811
    hosts: Path,
    used: bool,
) -> None:
    daemon, ours, far = ends
    portal = far.node.at.inner_v4
    answer(hosts, portal)
    far_end(far, daemon, GOOD)
    daemon.put_portal(
        "san",
        f'portals = ["san.lab"]\ntunnel_outer_remote = "{far.node.at.v4}"\ntarget_id = "target.lab"\n'
        'security_flags = ["VALID", "IKE_IPSEC_ENABLED", "TUNNEL_MODE_PREFERRED", "PFS_ENABLED"]\nstart = "start"\n'
        f'ike_proposals = ["aes128-sha256-ecp256"]\nesp_proposals = ["{GOOD}"]\n',
    )
    if used:
        known_to_open_iscsi(daemon, portal)
    daemon.start()
    wait_until(lambda: daemon.row(f"{portal}:3260").get("protected"), "the SA is up", detail=daemon.tail)
    daemon.settle()
    before = daemon.row(f"{portal}:3260")
    answer(hosts, ELSEWHERE)
    daemon.cli("clear-cache", check=False)  # asks DNS anew
    wait_until(
        lambda: daemon.row(f"{ELSEWHERE}:3260"), "the new answer is known", timeout=30, detail=daemon.tail
    )
    daemon.settle()
    row = daemon.row(f"{portal}:3260")
    assert row["closed"], "what was managed stays closed either way"
    if used:
        assert (row["protected"], row["key"], row["policy"]) == (True, before["key"], before["policy"])
        assert row["sa"]["child_id"] == before["sa"]["child_id"], "it is the very same SA"
        assert len(ours.children()) == 1
    else:
        assert (row["protected"], row["problem"]["code"]) == (False, "orphaned")
