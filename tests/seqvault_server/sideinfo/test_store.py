"""Puts and reads: what is written is what is read, before and after reopening; what does not fit changes nothing."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from seqcore.schema import Schema
from seqvault_server.sideinfo.batch import MAX_ITEMS
from seqvault_server.sideinfo.errors import SideInfoFull, SideInfoUnavailable
from seqvault_server.sideinfo.store import SideInfo
from tests.seqvault_server.sideinfo.harness import (
    EVENT,
    SCHEMA,
    Columns,
    ids,
    make_columns,
    opened,
    put,
    read,
    same_bits,
)


def _random_ids(random: np.random.Generator, count: int) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    return np.unique(random.integers(0, 2**64 - 1, count, np.uint64, endpoint=True))


def test_reopened_items_have_the_same_bits(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    item_I = np.concatenate([_random_ids(random, 9_000), ids(0, 2**64 - 1)])
    columns = make_columns(random, len(item_I))
    assert np.isnan(columns["price"]).any()
    with opened(tmp_path) as side_info:
        put(side_info, item_I, columns)
        assert read(side_info, item_I)[0] == [1] * len(item_I)
        assert same_bits(read(side_info, item_I)[1], columns)
    with opened(tmp_path) as side_info:
        assert read(side_info, item_I)[0] == [1] * len(item_I)
        assert same_bits(read(side_info, item_I)[1], columns)
        assert side_info.version == 1


def test_unknown_items_read_as_defaults_or_zero(tmp_path: Path) -> None:
    with opened(tmp_path) as side_info:
        put(side_info, ids(5), {"category": np.array([9], np.uint32)})
        present, columns = read(side_info, ids(4, 5, 0, 5))
    assert present == [0, 1, 0, 1]
    assert columns["category"].tolist() == [0, 9, 0, 9]
    assert columns["price"].tolist() == [1.5] * 4
    assert columns["genres"].tolist() == [[7] * 4] * 4


def test_a_gather_returns_the_columns_asked_for_in_their_order(tmp_path: Path) -> None:
    wanted = [SCHEMA.side_info_column_of[name] for name in ("genres", "category")]
    with opened(tmp_path) as side_info:
        put(side_info, ids(1), make_columns(np.random.default_rng(2), 1))
        present, columns = side_info.gather(ids(1, 2), wanted)
        assert list(columns) == ["genres", "category"]
        assert (columns["genres"].shape, columns["category"].shape) == ((2, 4), (2,))
        assert present.dtype == np.uint8
        nothing, columns = side_info.gather(ids(), wanted)
        assert (len(nothing), columns["genres"].shape, columns["category"].shape) == (0, (0, 4), (0,))


def test_what_was_gathered_does_not_change_with_the_next_put(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    with opened(tmp_path) as side_info:
        first = make_columns(random, 2)
        put(side_info, ids(1, 2), first)
        _, gathered = read(side_info, ids(1, 2))
        put(side_info, ids(1, 2), make_columns(random, 2))
    assert same_bits(gathered, first)


def test_ids_of_a_message_may_be_read_only_or_strided(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    columns = make_columns(random, 3)
    with opened(tmp_path) as side_info:
        put(side_info, np.frombuffer(ids(1, 2, 3).tobytes(), np.uint64), columns)
        assert read(side_info, np.frombuffer(ids(3, 0, 1, 0).tobytes(), np.uint64)[::2])[0] == [1, 1]


def test_a_put_is_invisible_until_published_and_there_after_a_crash_before_that(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    old, new = make_columns(random, 2), make_columns(random, 2)
    with opened(tmp_path) as side_info:
        put(side_info, ids(1, 2), old)
        assert side_info.write(side_info.validate(ids(2, 3), new)) == 2
        assert side_info.version == 1
        assert read(side_info, ids(1, 2, 3))[0] == [1, 1, 0]
        assert same_bits(read(side_info, ids(1, 2))[1], old)
    with opened(tmp_path) as side_info:
        assert side_info.version == 2
        assert read(side_info, ids(1, 2, 3))[0] == [1, 1, 1]
        assert same_bits(read(side_info, ids(2, 3))[1], new)


def test_publishing_advances_in_short_steps_of_whole_items(tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    item_I = _random_ids(random, MAX_ITEMS)
    columns = make_columns(random, len(item_I))
    with opened(tmp_path) as side_info:
        batch = side_info.validate(item_I, columns)
        steps, seen, step_ms = side_info.publish(batch, side_info.write(batch)), [0], []
        while True:
            begin = time.thread_time()  # this thread's own: the machine may be busy with others
            if next(steps, 0) == 0:
                break
            step_ms.append((time.thread_time() - begin) * 1e3)
            known = side_info.statistics().items
            seen.append(known)
            present, read_columns = read(side_info, item_I)
            assert present == [1] * known + [0] * (len(item_I) - known)
            assert same_bits(
                {name: v[:known] for name, v in read_columns.items()}, {n: v[:known] for n, v in columns.items()}
            )
            assert side_info.version == 0
        assert side_info.version == 1
    print(f"{len(step_ms)} steps, longest {max(step_ms):.2f} ms")
    assert seen == sorted(set(seen))
    assert seen[-1] == len(item_I)
    assert np.median(step_ms) < 1.0


def test_versions_ascend_and_go_on_after_reopening(tmp_path: Path) -> None:
    column = {"category": np.zeros(1, np.uint32)}
    for first in (1, 3):
        with opened(tmp_path) as side_info:
            assert [put(side_info, ids(1), column), put(side_info, ids(1), column)] == [first, first + 1]


def test_more_than_max_items_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    kept = make_columns(random, 8)
    with opened(tmp_path, max_items=10) as side_info:
        put(side_info, np.arange(8, dtype=np.uint64), kept)
        too_many = np.arange(6, 12, dtype=np.uint64)
        with pytest.raises(SideInfoFull, match="at most 10 items"):
            side_info.write(side_info.validate(too_many, make_columns(random, 6)))
        exactly = make_columns(random, 2)
        assert put(side_info, ids(100, 101), exactly) == 2
        replaced = make_columns(random, 1)
        assert put(side_info, ids(0), replaced) == 3
    with opened(tmp_path, max_items=10) as side_info:
        assert side_info.statistics().items == 10
        assert same_bits(read(side_info, ids(100, 101))[1], exactly)
        assert same_bits(read(side_info, ids(0))[1], replaced)
        assert read(side_info, too_many)[0] == [1, 1, 0, 0, 0, 0]
        assert same_bits(read(side_info, range(1, 8))[1], {name: values[1:] for name, values in kept.items()})


def test_a_store_with_more_items_than_max_items_is_not_opened(tmp_path: Path) -> None:
    with opened(tmp_path) as side_info:
        put(side_info, ids(1, 2, 3), make_columns(np.random.default_rng(8), 3))
    with pytest.raises(SideInfoUnavailable, match="holds 3 items, max_items is 2"):
        SideInfo.open(tmp_path, SCHEMA, max_items=2)
    with opened(tmp_path, max_items=3) as side_info:
        assert side_info.statistics().items == 3


def test_a_full_map_is_refused_and_what_is_there_stays(tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    first, second = np.arange(10_000, dtype=np.uint64), np.arange(10_000, 26_000, dtype=np.uint64)
    columns = make_columns(random, len(first))
    side_info = SideInfo.open(tmp_path, SCHEMA, max_items=100_000, map_size_bytes=1 << 20)
    put(side_info, first, columns)
    batch = side_info.validate(second, make_columns(random, len(second)))
    with pytest.raises(SideInfoFull, match="MDB_MAP_FULL"):
        side_info.write(batch)
    put(side_info, first[:1], {name: values[:1] for name, values in columns.items()})  # it is full, not broken
    side_info.close()
    with opened(tmp_path) as side_info:
        assert (side_info.version, side_info.statistics().items) == (2, len(first))
        assert same_bits(read(side_info, first)[1], columns)
        put(side_info, second, make_columns(random, len(second)))


def test_a_nearly_full_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    side_info = SideInfo.open(tmp_path, SCHEMA, max_items=10, min_free_bytes=1 << 60)
    with pytest.raises(SideInfoFull, match="MiB free on the disk"):
        side_info.write(side_info.validate(ids(1), make_columns(np.random.default_rng(10), 1)))
    side_info.close()
    with opened(tmp_path) as side_info:
        assert (side_info.version, side_info.statistics().items) == (0, 0)


def test_statistics_count_what_is_there(tmp_path: Path) -> None:
    with opened(tmp_path, max_items=77) as side_info:
        empty = side_info.statistics()
        put(side_info, ids(1, 2, 3), make_columns(np.random.default_rng(11), 3))
        some = side_info.statistics()
    assert (empty.items, empty.max_items, empty.version) == (0, 77, 0)
    assert (some.items, some.max_items, some.version) == (3, 77, 1)
    assert some.memory_bytes == empty.memory_bytes + 3 * (4 + 4 + 8)
    assert some.disk_bytes >= empty.disk_bytes > 0


def test_items_of_a_schema_without_columns_are_known_or_not(tmp_path: Path) -> None:
    schema = Schema.from_mapping({"version": 1, "event": EVENT})
    for expected in ([0, 0], [1, 0]):
        with opened(tmp_path, schema) as side_info:
            assert read(side_info, ids(1, 2), schema) == (expected, {})
            put(side_info, ids(1), {})


def test_loading_200_000_items(tmp_path: Path) -> None:
    random = np.random.default_rng(12)
    item_I = _random_ids(random, 200_000)
    columns = make_columns(random, len(item_I))
    begin = time.perf_counter()
    with opened(tmp_path) as side_info:
        for at in range(0, len(item_I), MAX_ITEMS):
            chosen = slice(at, at + MAX_ITEMS)
            put(side_info, item_I[chosen], {name: values[chosen] for name, values in columns.items()})
    written = time.perf_counter()
    with opened(tmp_path) as side_info:
        loaded = time.perf_counter()
        print(f"{len(item_I)} items: put {written - begin:.2f} s, loaded {loaded - written:.2f} s")
        order = random.permutation(len(item_I))
        assert same_bits(read(side_info, item_I[order])[1], {name: values[order] for name, values in columns.items()})


class SideInfoAgainstDict(RuleBasedStateMachine):
    """Puts, puts that crash before they are published, reopening; items compared by their bits."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.side_info = SideInfo.open(self.path, SCHEMA, max_items=1_000)
        self.model: dict[int, bytes] = {}
        self.version = 0

    @rule(items=st.lists(st.integers(0, 20) | st.integers(0, 2**64 - 1), min_size=1, unique=True), data=st.data())
    def put(self, items: list[int], data: st.DataObject) -> None:
        put(self.side_info, np.array(items, np.uint64), self._draw(items, data))

    @rule(items=st.lists(st.integers(0, 20), min_size=1, unique=True), data=st.data())
    def crash_before_publishing(self, items: list[int], data: st.DataObject) -> None:
        self.side_info.write(self.side_info.validate(np.array(items, np.uint64), self._draw(items, data)))
        self.reopen()

    @rule()
    def reopen(self) -> None:
        self.side_info.close()
        self.side_info = SideInfo.open(self.path, SCHEMA, max_items=1_000)

    @invariant()
    def same_as_the_dict(self) -> None:
        asked = [*self.model, 21, 22]
        present, columns = read(self.side_info, asked)
        assert present == [int(item in self.model) for item in asked]
        for row, item in enumerate(self.model):
            assert _row(columns, row) == self.model[item]
        assert self.side_info.version == self.version
        assert self.side_info.statistics().items == len(self.model)

    def teardown(self) -> None:
        self.side_info.close()
        self.folder.cleanup()

    def _draw(self, items: list[int], data: st.DataObject) -> Columns:
        columns = make_columns(np.random.default_rng(data.draw(st.integers(0, 2**32))), len(items))
        self.model |= {item: _row(columns, row) for row, item in enumerate(items)}
        self.version += 1
        return columns


def _row(columns: Columns, row: int) -> bytes:
    return b"".join(values[row].tobytes() for values in columns.values())


TestSideInfoAgainstDict = SideInfoAgainstDict.TestCase
TestSideInfoAgainstDict.settings = settings(max_examples=15, stateful_step_count=15)
