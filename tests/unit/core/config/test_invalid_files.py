"""Files with mistakes that were never good: nothing of them is in force, and what they mean stays closed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.portal import parse_portal_pattern
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.config.invalid_files import BrokenFile, read_broken
from tests.support.values import (
    CLEAR,
    SOURCE,
    TARGET,
    broken,
    derived,
    group,
    per_id,
    policy,
    portal,
    record,
    session,
    view_of,
)


def key(*portals: str) -> tuple[BrokenFile, ...]:
    return broken(*portals, is_policy=False)


@pytest.mark.parametrize(
    ("parts", "files"),
    [
        ((), broken(TARGET)),
        ((), broken(f"{TARGET}:3260", "10.0.0.21:3261")),
        ((record(),), broken("10.0.0.0/24")),
        ((session(),), broken("10.0.0.0/24")),
        ((record(),), key()),
        ((record(),), key(TARGET)),
    ],
)
def test_what_only_a_broken_file_covers_is_closed_and_the_file_named(parts: Any, files: Any) -> None:
    desired = derived(*parts, broken=files)
    view = view_of(desired)
    assert (view.closed, view.connection) == (True, None)
    assert portal() in desired.guarded
    assert view.reasons[-1] == "the/file.toml means it, but has a mistake: closed until that is mended"
    assert view.problem == Problem(
        code="broken-file",
        message=f"the/file.toml means {TARGET}:3260, but has a mistake, so {TARGET}:3260 stays closed",
        hint="mend the file: iscsi-ipsec check the/file.toml",
        file="the/file.toml",
        portal=f"{TARGET}:3260",
    )


def test_it_is_not_said_that_no_policy_names_what_a_broken_policy_names() -> None:
    assert view_of(derived(broken=broken(TARGET))).reasons == (
        "policy the/file.toml means it, but has a mistake: nothing of it is in force",
        "no key applies",
        "the/file.toml means it, but has a mistake: closed until that is mended",
    )
    assert view_of(derived(record(), broken=key(TARGET))).reasons[0] == "no policy names this portal"
    covered = view_of(derived(policy(), per_id(SOURCE), broken=broken(TARGET)))
    assert (
        covered.reasons[1]
        == "policy the/file.toml means it too, but has a mistake: nothing of it is in force"
    )


def test_it_is_not_held_when_the_broken_file_goes() -> None:
    assert not view_of(derived(broken=broken(TARGET))).managed
    assert view_of(derived(broken=broken(TARGET), previously_managed=[TARGET])).managed


def test_a_network_of_a_broken_policy_is_closed_before_anybody_names_a_portal_in_it() -> None:
    assert derived(broken=broken("10.0.0.0/24")).networks == (parse_portal_pattern("10.0.0.0/24"),)
    assert derived(broken=key("10.0.0.0/24")).networks == ()


@pytest.mark.parametrize("parts", [(group(), record()), (per_id(SOURCE), policy())])
def test_what_another_file_protects_goes_on(parts: Any) -> None:
    assert (
        derived(*parts, broken=broken(TARGET) + key()) == derived(*parts)
        or view_of(derived(*parts, broken=broken(TARGET) + key())).connection
    )


def test_a_clear_policy_that_is_good_is_believed() -> None:
    assert not view_of(derived(policy(flags=CLEAR), broken=key())).closed


@pytest.mark.parametrize("files", [broken("10.0.0.99"), broken(f"{TARGET}:3261"), key("10.0.0.99")])
def test_what_the_broken_file_does_not_mean_is_left_alone(files: Any) -> None:
    assert not view_of(derived(record(), broken=files)).closed


def test_a_served_portal_of_a_broken_policy_is_closed() -> None:
    desired = derived(broken=broken("10.0.0.0/24", role=Role.TARGET))
    assert desired.local_portals == (portal(SOURCE),)
    assert desired.guarded == ()


def test_a_served_portal_of_a_broken_policy_is_held_if_it_was_before() -> None:
    files = broken(SOURCE, role=Role.TARGET)
    for previously_managed in ([], [(SOURCE, Role.TARGET)]):
        (view,) = derived(broken=files, previously_managed=previously_managed).portals
        assert (view.role, view.managed, view.closed) == (Role.TARGET, bool(previously_managed), True)
        assert view.problem
        assert view.problem.code == "broken-file"


def test_broken_policies_of_one_served_portal_are_reported_once_by_the_first() -> None:
    first, second = broken(SOURCE, "10.0.0.0/24", role=Role.TARGET), broken(SOURCE, role=Role.TARGET)
    desired = derived(broken=first + tuple(replace(file, path="other.toml") for file in second))
    (view,) = [view for view in desired.portals if view.role is Role.TARGET]
    assert view.problem
    assert view.problem.file == "the/file.toml"


def test_a_name_in_a_broken_policy_is_closed_where_it_leads() -> None:
    desired = derived(broken=broken("san.example.com"), names={"san.example.com": [TARGET]})
    assert desired.guarded == (portal(),)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("portal", 'portals = ["10.0.0.20"]\nnonsense = 1', (Role.INITIATOR, True, [TARGET])),
        (
            "portal",
            f'portals = ["bad portal", "{TARGET}", 7]\nrole = "target"',
            (Role.TARGET, True, [TARGET]),
        ),
        ("portal", f'portals = ["{TARGET}"]\nrole = 7', (Role.INITIATOR, True, [TARGET])),
        ("psk", 'id = "*"\nkey = "x"', (Role.INITIATOR, False, [])),
        ("psk", f'id = "*"\nportals = ["{TARGET}"]\nrole = "target"', (Role.INITIATOR, False, [TARGET])),
    ],
)
def test_it_means_the_portals_that_can_be_read(kind: str, text: str, expected: Any) -> None:
    found = read_broken(kind, text, "f")
    assert found
    assert (found.role, found.is_policy) == expected[:2]
    assert found.patterns == tuple(map(parse_portal_pattern, expected[2]))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("portal", "portals = ["),
        ("portal", 'security_flags = "x"'),
        ("portal", 'portals = "10.0.0.20"'),
        ("portal", 'portals = ["bad portal"]'),
        ("psk", "key = "),
        ("psk", ""),
        ("psk", 'portals = ["bad portal"]'),
        ("settings", 'portals = ["10.0.0.20"]'),
    ],
)
def test_it_means_nothing_where_no_portal_can_be_read(kind: str, text: str) -> None:
    assert read_broken(kind, text, "f") is None


def test_an_own_address_is_not_closed() -> None:
    assert not view_of(derived(broken=broken(SOURCE)), SOURCE).closed
