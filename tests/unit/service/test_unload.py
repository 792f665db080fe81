"""Unloading everything: where one part fails, the others are still unloaded, and the rest is reported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iscsi_ipsec.base.errors import CharonRefused
from iscsi_ipsec.service.paths import Paths
from iscsi_ipsec.service.unload import unload_all
from tests.support.fakes import AWAY, NO_BUFFERS, FakeCharon, FakeClock, FakeFirewall
from tests.support.values import ike_sa

OURS = "iscsi-ipsec-10.0.0.20-3260"


class Loaded:
    """A charon with two SAs, a secret and a connection of this program and of somebody else, and a guard."""

    def __init__(self, folder: Path) -> None:
        self.paths = Paths(runtime_dir=str(folder), state_dir=str(folder))
        for file in (self.paths.guard_file, self.paths.earlier_file):
            os.makedirs(os.path.dirname(file), exist_ok=True)
            Path(file).write_text("")
        self.charon, self.firewall = FakeCharon(FakeClock()), FakeFirewall(FakeClock())
        self.charon.secrets = {"iscsi-ipsec-psk-db1", "somebody-else"}
        self.charon.conns = {OURS: frozenset({OURS}), "site-vpn": frozenset({"net"})}
        self.charon.sas_now = (ike_sa(unique_id=1, conn=OURS), ike_sa(unique_id=2, conn=OURS))
        self.firewall.text = "table inet iscsi_ipsec { }"

    def unload(self) -> tuple[str, ...]:
        return unload_all(self.paths, self.charon, self.firewall)

    def files(self) -> list[str]:
        return [f for f in (self.paths.guard_file, self.paths.earlier_file) if os.path.exists(f)]


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    return Loaded(tmp_path)


def test_what_has_our_names_is_taken_out_and_nothing_else(loaded: Loaded) -> None:
    assert loaded.unload() == ()
    assert (loaded.charon.secrets, set(loaded.charon.conns)) == ({"somebody-else"}, {"site-vpn"})
    assert loaded.charon.ended() == ["ike 1", "ike 2"]
    assert not loaded.firewall.text
    assert loaded.files() == []


def test_a_refused_end_of_an_sa_stops_nothing_else_and_is_said(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = loaded.charon.terminate

    def terminate(*, ike_id: int | None = None, **more: object) -> int:
        if ike_id == 1:
            raise CharonRefused("terminate", "ike 1", "no matching SAs to terminate found")
        return end(ike_id=ike_id)

    monkeypatch.setattr(loaded.charon, "terminate", terminate)
    (left,) = loaded.unload()
    assert "no matching SAs to terminate found" in left
    assert loaded.charon.ended() == ["ike 2"]
    assert not loaded.firewall.text


def test_a_refused_connection_stops_nothing_else_and_is_said(loaded: Loaded) -> None:
    loaded.charon.refuses = {OURS: "busy"}
    (left,) = loaded.unload()
    assert "busy" in left
    assert loaded.charon.secrets == {"somebody-else"}
    assert not loaded.firewall.text


def test_without_charon_the_portals_are_opened(loaded: Loaded) -> None:
    loaded.charon.fail(AWAY)
    assert loaded.unload() == ()
    assert not loaded.firewall.text
    assert loaded.files() == []


def test_a_guard_that_cannot_be_deleted_is_said(loaded: Loaded) -> None:
    loaded.firewall.fail(NO_BUFFERS, "delete")
    (left,) = loaded.unload()
    assert str(NO_BUFFERS) in left
    assert loaded.charon.secrets == {"somebody-else"}
