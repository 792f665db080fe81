"""Key files dropped one after the other while the daemon runs; the far end says which key was used."""

from __future__ import annotations

import pytest

from tests.support.admin import FLAGS, our_connections, our_secrets
from tests.support.ike import Ike
from tests.support.netlab import Daemon, wait_until
from tests.support.pair import Pair
from tests.support.reached import KEYS, REACHED, awaiting, established, expected_of

# every key comes first once, and last once; all 24 orders, without the daemon: test_key_orders.py
ORDERS = [
    ("a", "b", "s", "group"),
    ("group", "s", "b", "a"),
    ("s", "group", "a", "b"),
    ("b", "a", "group", "s"),
]


def key_text(name: str, ike: Ike) -> str:
    flags = f'key = "{KEYS[name].decode()}"\nsecurity_flags = {FLAGS[ike]}\n'
    if name == "group":
        return f"group = true\n{flags}"
    (reached,) = [r for r in REACHED if r.key == name]
    kind = "ID_FQDN" if reached.identity.endswith(".lab") else "ID_IPV4_ADDR"
    return f'id_type = "{kind}"\nid = "{reached.identity}"\nportals = ["{reached.address}"]\n{flags}'


@pytest.mark.parametrize("ike", list(Ike), ids=lambda ike: ike.name)
def test_whatever_file_comes_first_each_portal_gets_its_own_key_or_the_groups(
    pair: Pair, daemon: Daemon, ike: Ike
) -> None:
    for reached in REACHED:
        pair.lab.node("target").ip("address", "replace", f"{reached.address}/24", "dev", "eth0")
        daemon.put_portal(
            f"san-{reached.address}",
            f'portals = ["{reached.address}"]\nike_proposals = ["aes128-sha256-ecp256"]\n',
        )
    daemon.start()
    for order in ORDERS:
        for count in range(1, 5):
            daemon.put_key(order[count - 1], key_text(order[count - 1], ike))
            expected = expected_of(order[:count])
            wait_until(
                lambda wanted=expected: (
                    {  # type: ignore[misc]  # mypy infers no defaults of lambdas
                        (row["portal"].removesuffix(":3260"), row["identity"], row["key"])
                        for row in daemon.status()["portals"]
                        if row["ready"]
                    }
                    == {(reached.address, *who) for reached, who in wanted.items()}
                ),
                f"{order[:count]} are in force",
                detail=daemon.tail,
            )
        expected = expected_of(order)
        for command, message in awaiting(ike, expected):
            with pair.target.vici() as session:
                session.load_shared(message) if command == "load-shared" else session.load_conn(message)
        mark = pair.target.log_mark()
        for name in our_connections(pair.initiator):
            pair.initiator.start_initiate(ike=name)
        must = {(reached.address, ident) for reached, (ident, _) in expected.items()}
        wait_until(
            lambda mark=mark, must=must: established(pair.target.log_text(mark)) == must,  # type: ignore[misc]  # as above
            f"{must} are established after dropping {order}",
            detail=pair.target.tail,
        )
        for name in order:
            (daemon.psk / f"{name}.toml").unlink()
        wait_until(
            lambda: not our_secrets(pair.initiator) and not our_connections(pair.initiator),
            "nothing is left of the keys",
            detail=daemon.tail,
        )
        pair.forget()
