"""Messages to what the rest of the code thinks in, and back: schemas, filters, packed columns.

The server and the client share this file, so there is one answer to what a packed column is. Enums of the protocol
carry the numbers of seqcore's, which are persisted; a test holds that.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from laser_client.errors import ColumnError, InvalidRequest
from seqcore.errors import SchemaError
from seqcore.filters import Filter
from seqcore.schema import Column, Role, Schema, Type, View
from seqvault.v1 import seqvault_pb2 as pb

_Member = TypeVar("_Member", Role, Type)


def schema_to_proto(schema: Schema) -> pb.Schema:
    return pb.Schema(
        version=schema.version,
        event_columns=[_column_to_proto(column) for column in schema.event_columns],
        side_info_columns=[_column_to_proto(column) for column in schema.side_info_columns],
        views=[
            pb.ViewSpec(
                name=view.name,
                columns=view.columns,
                max_events=view.max_events,
                actions=view.actions,
                scenes=view.scenes,
                side_info=view.side_info,
            )
            for view in schema.views
        ],
    )


def schema_from_proto(message: pb.Schema) -> Schema:
    """Raises: SchemaError if the message breaks a rule of schemas, or names a type or role that this program is too old for."""
    return Schema(
        version=message.version,
        event_columns=tuple(_column_from_proto(spec) for spec in message.event_columns),
        side_info_columns=tuple(_column_from_proto(spec) for spec in message.side_info_columns),
        views=tuple(
            View(
                name=view.name,
                columns=tuple(view.columns),
                max_events=view.max_events,
                actions=tuple(view.actions),
                scenes=tuple(view.scenes),
                side_info=tuple(view.side_info),
            )
            for view in message.views
        ),
    )


def filter_to_proto(residual: Filter) -> pb.Filter:
    return pb.Filter(
        max_events=residual.max_events,
        start_ms=residual.start_ms,
        end_ms=residual.end_ms,
        actions=residual.actions,
        scenes=residual.scenes,
    )


def filter_from_proto(message: pb.Filter) -> Filter:
    return Filter(
        max_events=message.max_events,
        start_ms=message.start_ms if message.HasField("start_ms") else None,
        end_ms=message.end_ms if message.HasField("end_ms") else None,
        actions=tuple(message.actions),
        scenes=tuple(message.scenes),
    )


def pack_columns(
    arrays: Mapping[str, npt.ArrayLike], columns: Sequence[Column], *, rows: int | None = None
) -> list[pb.Column]:
    """One packed column for each array, in their order; `columns` says what names there are. A column without an array is left out.

    An array of another numeric type is cast if every value fits; `rows` is taken from the first array if not given.

    Raises: ColumnError (UNKNOWN_COLUMN, COLUMN_TYPE, COLUMN_LENGTH).
    """
    column_of = {column.name: column for column in columns}
    packed = []
    for name, values in arrays.items():
        column = column_of.get(name)
        if column is None:
            raise _unknown(name, columns)
        array = as_array(values)
        if array.dtype != column.dtype:
            array = _cast(array, column)
        rows = array.shape[0] if rows is None and array.ndim else rows
        if array.shape != _shape(column, rows or 0):
            raise ColumnError(name, "COLUMN_LENGTH", f"shape {array.shape}, wanted {_shape(column, rows or 0)}")
        packed.append(pb.Column(name=name, data=array.tobytes()))
    return packed


def unpack_columns(
    packed: Iterable[pb.Column], columns: Sequence[Column], *, rows: int
) -> dict[str, npt.NDArray[np.generic]]:
    """Every one of `columns`, in their order: a read-only view of the packed bytes, or the default where left out.

    Shapes are [rows], or [rows, length] for fixed arrays.

    Raises: ColumnError (UNKNOWN_COLUMN, DUPLICATE_COLUMN, MISSING_COLUMN, COLUMN_LENGTH).
    """
    names = {column.name for column in columns}
    data_of: dict[str, bytes] = {}
    for given in packed:
        name = given.name
        if name not in names:
            raise _unknown(name, columns)
        if name in data_of:
            raise ColumnError(name, "DUPLICATE_COLUMN", "given twice")
        data_of[name] = given.data
    # Before any default is filled: a wrong row count must not make arrays of its size.
    for column in columns:
        data = data_of.get(column.name)
        if data is None and column.default is None:
            raise ColumnError(column.name, "MISSING_COLUMN", "not given, and it has no default")
        if data is not None and len(data) != rows * column.width_bytes:
            wanted = f"{rows} rows of {column.width_bytes} bytes are {rows * column.width_bytes} bytes"
            raise ColumnError(column.name, "COLUMN_LENGTH", f"{len(data)} bytes given; {wanted}")
    return {
        column.name: np.frombuffer(data_of[column.name], column.dtype).reshape(_shape(column, rows))
        if column.name in data_of
        else np.full(_shape(column, rows), column.default, column.dtype)
        for column in columns
    }


def ids_of(values: npt.ArrayLike, field: str) -> npt.NDArray[np.uint64]:
    """User or item ids as one array of u64.

    Raises: InvalidRequest naming `field`, if one is no unsigned 64-bit integer.
    """
    array = as_array(values)
    is_integer = array.dtype.kind in "iu" or not array.size
    if array.ndim != 1 or not is_integer or (array.dtype.kind == "i" and array.size and int(array.min()) < 0):
        raise InvalidRequest(f"{field}: wanted unsigned 64-bit integers", reason="ID_INVALID", field=field)
    return array.astype(np.uint64, copy=False)


def as_array(values: npt.ArrayLike) -> npt.NDArray[np.generic]:
    """numpy's choice of type, but integers stay integers."""
    if isinstance(values, np.ndarray):
        return values
    array = np.asarray(values)
    if array.dtype.kind == "f" and all(isinstance(value, int) for value in np.asarray(values, object).flat):
        # Integers on both sides of 2^63 in one list: numpy would round them to floats.
        return np.asarray(values, np.uint64) if (array >= 0).all() else array
    return array


def _shape(column: Column, rows: int) -> tuple[int, ...]:
    return (rows,) if column.length == 1 else (rows, column.length)


def _cast(array: npt.NDArray[np.generic], column: Column) -> npt.NDArray[np.generic]:
    target = column.dtype
    if not array.size:
        return array.astype(target)
    if target.kind == "f":
        if array.dtype.kind in "iuf":
            return array.astype(target)
    elif array.dtype.kind in "iu":
        limits = np.iinfo(target.str)
        low, high = int(array.min()), int(array.max())
        if limits.min <= low and high <= limits.max:
            return array.astype(target)
        raise ColumnError(column.name, "COLUMN_TYPE", f"{low}..{high} does not fit {column.type.name.lower()}")
    raise ColumnError(column.name, "COLUMN_TYPE", f"{array.dtype} given, {column.type.name.lower()} wanted")


def _unknown(name: str, columns: Sequence[Column]) -> ColumnError:
    known = ", ".join(column.name for column in columns)
    return ColumnError(name, "UNKNOWN_COLUMN", f"no such column; the columns are {known}")


def _column_to_proto(column: Column) -> pb.ColumnSpec:
    return pb.ColumnSpec(
        name=column.name,
        type=pb.Type.ValueType(column.type),
        role=pb.Role.ValueType(column.role),
        length=column.length,
        since=column.since,
        default_value=b"" if column.default is None else np.array(column.default, column.dtype).tobytes(),
    )


def _column_from_proto(spec: pb.ColumnSpec) -> Column:
    type_ = _member(Type, spec.type, spec.name)
    size = type_.dtype.itemsize
    if len(spec.default_value) not in (0, size):
        raise SchemaError(f"column {spec.name!r}", f"the default has {len(spec.default_value)} bytes, not {size}")
    return Column(
        name=spec.name,
        type=type_,
        role=_member(Role, spec.role, spec.name),
        length=spec.length,
        since=spec.since,
        default=np.frombuffer(spec.default_value, type_.dtype)[0].item() if spec.default_value else None,
    )


def _member(kind: type[_Member], number: int, column: str) -> _Member:
    try:
        return kind(number)
    except ValueError:
        raise SchemaError(
            f"column {column!r}", f"{kind.__name__.lower()} {number} is unknown to this program"
        ) from None
