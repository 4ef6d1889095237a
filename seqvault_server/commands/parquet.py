"""Rows of a Parquet file as numpy columns of the schema, a batch at a time; the file is never in memory as a whole.

Batch b holds the rows [b * batch_rows, (b + 1) * batch_rows) of the file, however its row groups lie.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqcore.schema import Column, Schema, Type

USER: Final = Column(name="user_id", type=Type.U64)
ITEM: Final = Column(name="item_id", type=Type.U64)
_BUFFER_BYTES: Final = 1 << 20
"""Read ahead, a column; without it pyarrow reads the whole column of a row group at once."""

Columns = dict[str, npt.NDArray[np.generic]]


class ParquetError(ValueError):
    """The file is no Parquet, or does not fit the schema; the text names the column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetRows:
    """An open file whose columns and types fit the schema; values are looked at when they are read."""

    file: pq.ParquetFile
    key: Column
    """USER in a file of events, ITEM in a file of items."""
    columns: Sequence[Column]
    """Those of the schema that the file has; the others have a default."""

    @classmethod
    def open(cls, path: Path, schema: Schema) -> Self:
        """Raises: ParquetError; OSError."""
        try:
            file = pq.ParquetFile(path, buffer_size=_BUFFER_BYTES)
        except pa.ArrowException as error:
            raise ParquetError(f"no Parquet file: {error}") from error
        given: pa.Schema = file.schema_arrow
        key, wanted = (USER, schema.event_columns) if USER.name in given.names else (ITEM, schema.side_info_columns)
        if key.name not in given.names:
            raise ParquetError("neither a column 'user_id' (events) nor a column 'item_id' (items)")
        known = {column.name: column for column in (key, *wanted)}
        for field in given:
            if field.name not in known:
                raise ParquetError(f"column {field.name!r}: the schema has no such column; it has {', '.join(known)}")
            _check_type(known[field.name], field.type)
        for column in wanted:
            if column.name not in given.names and column.default is None:
                raise ParquetError(f"column {column.name!r}: missing, and it has no default")
        return cls(file=file, key=key, columns=[column for column in wanted if column.name in given.names])

    @property
    def has_events(self) -> bool:
        return self.key is USER

    @property
    def row_count(self) -> int:
        return int(self.file.metadata.num_rows)

    @property
    def row_bytes(self) -> int:
        """Of a packed row, its key included."""
        return self.key.width_bytes + sum(column.width_bytes for column in self.columns)

    def batches(self, *, batch_rows: int, first: int) -> Iterator[tuple[npt.NDArray[np.generic], Columns]]:
        """Keys and columns of each batch from number `first` on; only the last one has less than `batch_rows` rows.

        Raises: ParquetError for a missing value, or an array of another length; OSError.
        """
        metadata = self.file.metadata
        ends = list(accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))
        groups = [group for group, end in enumerate(ends) if end > first * batch_rows]
        if not groups:
            return
        skip = first * batch_rows - (ends[groups[0] - 1] if groups[0] else 0)
        names = [column.name for column in (self.key, *self.columns)]
        held: list[pa.RecordBatch] = []
        missing = batch_rows
        try:
            for read in self.file.iter_batches(batch_size=batch_rows, row_groups=groups, columns=names):
                rest = read.slice(min(skip, read.num_rows))
                skip -= read.num_rows - rest.num_rows
                while rest.num_rows >= missing:
                    yield self._unpack([*held, rest.slice(0, missing)])
                    rest, held, missing = rest.slice(missing), [], batch_rows
                if rest.num_rows:
                    held.append(rest)
                    missing -= rest.num_rows
        except pa.ArrowException as error:
            raise ParquetError(f"damaged: {error}") from error
        if held:
            yield self._unpack(held)

    def _unpack(self, parts: Sequence[pa.RecordBatch]) -> tuple[npt.NDArray[np.generic], Columns]:
        table = pa.Table.from_batches(parts)
        arrays = {column.name: _values(column, table[column.name]) for column in (self.key, *self.columns)}
        return arrays.pop(self.key.name), arrays


def _check_type(column: Column, given: pa.DataType) -> None:
    value, length = given, 1
    if pa.types.is_fixed_size_list(given):
        value, length = given.value_type, given.list_size
    elif pa.types.is_list(given) or pa.types.is_large_list(given):
        # Its arrays are measured as they are read.
        value, length = given.value_type, max(2, column.length)
    is_number = pa.types.is_integer(value) or (column.type is Type.F32 and pa.types.is_floating(value))
    if not is_number or length != column.length:
        wanted = column.type.name.lower() + (f"[{column.length}]" if column.length > 1 else "")
        raise ParquetError(f"column {column.name!r}: {given} given, {wanted} wanted")


def _values(column: Column, chunks: pa.ChunkedArray) -> npt.NDArray[np.generic]:
    rows = len(chunks)
    if column.length > 1 and not pa.types.is_fixed_size_list(chunks.type):
        lengths: Mapping[str, int] = pc.min_max(pc.list_value_length(chunks)).as_py()
        if chunks.null_count == 0 and set(lengths.values()) != {column.length}:
            raise ParquetError(f"column {column.name!r}: an array that has not {column.length} values")
    flat = chunks if column.length == 1 else pc.list_flatten(chunks)
    if chunks.null_count or flat.null_count:
        raise ParquetError(f"column {column.name!r}: a value is missing (null)")
    values: npt.NDArray[np.generic] = flat.to_numpy()
    return values if column.length == 1 else values.reshape(rows, column.length)
