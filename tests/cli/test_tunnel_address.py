"""``tunnel-address`` and ``clear-cache``."""

from __future__ import annotations

import os

import pytest

from iscsi_ipsec.core.config.portal_file import parse_portal_file
from tests.cli.conftest import Instance
from tests.support.reported import needs_root

OURS = "etc/portal.d/tunnel-10.0.0.20-3260.toml"


def test_an_outer_address_becomes_a_policy_for_exactly_that_portal(instance: Instance) -> None:
    instance.fine("tunnel-address", "set", "10.0.0.20", "203.0.113.1", "--local", "198.51.100.7")
    assert instance.files() == {OURS}
    policy = parse_portal_file((instance.root / OURS).read_text(), "", "")
    assert [str(pattern) for pattern in policy.patterns] == ["10.0.0.20:3260"]
    assert str(policy.tunnel_outer_remote) == "203.0.113.1"
    assert str(policy.tunnel_outer_local) == "198.51.100.7"


def test_setting_it_again_replaces_it_and_removing_takes_it_away(instance: Instance) -> None:
    instance.fine("tunnel-address", "set", "[fd00::20]:3261", "2001:db8::1", "--runtime")
    instance.fine("tunnel-address", "set", "[fd00::20]:3261", "2001:db8::2", "--runtime")
    (path,) = instance.files()
    assert path == "run/portal.d/tunnel-fd00--20-3261.toml"
    assert '"2001:db8::2"' in (instance.root / path).read_text()
    instance.fine("tunnel-address", "remove", "[fd00::20]:3261", "--runtime")
    assert instance.files() == set()
    assert instance.run("tunnel-address", "remove", "[fd00::20]:3261").code == 1


def test_a_file_of_the_admins_is_named_and_not_edited(instance: Instance) -> None:
    path = instance.put(instance.portal / "san.toml", 'portals = ["10.0.0.20"] # mine\n')
    for words in (("set", "10.0.0.20", "203.0.113.1"), ("remove", "10.0.0.20")):
        answer = instance.run("tunnel-address", *words)
        assert answer.code == 1
        assert str(path) in answer.err
    assert path.read_text() == 'portals = ["10.0.0.20"] # mine\n'
    assert instance.files() == {"etc/portal.d/san.toml"}


def test_our_own_file_counts_as_the_admins_once_it_was_changed(instance: Instance) -> None:
    instance.fine("tunnel-address", "set", "10.0.0.20", "203.0.113.1")
    path = instance.root / OURS
    path.write_text(path.read_text() + "# and a word of mine\n")
    assert instance.run("tunnel-address", "set", "10.0.0.20", "203.0.113.2").code == 1
    assert instance.run("tunnel-address", "remove", "10.0.0.20").code == 1
    assert "203.0.113.1" in path.read_text()


def test_settings_of_a_networks_policy_are_copied_to_the_portals_policy(instance: Instance) -> None:
    wide = 'portals = ["10.0.0.0/24"]\ntarget_id = "san.example.com"\npsk = "db1"\n'
    instance.put(instance.portal / "san.toml", wide)
    answer = instance.fine("tunnel-address", "set", "10.0.0.20", "203.0.113.1")
    policy = parse_portal_file((instance.root / OURS).read_text(), "", "")
    assert str(policy.target_id) == "san.example.com"
    assert policy.psk == "db1"
    assert "san.toml" in answer.err


def test_a_policy_for_transport_mode_is_not_turned_into_tunnel_mode(instance: Instance) -> None:
    instance.put(
        instance.portal / "san.toml", 'portals = ["10.0.0.0/24"]\nsecurity_flags = 0x37\n'
    )  # fmt: skip
    assert instance.run("tunnel-address", "set", "10.0.0.20", "203.0.113.1").code == 1
    assert instance.files() == {"etc/portal.d/san.toml"}


@pytest.mark.parametrize(
    "words",
    [
        ("10.0.0.0/24", "203.0.113.1"), ("san", "203.0.113.1"), ("10.0.0.20", "gateway"), ("10.0.0.20", "224.0.0.1"),
        ("10.0.0.20", "fe80::1%eth0"), ("10.0.0.20", "203.0.113.1", "--local", "2001:db8::1"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_portal_or_address_is_wrong_usage(
    instance: Instance, words: tuple[str, ...]
) -> None:
    assert instance.run("tunnel-address", "set", *words).code == 2
    assert instance.files() == set()


@needs_root
def test_who_may_read_the_policies_but_not_write_them_is_refused_for_that(instance: Instance) -> None:
    instance.put(instance.portal / "san.toml", 'portals = ["10.0.0.9"]\n', 0o644)
    for folder in (instance.root, instance.root / "etc", instance.portal):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        answer = instance.run("tunnel-address", "set", "10.0.0.20", "203.0.113.1")
    finally:
        os.seteuid(0)
    assert answer.code == 5
    assert f"you may not write to {instance.portal}" in answer.err


def test_a_dry_run_writes_and_removes_nothing(instance: Instance) -> None:
    words = ("tunnel-address", "set", "10.0.0.20", "203.0.113.1")
    assert "nothing was changed" in instance.fine(*words, "--dry-run").out
    assert instance.files() == set()
    instance.fine(*words)
    before = instance.files()
    instance.fine("tunnel-address", "remove", "10.0.0.20", "--dry-run")
    assert instance.files() == before
