"""The guard with an nft that fails and a disk that does: it never opens by itself, and is written no more than needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from iscsi_ipsec.adapters.netlink import GuardMonitor
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.desired import Desired
from iscsi_ipsec.service.guard import GuardReconciler
from iscsi_ipsec.service.pass_schedule import GUARD
from tests.support.fakes import NO_BUFFERS, FakeClock, FakeFirewall
from tests.support.values import derived, per_id, policy, portal

WANTED = derived(policy(), per_id("10.0.0.1"))
NOTHING = frozenset({"sa"})


class Guarded:
    """A reconciler of the guard, an nftables of fakes, and a real folder."""

    def __init__(self, folder: Path) -> None:
        self.firewall = FakeFirewall(FakeClock())
        self.file = folder / "guard.nft"
        self.guard = GuardReconciler(self.firewall, str(self.file))

    def run(
        self, desired: Desired = WANTED, settings: Settings | None = None, reasons: frozenset[str] = NOTHING
    ) -> list[str]:
        """One pass; the codes of its problems."""
        problems: list[Problem] = []
        self.guard.reconcile(desired, settings or Settings(), reasons, problems)
        return [problem.code for problem in problems]


@pytest.fixture
def guarded(tmp_path: Path) -> Guarded:
    return Guarded(tmp_path)


def test_kernel_and_file_hold_the_same_closed_portals(guarded: Guarded) -> None:
    assert guarded.run() == []
    assert guarded.firewall.closed() == {portal()}
    assert guarded.file.read_text() == guarded.firewall.text
    assert guarded.file.stat().st_mode & 0o777 == 0o600


def test_the_settings_decide_about_rdma_over_udp(guarded: Guarded) -> None:
    guarded.run()
    assert "udp dport 4791" not in guarded.firewall.text
    guarded.run(settings=Settings(guard_rdma=True))
    assert "udp dport 4791" in guarded.firewall.text
    assert guarded.file.read_text() == guarded.firewall.text


def test_nothing_is_loaded_or_asked_while_nothing_differs(guarded: Guarded) -> None:
    for _ in range(5):
        guarded.run()
    assert guarded.firewall.calls == {"load": 1, "installed": 1}


def test_a_load_that_fails_is_reported_and_tried_in_the_next_pass(guarded: Guarded) -> None:
    guarded.firewall.fail(NO_BUFFERS, "load")
    assert guarded.run() == ["guard-missing"]
    guarded.firewall.recover()
    assert guarded.run() == []
    assert guarded.firewall.closed() == {portal()}


def test_the_file_for_the_next_boot_is_written_although_the_load_fails(guarded: Guarded) -> None:
    guarded.firewall.fail(NO_BUFFERS, "load")
    guarded.run()
    assert "10.0.0.20 . 3260" in guarded.file.read_text()


def test_a_table_that_cannot_be_read_back_is_loaded_again(guarded: Guarded) -> None:
    guarded.firewall.fail(NO_BUFFERS, "installed")
    assert guarded.run() == ["guard-missing"]
    guarded.firewall.recover()
    assert guarded.run() == []
    assert guarded.firewall.calls["load"] == 2


@pytest.mark.parametrize("text", ["", "table inet iscsi_ipsec { }\n"])
def test_a_table_that_somebody_changed_is_put_back_when_it_is_compared(guarded: Guarded, text: str) -> None:
    guarded.run()
    guarded.firewall.text = text
    guarded.run(reasons=frozenset({GUARD}))
    assert guarded.firewall.closed() == {portal()}


def test_restore_puts_a_deleted_table_back_without_asking_first(guarded: Guarded) -> None:
    guarded.run()
    guarded.firewall.text = ""
    asked = guarded.firewall.calls["installed"]
    guarded.guard.restore(gone=True)
    assert guarded.firewall.closed() == {portal()}
    assert guarded.firewall.calls["installed"] == asked + 1, "after the load, to know what is there now"


def test_a_restore_that_fails_is_made_good_by_the_pass(guarded: Guarded) -> None:
    guarded.run()
    guarded.firewall.text = ""
    guarded.firewall.fail(NO_BUFFERS, "load")
    guarded.guard.restore(gone=True)
    assert guarded.run() == ["guard-missing"]
    guarded.firewall.recover()
    guarded.run()
    assert guarded.firewall.closed() == {portal()}


def test_restore_does_nothing_before_the_first_load(guarded: Guarded) -> None:
    guarded.guard.restore(gone=True)
    assert guarded.firewall.calls == {}


def test_a_file_that_cannot_be_written_is_reported_and_the_kernel_is_closed(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path / "gone")
    assert guarded.run() == ["state-unsaved"]
    assert guarded.firewall.closed() == {portal()}


def test_a_file_that_somebody_removed_or_edited_is_written_again(guarded: Guarded) -> None:
    guarded.run()
    for damage in (guarded.file.unlink, lambda: guarded.file.write_text("# nothing\n")):
        damage()
        guarded.run()
        assert guarded.file.read_text() == guarded.firewall.text


def test_earlier_reqids_pass_in_the_kernel_and_are_not_in_the_file(guarded: Guarded) -> None:
    guarded.guard.reconcile(WANTED, Settings(), NOTHING, [], frozenset({(portal(), 7)}))
    assert "10.0.0.20 . 3260 . 7" in guarded.firewall.text
    assert "10.0.0.20 . 3260 . 7" not in guarded.file.read_text()


def test_only_the_setting_takes_the_table_and_the_file_away(guarded: Guarded) -> None:
    guarded.run()
    assert guarded.run(settings=replace(Settings(), guard=False)) == []
    assert guarded.firewall.text == ""
    assert not guarded.file.exists()


def test_a_table_that_cannot_be_deleted_is_reported_and_tried_again(guarded: Guarded) -> None:
    guarded.run()
    off = replace(Settings(), guard=False)
    guarded.firewall.fail(NO_BUFFERS, "delete")
    assert guarded.run(settings=off) == ["state-unsaved"]
    guarded.firewall.recover()
    guarded.run(settings=off)
    assert guarded.firewall.text == ""


def test_without_a_guard_the_kernel_is_asked_only_when_something_changed_there(guarded: Guarded) -> None:
    off = replace(Settings(), guard=False)
    guarded.run(settings=off)
    assert guarded.firewall.calls == {}
    guarded.run(settings=off, reasons=GuardMonitor.reasons)
    assert guarded.firewall.calls == {"installed": 1}


def test_a_guard_for_nothing_is_loaded_as_well(guarded: Guarded) -> None:
    guarded.run(derived())
    assert guarded.firewall.text
    assert guarded.firewall.closed() == frozenset()
