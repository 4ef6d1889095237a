"""Generated histories: repeatable, whole, in order, and shaped as the generator's text says."""

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from loadtest.catalogue import SIDE_INFO_BYTES, Catalogue
from loadtest.generator import (
    END_MS,
    EVENT_BYTES,
    EVENT_COLUMNS,
    MAX_HISTORY_EVENTS,
    Batch,
    Workload,
    write_parquet,
)
from seqcore.schema import Schema, row_dtype

EXAMPLE: Final = Path(__file__).parent.parent.parent / "examples" / "schema.yaml"
EVENTS: Final = 200_000


@pytest.fixture(scope="module")
def workload() -> Workload:
    return Workload.of_events(EVENTS, seed=7, catalogue=Catalogue(seed=7, item_count=10_000))


@pytest.fixture(scope="module")
def batches(workload: Workload) -> list[Batch]:
    return list(workload.batches())


def test_columns_are_those_of_the_example_schema(workload: Workload) -> None:
    schema = Schema.from_mapping(yaml.safe_load(EXAMPLE.read_text()))
    chunk = next(workload.chunks())
    assert {c.name: c.dtype for c in schema.event_columns} == {n: v.dtype for n, v in chunk.columns.items()}
    assert [column.name for column in schema.event_columns] == list(EVENT_COLUMNS)
    assert schema.row_dtype.itemsize == EVENT_BYTES
    side_info = workload.catalogue.side_info
    assert {c.name: (c.dtype, c.length) for c in schema.side_info_columns} == {
        name: (values.dtype, values[0].size) for name, values in side_info.items()
    }
    assert row_dtype(schema.side_info_columns).itemsize == SIDE_INFO_BYTES


def test_the_total_is_as_asked_and_the_cohort_comes_on_top() -> None:
    assert Workload.of_events(12_345).event_count == 12_345
    workload = Workload.of_events(12_345, cohort=3)
    assert workload.event_count == 42_345
    assert workload.event_counts_U[:3].tolist() == [10_000] * 3


def test_lengths_are_skewed_and_bounded() -> None:
    counts_U = Workload.of_events(20_000_000).event_counts_U
    assert 900 < np.median(counts_U) < 1_100
    assert 1_900 < counts_U.mean() < 2_200
    assert 0.02 < (counts_U > 10_000).mean() < 0.04
    assert counts_U.min() >= 1
    assert 30_000 < counts_U.max() <= MAX_HISTORY_EVENTS


def test_histories_are_in_order_and_before_the_end(workload: Workload) -> None:
    histories = dict(workload.histories())
    assert len(histories) == len(workload.user_ids)
    for (user, columns), count in zip(histories.items(), workload.event_counts_U, strict=True):
        time = columns["time_ms"].view(np.int64)
        assert len(time) == count, user
        assert (np.diff(time) >= 0).all(), user
        assert 0 <= time[0] <= time[-1] < END_MS, user


def test_events_come_in_sessions(workload: Workload) -> None:
    gaps = np.concatenate([np.diff(columns["time_ms"].view(np.int64)) for _, columns in workload.histories()])
    assert 0.03 < (gaps > 1_800_000).mean() < 0.06
    assert 20_000 < np.median(gaps) < 80_000


def test_the_same_seed_makes_the_same_events(workload: Workload, batches: list[Batch]) -> None:
    again = Workload.of_events(EVENTS, seed=7, catalogue=Catalogue(seed=7, item_count=10_000))
    for batch, other in zip(batches, again.batches(), strict=True):
        assert all((batch.columns[name] == other.columns[name]).all() for name in EVENT_COLUMNS)
    different = Workload.of_events(EVENTS, seed=8, catalogue=Catalogue(seed=8, item_count=10_000))
    assert (next(different.batches()).columns["time_ms"] != batches[0].columns["time_ms"]).any()


def test_batches_hold_the_same_events_in_global_time_order(workload: Workload, batches: list[Batch]) -> None:
    assert [batch.event_count for batch in batches] == [1_000] * (EVENTS // 1_000)
    newest = [int(batch.columns["time_ms"].view(np.int64).max()) for batch in batches]
    oldest = [int(batch.columns["time_ms"].view(np.int64).min()) for batch in batches]
    assert all(before <= after for before, after in zip(newest[:-1], oldest[1:], strict=True))
    users = np.concatenate([batch.users_of_events for batch in batches])
    rows = {name: np.concatenate([batch.columns[name] for batch in batches]) for name in EVENT_COLUMNS}
    for user, columns in workload.histories():
        of_user = users == np.uint64(user)
        assert all((rows[name][of_user] == values).all() for name, values in columns.items()), user


def test_live_batches_continue_each_user_in_order(workload: Workload) -> None:
    live = workload.live_batches(users=50)
    newest: dict[int, int] = {}
    for _ in range(20):
        batch = next(live)
        assert batch.event_count == 1_000
        assert len(np.unique(batch.user_ids_U)) == 50
        assert np.isin(batch.user_ids_U, workload.user_ids).all()
        time = batch.columns["time_ms"].view(np.int64).reshape(50, 20)
        for user, of_user in zip(batch.user_ids_U.tolist(), time, strict=True):
            assert of_user[0] >= newest.get(user, END_MS)
            assert (np.diff(of_user) >= 0).all()
            newest[user] = int(of_user[-1])


def test_items_are_popular_by_zipf() -> None:
    catalogue = Catalogue(seed=1)
    counts = np.bincount(catalogue.draw(2_000_000, np.random.default_rng(1)).astype(np.int64), minlength=100_000)
    by_rank = counts[catalogue.id_of_rank.astype(np.int64)]
    slope = np.polyfit(np.log(np.arange(10, 1_000)), np.log(by_rank[9:999]), 1)[0]
    assert -1.12 < slope < -0.98
    assert by_rank[-1_000:].sum() > 0


def test_random_ids_are_as_many_and_not_dense() -> None:
    dense, random = Catalogue(seed=1, item_count=1_000), Catalogue(seed=1, item_count=1_000, has_random_ids=True)
    assert dense.item_ids.tolist() == list(range(1_000))
    assert len(np.unique(random.item_ids)) == 1_000
    assert random.item_ids.max() > 1 << 60


def test_dwell_is_of_events_that_were_looked_at(batches: list[Batch]) -> None:
    action = np.concatenate([batch.columns["action"] for batch in batches])
    dwell_ms = np.concatenate([batch.columns["dwell_ms"] for batch in batches]).astype(np.int64)
    assert np.allclose(np.bincount(action) / len(action), (0.82, 0.15, 0.02, 0.01), atol=0.005)
    assert not dwell_ms[action == 0].any()
    assert 6_000 < np.median(dwell_ms[action > 0]) < 10_000


def test_parquet_holds_events_in_time_order_and_the_items(tmp_path: Path, workload: Workload) -> None:
    write_parquet(workload, tmp_path / "events.parquet", row_group_events=60_000)
    file = pq.ParquetFile(tmp_path / "events.parquet")
    assert file.num_row_groups == 4
    events = file.read()
    assert events.column_names == ["user_id", *EVENT_COLUMNS]
    assert events.num_rows == EVENTS
    time = events["time_ms"].to_numpy()
    assert (np.diff(time) >= 0).all()
    users, counts = np.unique(events["user_id"].to_numpy(), return_counts=True)
    expected = np.argsort(workload.user_ids)
    assert (users == workload.user_ids[expected]).all()
    assert (counts == workload.event_counts_U[expected]).all()
    items = pq.read_table(tmp_path / "items.parquet")
    assert items["genres"].to_pylist()[17] == workload.catalogue.side_info["genres"][17].tolist()
    assert (items["item_id"].to_numpy() == workload.catalogue.item_ids).all()
