"""Where everything is: one option moves everything below it, and several instances share nothing."""

from __future__ import annotations

import argparse
import dataclasses

import pytest

from iscsi_ipsec.service.paths import OPTIONS, Paths, add_options, paths_of


def parsed(*argv: str) -> Paths:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return paths_of(parser.parse_args(argv))


def test_paths_of_no_option_are_the_defaults() -> None:
    assert parsed() == Paths()


def test_paths_of_every_option_are_moved() -> None:
    moved = parsed(*(word for option in OPTIONS for word in (option, f"/x{option}")))
    assert dataclasses.astuple(moved) == (
        "/x--config-dir", "/x--runtime-dir", "/x--vendor-dir", "/x--state-dir", "/x--vici-socket",
        ("/x--nodes-dir",), "/x--sysfs-dir",
    )  # fmt: skip


def test_paths_of_several_nodes_dirs_keep_their_order() -> None:
    assert parsed("--nodes-dir", "/b", "--nodes-dir", "/a").nodes_dirs == ("/b", "/a")


@pytest.mark.parametrize(
    ("argv", "config", "state"),
    [
        (["--config-dir", "/first", "verb"], "/first", "/var/lib/iscsi-ipsec"),
        (["verb", "--config-dir", "/behind"], "/behind", "/var/lib/iscsi-ipsec"),
        (["--config-dir", "/first", "verb", "--state-dir", "/behind"], "/first", "/behind"),
    ],
)
def test_options_behind_a_verb_move_and_their_absence_resets_none(
    argv: list[str], config: str, state: str
) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    add_options(parser.add_subparsers().add_parser("verb"), again=True)
    paths = paths_of(parser.parse_args(argv))
    assert (paths.config_dir, paths.state_dir) == (config, state)


def test_folders_are_strongest_first_and_no_key_lies_under_usr() -> None:
    paths = Paths(config_dir="/etc/x", runtime_dir="/run/x", vendor_dir="/usr/lib/x")
    assert paths.portal_folders == ("/etc/x/portal.d", "/run/x/portal.d", "/usr/lib/x/portal.d")
    assert paths.psk_folders == ("/etc/x/psk.d", "/run/x/psk.d")


def test_two_instances_share_no_file() -> None:
    one, two = (
        Paths(
            config_dir=f"/{n}/etc", runtime_dir=f"/{n}/run", vendor_dir=f"/{n}/usr", state_dir=f"/{n}/state"
        )
        for n in "12"
    )
    names = [name for name, value in vars(Paths).items() if isinstance(value, property)]
    for name in names:
        places = [getattr(paths, name) for paths in (one, two)]
        assert not {*places[0]} & {*places[1]} if isinstance(places[0], tuple) else places[0] != places[1]
    assert len(names) >= 10
