"""The program that runs right before charon stops: it asks charon, and never fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from iscsi_ipsec.base.errors import KernelUnavailable
from iscsi_ipsec.service import ike_hold
from iscsi_ipsec.service.ike_hold import main
from iscsi_ipsec.service.paths import Paths
from tests.support.fakes import AWAY, FakeCharon, FakeClock, FakeFirewall
from tests.support.values import child_sa, ike_sa


@pytest.fixture
def charon(monkeypatch: pytest.MonkeyPatch) -> FakeCharon:
    charon = FakeCharon(FakeClock())
    monkeypatch.setattr(ike_hold, "Charon", lambda _socket: charon)
    return charon


def test_the_spis_of_all_our_ike_sas_are_held(charon: FakeCharon) -> None:
    charon.sas_now = (
        ike_sa(child_sa("c"), initiator_spi="17142e4eee50181a"),
        ike_sa(initiator_spi="00000000000000ff"),
        ike_sa(),
    )
    firewall = FakeFirewall(FakeClock())
    assert main(Paths(), firewall) == 0
    assert firewall.text.count("timeout 120s") == 2
    assert "0x17142e4eee50181a" in firewall.text


def test_without_an_sa_nothing_is_loaded(charon: FakeCharon) -> None:
    firewall = FakeFirewall(FakeClock())
    assert main(Paths(), firewall) == 0
    assert not firewall.calls


@pytest.mark.parametrize("fault", ["charon", "nft"])
def test_whatever_fails_charon_may_stop(
    charon: FakeCharon, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    firewall = FakeFirewall(FakeClock())
    charon.sas_now = (ike_sa(initiator_spi="ff"),)
    if fault == "charon":
        charon.fail(AWAY, "sas")
    else:
        firewall.fail(KernelUnavailable("nft failed"), "load")
    assert main(Paths(), firewall) == 0
    assert "may send unencrypted data" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"charon": {}}'])
def test_without_a_readable_status_charon_is_where_strongswan_has_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    assert ike_hold._socket(Paths(runtime_dir=str(tmp_path))) == ""


def test_charon_is_where_the_daemon_had_it(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"charon": {"socket": "/run/other.vici"}}')
    assert ike_hold._socket(Paths(runtime_dir=str(tmp_path))) == "/run/other.vici"
