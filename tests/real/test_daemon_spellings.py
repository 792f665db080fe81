"""One identity in two spellings, in a real charon: it compares names without regard to case."""

from __future__ import annotations

import pytest

from iscsi_ipsec.base.identity import IdType
from tests.support.admin import CONNECTION, PORTAL, ROW, our_secrets, portal_file, wait_for_connection
from tests.support.ike import KEY_A, KEY_B, TARGET, Ike, connection
from tests.support.netlab import Daemon, wait_until
from tests.support.pair import Pair

OTHER_ROW = f"{PORTAL}:3261"


def key_of(ident: str, kind: IdType, key: bytes, portal: str) -> str:
    return f'id_type = "{kind.name}"\nid = "{ident}"\nkey = "{key.decode()}"\nportals = ["{portal}"]\n'


def problem_of(daemon: Daemon, row: str) -> object:
    return (daemon.row(row).get("problem") or {}).get("code")


@pytest.mark.parametrize(
    ("kind", "lower", "upper"),
    [(IdType.ID_FQDN, "db1.lab", "DB1.Lab"), (IdType.ID_USER_FQDN, "db1@x.lab", "DB1@x.Lab")],
    ids=["fqdn", "user-fqdn"],
)
def test_two_keys_of_one_identity_in_two_spellings_are_refused_and_one_is_sent_as_written(
    pair: Pair, daemon: Daemon, kind: IdType, lower: str, upper: str
) -> None:
    daemon.put_portal("san", portal_file().replace(f'["{PORTAL}"]', f'["{PORTAL}", "{OTHER_ROW}"]'))
    one = daemon.put_key("one", key_of(lower, kind, KEY_B, OTHER_ROW))
    daemon.put_key("two", key_of(upper, kind, KEY_A, PORTAL))
    daemon.start()
    wait_until(
        lambda: {problem_of(daemon, row) for row in (ROW, OTHER_ROW)} == {"ambiguous-key"},
        "both portals are refused",
        detail=daemon.tail,
    )
    assert not our_secrets(pair.initiator)

    one.unlink()
    wait_for_connection(pair.initiator, daemon)
    ours = pair.lab.node("initiator").at.v4
    prefix = "fqdn:" if kind is IdType.ID_FQDN else "userfqdn:"
    # the far end knows the other spelling, and charon takes one for the other
    pair.target.load_conn(
        "far", connection(Ike.V2, local=PORTAL, remote=ours, local_id=TARGET, remote_id=prefix + lower)
    )
    pair.target.load_psk("far", KEY_A, [prefix + lower])
    assert pair.comes_up(CONNECTION)
    (sa,) = [tree for _, tree in pair.target.sas()]
    assert sa["remote-id"].decode() == upper
    assert daemon.row(ROW)["identity"] == upper
    pair.forget()
