"""Dataclasses of numbers as metric families."""

from dataclasses import dataclass

import pytest

from servicekit.statistics import StatisticsCollector


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A nested part."""

    synced_total: int
    """Syncs since
    the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    is_read_only: bool
    """1 after a failed sync."""
    load: float
    log: Log


@dataclass(frozen=True)
class Named:
    name: str


def test_fields_become_gauges_counters_and_sections() -> None:
    collector = StatisticsCollector()
    collector.add("store", lambda: Stats(is_read_only=True, load=0.5, log=Log(synced_total=7)))
    collector.refresh()
    families = [(each.name, each.type, each.documentation, each.samples[0].value) for each in collector.collect()]
    assert families == [
        ("store_is_read_only", "gauge", "1 after a failed sync.", 1),
        ("store_load", "gauge", "", 0.5),
        ("store_log_synced", "counter", "Syncs since the start.", 7),
    ]


def test_what_is_no_number_is_refused() -> None:
    collector = StatisticsCollector()
    collector.add("store", lambda: Named("x"))
    collector.refresh()
    with pytest.raises(TypeError, match="store_name is no number: 'x'"):
        list(collector.collect())
