"""What a put refuses, by reason and field, and what it fills in."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqvault_server.sideinfo.batch import MAX_ITEMS, make_batch
from seqvault_server.sideinfo.distinct import distinct
from seqvault_server.sideinfo.errors import InvalidItems
from tests.seqvault_server.sideinfo.harness import NEXT_SCHEMA, SCHEMA, Columns, ids

Array = npt.NDArray[np.generic]


def _columns(**replaced: Array | None) -> Columns:
    given_columns: dict[str, Array | None] = {
        "category": np.array([1, 2], np.uint32),
        "price": np.array([0.5, -0.5], np.float32),
        "genres": np.arange(8, dtype=np.uint16).reshape(2, 4),
    }
    return {name: values for name, values in (given_columns | replaced).items() if values is not None}


@pytest.mark.parametrize(
    ("item_I", "columns", "field", "reason"),
    [
        (ids(), {}, "item_ids", "NO_ITEMS"),
        (np.arange(MAX_ITEMS + 1, dtype=np.uint64), {}, "item_ids", "TOO_MANY_ITEMS"),
        (ids(0, 0), _columns(), "item_ids", "DUPLICATE_ITEM"),
        (ids(1, 2), _columns(colour=np.zeros(2, np.uint8)), "columns[colour]", "UNKNOWN_COLUMN"),
        (ids(1, 2), _columns(category=None), "columns[category]", "MISSING_COLUMN"),
        (ids(1, 2), _columns(category=np.zeros(2, np.int64)), "columns[category]", "COLUMN_TYPE"),
        (ids(1, 2), _columns(price=np.zeros(2, ">f4")), "columns[price]", "COLUMN_TYPE"),
        (ids(1, 2), _columns(price=np.zeros(1, np.float32)), "columns[price]", "COLUMN_LENGTH"),
        (ids(1, 2), _columns(price=np.zeros((), np.float32)), "columns[price]", "COLUMN_LENGTH"),
        (ids(1, 2), _columns(genres=np.zeros(8, np.uint16)), "columns[genres]", "COLUMN_LENGTH"),
        (ids(1, 2), _columns(genres=np.zeros((2, 3), np.uint16)), "columns[genres]", "COLUMN_LENGTH"),
    ],
)
def test_a_wrong_put_is_refused_by_field_and_reason(
    item_I: npt.NDArray[np.uint64], columns: Columns, field: str, reason: str
) -> None:
    with pytest.raises(InvalidItems) as caught:
        make_batch(SCHEMA, item_I=item_I, columns=columns)
    assert (caught.value.field, caught.value.reason) == (field, reason)


def test_the_item_given_twice_is_named() -> None:
    with pytest.raises(InvalidItems, match="item 18446744073709551615 is given more than once"):
        make_batch(SCHEMA, item_I=ids(2**64 - 1, 0, 5, 2**64 - 1), columns={})


def test_columns_left_out_hold_their_defaults() -> None:
    batch = make_batch(NEXT_SCHEMA, item_I=ids(1, 2), columns={"category": np.array([3, 4], np.uint32)})
    assert batch.rows["category"].tolist() == [3, 4]
    assert batch.rows["price"].tolist() == [1.5, 1.5]
    assert batch.rows["genres"].tolist() == [[7] * 4] * 2
    assert batch.rows["author"].tolist() == [2**64 - 1] * 2
    assert batch.rows["shifts"].tolist() == [[-3, -3]] * 2


def test_a_batch_does_not_change_with_the_buffers_it_was_made_from() -> None:
    item_I, columns = ids(1, 2), _columns()
    batch = make_batch(SCHEMA, item_I=item_I, columns=columns)
    item_I[0] = 9
    columns["category"][0] = 9
    assert (batch.item_I.tolist(), batch.rows["category"].tolist()) == ([1, 2], [1, 2])


def test_as_many_items_as_allowed_are_taken() -> None:
    item_I = np.arange(MAX_ITEMS, dtype=np.uint64)
    batch = make_batch(SCHEMA, item_I=item_I, columns={"category": np.zeros(MAX_ITEMS, np.uint32)})
    assert len(batch.item_I) == len(batch.rows) == MAX_ITEMS


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5)))
def test_distinct_ids_are_the_sorted_set(values: list[int]) -> None:
    found = distinct(np.array(values, np.uint64))
    assert found.dtype == np.uint64
    assert found.tolist() == sorted(set(values))
