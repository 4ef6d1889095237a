"""Items in memory, for reads: one hash table, one array a column.

    row of an item = table[item]         0, where the table has none
    columns     row 0            1     2     3 ...       max_items
      price   [ the default    |  .     .     .     ......reserved, untouched......
      genres  [ the default x4 |  .     .     .     ......reserved, untouched......

An unknown item has row 0, and row 0 holds the defaults: a gather is a probe and one `take` a column, without a mask. The
arrays are address space for `max_items` rows from the beginning; only used pages cost memory, and none is ever copied
to grow. Rows are never freed.

Not thread-safe: one thread owns it.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numba
import numpy as np
import numpy.typing as npt

from seqcore.schema import Column, Schema, row_dtype
from seqcore.table import Table, TableFullError, Words, get_one, mix, put_one, reserve
from seqvault_server.sideinfo.batch import ItemBatch

STEP_NS: Final = 300_000
"""Aim of a step of `put`: a third of the millisecond that it may hold the event loop. Measured costs of an item follow."""
MAX_STEP_MOVES: Final = 4_096
"""Entries that growing sub-tables may move before a step ends; one sub-table grows in one go (see seqcore.table)."""
_ITEM_NS: Final = 200
_COLUMN_NS: Final = 30
_BYTE_NS: Final = 2.0


class ItemTable:
    """See the module's diagram."""

    def __init__(self, schema: Schema, *, max_items: int) -> None:
        columns = schema.side_info_columns
        self._row_of = Table(max_keys=max_items)
        self._column_of = {column.name: _reserve_column(column, max_items + 1) for column in columns}
        self._row_bytes = sum(column.width_bytes for column in columns)
        self._step_items = max(1, int(STEP_NS / (_ITEM_NS + _COLUMN_NS * len(columns) + _BYTE_NS * self._row_bytes)))
        # Numba compiles, or loads what it compiled, here and not under the first request.
        nothing = np.empty(0, np.uint64)
        self._put(nothing, np.empty(0, row_dtype(columns)))
        self.gather(nothing, columns)

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the table and of the rows in use."""
        return self._row_of.memory_bytes + (len(self) + 1) * self._row_bytes

    def put(self, batch: ItemBatch) -> Iterator[None]:
        """Adds or replaces the items, in steps of under a millisecond: run it to its end, yielding where it yields.

        An item changes in one step, with all its columns; between steps some items are new and others still old.
        """
        begin = 0
        while begin < len(batch.item_I):
            chosen = slice(begin, begin + self._step_items)
            begin += self._put(batch.item_I[chosen], batch.rows[chosen])
            yield

    def gather(
        self, item_I: npt.NDArray[np.uint64], columns: Sequence[Column]
    ) -> tuple[npt.NDArray[np.uint8], dict[str, npt.NDArray[np.generic]]]:
        """1 or 0 for each item, known or not, and copies of the columns; see the module's text for unknown items."""
        # A copy is always writable and contiguous: numba has compiled the probe for no other array.
        row_I = self._row_of.get_many(np.array(item_I, np.uint64)).view(np.int64)
        values = {column.name: self._column_of[column.name].take(row_I, axis=0) for column in columns}
        return (row_I != 0).view(np.uint8), values

    def _put(self, item_I: Words, rows: npt.NDArray[np.void]) -> int:
        """Returns how many items, from the first on, the step has done."""
        row_I = np.empty(len(item_I), np.uint64)
        done = _place(*self._row_of.kernel_parts, item_I, row_I, np.uint64(len(self)), MAX_STEP_MOVES)
        if done < 0:
            raise TableFullError(self._row_of.max_keys)
        row_I = row_I[:done].view(np.int64)
        for name, values in self._column_of.items():
            values[row_I] = rows[name][:done]
        return done


@numba.njit(nogil=True, cache=True)
def _place(
    slots: npt.NDArray[np.uint64],
    capacity: npt.NDArray[np.int64],
    count: npt.NDArray[np.int64],
    item_I: Words,
    row_I: Words,
    used_rows: np.uint64,
    max_moves: int,
) -> int:
    """Finds each item's row, or gives it the next unused one; returns how many items were done, -1 if the table is full.

    Stops early once sub-tables that grew have moved more than `max_moves` entries. Sub-tables fill evenly, so that all
    256 grow within a few steps of each other: without this, a step at 1e6 items would grow seven of them.
    """
    moves = 0
    for i in range(len(item_I)):
        row = get_one(slots, capacity, item_I[i])
        if row == 0:
            used_rows += np.uint64(1)
            row = used_rows
            sub = np.int64(mix(item_I[i]) >> np.uint64(56))
            capacity_before = capacity[sub]
            if not put_one(slots, capacity, count, item_I[i], row):
                return -1
            if capacity[sub] != capacity_before:
                moves += capacity_before
        row_I[i] = row
        if moves > max_moves:
            return i + 1
    return len(item_I)


def _reserve_column(column: Column, rows: int) -> npt.NDArray[np.generic]:
    values = reserve(rows * column.width_bytes).view(column.dtype)
    shaped = values if column.length == 1 else values.reshape(rows, column.length)
    shaped[0] = column.default or 0
    return shaped
