"""Counts of calls, as Prometheus reads them."""

from dataclasses import dataclass
from time import perf_counter

from prometheus_client.parser import text_string_to_metric_families

from servicekit.metrics import BUCKETS_S, Method, ServerMetrics

LABELS = {"grpc_type": "unary", "grpc_service": "s.S", "grpc_method": "M"}


@dataclass(frozen=True)
class Engine:
    users: int
    """How many."""


def _bound() -> Method:
    return Method(kind="unary", service="s.S", name="M")


async def _samples(metrics: ServerMetrics) -> dict[tuple[str, str], float]:
    """(name, code or bound) -> value."""
    return {
        (sample.name, sample.labels.get("grpc_code") or sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families((await metrics.text()).decode())
        for sample in family.samples
    }


async def test_an_ended_call_is_in_every_family() -> None:
    metrics = ServerMetrics()
    calls = metrics.method(_bound())
    calls.end(5, calls.begin() - 0.0004)
    calls.begin()
    samples = await _samples(metrics)
    assert samples["grpc_server_started_total", ""] == 2
    assert samples["grpc_server_handled_total", "NotFound"] == 1
    assert samples["grpc_server_handled_total", "OK"] == 0
    assert samples["grpc_server_in_flight", ""] == 1
    assert samples["grpc_server_handling_seconds_count", ""] == 1
    assert samples["grpc_server_handling_seconds_sum", ""] >= 0.0004


async def test_buckets_are_cumulative_and_hold_their_bounds() -> None:
    metrics = ServerMetrics()
    calls = metrics.method(_bound())
    now = perf_counter()
    calls.end(0, now - 0.0012)
    calls.end(0, now - 60.0)
    samples = await _samples(metrics)
    assert samples["grpc_server_handling_seconds_bucket", "0.001"] == 0
    assert samples["grpc_server_handling_seconds_bucket", "0.2"] == 1
    assert samples["grpc_server_handling_seconds_bucket", "30.0"] == 1
    assert samples["grpc_server_handling_seconds_bucket", "+Inf"] == 2


def test_buckets_span_a_quarter_to_two_hundred_milliseconds() -> None:
    assert list(BUCKETS_S) == sorted(set(BUCKETS_S))
    assert BUCKETS_S[0] == 0.00025
    assert 0.2 in BUCKETS_S


async def test_servers_in_one_process_share_nothing() -> None:
    one, other = ServerMetrics(), ServerMetrics()
    one.method(_bound()).begin()
    other.method(_bound())
    assert one.registry.get_sample_value("grpc_server_started_total", LABELS) == 1
    assert other.registry.get_sample_value("grpc_server_started_total", LABELS) == 0
    assert (one.in_flight, other.in_flight) == (1, 0)


async def test_exported_values_are_read_at_each_scrape() -> None:
    metrics = ServerMetrics()
    users = iter([3, 4])
    metrics.export("engine", lambda: Engine(next(users)))
    assert (await _samples(metrics))["engine_users", ""] == 3
    assert (await _samples(metrics))["engine_users", ""] == 4


async def test_process_is_described() -> None:
    assert (await _samples(ServerMetrics()))["process_resident_memory_bytes", ""] > 0
