"""Which key the running daemon takes, while addresses, routes and links change under it.

Passes without a reason are half a minute apart, so what is seen here was heard.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.admin import PORTAL, ROW, group_file, key_file, our_connections, portal_file
from tests.support.ike import KEY_A, KEY_B, KEY_GROUP
from tests.support.netlab import Charon, Daemon, wait_until

HERE, HERE_TOO = "10.10.0.1", "10.10.0.77"
IQN = "iqn.2026-01.lab:disk"
# behind a second interface, which each test makes for itself
SAN, SAN_PORTAL, SAN_HERE = "san1", "10.30.0.2", "10.30.0.1"
SAN_ROW = f"{SAN_PORTAL}:3260"


@pytest.fixture(autouse=True)
def as_it_was(daemon: Daemon) -> Iterator[None]:
    """Whatever a test did to the node's links and routes is undone."""
    yield
    daemon.node.ip("link", "del", SAN, check=False)
    daemon.node.ip("route", "flush", "exact", f"{PORTAL}/32", check=False)
    daemon.node.ip("address", "del", f"{HERE_TOO}/24", "dev", "eth0", check=False)


def address_key(address: str, key: bytes) -> str:
    return f'id_type = "ID_IPV4_ADDR"\nid = "{address}"\nkey = "{key.decode()}"\n'


def node_record(daemon: Daemon, address: str, *, iface: str = "") -> None:
    """The record that open-iscsi writes at discovery, bound to an interface or not."""
    name = iface or "default"
    path = daemon.nodes / "nodes" / IQN / f"{address},3260,1" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    bound = f"iface.net_ifacename = {iface}\n" if iface else ""
    path.write_text(
        f"# BEGIN RECORD 2.1.8\nnode.name = {IQN}\niface.iscsi_ifacename = {name}\n{bound}"
        f"node.conn[0].address = {address}\nnode.conn[0].port = 3260\n# END RECORD\n"
    )


def second_interface(daemon: Daemon, *, address: str = SAN_HERE) -> None:
    """One that is up; its other end is here as well, and has no address."""
    daemon.node.ip("link", "add", SAN, "type", "veth", "peer", "name", "far-end")
    daemon.node.ip("link", "set", "far-end", "up")
    daemon.node.ip("link", "set", SAN, "up")
    if address:
        daemon.node.ip("address", "add", f"{address}/24", "dev", SAN)


def uses(daemon: Daemon, key: str, identity: str, portal: str = ROW) -> None:
    """The portal's row says so, and charon holds the connection."""

    def so() -> bool:
        row = daemon.row(portal)
        return (row.get("key"), row.get("identity"), row.get("ready")) == (key, identity, True)

    wait_until(so, f"{portal} uses {key} as {identity}", detail=daemon.tail)


def is_closed(daemon: Daemon, code: str, portal: str = ROW) -> str:
    """The portal has no connection but this problem, and the kernel's guard holds it; the problem's words."""

    def so() -> bool:
        return (daemon.row(portal).get("problem") or {}).get("code") == code

    wait_until(so, f"{portal} is closed for {code}", detail=daemon.tail)
    row = daemon.row(portal)
    assert (row["connection"], row["closed"]) == (None, True)
    table = daemon.node.run(["nft", "list", "set", "inet", "iscsi_ipsec", "portals4"]).out
    assert f"{portal.rpartition(':')[0]} . 3260" in table
    return str(row["problem"]["message"])


def put_keys(daemon: Daemon) -> None:
    """Of either address, of a name, of the group."""
    daemon.put_key("one", address_key(HERE, KEY_A))
    daemon.put_key("two", address_key(HERE_TOO, KEY_B))
    daemon.put_key("group", group_file(KEY_GROUP))


def test_the_key_of_the_route_source_address_follows_the_route(charon: Charon, daemon: Daemon) -> None:
    put_keys(daemon)
    daemon.put_portal("san", portal_file())
    daemon.start()
    uses(daemon, "one", HERE)
    daemon.node.add_address(HERE_TOO)
    daemon.node.ip("route", "add", f"{PORTAL}/32", "dev", "eth0", "src", HERE_TOO)
    uses(daemon, "two", HERE_TOO)
    daemon.node.ip("route", "replace", f"{PORTAL}/32", "dev", "eth0", "src", HERE)
    uses(daemon, "one", HERE)
    assert len(our_connections(charon)) == 1


def test_an_address_that_goes_takes_its_key_with_it(daemon: Daemon) -> None:
    put_keys(daemon)
    daemon.put_portal("san", portal_file())
    daemon.node.add_address(HERE_TOO)
    daemon.node.ip("route", "add", f"{PORTAL}/32", "dev", "eth0", "src", HERE_TOO)
    daemon.start()
    uses(daemon, "two", HERE_TOO)
    daemon.node.ip("address", "del", f"{HERE_TOO}/24", "dev", "eth0")  # the kernel drops the route as well
    uses(daemon, "one", HERE)


def test_an_address_that_comes_opens_the_way_and_its_loss_closes_the_portal(daemon: Daemon) -> None:
    put_keys(daemon)
    daemon.put_portal("san", portal_file(SAN_PORTAL))
    second_interface(daemon, address="")
    daemon.start()
    is_closed(daemon, "no-route", SAN_ROW)
    daemon.node.ip("address", "add", f"{SAN_HERE}/24", "dev", SAN)
    uses(daemon, "group", SAN_HERE, SAN_ROW)
    daemon.node.ip("address", "del", f"{SAN_HERE}/24", "dev", SAN)
    is_closed(daemon, "no-route", SAN_ROW)


def test_a_link_that_goes_down_closes_the_portal_until_it_is_up_again(daemon: Daemon) -> None:
    daemon.put_key("san", address_key(SAN_HERE, KEY_A))
    daemon.put_key("group", group_file(KEY_GROUP))
    daemon.put_portal("san", portal_file(SAN_PORTAL))
    second_interface(daemon)
    daemon.start()
    uses(daemon, "san", SAN_HERE, SAN_ROW)
    daemon.node.ip("link", "set", SAN, "down")
    is_closed(daemon, "no-route", SAN_ROW)
    daemon.node.ip("link", "set", SAN, "up")
    uses(daemon, "san", SAN_HERE, SAN_ROW)


def test_an_interface_that_appears_serves_the_record_that_is_bound_to_it(
    charon: Charon, daemon: Daemon
) -> None:
    daemon.put_key("san", address_key(SAN_HERE, KEY_A))
    daemon.put_key("one", address_key(HERE, KEY_B))
    daemon.put_portal("san", 'portals = ["10.30.0.0/24"]\n')
    node_record(daemon, SAN_PORTAL, iface=SAN)
    daemon.start()
    is_closed(daemon, "no-route", SAN_ROW)
    second_interface(daemon)
    uses(daemon, "san", SAN_HERE, SAN_ROW)
    assert our_connections(charon) == {f"iscsi-ipsec-{SAN_PORTAL}-3260-{SAN}"}
    daemon.node.ip("link", "del", SAN)
    is_closed(daemon, "no-route", SAN_ROW)


def test_the_interface_a_record_is_bound_to_decides_and_not_the_ordinary_route(daemon: Daemon) -> None:
    """Both interfaces reach the portal; the ordinary route leaves by eth0."""
    put_keys(daemon)
    daemon.put_key("san", address_key(SAN_HERE, KEY_A))
    daemon.put_portal("san", 'portals = ["10.10.0.0/24"]\n')
    node_record(daemon, PORTAL, iface=SAN)
    second_interface(daemon)
    daemon.node.ip("route", "add", f"{PORTAL}/32", "dev", SAN, "metric", "900")
    daemon.start()
    uses(daemon, "san", SAN_HERE)


def test_a_policy_says_which_key_whatever_the_source_address(daemon: Daemon) -> None:
    put_keys(daemon)
    daemon.put_key("named", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file(psk="named"))
    daemon.start()
    uses(daemon, "named", "a.lab")
    daemon.put_portal("san", portal_file())
    uses(daemon, "one", HERE)


def test_the_only_name_is_taken_and_two_are_an_error_that_names_the_files(daemon: Daemon) -> None:
    daemon.put_key("group", group_file(KEY_GROUP))
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file())
    daemon.start()
    uses(daemon, "a", "a.lab")
    second = daemon.put_key("b", key_file("b.lab", KEY_B))
    reported = is_closed(daemon, "ambiguous-key")
    assert str(daemon.psk / "a.toml") in reported
    assert str(second) in reported
    second.unlink()
    uses(daemon, "a", "a.lab")
