"""The guard of the files alone: it closes their portals, and a login fails where that is not possible."""

from __future__ import annotations

from pathlib import Path

import pytest

from iscsi_ipsec.base.errors import KernelUnavailable
from iscsi_ipsec.service.boot_guard import main
from iscsi_ipsec.service.paths import Paths
from tests.support.fakes import FakeClock, FakeFirewall
from tests.support.values import portal

KEY = 'id_type = "ID_FQDN"\nid = "db1"\nkey = "a key that is long enough for all"\n'


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    for folder in ("etc/psk.d", "etc/portal.d", "run"):
        (tmp_path / folder).mkdir(parents=True, mode=0o700)
    return Paths(
        config_dir=f"{tmp_path}/etc", runtime_dir=f"{tmp_path}/run", vendor_dir=f"{tmp_path}/usr",
        state_dir=f"{tmp_path}/var", sysfs_dir=f"{tmp_path}/sys", nodes_dirs=(f"{tmp_path}/iscsi",),
    )  # fmt: skip


@pytest.fixture
def firewall() -> FakeFirewall:
    return FakeFirewall(FakeClock())


def put(paths: Paths, name: str, text: str) -> None:
    path = Path(paths.config_dir, name)
    path.write_text(text)
    path.chmod(0o600)


def test_without_files_logins_begin_and_nothing_is_loaded(paths: Paths, firewall: FakeFirewall) -> None:
    assert main(paths, firewall) == 0
    assert firewall.calls["load"] == 0


def test_a_guard_that_is_there_is_left_alone(paths: Paths, firewall: FakeFirewall) -> None:
    firewall.text = "table"
    put(paths, "portal.d/san.toml", 'portals = ["10.0.0.20"]\n')
    assert main(paths, firewall) == 0
    assert firewall.text == "table"


def test_literals_and_networks_of_policies_are_closed_without_an_sa(
    paths: Paths, firewall: FakeFirewall
) -> None:
    put(paths, "psk.d/db1.toml", KEY)
    put(paths, "portal.d/san.toml", 'portals = ["10.0.0.20", "[fd00::20]:3261", "10.1.0.0/16"]\n')
    assert main(paths, firewall) == 0
    assert firewall.closed() == {portal("10.0.0.20"), portal("[fd00::20]:3261")}
    assert "ip daddr 10.1.0.0/16 tcp dport 3260 counter drop" in firewall.text
    assert "elements" not in firewall.text.split("set sas4 {")[1].split("}\n\t}")[0].split("}")[0]


def test_what_only_a_keys_portals_cover_is_closed(paths: Paths, firewall: FakeFirewall) -> None:
    put(paths, "psk.d/db1.toml", KEY + 'portals = ["10.0.0.20", "10.2.0.0/16"]\n')
    assert main(paths, firewall) == 0
    assert "ip daddr 10.0.0.20/32 tcp dport 3260 counter drop" in firewall.text
    assert "ip daddr 10.2.0.0/16 tcp dport 3260 counter drop" in firewall.text


def test_a_key_whose_flags_ask_for_no_ipsec_closes_nothing(paths: Paths, firewall: FakeFirewall) -> None:
    put(paths, "psk.d/db1.toml", KEY + 'portals = ["10.2.0.0/16"]\nsecurity_flags = ["VALID"]\n')
    assert main(paths, firewall) == 0
    assert firewall.calls["load"] == 0


def test_a_policy_with_a_mistake_closes_what_it_names(paths: Paths, firewall: FakeFirewall) -> None:
    put(paths, "portal.d/san.toml", 'portals = ["10.0.0.20"]\nnonsense = 7\n')
    assert main(paths, firewall) == 0
    assert firewall.closed() == {portal("10.0.0.20")}


def test_require_ipsec_closes_everything(paths: Paths, firewall: FakeFirewall) -> None:
    put(paths, "iscsi-ipsecd.toml", "require_ipsec = true\n")
    assert main(paths, firewall) == 0
    assert "meta nfproto ipv4 tcp dport 3260 counter drop" in firewall.text


def test_without_a_wanted_guard_logins_begin(paths: Paths, firewall: FakeFirewall) -> None:
    put(paths, "iscsi-ipsecd.toml", "guard = false\n")
    put(paths, "portal.d/san.toml", 'portals = ["10.0.0.20"]\n')
    assert main(paths, firewall) == 0
    assert firewall.calls["load"] == 0


def test_the_guard_of_the_last_run_is_taken_where_it_can_be_read(
    paths: Paths, firewall: FakeFirewall
) -> None:
    Path(paths.state_dir).mkdir()
    Path(paths.guard_file).write_text("the guard of the last run")
    assert main(paths, firewall) == 0
    assert firewall.text == "the guard of the last run"


def test_without_nft_logins_begin_where_nothing_is_to_be_closed(paths: Paths, firewall: FakeFirewall) -> None:
    firewall.fail(KernelUnavailable("no nft"), "installed", "load")
    assert main(paths, firewall) == 0
    put(paths, "portal.d/san.toml", 'portals = ["10.0.0.20"]\n')
    assert main(paths, firewall) == 1


def test_no_login_begins_if_what_is_to_be_closed_cannot_be(
    paths: Paths, firewall: FakeFirewall, capsys: pytest.CaptureFixture[str]
) -> None:
    put(paths, "portal.d/san.toml", 'portals = ["10.0.0.20"]\n')
    firewall.fail(KernelUnavailable("nft failed"), "load")
    assert main(paths, firewall) == 1
    assert "no login" in capsys.readouterr().err
