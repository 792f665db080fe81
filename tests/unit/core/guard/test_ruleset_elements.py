"""What the guard held can be read back from its file."""

from __future__ import annotations

from iscsi_ipsec.base.portal import parse_portal
from iscsi_ipsec.core.guard.ruleset import guard_table, parse_elements


def test_the_portals_of_a_guard_are_read_back_from_its_text() -> None:
    guarded = (parse_portal("10.0.0.20"), parse_portal("10.0.0.21:3261"), parse_portal("[fd00::20]:3260"))
    served = (parse_portal("10.9.0.1"),)
    assert parse_elements(guard_table(guarded, served, ["ipsec0"])) == (guarded, served)


def test_the_first_and_the_last_port_are_read_back_and_no_other_number() -> None:
    text = "set portals4 { elements = { %s } }"
    for port, read in ((0, False), (1, True), (65535, True), (65536, False)):
        found, _ = parse_elements(text % f"10.0.0.1 . {port}")
        assert [str(portal) for portal in found] == ([f"10.0.0.1:{port}"] if read else [])


def test_a_text_that_is_no_guard_holds_no_portals() -> None:
    assert parse_elements("set portals4 { elements = { x . y, 10.0.0.1 . 99999, 10.0.0.1 . z } }") == ((), ())
    assert parse_elements("") == ((), ())
