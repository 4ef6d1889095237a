"""A put of items, checked: packed rows. What is wrong is named here, before anything is applied."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from seqcore.schema import Column, Schema, row_dtype
from seqcore.table import Words
from seqvault_server.sideinfo.distinct import first_duplicate
from seqvault_server.sideinfo.errors import InvalidItems

MAX_ITEMS: Final = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemBatch:
    """Items, each once, and a packed row of every side-info column of the schema for each."""

    item_I: Words
    rows: npt.NDArray[np.void]


def make_batch(
    schema: Schema, *, item_I: npt.NDArray[np.uint64], columns: Mapping[str, npt.NDArray[np.generic]]
) -> ItemBatch:
    """Checks and packs: a copy. A column that has a default may be left out.

    Raises: InvalidItems with the field: no items, too many, one given twice; columns unknown, missing, of another type or length.
    """
    if len(item_I) == 0:
        raise InvalidItems("item_ids", "NO_ITEMS", "a call needs at least one item")
    if len(item_I) > MAX_ITEMS:
        raise InvalidItems("item_ids", "TOO_MANY_ITEMS", f"{len(item_I)} items in one call, at most {MAX_ITEMS}")
    twice = first_duplicate(item_I)
    if twice is not None:
        raise InvalidItems("item_ids", "DUPLICATE_ITEM", f"item {twice} is given more than once")
    for name in columns:
        if name not in schema.side_info_column_of:
            raise InvalidItems(f"columns[{name}]", "UNKNOWN_COLUMN", f"the schema has no side-info column {name!r}")
    rows = np.empty(len(item_I), row_dtype(schema.side_info_columns))
    for column in schema.side_info_columns:
        rows[column.name] = _values(column, columns.get(column.name), rows[column.name].shape)
    return ItemBatch(item_I=np.array(item_I, np.uint64), rows=rows)


def _values(
    column: Column, given: npt.NDArray[np.generic] | None, shape: tuple[int, ...]
) -> npt.NDArray[np.generic] | float:
    field = f"columns[{column.name}]"
    if given is None:
        if column.default is None:
            raise InvalidItems(field, "MISSING_COLUMN", "not given, and it has no default")
        return column.default
    if given.dtype != column.dtype:
        raise InvalidItems(field, "COLUMN_TYPE", f"{given.dtype} given, {column.type.name.lower()} wanted")
    if given.shape != shape:
        raise InvalidItems(field, "COLUMN_LENGTH", f"shape {given.shape} given, {shape} wanted")
    return given
