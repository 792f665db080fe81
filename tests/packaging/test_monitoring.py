"""The example alerts and the dashboard use metrics that exist, and fire when they should."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from iscsi_ipsec.service.metrics import exposition
from tests.support.metric_values import Counters, reported, row
from tests.support.source import TOP, run

MONITORING = TOP / "etc/monitoring"
ALERTS, DASHBOARD = MONITORING / "alerts.yml", MONITORING / "dashboard.json"
PREFIX = "iscsi_ipsec_"
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="needs Debian's prometheus")


def exported() -> set[str]:
    """Names of all series, with every kind of sample."""
    problems = [{"code": "no-key", "severity": "error"}]
    text = exposition(reported(row(), problems=problems), Counters(failures={"wrong-key": 1}), 1).decode()
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def spoken_of(text: str) -> set[str]:
    return set(re.findall(rf"\b{PREFIX}[a-z_]+\b", text))


def expressions() -> Iterator[str]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            # what Grafana puts in
            yield target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")


@pytest.mark.parametrize("page", [ALERTS, DASHBOARD], ids=lambda path: path.name)
def test_every_metric_that_is_spoken_of_exists(page: Path) -> None:
    assert spoken_of(page.read_text()), "the pattern finds them no more"
    assert spoken_of(page.read_text()) - exported() == set()


def test_every_metric_is_in_the_manual_and_no_other() -> None:
    text = (TOP / "docs/monitoring.md").read_text().split("## Metrics")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert {PREFIX + name for cell in rows for name in re.findall(r"`([a-z_]+)`", cell)} == exported()


def test_every_alert_is_in_the_manual_and_says_what_to_do() -> None:
    text = ALERTS.read_text()
    alerts = re.findall(r"- alert: (\w+)", text)
    manual = re.findall(r"^\| (Iscsi\w+) \|", (TOP / "docs/monitoring.md").read_text(), re.MULTILINE)
    assert sorted(alerts) == sorted(manual)
    assert len(re.findall(r"^ +action: '.+'$", text, re.MULTILINE)) == len(alerts)


@needs_promtool
def test_prometheus_understands_the_alerts_and_they_fire_when_they_should() -> None:
    assert "SUCCESS" in run("promtool", "check", "rules", ALERTS)
    assert "SUCCESS" in run("promtool", "test", "rules", TOP / "tests/packaging/alerts.test.yml")


def test_every_alert_is_seen_firing_in_the_test_of_the_rules() -> None:
    tested = (TOP / "tests/packaging/alerts.test.yml").read_text()
    for alert in re.findall(r"- alert: (\w+)", ALERTS.read_text()):
        assert f'alertname="{alert}"' in tested


@needs_promtool
def test_prometheus_understands_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{n}", "expr": expr} for n, expr in enumerate(expressions())]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    assert "SUCCESS" in run("promtool", "check", "rules", path)


def test_no_two_panels_of_the_dashboard_lie_over_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
