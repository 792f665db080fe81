"""Prometheus' text format, as the Prometheus project's own client library writes and reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from iscsi_ipsec.core.report.prometheus_text import Family, Kind, exposed

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TROUBLE = 'a "quoted" back\\slash,\nand a {new} line\\n'


class Given:
    """A collector that a registry of the library asks for its families."""

    def __init__(self, *families: Metric) -> None:
        self._families = families

    def collect(self) -> tuple[Metric, ...]:
        return self._families


def by_the_library(*families: Metric) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Given(*families))
    return generate_latest(registry)


def test_a_file_is_what_the_library_makes_of_the_same() -> None:
    gauge = Family("up_seconds", Kind.GAUGE, TROUBLE, ("where", "who"))
    gauge.add(1, TROUBLE, "é")
    gauge.add(0.25, "", "b")
    counter = Family("passes_total", Kind.COUNTER, "Passes.")
    counter.add(12345)
    empty = Family("none", Kind.GAUGE, "Nothing yet.", ("of",))

    gauge_there = GaugeMetricFamily("up_seconds", TROUBLE, labels=["where", "who"])
    gauge_there.add_metric([TROUBLE, "é"], 1)
    gauge_there.add_metric(["", "b"], 0.25)
    counter_there = CounterMetricFamily("passes", "Passes.", value=12345)
    empty_there = GaugeMetricFamily("none", "Nothing yet.", labels=["of"])

    ours = exposed([gauge, counter, empty])
    assert ours == by_the_library(gauge_there, counter_there, empty_there)


@given(
    ANY_TEXT,
    st.lists(st.tuples(ANY_TEXT, ANY_TEXT, st.floats(allow_nan=False)), unique_by=lambda sample: sample[:2]),
)
def test_the_library_reads_what_was_written(reported: str, samples: list[tuple[str, str, float]]) -> None:
    family = Family("anything", Kind.GAUGE, reported, ("one", "two"))
    for one, two, number in samples:
        family.add(number, one, two)
    (read,) = text_string_to_metric_families(exposed([family]).decode())
    assert (read.name, read.type) == ("anything", "gauge")
    assert [(s.labels["one"], s.labels["two"], s.value) for s in read.samples] == samples


@pytest.mark.parametrize(("value", "written"), [(True, b"1.0"), (False, b"0.0"), (3, b"3.0"), (0.5, b"0.5")])
def test_a_truth_is_a_number(value: float, written: bytes) -> None:
    family = Family("x", Kind.GAUGE, "X.")
    family.add(value)
    assert exposed([family]).splitlines()[-1] == b"x " + written


@pytest.mark.parametrize("values", [(), ("a",), ("a", "b", "c")])
def test_a_sample_has_all_labels_of_its_family(values: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="labels"):
        Family("x", Kind.GAUGE, "X.", ("one", "two")).add(1, *values)
