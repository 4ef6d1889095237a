"""The hash table against a dict: clusters that wrap around, backward-shift deletion, growth, every key value, a full one."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from seqcore.table import INITIAL_CAPACITY, MAX_LOAD_PERCENT, SUB_TABLES, Table, TableFullError, Words, mix

MASK = (1 << 64) - 1
LAST_HOME = (1 << 32) - 1
"""The 32 bits of a hash that put a key into the last slot of its sub-table, whatever the capacity."""


def key_of(hashed: int) -> int:
    """The inverse of `mix`: the key with this hash."""
    z = _unshift(hashed, 31)
    z = _unshift(z * pow(0x94D049BB133111EB, -1, 1 << 64) & MASK, 27)
    z = _unshift(z * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & MASK, 30)
    return (z - 0x9E3779B97F4A7C15) & MASK


def _unshift(shifted: int, bits: int) -> int:
    z = shifted
    for _ in range(64 // bits):
        z = shifted ^ (z >> bits)
    return z


def crafted(sub: int, home: int, nth: int) -> int:
    """The nth key of a sub-table and a 32-bit home."""
    return key_of(sub << 56 | home << 24 | nth)


def words(values: Sequence[int]) -> Words:
    return np.array(values, np.uint64)


COLLIDING = [
    crafted(7, home, nth) for home in (LAST_HOME, LAST_HOME - (1 << 28), 0, 1 << 28, 2 << 28) for nth in range(6)
]
"""Homes in slots 14, 15, 0, 1 and 2 of 16: one cluster around the end of sub-table 7."""
KEYS = st.one_of(st.sampled_from(COLLIDING), st.sampled_from([0, 1, MASK - 1, MASK]), st.integers(0, MASK))
VALUES = st.one_of(st.just(0), st.integers(1, MASK), st.just(MASK))


def test_crafted_keys_have_the_hash_they_were_made_for() -> None:
    assert int(mix(np.uint64(crafted(7, LAST_HOME, 3)))) == 7 << 56 | LAST_HOME << 24 | 3


class TableAgainstDict(RuleBasedStateMachine):
    """Batches of puts and deletions, repeats within a batch included."""

    @initialize()
    def start(self) -> None:
        self.table = Table(max_keys=1 << 16)
        self.model: dict[int, int] = {}

    @rule(entries=st.lists(st.tuples(KEYS, VALUES), max_size=40))
    def put_many(self, entries: list[tuple[int, int]]) -> None:
        self.table.put_many(words([key for key, _ in entries]), words([value for _, value in entries]))
        self._expect(entries)

    @rule(key=KEYS, value=VALUES)
    def put(self, key: int, value: int) -> None:
        self.table.put(key, value)
        self._expect([(key, value)])

    @rule(data=st.data())
    def delete_some_of_the_present(self, data: st.DataObject) -> None:
        if self.model:
            chosen = data.draw(st.lists(st.sampled_from(sorted(self.model)), unique=True))
            self.table.put_many(words(chosen), words([0] * len(chosen)))
            self._expect([(key, 0) for key in chosen])

    @rule(keys=st.lists(KEYS, max_size=20))
    def get(self, keys: list[int]) -> None:
        assert self.table.get_many(words(keys)).tolist() == [self.model.get(key, 0) for key in keys]
        assert [self.table.get(key) for key in keys] == [self.model.get(key, 0) for key in keys]

    @invariant()
    def all_there_and_nothing_else(self) -> None:
        keys, values = self.table.items()
        assert len(keys) == len(self.table) == len(self.model)
        assert dict(zip(keys.tolist(), values.tolist(), strict=True)) == self.model
        assert self.table.get_many(words(COLLIDING)).tolist() == [self.model.get(key, 0) for key in COLLIDING]

    def _expect(self, entries: list[tuple[int, int]]) -> None:
        for key, value in entries:
            if value:
                self.model[key] = value
            else:
                self.model.pop(key, None)


TestTableAgainstDict = TableAgainstDict.TestCase
TestTableAgainstDict.settings = settings(max_examples=60, stateful_step_count=30)


@given(order=st.permutations(range(12)), data=st.data())
def test_a_cluster_around_the_end_survives_deletions_in_any_order(order: list[int], data: st.DataObject) -> None:
    homes = data.draw(st.lists(st.sampled_from([13, 14, 15, 0, 1]), min_size=12, max_size=12))
    keys = [crafted(200, home << 28, nth) for nth, home in enumerate(homes)]
    table = Table(max_keys=1000)
    table.put_many(words(keys), words(range(1, 13)))
    assert table.memory_bytes == SUB_TABLES * INITIAL_CAPACITY * 16, "it grew: the cluster is no longer around the end"
    left = dict(zip(keys, range(1, 13), strict=True))
    for position in order:
        table.put(keys[position], 0)
        del left[keys[position]]
        assert table.get_many(words(keys)).tolist() == [left.get(key, 0) for key in keys]
    assert len(table) == 0


@pytest.mark.parametrize("max_keys", [1, 100, 2_000, 10_000, 12_000, 15_000, 100_000])
def test_a_table_holds_the_keys_it_was_made_for(max_keys: int) -> None:
    keys = np.random.default_rng(max_keys).integers(0, MASK, max_keys, np.uint64, endpoint=True)
    table = Table(max_keys=max_keys)
    table.put_many(keys, np.arange(1, max_keys + 1, dtype=np.uint64))
    assert len(table) == max_keys
    assert np.array_equal(table.get_many(keys), np.arange(1, max_keys + 1, dtype=np.uint64))


def test_growth_keeps_the_memory_that_the_module_promises() -> None:
    table, rng, used = Table(max_keys=500_000), np.random.default_rng(1), []
    for _ in range(50):
        keys = rng.integers(0, MASK, 10_000, np.uint64, endpoint=True)
        table.put_many(keys, np.ones(10_000, np.uint64))
        used.append(table.memory_bytes / len(table))
    assert used[-1] <= 16 * 100 / MAX_LOAD_PERCENT * 1.25
    assert min(used) >= 16 * 100 / MAX_LOAD_PERCENT


def test_a_full_sub_table_refuses_the_next_key_and_keeps_the_others() -> None:
    table = Table(max_keys=256)
    keys = words([crafted(3, nth * 40_503 << 8 & LAST_HOME, nth) for nth in range(1_000)])
    values = np.arange(1, 1_001, dtype=np.uint64)
    with pytest.raises(TableFullError, match="256 keys"):
        table.put_many(keys, values)
    held = len(table)
    assert 0 < held < 1_000
    assert np.array_equal(table.get_many(keys[:held]), values[:held])
    assert not table.get_many(keys[held:]).any()

    table.put(crafted(4, 0, 0), 9)
    table.put(int(keys[0]), 77)
    assert (table.get(crafted(4, 0, 0)), table.get(int(keys[0]))) == (9, 77)
    with pytest.raises(TableFullError):
        table.put(int(keys[held]), 1)

    table.put(int(keys[1]), 0)
    table.put(int(keys[held]), 5)
    assert table.get(int(keys[held])) == 5
    assert table.get(int(keys[1])) == 0


def test_an_absent_key_is_found_absent_in_a_full_sub_table() -> None:
    table = Table(max_keys=1)
    keys = words([crafted(3, LAST_HOME, nth) for nth in range(1_000)])
    with pytest.raises(TableFullError):
        table.put_many(keys, np.ones(1_000, np.uint64))
    assert table.get(int(keys[-1])) == 0
    table.put(int(keys[-1]), 0)


def test_items_of_an_empty_table_are_none() -> None:
    keys, values = Table(max_keys=10).items()
    assert len(keys) == len(values) == 0


def test_read_only_and_strided_keys_are_keys() -> None:
    table = Table(max_keys=100)
    packed = np.frombuffer(words([5, 6, 7, 8]).tobytes(), np.uint64)
    table.put_many(packed, words([1, 2, 3, 4]))
    assert table.get_many(packed[::2]).tolist() == [1, 3]
