"""What the tests of side-info share: two versions of a schema, made-up items, a put driven on one thread."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from seqcore.schema import Schema
from seqvault_server.sideinfo.store import SideInfo

EVENT: Final = {
    "columns": [{"name": "item_id", "type": "u64", "role": "item"}, {"name": "time_ms", "type": "i64", "role": "time"}]
}
OLD_COLUMNS: Final = [
    {"name": "category", "type": "u32"},
    {"name": "price", "type": "f32", "default": 1.5},
    {"name": "genres", "type": "u16[4]", "default": 7},
]
ADDED_COLUMNS: Final = [
    {"name": "author", "type": "u64", "since": 2, "default": 2**64 - 1},
    {"name": "shifts", "type": "i64[2]", "since": 2, "default": -3},
]
SCHEMA: Final = Schema.from_mapping({"version": 1, "event": EVENT, "side_info": {"columns": OLD_COLUMNS}})
NEXT_SCHEMA: Final = Schema.from_mapping(
    {"version": 2, "event": EVENT, "side_info": {"columns": [*OLD_COLUMNS, *ADDED_COLUMNS]}}
)

Columns = dict[str, npt.NDArray[np.generic]]


def ids(*values: int) -> npt.NDArray[np.uint64]:
    return np.array(values, np.uint64)


def make_columns(random: np.random.Generator, count: int, schema: Schema = SCHEMA) -> Columns:
    """Random bits of every side-info column: NaNs with payloads among the floats."""
    return {
        column.name: np.frombuffer(random.bytes(count * column.width_bytes), column.dtype).reshape(
            (count,) if column.length == 1 else (count, column.length)
        )
        for column in schema.side_info_columns
    }


@contextmanager
def opened(path: Path, schema: Schema = SCHEMA, *, max_items: int = 300_000) -> Iterator[SideInfo]:
    side_info = SideInfo.open(path, schema, max_items=max_items)
    try:
        yield side_info
    finally:
        side_info.close()


def put(side_info: SideInfo, item_I: npt.NDArray[np.uint64], columns: Mapping[str, npt.NDArray[np.generic]]) -> int:
    batch = side_info.validate(item_I, columns)
    version = side_info.write(batch)
    for _ in side_info.publish(batch, version):
        pass
    return version


def read(
    side_info: SideInfo, item_I: Sequence[int] | npt.NDArray[np.uint64], schema: Schema = SCHEMA
) -> tuple[list[int], Columns]:
    present, columns = side_info.gather(np.array(item_I, np.uint64), schema.side_info_columns)
    return present.tolist(), columns


def same_bits(one: Columns, other: Columns) -> bool:
    return list(one) == list(other) and all(
        (values.dtype, values.shape, values.tobytes()) == (other[name].dtype, other[name].shape, other[name].tobytes())
        for name, values in one.items()
    )
