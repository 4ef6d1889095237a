"""Messages and columns: what is packed unpacks to the same, and what does not fit the schema is refused by name."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laser_client.errors import ColumnError
from laser_client.wire import (
    filter_from_proto,
    filter_to_proto,
    pack_columns,
    schema_from_proto,
    schema_to_proto,
    unpack_columns,
)
from seqcore.errors import SchemaError
from seqcore.filters import Filter
from seqcore.schema import Column, Role, Schema, Type, View
from seqvault.v1 import seqvault_pb2 as pb

SCHEMA = Schema(
    version=2,
    event_columns=(
        Column(name="item", type=Type.U64, role=Role.ITEM),
        Column(name="time_ms", type=Type.I64, role=Role.TIME),
        Column(name="action", type=Type.U8, role=Role.ACTION),
        Column(name="scene", type=Type.U16, role=Role.SCENE, default=7),
        Column(name="dwell_s", type=Type.F32, since=2, default=0.5),
    ),
    side_info_columns=(
        Column(name="price", type=Type.U32, default=0),
        Column(name="genres", type=Type.U16, length=4, default=9),
    ),
    views=(View(name="recent", columns=("item",), max_events=5, actions=(1, 2), scenes=(3,), side_info=("price",)),),
)


def test_schema_round_trips() -> None:
    sent = pb.Schema.FromString(schema_to_proto(SCHEMA).SerializeToString())
    assert schema_from_proto(sent) == SCHEMA


def test_enums_carry_the_numbers_of_seqcore() -> None:
    assert {name: value for name, value in pb.Type.items() if value} == {f"TYPE_{t.name}": t.value for t in Type}
    assert {name: value for name, value in pb.Role.items() if value} == {f"ROLE_{r.name}": r.value for r in Role}


def test_type_of_a_newer_server_is_refused() -> None:
    message = schema_to_proto(SCHEMA)
    message.event_columns[2].type = 77  # type: ignore[assignment]
    with pytest.raises(SchemaError, match="type 77 is unknown"):
        schema_from_proto(message)


def test_default_of_wrong_width_is_refused() -> None:
    message = schema_to_proto(SCHEMA)
    message.event_columns[3].default_value = b"\1\2\3"
    with pytest.raises(SchemaError, match="3 bytes, not 2"):
        schema_from_proto(message)


@given(
    st.builds(
        Filter,
        max_events=st.integers(0, 2**32 - 1),
        start_ms=st.none() | st.integers(-(2**63), 2**63 - 1),
        end_ms=st.none() | st.integers(-(2**63), 2**63 - 1),
        actions=st.tuples(st.integers(0, 255)),
        scenes=st.tuples() | st.tuples(st.integers(0, 65535)),
    )
)
def test_filter_round_trips(residual: Filter) -> None:
    assert filter_from_proto(pb.Filter.FromString(filter_to_proto(residual).SerializeToString())) == residual


@given(st.integers(0, 20), st.integers(0, 2**32))
def test_columns_round_trip(rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "genres": random.integers(0, 2**16, (rows, 4)).astype("<u2"),
        "price": random.integers(0, 2**32, rows).astype("<u4"),
    }
    packed = pack_columns(arrays, SCHEMA.side_info_columns)
    assert [column.name for column in packed] == ["genres", "price"]
    unpacked = unpack_columns(packed, SCHEMA.side_info_columns, rows=rows)
    assert list(unpacked) == ["price", "genres"]
    for name, values in arrays.items():
        np.testing.assert_array_equal(unpacked[name], values, strict=True)


def test_left_out_columns_read_as_their_default() -> None:
    unpacked = unpack_columns([], SCHEMA.side_info_columns, rows=2)
    np.testing.assert_array_equal(unpacked["genres"], np.full((2, 4), 9, "<u2"), strict=True)
    np.testing.assert_array_equal(unpacked["price"], np.zeros(2, "<u4"), strict=True)


def test_unpacked_columns_are_views() -> None:
    packed = pack_columns({"price": np.arange(3, dtype="<u4")}, SCHEMA.side_info_columns)
    price = unpack_columns(packed, SCHEMA.side_info_columns, rows=3)["price"]
    assert not price.flags.owndata
    assert not price.flags.writeable


def test_wrong_row_count_is_refused_before_defaults_are_filled() -> None:
    columns = (Column(name="a", type=Type.U64, default=0), Column(name="b", type=Type.U64))
    with pytest.raises(ColumnError, match="16 bytes given"):
        unpack_columns([pb.Column(name="b", data=bytes(16))], columns, rows=2**45)


ITEM = pb.Column(name="item", data=bytes(16))
TIME = pb.Column(name="time_ms", data=bytes(16))
ACTION = pb.Column(name="action", data=bytes(2))


@pytest.mark.parametrize(
    ("packed", "column", "reason"),
    [
        ([ITEM, TIME, ACTION, pb.Column(name="brand", data=bytes(2))], "brand", "UNKNOWN_COLUMN"),
        ([ITEM, TIME, ITEM, ACTION], "item", "DUPLICATE_COLUMN"),
        ([ITEM, TIME], "action", "MISSING_COLUMN"),
        ([ITEM, TIME, pb.Column(name="action", data=bytes(3))], "action", "COLUMN_LENGTH"),
        ([ITEM, pb.Column(name="time_ms", data=bytes(15)), ACTION], "time_ms", "COLUMN_LENGTH"),
        ([ITEM, TIME, pb.Column(name="action")], "action", "COLUMN_LENGTH"),
    ],
)
def test_packed_column_that_does_not_fit_is_refused(packed: list[pb.Column], column: str, reason: str) -> None:
    with pytest.raises(ColumnError) as caught:
        unpack_columns(packed, SCHEMA.event_columns, rows=2)
    assert (caught.value.column, caught.value.reason) == (column, reason)
    assert caught.value.field == f"columns[{column}]"


def test_arrays_of_other_numeric_types_are_cast() -> None:
    packed = pack_columns({"action": [1, 255], "dwell_s": np.array([1, 2])}, SCHEMA.event_columns)
    assert [column.data for column in packed] == [b"\x01\xff", np.array([1, 2], "<f4").tobytes()]


@pytest.mark.parametrize(
    ("arrays", "column", "reason"),
    [
        ({"brand": [1]}, "brand", "UNKNOWN_COLUMN"),
        ({"action": [1, 256]}, "action", "COLUMN_TYPE"),
        ({"item": np.array([-1])}, "item", "COLUMN_TYPE"),
        ({"action": [1.5]}, "action", "COLUMN_TYPE"),
        ({"dwell_s": ["x"]}, "dwell_s", "COLUMN_TYPE"),
        ({"action": [1, 2], "scene": [1]}, "scene", "COLUMN_LENGTH"),
        ({"action": [[1, 2]]}, "action", "COLUMN_LENGTH"),
        ({"action": 1}, "action", "COLUMN_LENGTH"),
    ],
)
def test_array_that_does_not_fit_is_refused(arrays: dict[str, npt.ArrayLike], column: str, reason: str) -> None:
    with pytest.raises(ColumnError) as caught:
        pack_columns(arrays, SCHEMA.event_columns)
    assert (caught.value.column, caught.value.reason) == (column, reason)


def test_array_of_wrong_row_length_is_refused() -> None:
    with pytest.raises(ColumnError, match=r"shape \(2, 3\), wanted \(2, 4\)"):
        pack_columns({"genres": np.zeros((2, 3), "<u2")}, SCHEMA.side_info_columns)
