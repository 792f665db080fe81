"""Files with mistakes that were never good: nothing of them is in force, and the portals that they name stay closed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.portal import parse_portal_pattern
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.config.invalid_files import (
    BrokenFile,
    BrokenSettings,
    read_broken,
    read_broken_settings,
)
from iscsi_ipsec.core.config.security_flags import SecurityFlags, interpret
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
    serves,
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
        ((record(),), key(TARGET)),
    ],
)
def test_a_portal_that_only_a_broken_file_covers_is_closed_and_the_file_named(parts: Any, files: Any) -> None:
    desired = derived(*parts, broken=files)
    view = view_of(desired)
    assert (view.closed, view.connection) == (True, None)
    assert portal() in desired.guarded
    assert view.reasons[-1] == "the/file.toml names it, but has a mistake: closed until the file is fixed"
    assert view.problem == Problem(
        code="broken-file",
        message=f"the/file.toml names {TARGET}:3260, but has a mistake, so {TARGET}:3260 stays closed",
        hint="fix the file: iscsi-ipsec check the/file.toml",
        file="the/file.toml",
        portal=f"{TARGET}:3260",
    )


def test_it_is_not_said_that_no_policy_names_what_a_broken_policy_names() -> None:
    assert view_of(derived(broken=broken(TARGET))).reasons == (
        "policy the/file.toml names it, but has a mistake: nothing of it is in force",
        "the/file.toml names it, but has a mistake: closed until the file is fixed",
    )
    assert view_of(derived(record(), broken=key(TARGET))).reasons[0] == "no policy names this portal"
    covered = view_of(derived(policy(), per_id(SOURCE), broken=broken(TARGET)))
    assert (
        covered.reasons[1]
        == "policy the/file.toml names it too, but has a mistake: nothing of it is in force"
    )


def test_it_is_not_held_when_the_broken_file_goes() -> None:
    assert not view_of(derived(broken=broken(TARGET))).managed
    assert view_of(derived(broken=broken(TARGET), previously_managed=[TARGET])).managed


def test_a_network_of_a_broken_policy_is_closed_before_anybody_names_a_portal_in_it() -> None:
    assert derived(broken=broken("10.0.0.0/24")).networks == (parse_portal_pattern("10.0.0.0/24"),)
    assert derived(broken=key("10.0.0.0/24")).networks == (parse_portal_pattern("10.0.0.0/24"),)


@pytest.mark.parametrize(
    "parts", [(group(portals=["10.0.0.0/24"]), record()), (per_id(SOURCE), policy())], ids=["key", "policy"]
)
@pytest.mark.parametrize(
    "files",
    [broken(TARGET), key(TARGET), broken("10.0.0.0/24"), key(TARGET) + broken("10.0.0.0/8")],
    ids=["policy", "key", "network", "both"],
)
def test_a_connection_of_a_good_file_goes_on_beside_a_broken_one(parts: Any, files: Any) -> None:
    assert (
        view_of(derived(*parts, broken=files)).connection == view_of(derived(*parts)).connection is not None
    )


@pytest.mark.parametrize("files", [broken(TARGET), key(TARGET)], ids=["policy", "key"])
@pytest.mark.parametrize(
    "parts",
    [
        (policy("10.0.0.0/24", flags=CLEAR), record()),
        (policy("any", flags=CLEAR), group(), record()),
        (group(portals=["10.0.0.0/24"], flags=CLEAR), record()),
        (policy("any"), group(flags=CLEAR), record()),
    ],
    ids=["network", "any", "key", "policy and key"],
)
def test_a_broken_file_that_names_a_portal_closes_it_whatever_a_wider_good_file_says(
    parts: Any, files: Any
) -> None:
    assert not view_of(derived(*parts)).closed
    desired = derived(*parts, broken=files)
    assert (view_of(desired).closed, view_of(desired).connection) == (True, None)
    assert portal() in desired.guarded
    problem = view_of(desired).problem
    assert problem
    assert problem.code == "broken-file"


@pytest.mark.parametrize(
    ("good", "files"),
    [
        (TARGET, broken("10.0.0.0/24")),
        (TARGET, key("10.0.0.0/24")),
        (TARGET, key(TARGET)),
        ("10.0.0.0/24", broken("10.0.0.0/8")),
        ("10.0.0.0/24", key("any")),
    ],
)
def test_a_broken_file_closes_nothing_that_a_good_one_names_more_narrowly(good: str, files: Any) -> None:
    assert not view_of(derived(policy(good, flags=CLEAR), record(), broken=files)).closed


@pytest.mark.parametrize(("name", "closed"), [("aaa", False), ("zzz", True)])
def test_of_two_policies_for_one_portal_the_broken_one_closes_it_if_it_comes_first(
    name: str, closed: bool
) -> None:
    assert view_of(derived(policy(name=name, flags=CLEAR), broken=broken(TARGET))).closed is closed


def test_a_broken_policy_beats_the_flags_of_a_key_as_a_good_one_would() -> None:
    of_key = (group(portals=[TARGET], flags=CLEAR),)
    assert not view_of(derived(*of_key)).closed
    assert view_of(derived(*of_key, broken=broken("10.0.0.0/8"))).closed
    assert view_of(derived(*of_key, broken=key(TARGET) + broken("10.0.0.0/8"))).closed


@pytest.mark.parametrize(("patterns", "closed"), [([SOURCE], False), (["10.0.0.0/24"], True)])
def test_a_broken_target_policy_closes_what_a_wider_good_one_serves_unencrypted(
    patterns: list[str], closed: bool
) -> None:
    good = serves(*patterns, name="aaa", flags=CLEAR)
    assert derived(good, per_id("db1")).local_portals == ()
    desired = derived(good, per_id("db1"), broken=broken(SOURCE, role=Role.TARGET))
    assert desired.local_portals == ((portal(SOURCE),) if closed else ())


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
    desired = derived(broken=first + tuple(replace(file, path="the/other.toml") for file in second))
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
        ("portal", 'portals = "10.0.0.20"', (Role.INITIATOR, True, [TARGET])),
        ("portal", f'portals = ["{TARGET}"]\nnonsense', (Role.INITIATOR, True, [TARGET])),
        ("psk", f'key = "x\nportals = ["{TARGET}"]\n]', (Role.INITIATOR, False, [TARGET])),
        ("psk", f'key.{"a." * 200}a = 1\nportals = ["{TARGET}"]', None),
        ("psk", f'id = "*"\nportals = ["{TARGET}"]\nrole = "target"', (Role.INITIATOR, False, [TARGET])),
    ],
)
def test_it_means_the_portals_that_can_be_read(kind: str, text: str, expected: Any) -> None:
    found = read_broken(kind, text, "f")
    if expected is None:
        assert found == ()
        return
    assert [(file.role, file.is_policy) for file in found] == [expected[:2]]
    assert found[0].patterns == tuple(map(parse_portal_pattern, expected[2]))


@pytest.mark.parametrize("role", ['"targte"', "7", '["target"]'])
def test_a_role_that_cannot_be_read_closes_the_portal_in_both(role: str) -> None:
    found = read_broken("portal", f'portals = ["{TARGET}"]\nrole = {role}', "f")
    assert {file.role for file in found} == set(Role)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("require_ipsec = true\nresync_intervall = 10", BrokenSettings(require_ipsec=True)),
        ("require_ipsec = true\nthis is no TOML", BrokenSettings(require_ipsec=True)),
        ('require_ipsec = "true"', BrokenSettings(require_ipsec=True)),
        ('[defaults]\nstart = "trap"\nrequire_ipsec = true', BrokenSettings(require_ipsec=True)),
        ("guard = true\nx = 1", BrokenSettings(guard=True)),
        ("[defaults]\nsecurity_flags = 0x13\nx = 1", BrokenSettings(choice=interpret(SecurityFlags(0x13)))),
        (
            '[defaults]\nsecurity_flags = ["VALID", "IKE_IPSEC_ENABLED"]\nx = 1',
            BrokenSettings(choice=interpret(SecurityFlags(0x03))),
        ),
        ("require_ipsec = false\nguard = false\nx = 1", None),
        ('[defaults]\nsecurity_flags = ["VALID"]\nx = 1', None),
        ('[defaults]\nsecurity_flags = ["NONSENSE"]', None),
        ("x = 1", None),
        ("", None),
    ],
)
def test_a_broken_settings_file_says_what_closes(text: str, expected: BrokenSettings | None) -> None:
    assert read_broken_settings(text) == expected


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("portal", "portals = ["),
        ("portal", 'security_flags = "x"'),
        ("portal", 'portals = ["bad portal"]'),
        ("psk", "key = "),
        ("psk", ""),
        ("psk", 'id = "*"\nkey = "x"'),
        ("psk", 'portals = ["bad portal"]'),
        ("settings", 'portals = ["10.0.0.20"]'),
    ],
)
def test_it_means_nothing_where_no_portal_can_be_read(kind: str, text: str) -> None:
    assert read_broken(kind, text, "f") == ()


def test_an_own_address_stays_closed_and_is_no_problem() -> None:
    view = view_of(derived(broken=broken(SOURCE)), SOURCE)
    assert (view.closed, view.connection, view.problem) == (True, None, None)
