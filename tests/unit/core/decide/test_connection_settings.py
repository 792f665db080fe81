"""Names of connections and their ESP mode, for both roles."""

from __future__ import annotations

import dataclasses
import ipaddress

import pytest

from iscsi_ipsec.base.policy import EspMode, Role
from iscsi_ipsec.base.portal import Portal, PortalRange
from iscsi_ipsec.core.decide.connection_settings import connection_name, host_selector
from iscsi_ipsec.core.decide.derive import derive
from iscsi_ipsec.core.decide.lookup import Lookup
from tests.support.values import (
    SOURCE,
    TARGET,
    address,
    choice,
    derived,
    group,
    managed,
    per_id,
    policy,
    portal,
    record,
    refused,
    view_of,
    world,
)

# -- ESP mode


def test_esp_mode_refuses_a_keys_transport_flag_with_an_outer_address() -> None:
    outer = policy(tunnel_outer_remote=address("203.0.113.1"))
    view = view_of(derived(per_id("db1", flags=choice(esp=EspMode.TRANSPORT)), outer))
    refused(view, "outer-without-tunnel", f"{TARGET}:3260 has a tunnel outer", "TUNNEL_MODE_PREFERRED")


def test_esp_mode_refuses_transport_mode_on_user_space_esp() -> None:
    flags = choice(esp=EspMode.TRANSPORT)
    view = view_of(derived(per_id(SOURCE, flags=flags, portals=[TARGET]), user_space_esp=True))
    refused(view, "no-transport-mode", f"{TARGET}:3260 asks for transport", "TUNNEL_MODE_PREFERRED", file="")
    of_policy = managed(per_id(SOURCE), policy(flags=flags), record(), user_space_esp=True)
    refused(view_of(of_policy), "no-transport-mode", "kernel-libipsec", "TUNNEL_MODE_PREFERRED")


def test_connection_name_is_made_of_portal_interface_and_peer() -> None:
    assert connection_name(portal("10.0.0.20")) == "iscsi-ipsec-10.0.0.20-3260"
    assert connection_name(portal("[fd00::20]:3261"), "ens4") == "iscsi-ipsec-fd00::20-3261-ens4"
    assert connection_name(portal("10.0.0.1"), peer="db1") == "iscsi-ipsec-10.0.0.1-3260-db1"


def test_host_selector_is_a_network_of_one_address() -> None:
    assert [host_selector(address(text)) for text in ("10.0.0.1", "fd00::1")] == [
        "10.0.0.1/32",
        "fd00::1/128",
    ]


@pytest.mark.parametrize("role", Role)
def test_address_identity_refuses_an_address_of_no_single_host_and_the_portal_stays_closed(
    role: Role,
) -> None:
    """It cannot be named in a file; a version before this one may have remembered it, and a policy may serve it."""
    nobody = Portal(ipaddress.ip_address("0.0.0.0"))  # noqa: S104  # what must be refused
    pattern = PortalRange(ipaddress.ip_network("0.0.0.0/32"))
    of = dataclasses.replace(
        world(group(), per_id("db1"), policy(role=role)), previously_managed=frozenset({(nobody, role)})
    )
    of = dataclasses.replace(of, policies=(dataclasses.replace(of.policies[0], patterns=(pattern,)),))
    (view,) = [v for v in derive(Lookup(of)).portals if v.binding.portal == nobody]
    assert (view.closed, view.connection) == (True, None)
    assert view.problem is not None
    assert view.problem.code == "bad-address"
