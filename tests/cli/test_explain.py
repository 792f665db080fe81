"""``explain``: files, reasons and what keeps a portal closed."""

from __future__ import annotations

import json

import pytest

from tests.support import reported
from tests.support.reported import (
    FINE,
    ORPHANED,
    PROBLEMS,
    Instance,
)
from tests.support.values import (
    CLEAR,
    SOURCE,
    choice,
    derived,
    per_id,
    policy,
)

charon, instance, running = (
    reported.charon,
    reported.instance,
    reported.running,
)  # fixtures, found by their names here


@pytest.mark.parametrize("text", ["10.0.0.20", "10.0.0.20:3260"])
def test_explain_shows_files_and_reasons(running: Instance, text: str) -> None:
    answer = running.call("explain", text)
    assert answer.code == FINE
    for words in (
        "node record nodes/10.0.0.20,3260",
        "psk.d/10.0.0.1.toml",
        "ID_IPV4_ADDR",
        "IKEv2",
        "transport",
    ):
        assert words in answer.out


def test_explain_as_json_lists_every_row_of_the_portal(running: Instance) -> None:
    (row,) = json.loads(running.call("explain", "--json", "10.0.0.20").out)
    assert row["reasons"]
    assert row["origins"] == ["node record nodes/10.0.0.20,3260"]


def test_explain_of_an_unknown_portal_is_a_problem(running: Instance) -> None:
    answer = running.call("explain", "10.9.9.9")
    assert answer.code == PROBLEMS
    assert "10.9.9.9:3260 is unknown" in answer.err


@pytest.mark.parametrize("unnamed", ["10.9.9.9", "[fd00:9::9]:3260"])
def test_explain_of_an_unnamed_portal_shows_the_network_that_closes_it(
    running: Instance, unnamed: str
) -> None:
    nets = policy("10.9.9.0/24", "fd00:9::/64", flags=choice())
    opened = policy("10.9.9.128/25", name="open", flags=CLEAR)
    running.report(derived(per_id(SOURCE), nets, opened))
    assert "which is closed" in running.call("explain", unnamed).err
    assert "which is closed" not in running.call("explain", "10.9.9.200").err
    assert "which is closed" not in running.call("explain", "10.9.9.9:860").err


def test_explain_of_a_closed_portal_shows_the_problem(running: Instance) -> None:
    running.report(ORPHANED)
    answer = running.call("explain", "10.0.0.20")
    assert answer.code == PROBLEMS
    assert "stays closed" in answer.out
