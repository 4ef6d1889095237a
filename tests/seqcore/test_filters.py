"""The residual filter against a plain Python reading of its rules."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqcore.filters import Filter
from seqcore.schema import Schema
from tests.seqcore.samples import SCHEMA, assert_bits_equal, count_calls, steady_rows

ALL = tuple(column.name for column in SCHEMA.event_columns)

Event = tuple[int, int, int]
"""Time, action, scene; its number in the list is its place in the order of arrival."""

small_times = st.integers(-5, 30)
times = small_times | st.sampled_from([-(2**63), 2**63 - 1])
events = st.lists(st.tuples(times, st.integers(0, 255) | st.integers(0, 3), st.sampled_from([0, 1, 2, 255, 65_535])))
filters = st.builds(
    Filter,
    max_events=st.integers(0, 12),
    start_ms=st.none() | times,
    end_ms=st.none() | times,
    actions=st.lists(st.integers(0, 4) | st.integers(-1, 300), max_size=4).map(tuple),
    scenes=st.lists(st.sampled_from([0, 1, 2, 255, 256, 65_535, 65_536]), max_size=3).map(tuple),
)


def plainly(arrived: list[Event], query: Filter) -> list[int]:
    """Arrival numbers of the events that the query keeps, oldest first."""
    kept = [
        number
        for number, (time, action, scene) in sorted(enumerate(arrived), key=lambda each: (each[1][0], each[0]))
        if (query.start_ms is None or time >= query.start_ms)
        and (query.end_ms is None or time < query.end_ms)
        and (not query.actions or action in query.actions)
        and (not query.scenes or scene in query.scenes)
    ]
    return kept[-query.max_events :] if query.max_events else kept


def columns_of(arrived: list[Event]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.generic]]]:
    rows = np.zeros(len(arrived), SCHEMA.row_dtype)
    rows["item_id"] = np.arange(len(arrived))
    for name, place in (("time_ms", 0), ("action", 1), ("scene", 2)):
        rows[name] = [event[place] for event in arrived]
    return {name: rows[name].copy() for name in ALL}


@settings(max_examples=1_000)
@given(arrived=events, query=filters)
@example(arrived=[], query=Filter(max_events=3, actions=(1,)))
@example(arrived=[(5, 1, 0), (5, 1, 1), (5, 1, 2)], query=Filter(max_events=2))
@example(arrived=[(1, 1, 0), (2, 1, 0)], query=Filter(start_ms=5, end_ms=2))
def test_any_query_keeps_what_its_rules_say(arrived: list[Event], query: Filter) -> None:
    kept = query.apply(columns_of(arrived), schema=SCHEMA, keep=ALL)
    numbers = kept["item_id"].tolist()
    assert numbers == plainly(arrived, query)
    for name, values in columns_of(arrived).items():
        assert_bits_equal(kept[name], values[numbers])


def test_equal_times_stay_in_order_of_arrival() -> None:
    arrived = [(9, 0, 0), *[(4, 0, 0)] * 50, (1, 0, 0)]
    kept = Filter().apply(columns_of(arrived), schema=SCHEMA, keep=("item_id",))
    assert kept["item_id"].tolist() == [51, *range(1, 51), 0]


def test_a_range_holds_its_start_and_not_its_end() -> None:
    arrived = [(time, 0, 0) for time in (1, 2, 3, 4)]
    kept = Filter(start_ms=2, end_ms=4).apply(columns_of(arrived), schema=SCHEMA, keep=("time_ms",))
    assert kept["time_ms"].tolist() == [2, 3]


def test_last_n_are_the_last_of_those_that_pass() -> None:
    arrived = [(time, time % 2, 0) for time in range(10)]
    kept = Filter(max_events=2, actions=(0,)).apply(columns_of(arrived), schema=SCHEMA, keep=("time_ms",))
    assert kept["time_ms"].tolist() == [6, 8]


def test_only_the_columns_asked_for_come_back() -> None:
    kept = Filter(actions=(1,)).apply(columns_of([(1, 1, 1)]), schema=SCHEMA, keep=("scene",))
    assert {name: values.tolist() for name, values in kept.items()} == {"scene": [1]}


def test_the_input_stays_as_it_was() -> None:
    columns = columns_of([(2, 1, 1), (1, 1, 1)])
    Filter(max_events=1).apply(columns, schema=SCHEMA, keep=ALL)
    assert columns["time_ms"].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("query", "wanted", "needed"),
    [
        (Filter(), ("item_id",), ("item_id", "time_ms")),
        (Filter(), ("time_ms", "item_id"), ("time_ms", "item_id")),
        (Filter(actions=(1,)), ("item_id",), ("item_id", "time_ms", "action")),
        (Filter(actions=(1,), scenes=(1,)), ("scene",), ("scene", "time_ms", "action")),
    ],
)
def test_ordering_and_filtering_name_the_columns_that_they_need(
    query: Filter, wanted: tuple[str, ...], needed: tuple[str, ...]
) -> None:
    assert query.columns_needed(SCHEMA, wanted) == needed


def test_a_schema_without_actions_and_scenes_is_filtered_by_time_alone() -> None:
    schema = Schema(version=1, event_columns=SCHEMA.event_columns[:2])
    columns = {name: values for name, values in columns_of([(1, 0, 0), (2, 0, 0)]).items() if name in ALL[:2]}
    assert Filter(max_events=1).apply(columns, schema=schema, keep=("time_ms",))["time_ms"].tolist() == [2]


@pytest.mark.parametrize("is_late", [False, True])
def test_the_number_of_python_calls_does_not_depend_on_the_number_of_events(is_late: bool) -> None:
    def calls(count: int) -> int:
        rows = steady_rows(count)
        if is_late:
            rows["time_ms"][-1] = 0
        columns = {name: rows[name] for name in ALL}
        query = Filter(max_events=50, start_ms=1, actions=(1, 2), scenes=(0, 1))
        return count_calls(lambda: query.apply(columns, schema=SCHEMA, keep=ALL))

    assert calls(100) == calls(10_000) > 0
