"""``metrics.prom``: the format of node_exporter's textfile collector, and no content that is secret."""

from __future__ import annotations

import stat
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from iscsi_ipsec.base.xfrm import KernelPolicy
from iscsi_ipsec.service.metrics import Metrics, exposition
from tests.support.fakes import FakeClock, FakeXfrm
from tests.support.metric_values import Counters, reported, row

LABELS = ("where", "cause", "version", "code", "severity", "portal", "role", "interface", "direction")


def samples(document: dict[str, Any]) -> dict[tuple[str, ...], float]:
    text = exposition(document, Counters(), 1000).decode()
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sample.labels[name] for name in LABELS if name in sample.labels)
            at = (sample.name.removeprefix("iscsi_ipsec_"), *labels)
            assert at not in found, f"{at} is there twice, which a collector refuses"
            found[at] = sample.value
    return found


def test_portals_are_counted_by_how_they_are_kept() -> None:
    clear = row("10.0.0.21:3260", managed=False, closed=False, protected=False, sa=None, connection=None)
    session = {"sid": 3, "transport": None}
    found = samples(
        reported(row(), row("10.0.0.22:3260", protected=False, sa=None, connection=None), clear | {"sessions": [session]})
    )  # fmt: skip
    names = ("managed", "protected", "closed", "blocked", "in_clear")
    assert [found[f"portals_{name}",] for name in names] == [2, 1, 2, 1, 1]
    assert found["sessions_in_clear",] == 1
    assert found["keys",] == 2


def test_offloaded_sessions_are_unencrypted_however_their_portal_is_kept() -> None:
    sessions = [{"sid": 3, "transport": "iscsi_iser"}, {"sid": 4, "transport": "iscsi_tcp"}]
    found = samples(reported(row(protected=False, sessions=sessions)))
    assert found["sessions_in_clear",] == 1


def test_metrics_show_the_sa_of_each_managed_portal() -> None:
    found = samples(reported(row(), row("10.0.0.22:3260", protected=False, sa=None)))
    at = ("10.0.0.20:3260", "initiator", "")
    assert found["portal_protected", *at] == 1
    assert found["sa_age_seconds", *at] == 12
    assert found["sa_bytes", *at, "in"] == 100
    assert found["sa_bytes", *at, "out"] == 200
    assert found["portal_protected", "10.0.0.22:3260", "initiator", ""] == 0
    assert ("sa_age_seconds", "10.0.0.22:3260", "initiator", "") not in found


def test_a_portal_with_two_rows_has_one_series_each() -> None:
    found = samples(reported(row(), row(), row(interface="eth1"), row(role="target")))
    assert len([at for at in found if at[0] == "portal_protected"]) == 3


def test_problems_are_counted_by_code_and_severity() -> None:
    def problem(code: str, severity: str) -> dict[str, str]:
        return {"code": code, "severity": severity, "message": "canary message"}

    rows = [problem("bad-id", "error"), problem("bad-id", "error"), problem("weak-key", "warning")]
    found = samples(reported(problems=rows))
    assert found["problems", "bad-id", "error"] == 2
    assert found["problems", "weak-key", "warning"] == 1


def test_metrics_show_charon_guard_and_counters() -> None:
    found = samples(reported())
    expected = {
        "charon_reachable": 1, "guard_installed": 1, "guard_dropped_packets": 4, "passes_total": 7,
        "pass_seconds_total": 1.5, "last_pass_seconds": 0.25, "vici_writes_total": 5, "guard_loads_total": 2, "initiations_total": 3, "files_opened_total": 4,
        "last_success_timestamp_seconds": 1000,
    }  # fmt: skip
    assert {name: found[name,] for name in expected} == expected
    away = samples(
        reported(
            charon={"reachable": False, "settled": True},
            guard={"wanted": True, "installed": False, "dropped": None},
        )
    )
    assert away["charon_reachable",] == away["guard_installed",] == 0
    assert ("guard_dropped_packets",) not in away


def test_failed_negotiations_are_counted_by_cause() -> None:
    text = exposition(reported(), Counters(failures={"wrong-key": 3, "peer-silent": 1}), 0).decode()
    assert 'iscsi_ipsec_negotiation_failures_total{cause="wrong-key"} 3.0' in text
    assert 'iscsi_ipsec_negotiation_failures_total{cause="peer-silent"} 1.0' in text


def policy(portal: str, port: int = 3260, **more: Any) -> KernelPolicy:
    network = ip_network(portal)
    return KernelPolicy(**{
        "direction": "out", "src": ip_network("10.0.0.1"), "dst": network, "proto": 6, "sport": 0,
        "sport_mask": 0, "dport": port, "dport_mask": 0xFFFF, "action": "allow", "priority": 1, "index": 1,
        "reqid": 1, "mode": "transport", "tmpl_proto": 50, "tmpl_src": None, "tmpl_dst": None,
        "restricted": False,
    } | more)  # fmt: skip


def test_drift_is_what_is_wanted_against_what_charon_and_the_kernel_have(tmp_path: Path) -> None:
    path = tmp_path / "metrics.prom"
    in_kernel = [
        policy("10.0.0.20"),
        policy("fd00::20"),
        policy("10.0.0.23", tmpl_proto=0),  # a bypass
        policy("10.0.0.24", port=860),
        policy("10.0.0.25", direction="in"),
    ]
    clock = FakeClock()
    xfrm = FakeXfrm(clock)
    xfrm.policies_now = tuple(in_kernel)
    metrics = Metrics(str(path), xfrm, clock)
    rows = [
        row(),
        row("[fd00::20]:3260"),
        *(row(f"10.0.0.{n}:3260") for n in (23, 24, 25)),
        row("10.0.0.26:3260", ready=False),
        row("10.0.0.27:3260", connection=None, ready=False),  # it has a problem of its own
        row("10.0.0.28:3260", role="target"),  # a served portal's policies come with its SAs
        row("10.0.0.29:3260", user_space_esp=True),
    ]

    def counted() -> list[str]:
        metrics.write(reported(*rows), Counters())
        return [
            line.split()[1]
            for line in path.read_text().splitlines()
            if line.startswith("iscsi_ipsec_connections{")
        ]

    assert counted() == ["6.0", "5.0", "2.0"]
    xfrm.policies_now = ()
    assert counted() == ["6.0", "5.0", "2.0"], "the kernel is not asked in each pass"
    clock.advance(5.0)
    assert counted() == ["6.0", "5.0", "0.0"]


@pytest.mark.parametrize(("took", "later"), [(0.0, 5.0), (0.0004, 5.0), (0.002, 20.0), (0.3, 60.0)])
def test_the_longer_a_look_at_the_kernel_takes_the_later_the_next_one_comes(
    took: float, later: float, tmp_path: Path
) -> None:
    clock = FakeClock()
    xfrm, begun = FakeXfrm(clock), clock.at
    xfrm.slow["policies"] = took
    metrics = Metrics(str(tmp_path / "metrics.prom"), xfrm, clock)
    for moment, looks in ((0.0, 1), (later - 0.01, 1), (later, 2)):
        clock.at = begun + moment
        metrics.write(reported(row()), Counters())
        assert xfrm.calls["policies"] == looks


def test_no_identity_key_name_or_spi_is_in_it() -> None:
    text = exposition(reported(row(), problems=[]), Counters(), 0)
    assert not [word for word in (b"canary", b"c0ffee") if word in text]


def test_everyone_may_read_the_file_and_nobody_sees_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.prom"
    Metrics(str(path), FakeXfrm(FakeClock()), FakeClock()).write(reported(row()), Counters())
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [found.name for found in tmp_path.iterdir()] == ["metrics.prom"]
    assert path.read_bytes() == exposition(reported(row()), Counters(), 1000)


@pytest.mark.parametrize(
    "worse",
    [
        {"charon": {"reachable": False, "settled": True}},
        {"charon": {"reachable": True, "settled": False}},
        {"guard": {"wanted": True, "installed": False, "dropped": None}},
    ],
)
def test_the_time_of_the_last_success_stands_still_while_something_is_missing(
    tmp_path: Path, worse: dict[str, Any]
) -> None:
    path = tmp_path / "metrics.prom"
    metrics = Metrics(str(path), FakeXfrm(FakeClock()), FakeClock())
    metrics.write(reported(**worse), Counters())
    assert "iscsi_ipsec_last_success_timestamp_seconds 0.0" in path.read_text()
    metrics.write(reported(), Counters())
    metrics.write(reported(**worse, time=2000), Counters())
    assert "iscsi_ipsec_last_success_timestamp_seconds 1000.0" in path.read_text()


def test_metrics_log_once_a_file_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics(str(tmp_path / "gone/metrics.prom"), FakeXfrm(FakeClock()), FakeClock())
    for _ in range(3):
        metrics.write(reported(), Counters())
    assert len(caplog.records) == 1
