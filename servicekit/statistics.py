"""Values of an engine as metrics, so that the engine need not know a metrics library.

A source returns a dataclass of numbers. Each field becomes `prefix_field`, with the string under the field as its help:

    int, float, bool   a counter if the name ends in `_total`, else a gauge
    a dataclass        its fields, under `prefix_field_...`
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from servicekit.fields import field_docs

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Source: TypeAlias = "Callable[[], DataclassInstance]"
"""Called on the event loop once a scrape, so it may read what only the loop may touch; it must take microseconds."""


class StatisticsCollector(Collector):
    """`refresh` on the loop, `collect` in any thread: what it shows is the latest complete refresh."""

    def __init__(self) -> None:
        self._sources: list[tuple[str, Source]] = []
        self._values: list[tuple[str, DataclassInstance]] = []

    def add(self, prefix: str, source: Source) -> None:
        self._sources.append((prefix, source))

    def refresh(self) -> None:
        self._values = [(prefix, source()) for prefix, source in self._sources]

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        """Raises:
        TypeError: a field is neither a number nor a dataclass.
        """
        for prefix, values in self._values:
            yield from _families(prefix, values)


def _families(prefix: str, values: Any) -> Iterator[Metric]:
    kind: type = type(values)
    docs = field_docs(kind)
    for field in fields(values):
        name = f"{prefix}_{field.name}"
        value = getattr(values, field.name)
        if is_dataclass(value):
            yield from _families(name, value)
        elif not isinstance(value, (int, float)):
            raise TypeError(f"{name} is no number: {value!r}")
        elif name.endswith("_total"):
            yield CounterMetricFamily(name, docs.get(field.name, ""), value=value)
        else:
            yield GaugeMetricFamily(name, docs.get(field.name, ""), value=value)
