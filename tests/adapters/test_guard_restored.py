"""The guard is restored before a pass reads anything else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ipsec.adapters.nft import Guard
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.service.guard import GuardReconciler
from tests.support.netlab.space import Namespace
from tests.support.values import derived, group, policy


@pytest.fixture
def space() -> Iterator[Namespace]:
    space = Namespace("guardkeeper")
    yield space
    space.close()


@pytest.fixture
def keeper(space: Namespace, tmp_path: Path) -> GuardReconciler:
    """One that has loaded the guard of a managed portal."""
    keeper = GuardReconciler(Guard(), str(tmp_path / "guard.nft"))
    wanted = derived(policy(), group())
    assert wanted.guarded
    space.inside(lambda: keeper.reconcile(wanted, Settings(), frozenset({"start"}), []))
    return keeper


@pytest.mark.parametrize("gone", [True, False])
def test_a_flushed_guard_is_back_with_all_its_portals(
    space: Namespace, keeper: GuardReconciler, gone: bool
) -> None:
    before = space.inside(Guard().installed)
    space.run(["nft", "flush", "ruleset"])

    space.inside(lambda: keeper.restore(gone=gone))

    assert space.inside(Guard().installed) == before is not None


def test_an_unchanged_guard_is_not_loaded_again(space: Namespace, keeper: GuardReconciler) -> None:
    space.inside(lambda: keeper.restore(gone=False))

    assert keeper.loads == 1


def test_before_the_first_pass_there_is_nothing_to_put_back(space: Namespace, tmp_path: Path) -> None:
    new = GuardReconciler(Guard(), str(tmp_path / "guard.nft"))
    space.inside(lambda: new.restore(gone=True))

    assert space.inside(Guard().installed) is None
